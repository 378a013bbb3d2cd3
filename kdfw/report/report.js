"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = heading.classList.contains("number") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const numeric = heading.classList.contains("number");
      const key = (row) => {
        const cell = row.cells[column];
        if (!numeric) return cell.textContent;
        return cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort);
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b, undefined, { numeric: true });
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return sign * (a - b);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
const search = (box, things, textOf) => {
  const input = box.querySelector("input[type=search]");
  const status = box.querySelector("[role=status]");
  const what = status.dataset.what;
  let texts = null;
  input.addEventListener("input", () => {
    texts ??= things.map((thing) => textOf(thing).toLowerCase());
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    things.forEach((thing, place) => {
      thing.hidden = !words.every((word) => texts[place].includes(word));
      shown += !thing.hidden;
    });
    status.textContent = words.length ? `${shown} of ${things.length} ${what}` : `${things.length} ${what}`;
  });
};
for (const holder of document.querySelectorAll(".table")) {
  const box = holder.querySelector(".search");
  const textOf = (row) => [...row.cells].filter((cell) => !cell.classList.contains("number")).map((cell) => cell.textContent).join(" ");
  if (box) search(box, [...holder.querySelectorAll("tbody tr")], textOf);
}
for (const explorer of document.querySelectorAll(".explorer")) {
  const items = [...explorer.querySelectorAll(".query")];
  search(explorer.querySelector(".search"), items, (item) => item.textContent);
  const order = explorer.querySelector("select.order");
  order?.addEventListener("change", () => {
    const way = order.selectedOptions[0].dataset.way;
    const key = (item) => {
      const value = Number(item.getAttribute(`data-k${order.value}`) ?? NaN);
      return way === "up" ? value : way === "down" ? -value : -Math.abs(value);
    };
    const keyed = items.map((item) => [key(item), item]);
    keyed.sort(([a], [b]) => (Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : a - b));
    explorer.querySelector(".items").append(...keyed.map(([, item]) => item));
  });
  const choose = (box) => {
    for (const column of explorer.querySelectorAll(`[data-system="${box.value}"]`)) column.hidden = !box.checked;
  };
  for (const box of explorer.querySelectorAll(".choice input")) {
    box.addEventListener("change", () => choose(box));
    choose(box);
  }
}

"""Tables of the page: captions, sort buttons, row headings, a search box."""

from __future__ import annotations

from collections.abc import Sequence

from kdfw.report.html import Child, Markup, element


class Cell:
    """A table cell whose order is not that of its text."""

    def __init__(self, shown: Child, sort: float | None = None, kind: str = "") -> None:
        self.shown = shown
        self.sort = sort
        self.kind = kind


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Child | Cell]],
    *,
    text_columns: int = 1,
    sortable: bool = True,
    search: str = "",
) -> Markup:
    """A semantic table: caption, column headings with sort buttons, row headings.

    Args:
        text_columns: how many columns from the left hold text; the others are set as numbers.
        search: label of a search box that filters the rows; empty for none.
    """
    headings = []
    for number, name in enumerate(head):
        label: Child = element("button", name, type="button") if sortable and len(rows) > 1 else name
        headings.append(element("th", label, scope="col", class_=None if number < text_columns else "number"))
    body = []
    for row in rows:
        cells = []
        for number, cell in enumerate(row):
            kind = None if number < text_columns else "number"
            sort = cell.sort if isinstance(cell, Cell) else None
            shown = cell.shown if isinstance(cell, Cell) else cell
            mark = cell.kind if isinstance(cell, Cell) else ""
            cells.append(
                element("th", shown, scope="row") if number == 0
                else element("td", shown, class_=" ".join(filter(None, (kind, mark))) or None, data_sort=sort)
            )  # fmt: skip
        body.append(element("tr", cells))
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", headings)),
        element("tbody", body),
        class_="sortable" if sortable else None,
    )
    return element(
        "div",
        search_box(search, len(rows), "rows") if search else None,
        element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption),
        class_="table",
    )


def search_box(label: str, total: int, what: str, *more: Child) -> Markup:
    """A labelled search field, whatever else chooses, and a line that says how many are shown."""
    return element(
        "p",
        element("label", label, " ", element("input", type="search", autocomplete="off", spellcheck="false")),
        *more,
        element("span", f"{total} {what}", class_="note", role="status", data_what=what),
        class_="search",
    )


def shown(value: float | None, form: str) -> Cell:
    """A number in its form, or an empty cell."""
    return Cell("" if value is None else form.format(value), value)

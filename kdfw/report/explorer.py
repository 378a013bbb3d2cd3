"""Queries one by one: gains over the baseline, and an explorer of what each system found, with its texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdfw.report import figures
from kdfw.report.folder import Evaluation, RunView, StageView, mapping, numbers
from kdfw.report.html import Child, Markup, element
from kdfw.report.numbers import as_number, measure, short
from kdfw.report.results import system_before, teacher_systems, trained_systems
from kdfw.report.tables import Cell, search_box, table

MAX_ROWS = 1500
"""Rows of the tables of all queries in a report; of more those with the greatest gains and losses."""
MAX_CHARACTERS = 2_500_000
"""Of the explorers of a report. What changed least is left out beyond it, so that a report can be sent by mail."""
EQUAL = 1e-9


@dataclass(frozen=True, kw_only=True)
class Order:
    """A way to sort the explorer."""

    words: str
    way: str
    """`up`, `down`, or `far` from zero first."""
    values: Mapping[str, float]


def queries(run: RunView, runs: int = 1) -> Iterator[Child]:
    """Of every evaluation: gains by query as charts, the explorer, and all queries as a table.

    Args:
        runs: how many runs share the report; they and their evaluations get equal parts of its room.
    """
    parts = max(1, runs * len(run.evaluations))
    for stage in run.evaluations:
        found = stage.evaluation
        assert found is not None
        yield element("h3", stage.name) if len(run.evaluations) > 1 else None
        trained = trained_systems(run, found)
        subject = trained[0] if trained else found.systems[-1].name
        name = _measure_by_item(found, subject)
        if name:
            others = [system.name for system in found.systems if system.name != found.baseline]
            charts = [_gain_chart(found, system, name) for system in others]
            yield element("div", [chart for chart in charts if chart], class_="charts")
        teachers = teacher_systems(run, found, subject)
        against = list(dict.fromkeys([found.baseline, *teachers, system_before(run, subject)]))
        orders = list(_orders(found, subject, [each for each in against if each in found.per_query], name))
        default = [*teachers, subject, found.baseline]
        yield _explorer(stage, found, name, orders, default, MAX_CHARACTERS // parts)
        if name and subject != found.baseline:
            yield _query_table(stage, found, subject, name, MAX_ROWS // parts)


def _measure_by_item(found: Evaluation, subject: str) -> str:
    """The first measure that has a value for each item; empty where there is none."""
    values = found.per_query.get(subject, {})
    return next((name for name in found.measures if any(name in each for each in values.values())), "")


def gains(found: Evaluation, system: str, name: str, base: str = "") -> list[tuple[str, float]]:
    """(query, gain over the baseline or `base`), greatest first, ties by query id."""
    theirs = found.per_query.get(base or found.baseline, {})
    values = found.per_query.get(system, {})
    rows = [
        (query, each[name] - theirs[query][name])
        for query, each in values.items()
        if name in each and name in theirs.get(query, {})
    ]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _gain_chart(found: Evaluation, system: str, name: str) -> Markup:
    values = [gain for _, gain in gains(found, system, name)]
    better, worse = sum(value > EQUAL for value in values), sum(value < -EQUAL for value in values)
    words = f"{better} better, {len(values) - better - worse} equal, {worse} worse"
    title = f"{system} minus {found.baseline}, {name} by query"
    return figures.sorted_bars(title, values, "queries, greatest gain first", words)


def _orders(found: Evaluation, subject: str, against: Sequence[str], name: str) -> Iterator[Order]:
    """What the explorer can be sorted by; the first is what it opens with."""
    if not name:
        return
    for base in against:
        if base == subject:
            continue
        values = dict(gains(found, subject, name, base))
        yield Order(words=f"best and worst of {subject} against {base}", way="far", values=values)
        yield Order(words=f"best of {subject} against {base}", way="down", values=values)
        yield Order(words=f"worst of {subject} against {base}", way="up", values=values)
    own = {query: each[name] for query, each in found.per_query.get(subject, {}).items() if name in each}
    yield Order(words=f"lowest {name} of {subject}", way="up", values=own)
    yield Order(words=f"highest {name} of {subject}", way="down", values=own)


# ---------------------------------------------------------------- the explorer


def _explorer(
    stage: StageView, found: Evaluation, name: str, orders: Sequence[Order], default: Sequence[str], room: int
) -> Child:
    examples = {str(row.get("query")): row for row in stage.examples}
    if not examples:
        return element("p", "No texts were kept with this evaluation; run it again to have them.", class_="note")
    first = orders[0].values if orders else {}
    ranked = sorted(examples, key=lambda query: -abs(first.get(query, 0.0)))
    items: list[Markup] = []
    for query in ranked:
        item = _item(query, examples[query], found, name, orders, default)
        room -= len(item)
        if room < 0:
            break
        items.append(item)
    systems = [system.name for system in found.systems]
    listed = any("lists" in row for row in examples.values())
    choice = _choice(systems, default) if listed and len(systems) > 1 else None
    words = _what_is_kept(found, len(items), orders)
    return element(
        "div",
        element("h3", "Look at single queries" if listed else "Look at single items"),
        element("p", words, class_="note"),
        search_box("Find in the texts", len(items), "queries" if listed else "items", _sorter(orders)),
        choice,
        element("div", items, class_="items", tabindex="0", role="region", aria_label="Queries with their texts"),
        class_="explorer",
    )


def _what_is_kept(found: Evaluation, kept: int, orders: Sequence[Order]) -> str:
    total = int(found.queries or kept)
    words = f"All {total:,} of them." if kept >= total else f"{kept:,} of {total:,}"
    if kept < total:
        words += ": the best and the worst of each comparison." if orders else ", evenly spaced."
    return f"{words} Open one to see what each system found." if orders else words


def _sorter(orders: Sequence[Order]) -> Markup | None:
    if not orders:
        return None
    options = [
        element("option", order.words, value=str(number), data_way=order.way) for number, order in enumerate(orders)
    ]
    return element("label", "First ", element("select", options, class_="order"))


def _choice(systems: Sequence[str], default: Sequence[str]) -> Markup:
    """Which systems stand side by side; without a script all do."""
    boxes = [
        element("label", element("input", type="checkbox", value=str(number), checked=name in default), " ", name)
        for number, name in enumerate(systems)
    ]
    return element("fieldset", element("legend", "Systems shown"), boxes, class_="choice")


def _item(
    query: str, row: Mapping[str, Any], found: Evaluation, name: str, orders: Sequence[Order], default: Sequence[str]
) -> Markup:
    keys = {f"data_k{number}": _key(order.values.get(query)) for number, order in enumerate(orders)}
    gain = orders[0].values.get(query) if orders else None
    kind = None if gain is None else "gain" if gain > EQUAL else "loss" if gain < -EQUAL else "quiet"
    mark = None if gain is None else element("span", f"{gain:+.3f}", class_=f"change {kind}")
    values = [
        f"{system.name} {measure(name, value)}"
        for system in found.systems
        if (value := found.per_query.get(system.name, {}).get(query, {}).get(name)) is not None
    ]
    summary = element(
        "summary",
        mark,
        element("span", str(row.get("text", "")) or query, class_="asked"),
        element("span", f"{name}: {', '.join(values)}" if values else query, class_="note"),
    )
    body = _lists(row, found) if "lists" in row else _answers(row)
    return element("details", summary, body, class_="query", **keys)


def _key(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _lists(row: Mapping[str, Any], found: Evaluation) -> list[Child]:
    texts, grades = mapping(row.get("passages")), mapping(row.get("grades"))
    columns = []
    for number, system in enumerate(found.systems):
        hits = mapping(row.get("lists")).get(system.name)
        shown = [_hit(hit, texts, grades) for hit in hits if _is_hit(hit)] if isinstance(hits, list) else []
        listed = element("ol", shown) if shown else element("p", "found nothing", class_="note")
        columns.append(element("div", element("h4", system.name), listed, data_system=str(number)))
    return [_relevant(row, found, texts), element("div", columns, class_="side-by-side")]


def _is_hit(hit: Any) -> bool:
    return isinstance(hit, list) and len(hit) == 2 and isinstance(hit[0], str)


def _hit(hit: Sequence[Any], texts: Mapping[str, Any], grades: Mapping[str, Any]) -> Markup:
    id, score = hit[0], as_number(hit[1])
    grade = as_number(grades.get(id))
    words = "not judged" if grade is None else "relevant" if grade >= 1 else "not relevant"
    if grade is not None and grade > 1:
        words += f" ({grade:.0f})"
    badge = element("span", words, class_="badge")
    facts = " · ".join(filter(None, ["" if score is None else short(score), id]))
    kind = "relevant" if grade is not None and grade >= 1 else None
    return element("li", badge, " ", str(texts.get(id, "")), " ", element("span", facts, class_="note"), class_=kind)


def _relevant(row: Mapping[str, Any], found: Evaluation, texts: Mapping[str, Any]) -> Markup | None:
    """The passages that should have been found, and the rank each system gives them."""
    rows = []
    for id, ranks in mapping(row.get("relevant")).items():
        known = numbers(ranks)
        places = [
            f"{system.name}: {known[system.name]:.0f}" if system.name in known else f"{system.name}: not found"
            for system in found.systems
        ]
        said = element("span", f"rank by {', '.join(places)} · {id}", class_="note")
        rows.append(element("li", str(texts.get(id, "")), " ", said))
    if not rows:
        return None
    total = as_number(row.get("relevant_in_all")) or len(rows)
    more = f", {len(rows)} of {total:.0f}" if total > len(rows) else ""
    return element("div", element("h4", f"Judged relevant{more}"), element("ul", rows), class_="wanted")


def _answers(row: Mapping[str, Any]) -> list[Child]:
    right = str(row.get("gold", ""))
    rows = [
        element("li", element("strong", system), ": ", str(answer), class_="relevant" if str(answer) == right else None)
        for system, answer in mapping(row.get("answers")).items()
    ]
    wanted = element("p", element("strong", "right"), ": ", right) if right else None
    return [wanted, element("ul", rows, class_="answers")]


# ---------------------------------------------------------------- all queries


def _query_table(stage: StageView, found: Evaluation, subject: str, name: str, room: int) -> Markup:
    ranked = gains(found, subject, name)
    kept = ranked
    caption = f"{name} by query, sorted by the gain of {subject} over {found.baseline}."
    if len(ranked) > room:
        half = max(1, room // 2)
        kept = ranked[:half] + ranked[-half:]
        caption += (
            f" Of {len(ranked):,} queries the {half} with the greatest gains and the {half} with the greatest losses."
        )
    texts = {str(row.get("query")): str(row.get("text", ""))[:120] for row in stage.examples}
    systems = [system.name for system in found.systems if system.name in found.per_query]
    rows: list[list[Child | Cell]] = []
    for query, gain in kept:
        kind = "gain" if gain > EQUAL else "loss" if gain < -EQUAL else ""
        row: list[Child | Cell] = [query, texts.get(query, ""), Cell(f"{gain:+.4f}", gain, kind)]
        for system in systems:
            value = found.per_query[system].get(query, {}).get(name)
            row.append(Cell("" if value is None else measure(name, value), value))
        rows.append(row)
    made = table(
        caption, ["query", "text", f"gain of {subject}", *systems], rows, text_columns=2, search="Find a query"
    )
    return element("details", element("summary", "All queries as a table"), made)

"""The report page: from run folders to one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdfw import __version__
from kdfw.report import figures
from kdfw.report.folder import Evaluation, RunView, StageView, System, mapping, mappings, strings, top_passages
from kdfw.report.html import Child, Markup, element, join
from kdfw.report.numbers import as_number, count, duration, measure, p_value, short

log = logging.getLogger("kdfw")
SIGNIFICANT = 0.05
MAX_QUERIES = 1500
"""Rows of a per-query table; of more queries those with the greatest gains and losses are shown."""
MAX_LISTED = 40
"""Queries whose first passages are listed side by side."""
TOP = 5


def page(runs: Sequence[RunView]) -> str:
    """The whole page as text."""
    style, script = _resource("report.css"), _resource("report.js")
    title = " and ".join(run.name for run in runs[:3]) + (" and others" if len(runs) > 3 else "")
    body = [_header(runs, title), element("main", *_main(runs), id="content"), _footer()]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}: kdfw report"),
        element("style", style),
    ]
    document = element("html", element("head", head), element("body", body, element("script", script)), lang="en")
    return f"<!doctype html>\n{document}\n"


def _policy(script: str) -> str:
    """Nothing is fetched, and no script runs but the page's own, even if text should get past the escaping."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'none'"


def _resource(name: str) -> Markup:
    """A file of ours that goes into the page as it is."""
    return Markup((importlib.resources.files("kdfw.report") / name).read_text(encoding="utf-8"))


def _guarded(what: str, build: Callable[[], Child]) -> Child:
    """One part of the page. A report is the last thing a run of hours writes: a fault here must not lose the rest."""
    try:
        return build()
    except Exception as error:
        log.warning("report: %s could not be shown: %s: %s", what, type(error).__name__, error)
        return element("p", f"{what} could not be shown: {type(error).__name__}: {error}", class_="note warn")


# ---------------------------------------------------------------- frame


def _header(runs: Sequence[RunView], title: str) -> Markup:
    first = runs[0]
    sections = [("results", "Results"), ("plan", "What was run"), ("training", "Training"),
                ("queries", "Queries"), ("setup", "Setup")]  # fmt: skip
    links = [] if len(runs) > 1 else [element("a", name, href=f"#{key}") for key, name in sections]
    if len(runs) > 1:
        links = [element("a", run.name, href=f"#run-{number}") for number, run in enumerate(runs, start=1)]
    description = first.recipe.get("description")
    return element(
        "header",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("p", "kdfw report", class_="kicker"),
        element("h1", title),
        element("p", description, class_="lead") if isinstance(description, str) and len(runs) == 1 else None,
        _chips(first) if len(runs) == 1 else None,
        element("nav", links, aria_label="Sections"),
    )


def _chips(run: RunView) -> Markup:
    manifest = run.manifest
    seconds = sum(stage.seconds or 0.0 for stage in run.stages)
    finished = manifest.get("finished")
    chips: list[Child] = [
        element(
            "li", "finished" if finished is True else "not finished", class_="good" if finished is True else "warn"
        ),
        element("li", f"{len(run.stages)} stages"),
        element("li", duration(seconds)) if seconds else None,
    ]
    for key, words in (("seed", "seed {}"), ("device", "{}"), ("precision", "{}"), ("processes", "{} processes")):
        value = manifest.get(key)
        if isinstance(value, (str, int)) and not (key == "processes" and value == 1) and value != "":
            chips.append(element("li", words.format(value)))
    return element("ul", chips, class_="chips", aria_label="In short")


def _footer() -> Markup:
    words = f"Written by kdfw {__version__}. This page is one file: it loads nothing from anywhere."
    return element("footer", element("p", words))


def _main(runs: Sequence[RunView]) -> Iterator[Child]:
    if len(runs) == 1:
        yield from _run_sections(runs[0], "")
        return
    yield _guarded("the comparison", lambda: _comparison(runs))
    for number, run in enumerate(runs, start=1):
        parts = list(_run_sections(run, f"run-{number}-"))
        yield element("section", element("h2", run.name, class_="run"), _chips(run), parts, id=f"run-{number}")


def _run_sections(run: RunView, prefix: str) -> Iterator[Child]:
    if run.notes:
        items = [element("li", note) for note in run.notes[:20]]
        yield element(
            "aside", element("p", "Some files of this run could not be read:"), element("ul", items), class_="warn"
        )
    yield _section(prefix + "results", "Results", _guarded("the results", lambda: list(_results(run))))
    yield _section(prefix + "plan", "What was run", _guarded("the plan", lambda: _plan(run)))
    yield _section(prefix + "training", "Training", _guarded("the training curves", lambda: list(_training(run))))
    yield _section(prefix + "queries", "Queries", _guarded("the queries", lambda: list(_queries(run, prefix))))
    yield _section(prefix + "setup", "Setup", _guarded("the setup", lambda: list(_setup(run))))


def _section(key: str, title: str, content: Child) -> Markup:
    shown = join([content])
    empty = {"training": "No stage of this run trained a model.", "queries": "There are no values by query."}
    if not shown:
        shown = element("p", empty.get(key.rpartition("-")[2], "Nothing to show."), class_="note")
    return element("section", element("h2", title), shown, id=key)


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
    box = None
    if search:
        box = element(
            "p",
            element("label", search, " ", element("input", type="search", autocomplete="off", spellcheck="false")),
            element("span", f"{len(rows)} rows", class_="note", role="status"),
            class_="search",
        )
    return element(
        "div",
        box,
        element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption),
        class_="table",
    )


class Cell:
    """A table cell whose order is not that of its text."""

    def __init__(self, shown: Child, sort: float | None = None, kind: str = "") -> None:
        self.shown = shown
        self.sort = sort
        self.kind = kind


# ---------------------------------------------------------------- results


def _results(run: RunView) -> Iterator[Child]:
    stages = run.evaluations
    if not stages:
        yield element("p", "This run has measured nothing yet.", class_="note")
        return
    yield _headline(run, stages[-1])
    for stage in reversed(stages):
        assert stage.evaluation is not None
        yield element("h3", stage.name) if len(stages) > 1 else None
        yield result_table(stage.evaluation)
        yield element("div", _quality_charts(stage.evaluation, trained_systems(run, stage.evaluation)), class_="charts")
        yield _against_table(stage.evaluation)


def trained_systems(run: RunView, found: Evaluation) -> list[str]:
    """Evaluated systems that a training stage of the run wrote, later stages first."""
    made = [stage.name for stage in reversed(run.stages) if stage.type == "train"]
    names = [system.name for system in found.systems]
    by_base = {name: name for name in names} | {name.split("#")[0]: name for name in names}
    return list(dict.fromkeys(by_base[key] for name in made for key in (name, name.split("#")[0]) if key in by_base))


def teacher_systems(run: RunView, found: Evaluation, student: str) -> list[str]:
    """Evaluated systems that taught the student, as the recipe says."""
    stages = {str(stage.get("name")): stage for stage in _written_stages(run.recipe.get("stages"))}
    teachers = []
    for name in strings(stages.get(student.split("#")[0], {}).get("teachers")):
        scored = stages.get(name, {})
        teachers += [name, str(scored.get("teacher", ""))]
    return [name for name in dict.fromkeys(teachers) if found.system(name) is not None]


def system_before(run: RunView, student: str) -> str:
    """What the student was before the run trained it: the model its training stage names; empty when unknown."""
    stages = {str(stage.get("name")): stage for stage in _written_stages(run.recipe.get("stages"))}
    named, seen = student.split("#")[0], set()
    while named in stages and named not in seen:
        seen.add(named)
        named = str(stages[named].get("student", "")).split("|")[-1].strip()
    return "" if named in stages else named


def _written_stages(value: Any) -> Iterator[dict[str, Any]]:
    for stage in mappings(value):
        yield stage
        yield from _written_stages(stage.get("stages"))


def _headline(run: RunView, stage: StageView) -> Markup | None:
    """The numbers a person asks for first: the student, its gain, its share of the teacher, its speed and size."""
    found = stage.evaluation
    if found is None or not found.measures:
        return None
    name = found.measures[0]
    trained = trained_systems(run, found)
    student = found.system(trained[0]) if trained else None
    if student is None or name not in student.measures:
        return None
    value = student.measures[name]
    cards = [_card(f"{name} of {student.name}", measure(name, value), f"{found.split} split, {_items(found)}")]
    against = student.against.get(name, {})
    gain = as_number(against.get("difference"))
    if gain is not None:
        p = as_number(against.get("holm"))
        cards.append(_card(f"Against {found.baseline}", f"{gain:+.4f}", f"p {_p_words(p)}" if p is not None else ""))
    before = found.system(system_before(run, student.name))
    if before is not None and before.name != found.baseline and name in before.measures:
        change = value - before.measures[name]
        cards.append(
            _card("Against itself untrained", f"{change:+.4f}", f"it had {measure(name, before.measures[name])}")
        )
    teachers = teacher_systems(run, found, student.name)
    teacher = found.system(teachers[0]) if teachers else None
    if teacher is not None and teacher.measures.get(name, 0.0) > 0:
        share = value / teacher.measures[name]
        cards.append(
            _card(
                f"Share of {teacher.name}", f"{share:.1%}", f"the teacher has {measure(name, teacher.measures[name])}"
            )
        )
        rates = ("passages_per_second", "queries_per_second", "items_per_second")
        speed = [rate for rate in rates if student.facts.get(rate) and teacher.facts.get(rate)][:1]
        for fact, words in (*((rate, "Speed") for rate in speed), ("parameters", "Size")):
            ours, theirs = as_number(student.facts.get(fact)), as_number(teacher.facts.get(fact))
            if ours and theirs:
                ratio = ours / theirs if fact != "parameters" else theirs / ours
                unit = f"{count(ours)} parameters" if fact == "parameters" else f"{short(ours)} per second"
                faster = "smaller" if fact == "parameters" else "faster"
                cards.append(_card(words, f"{ratio:.1f}x {faster}" if ratio >= 1 else f"{1 / ratio:.1f}x "
                                   f"{'larger' if fact == 'parameters' else 'slower'}", unit))  # fmt: skip
    return element("ul", cards, class_="cards", aria_label="The result in short")


def _p_words(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def _card(label: str, value: str, note: str) -> Markup:
    return element(
        "li",
        element("span", label, class_="card-label"),
        element("strong", value),
        element("span", note, class_="note"),
    )


def _items(found: Evaluation) -> str:
    what = "queries" if found.task in ("ranking", "") else "items"
    return f"{count(found.queries)} {what}" if found.queries is not None else what


def result_table(found: Evaluation) -> Markup:
    """Systems x measures, with stars, size, speed and setting."""
    facts = [
        (label, key, write)
        for label, key, write in (
            ("parameters", "parameters", count),
            ("MB", "megabytes", short),
            ("queries/s", "queries_per_second", short),
            ("passages/s", "passages_per_second", short),
            ("items/s", "items_per_second", short),
            ("judged@10", "judged@10", lambda value: f"{value:.0%}"),
            ("depth", "depth", count),
        )
        if any(as_number(system.facts.get(key)) is not None for system in found.systems)
    ]
    settings = [str(system.facts.get("setting", "")) for system in found.systems]
    alike = len(set(settings)) == 1
    depths = {as_number(system.facts.get("depth")) for system in found.systems}
    if len(depths) == 1:
        facts = [fact for fact in facts if fact[1] != "depth"]
    best = {m: max((s.measures[m] for s in found.systems if m in s.measures), default=None) for m in found.measures}
    rows = []
    for system in found.systems:
        row: list[Child | Cell] = [_system_name(system, found)]
        row += [_measure_cell(system, name, best[name]) for name in found.measures]
        for _, key, write in facts:
            value = as_number(system.facts.get(key))
            row.append(Cell("" if value is None else write(value), value))
        if not alike:
            row.append(str(system.facts.get("setting", "")))
        rows.append(row)
    head = ["system", *found.measures, *(label for label, _, _ in facts), *([] if alike else ["setting"])]
    caption = f"{_items(found)} of the split {found.split or '?'}."
    depth = depths.pop() if len(depths) == 1 else None
    shared = [settings[0] if alike and settings else "", f"depth {count(depth)}" if depth is not None else ""]
    if any(shared):
        caption += f" All systems: {', '.join(filter(None, shared))}."
    if any(system.against for system in found.systems):
        caption += f" * differs from {found.baseline}: paired randomisation test, Holm-corrected p < {SIGNIFICANT}."
    return table(caption, head, rows)


def _system_name(system: System, found: Evaluation) -> Child:
    return [system.name, element("span", " baseline", class_="tag")] if system.name == found.baseline else system.name


def _measure_cell(system: System, name: str, best: float | None) -> Cell:
    value = system.measures.get(name)
    if value is None:
        return Cell("")
    p = as_number(system.against.get(name, {}).get("holm"))
    star = element("abbr", "*", title=f"p {_p_words(p)}") if p is not None and p < SIGNIFICANT else None
    shown = element("strong", measure(name, value)) if value == best else measure(name, value)
    return Cell([shown, star], value)


def _quality_charts(found: Evaluation, marked: Sequence[str]) -> Child:
    if not found.measures:
        return None
    name = found.measures[0]
    charts = []
    for key, words in (
        ("queries_per_second", "queries per second"),
        ("passages_per_second", "passages per second"),
        ("items_per_second", "items per second"),
        ("parameters", "parameters"),
    ):
        points = {
            system.name: (x, system.measures[name])
            for system in found.systems
            if (x := as_number(system.facts.get(key))) and name in system.measures
        }
        charts.append(figures.scatter(f"{name} against {words}", points, f"{words} (log scale)", marked))
    return [chart for chart in charts if chart]


def _against_table(found: Evaluation) -> Markup | None:
    rows: list[list[Child | Cell]] = []
    for system in found.systems:
        for name, values in system.against.items():
            number = {key: as_number(item) for key, item in values.items()}
            low, high = number.get("low"), number.get("high")
            counts = [number.get(key) for key in ("wins", "ties", "losses")]
            row: list[Child | Cell] = [system.name, name]
            row.append(Cell(*_shown(number.get("difference"), "{:+.4f}")))
            row.append(Cell("" if low is None or high is None else f"{low:+.4f} to {high:+.4f}", low))
            for key in ("holm", "randomisation", "t_test"):
                value = number.get(key)
                row.append(Cell("" if value is None else p_value(value), value))
            row.append(Cell(*_shown(number.get("effect"), "{:.2f}")))
            row.append(
                Cell(
                    "" if None in counts else " / ".join(f"{item:.0f}" for item in counts if item is not None),
                    counts[0],
                )
            )
            rows.append(row)
    if not rows:
        return None
    head = [
        "system",
        "measure",
        "difference",
        "95 % interval",
        "p, Holm",
        "p, randomisation",
        "p, t-test",
        "effect",
        "wins / ties / losses",
    ]
    words = f"Differences from {found.baseline}, paired over {_items(found)}. "
    words += "Effect: mean difference over its standard deviation."
    made = table(words, head, rows, text_columns=2)
    return element("details", element("summary", f"Significance against {found.baseline}"), made)


def _shown(value: float | None, form: str) -> tuple[str, float | None]:
    return ("" if value is None else form.format(value)), value


def _comparison(runs: Sequence[RunView]) -> Markup:
    """Every system of every run's last evaluation, side by side."""
    found = [(run, run.evaluations[-1].evaluation) for run in runs if run.evaluations]
    measures = list(dict.fromkeys(name for _, evaluation in found if evaluation for name in evaluation.measures))
    rows: list[list[Child | Cell]] = []
    for run, evaluation in found:
        assert evaluation is not None
        for system in evaluation.systems:
            values = [system.measures.get(name) for name in measures]
            cells = [Cell("" if v is None else measure(name, v), v) for name, v in zip(measures, values, strict=True)]
            size = as_number(system.facts.get("parameters"))
            rows.append(
                [run.name, system.name, evaluation.split, *cells, Cell("" if size is None else count(size), size)]
            )
    head = ["run", "system", "split", *measures, "parameters"]
    made = table(
        "The last evaluation of each run. Compare only what was measured on the same data.", head, rows, text_columns=3
    )
    return element("section", element("h2", "Side by side"), made, id="comparison")


# ---------------------------------------------------------------- plan


def _plan(run: RunView) -> Child:
    total = sum(stage.seconds or 0.0 for stage in run.stages)
    rows: list[list[Child | Cell]] = []
    for stage in run.stages:
        state = {True: "from the cache", False: "made", None: "not run"}[stage.cached]
        share = (stage.seconds or 0.0) / total if total else 0.0
        bar = (
            element("meter", value=round(share, 4), min=0, max=1, aria_hidden="true")
            if stage.seconds is not None
            else None
        )
        time: Child = [duration(stage.seconds), bar] if stage.seconds is not None else ""
        made = Cell(state, kind="quiet" if stage.cached else "")
        reads = ", ".join(stage.inputs)
        rows.append([stage.name, stage.type, reads, stage.data, made, _summary(stage), Cell(time, stage.seconds)])
    cached = sum(stage.cached is True for stage in run.stages)
    caption = f"{len(rows)} stages in order; {cached} taken from the cache; {duration(total)} in all."
    return table(
        caption,
        ["stage", "type", "reads", "data", "state", "what came of it", "time"],
        rows,
        text_columns=6,
        sortable=False,
    )


def _summary(stage: StageView) -> Child:
    """The plain numbers of a stage's summary; measures have a table of their own."""
    if stage.evaluation is not None:
        return "measures above"
    parts = []
    for key, value in stage.summary.items():
        words = key.replace("_", " ")
        number = as_number(value)
        if isinstance(value, dict) and isinstance(value.get(key), str):  # {precision: {precision: fp32, ...}}
            value = value[key]
        if number is not None and number != 0:  # what did not happen need not be told
            parts.append(f"{words} {count(number) if key == 'parameters' else short(number)}")
        elif isinstance(value, (str, bool)):
            parts.append(f"{words} {value}")
    return ", ".join(parts[:8]) + (" ..." if len(parts) > 8 else "")


# ---------------------------------------------------------------- training


def _training(run: RunView) -> Iterator[Child]:
    for stage in run.stages:
        if not stage.metrics or not any("step" in line for line in stage.metrics):
            continue
        series = _series(stage.metrics)
        charts = [figures.lines(title, group) for title, group in chart_groups(series).items()]
        charts = [chart for chart in charts if chart]
        if charts:
            yield element("h3", stage.name)
            yield element("div", charts, class_="charts")
            yield _curve_table(stage.name, series)


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        step = as_number(line.get("step"))
        if step is None:
            continue
        for key, item in line.items():
            value = as_number(item)
            if value is not None and key not in ("step", "epoch"):
                found.setdefault(key, []).append((step, value))
    return found


def chart_groups(series: Mapping[str, list[tuple[float, float]]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Which curves share a chart, by title, in the order they are shown."""
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {
        title: {}
        for title in (
            "Loss",
            "Loss terms",
            "Dev split",
            "Learning rate",
            "Temperature",
            "Weight",
            "Gradient norm",
            "Other values",
        )
    }
    for name, points in series.items():
        base, _, part = name.partition("/")
        if name == "loss":
            title = "Loss"
        elif base == "dev":
            title, name = "Dev split", part
        elif base == "lr":
            title, name = "Learning rate", part or "learning rate"
        elif base == "gradient_norm":
            title, name = "Gradient norm", part or "gradient norm"
        elif part == "temperature":
            title, name = "Temperature", base
        elif part == "weight":
            title, name = "Weight", base
        else:
            title = "Other values" if part else "Loss terms"
        groups[title][name] = points
    return {title: group for title, group in groups.items() if group}


def _curve_table(stage: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    rows: list[list[Child | Cell]] = []
    for name, points in series.items():
        values = [value for _, value in points]
        ends = (values[0], values[-1], min(values), max(values))
        rows.append([name, *(Cell(short(value), value) for value in ends), Cell(str(len(points)), len(points))])
    made = table(
        f"Values logged while {stage} trained.", ["value", "first", "last", "least", "greatest", "lines"], rows
    )
    return element("details", element("summary", "The same as a table"), made)


# ---------------------------------------------------------------- queries


def _queries(run: RunView, prefix: str) -> Iterator[Child]:
    for stage in run.evaluations:
        found = stage.evaluation
        assert found is not None
        base = found.per_query.get(found.baseline, {})
        name = next((name for name in found.measures if any(name in values for values in base.values())), None)
        others = [
            system.name for system in found.systems if system.name != found.baseline and system.name in found.per_query
        ]
        if name is None or not others:
            continue
        trained = [system for system in trained_systems(run, found) if system in others]
        subject = trained[0] if trained else others[-1]
        yield element("h3", stage.name) if len(run.evaluations) > 1 else None
        charts = [_gain_chart(found, system, name) for system in others]
        yield element("div", charts, class_="charts")
        yield _query_table(found, subject, name)
        yield _listings(stage, found, subject, name)


def gains(found: Evaluation, system: str, name: str) -> list[tuple[str, float]]:
    """(query, gain over the baseline), greatest first, ties by query id."""
    base = found.per_query.get(found.baseline, {})
    values = found.per_query.get(system, {})
    rows = [
        (query, each[name] - base[query][name])
        for query, each in values.items()
        if name in each and name in base.get(query, {})
    ]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _gain_chart(found: Evaluation, system: str, name: str) -> Markup:
    values = [gain for _, gain in gains(found, system, name)]
    better, worse = sum(value > 1e-9 for value in values), sum(value < -1e-9 for value in values)
    words = f"{better} better, {len(values) - better - worse} equal, {worse} worse"
    title = f"{system} minus {found.baseline}, {name} by query"
    return figures.sorted_bars(title, values, "queries, greatest gain first", words)


def _query_table(found: Evaluation, subject: str, name: str) -> Markup:
    ranked = gains(found, subject, name)
    shown = ranked
    caption = f"{name} by query, sorted by the gain of {subject} over {found.baseline}."
    if len(ranked) > MAX_QUERIES:
        half = MAX_QUERIES // 2
        shown = ranked[:half] + ranked[-half:]
        caption += (
            f" Of {len(ranked)} queries the {half} with the greatest gains and the {half} with the greatest losses."
        )
    systems = [system.name for system in found.systems if system.name in found.per_query]
    rows: list[list[Child | Cell]] = []
    for query, gain in shown:
        kind = "gain" if gain > 1e-9 else "loss" if gain < -1e-9 else ""
        row: list[Child | Cell] = [query, Cell(f"{gain:+.4f}", gain, kind)]
        for system in systems:
            value = found.per_query[system].get(query, {}).get(name)
            row.append(Cell("" if value is None else measure(name, value), value))
        rows.append(row)
    return table(caption, ["query", f"gain of {subject}", *systems], rows, search="Find a query")


def _listings(stage: StageView, found: Evaluation, subject: str, name: str) -> Child:
    """The first passages of each system, side by side, for the queries that gained and lost most."""
    ranked = [row for row in gains(found, subject, name) if abs(row[1]) > 1e-9]
    half = MAX_LISTED // 2
    chosen = ranked if len(ranked) <= MAX_LISTED else ranked[:half] + ranked[-half:]
    queries = {query for query, _ in chosen}
    tops = {system.name: top_passages(stage, system.name, queries, TOP) for system in found.systems}
    tops = {system: lists for system, lists in tops.items() if lists}
    if not tops or not chosen:
        return None
    blocks = []
    for query, gain in chosen:
        columns = [
            element(
                "div",
                element("h4", system),
                element(
                    "ol",
                    [
                        element("li", passage, element("span", short(score), class_="note"))
                        for passage, score in lists.get(query, [])
                    ],
                ),
            )
            for system, lists in tops.items()
        ]
        mark = element("span", f"{gain:+.4f}", class_="gain" if gain > 0 else "loss")
        blocks.append(
            element(
                "details",
                element("summary", query, " ", mark),
                element("div", columns, class_="side-by-side"),
                class_="query",
            )
        )
    words = f"The first {TOP} passages of each system, for the queries that {subject} changed most"
    return element("details", element("summary", words), element("div", blocks), class_="listings")


# ---------------------------------------------------------------- setup


def _setup(run: RunView) -> Iterator[Child]:
    manifest = run.manifest
    for title, key, head in (
        ("Data sets", "data", ("data set", "fingerprint")),
        ("Models", "models", ("model", "fingerprint")),
        ("Plugins", "plugins", ("plugin", "distribution")),
        ("Libraries", "libraries", ("library", "version")),
    ):
        rows = [[name, _written(run, key, name), str(value)] for name, value in mapping(manifest.get(key)).items()]
        if not rows:
            continue
        if key in ("data", "models"):
            yield table(f"{title} of the run.", [head[0], "as written", head[1]], rows, text_columns=3, sortable=False)
        else:
            short_rows = [[name, value] for name, _, value in rows]
            yield table(f"{title}.", head, short_rows, text_columns=2, sortable=False)
    machine = mapping(manifest.get("machine"))
    facts = [("kdfw", manifest.get("kdfw")), ("python", manifest.get("python")), ("git commit", manifest.get("commit")),
             ("recipe fingerprint", manifest.get("recipe")), *machine.items()]  # fmt: skip
    rows = [[str(name), str(value)] for name, value in facts if value not in (None, "")]
    if rows:
        yield table("Machine and versions.", ["", "value"], rows, text_columns=2, sortable=False)
    if run.recipe_text:
        text = run.recipe_text if len(run.recipe_text) < 200_000 else run.recipe_text[:200_000] + "\n..."
        code = element("pre", element("code", text), tabindex="0", aria_label="recipe.yaml")
        yield element("details", element("summary", "The recipe in full (recipe.yaml)"), code)


def _written(run: RunView, key: str, name: str) -> str:
    """How the recipe defines a model or data set, in a few words."""
    value = run.recipe.get(key)
    written = value if key == "data" and isinstance(value, dict) and "type" in value else mapping(value).get(name)
    if isinstance(written, str):
        return written
    return ", ".join(
        f"{option}: {item}" for option, item in mapping(written).items() if not isinstance(item, (dict, list))
    )

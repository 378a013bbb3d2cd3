"""What was measured: in a sentence and in cards, the table of systems, significance, quality against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdfw.report import figures
from kdfw.report.folder import Evaluation, RunView, StageView, System, strings, written_stages
from kdfw.report.html import Child, Markup, element
from kdfw.report.numbers import as_number, count, difference, measure, p_value, short
from kdfw.report.tables import Cell, shown, table

SIGNIFICANT = 0.05
RATES = ("passages_per_second", "queries_per_second", "items_per_second")


def results(run: RunView) -> Iterator[Child]:
    """Everything the run measured, its last evaluation first."""
    stages = run.evaluations
    if not stages:
        yield element("p", "This run has measured nothing yet.", class_="note")
        return
    yield _headline(run, stages[-1])
    for stage in reversed(stages):
        found = stage.evaluation
        assert found is not None
        yield element("h3", stage.name) if len(stages) > 1 else None
        yield result_table(found)
        charts = [_differences(found), *_quality_charts(found, trained_systems(run, found))]
        yield element("div", [chart for chart in charts if chart], class_="charts")
        yield _against_table(found)


# ---------------------------------------------------------------- who is who


def trained_systems(run: RunView, found: Evaluation) -> list[str]:
    """Evaluated systems that a training stage of the run wrote, later stages first."""
    made = [stage.name for stage in reversed(run.stages) if stage.type == "train"]
    names = [system.name for system in found.systems]
    by_base = {name: name for name in names} | {name.split("#")[0]: name for name in names}
    return list(dict.fromkeys(by_base[key] for name in made for key in (name, name.split("#")[0]) if key in by_base))


def teacher_systems(run: RunView, found: Evaluation, student: str) -> list[str]:
    """Evaluated systems that taught the student, as the recipe says."""
    stages = {str(stage.get("name")): stage for stage in written_stages(run.recipe)}
    teachers = []
    for name in strings(stages.get(student.split("#")[0], {}).get("teachers")):
        scored = stages.get(name, {})
        teachers += [name, str(scored.get("teacher", ""))]
    return [name for name in dict.fromkeys(teachers) if found.system(name) is not None]


def system_before(run: RunView, student: str) -> str:
    """What the student was before the run trained it: the model its training stage names; empty when unknown."""
    stages = {str(stage.get("name")): stage for stage in written_stages(run.recipe)}
    named, seen = student.split("#")[0], set()
    while named in stages and named not in seen:
        seen.add(named)
        named = str(stages[named].get("student", "")).split("|")[-1].strip()
    return "" if named in stages else named


def items_of(found: Evaluation) -> str:
    """`601 queries`, `1,379 items`."""
    what = "queries" if found.task in ("ranking", "") else "items"
    return f"{count(found.queries)} {what}" if found.queries is not None else what


# ---------------------------------------------------------------- in short


def _headline(run: RunView, stage: StageView) -> Child:
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
    cards = [_card(f"{name} of {student.name}", measure(name, value), f"{found.split} split, {items_of(found)}")]
    against = student.against.get(name, {})
    gain = as_number(against.get("difference"))
    if gain is not None:
        p = as_number(against.get("holm"))
        cards.append(
            _card(f"Against {found.baseline}", difference(name, gain), f"p {_p_words(p)}" if p is not None else "")
        )
    before = found.system(system_before(run, student.name))
    if before is not None and before.name != found.baseline and name in before.measures:
        change = value - before.measures[name]
        cards.append(
            _card(
                "Against itself untrained", difference(name, change), f"it had {measure(name, before.measures[name])}"
            )
        )
    teachers = teacher_systems(run, found, student.name)
    teacher = found.system(teachers[0]) if teachers else None
    words = ""
    if teacher is not None and teacher.measures.get(name, 0.0) > 0:
        share = value / teacher.measures[name]
        had = measure(name, teacher.measures[name])
        cards.append(_card(f"Share of {teacher.name}", f"{share:.1%}", f"the teacher has {had}"))
        costs = list(_costs(student, teacher))
        cards += [_card(*cost) for cost in costs]
        now = measure(name, value)
        words = f"{student.name} keeps {share:.1%} of its teacher's {name} ({now} of {had})"
        if share > 1:
            words = f"{student.name} is better than its teacher ({name} {now}, the teacher's {had})"
        words += f" and is {' and '.join(ratio for _, ratio, _ in costs)}" if costs else ""
        words += f". Measured on {items_of(found)} of the split {found.split}."
    return [
        element("p", words, class_="lead") if words else None,
        element("ul", cards, class_="cards", aria_label="The result in short"),
    ]


def _costs(student: System, teacher: System) -> Iterator[tuple[str, str, str]]:
    """Speed and size of the student beside the teacher's: label, ratio in words, the student's own number."""
    rate = next((key for key in RATES if student.facts.get(key) and teacher.facts.get(key)), "")
    for fact, label, more, less, same in (
        (rate, "Speed", "faster", "slower", "as fast"),
        ("parameters", "Size", "smaller", "larger", "as large"),
    ):
        ours, theirs = as_number(student.facts.get(fact)), as_number(teacher.facts.get(fact))
        if not ours or not theirs:
            continue
        ratio = theirs / ours if fact == "parameters" else ours / theirs
        what = "parameters" if fact == "parameters" else fact.replace("_per_", " per ").replace("_", " ")
        words = f"{ratio:.1f}x {more}" if ratio > 1 else f"{1 / ratio:.1f}x {less}"
        words = same if words.startswith("1.0x") else words
        yield label, words, f"{count(ours)} {what}"


def _p_words(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def _card(label: str, value: str, note: str) -> Markup:
    return element(
        "li",
        element("span", label, class_="card-label"),
        element("strong", value),
        element("span", note, class_="note"),
    )


# ---------------------------------------------------------------- tables


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
        )
        if any(as_number(system.facts.get(key)) is not None for system in found.systems)
    ]
    settings = [_setting(system) for system in found.systems]
    alike = len(set(settings)) == 1
    best = {m: max((s.measures[m] for s in found.systems if m in s.measures), default=None) for m in found.measures}
    rows = []
    for system, setting in zip(found.systems, settings, strict=True):
        row: list[Child | Cell] = [_system_name(system, found, "" if alike else setting)]
        row += [_measure_cell(system, name, best[name]) for name in found.measures]
        for _, key, write in facts:
            value = as_number(system.facts.get(key))
            row.append(Cell("" if value is None else write(value), value))
        rows.append(row)
    head = ["system", *found.measures, *(label for label, _, _ in facts)]
    caption = f"{items_of(found)} of the split {found.split or '?'}."
    if alike and settings[0]:
        caption += f" All systems: {settings[0]}."
    if any(system.against for system in found.systems):
        caption += f" * differs from {found.baseline}: paired randomisation test, Holm-corrected p < {SIGNIFICANT}."
    return table(caption, head, rows)


def _setting(system: System) -> str:
    """Full retrieval or re-ranking of what, and to which depth."""
    setting, depth = str(system.facts.get("setting") or ""), as_number(system.facts.get("depth"))
    said = depth is None or setting.endswith(f" at {depth:.0f}")
    words = [setting, "" if said or depth is None else f"depth {count(depth)}"]
    return ", ".join(filter(None, words))


def _system_name(system: System, found: Evaluation, setting: str) -> Child:
    return [
        system.name,
        element("span", " baseline", class_="tag") if system.name == found.baseline else "",
        element("span", setting, class_="tag below") if setting else "",
    ]


def _measure_cell(system: System, name: str, best: float | None) -> Cell:
    value = system.measures.get(name)
    if value is None:
        return Cell("")
    p = as_number(system.against.get(name, {}).get("holm"))
    star = element("abbr", "*", title=f"p {_p_words(p)}") if p is not None and p < SIGNIFICANT else None
    words = element("strong", measure(name, value)) if value == best else measure(name, value)
    return Cell([words, star], value)


def _against_table(found: Evaluation) -> Markup | None:
    rows: list[list[Child | Cell]] = []
    for system in found.systems:
        for name, values in system.against.items():
            number = {key: as_number(item) for key, item in values.items()}
            low, high = number.get("low"), number.get("high")
            counts = [number.get(key) for key in ("wins", "ties", "losses")]
            row: list[Child | Cell] = [system.name, name]
            gain = number.get("difference")
            row.append(Cell("" if gain is None else difference(name, gain), gain))
            span = "" if low is None or high is None else f"{difference(name, low)} to {difference(name, high)}"
            row.append(Cell(span, low))
            for key in ("holm", "randomisation", "t_test"):
                value = number.get(key)
                row.append(Cell("" if value is None else p_value(value), value))
            row.append(shown(number.get("effect"), "{:.2f}"))
            won = "" if None in counts else " / ".join(f"{item:.0f}" for item in counts if item is not None)
            row.append(Cell(won, counts[0]))
            rows.append(row)
    if not rows:
        return None
    head = [
        "system", "measure", "difference", "95 % interval", "p, Holm", "p, randomisation", "p, t-test", "effect",
        "wins / ties / losses",
    ]  # fmt: skip
    words = f"Differences from {found.baseline}, paired over {items_of(found)}. "
    words += "Effect: mean difference over its standard deviation."
    made = table(words, head, rows, text_columns=2)
    return element("details", element("summary", f"Significance against {found.baseline}: all tests"), made)


# ---------------------------------------------------------------- charts


def _differences(found: Evaluation) -> Markup | None:
    """Differences from the baseline in the first measure, with their intervals."""
    if not found.measures:
        return None
    name = found.measures[0]
    rows = {}
    for system in found.systems:
        value, low, high = (as_number(system.against.get(name, {}).get(key)) for key in ("difference", "low", "high"))
        if value is not None and low is not None and high is not None:
            rows[system.name] = (value, low, high)
    title = f"{name}: difference from {found.baseline}, with its 95 % interval"
    return figures.intervals(title, rows, f"{name} more than {found.baseline}") or None


def _quality_charts(found: Evaluation, marked: Sequence[str]) -> list[Markup]:
    if not found.measures:
        return []
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
    return charts


# ---------------------------------------------------------------- several runs


def side_by_side(runs: Sequence[RunView]) -> Iterator[Child]:
    """Every system of every run's last evaluation, what it costs, and where the recipes differ."""
    found = [(run, run.evaluations[-1].evaluation) for run in runs if run.evaluations]
    names = list(dict.fromkeys(name for _, evaluation in found if evaluation for name in evaluation.measures))
    rows: list[list[Child | Cell]] = []
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for run, evaluation in found:
        assert evaluation is not None
        for system in evaluation.systems:
            cells = [_measure_cell(system, name, None) for name in names]
            size, rate = as_number(system.facts.get("parameters")), as_number(system.facts.get("queries_per_second"))
            sizes = [Cell("" if size is None else count(size), size), Cell("" if rate is None else short(rate), rate)]
            rows.append([run.name, system.name, evaluation.split, *cells, *sizes])
            for words, x in (("parameters", size), ("queries per second", rate)):
                if x and names and names[0] in system.measures:
                    label = f"{run.name}/{system.name}"
                    points.setdefault(words, {})[label] = (x, system.measures[names[0]])
    head = ["run", "system", "split", *names, "parameters", "queries/s"]
    words = "The last evaluation of each run; * differs from the baseline of its own run. "
    yield table(words + "Compare only what was measured on the same data.", head, rows, text_columns=3)
    charts = [
        figures.scatter(f"{names[0]} against {words}", each, f"{words} (log scale)") for words, each in points.items()
    ]
    yield element("div", [chart for chart in charts if chart], class_="charts")
    yield _what_differs(runs)


def _what_differs(runs: Sequence[RunView]) -> Markup:
    """Keys of the recipes that are not the same in all runs."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    differ = [key for key in keys if len({each.get(key, "") for each in flat}) > 1]
    rows = [[key, *(each.get(key, "") for each in flat)] for key in differ]
    words = "Values of the recipes that are not the same in all runs." if rows else "The recipes are the same."
    return table(words, ["key", *(run.name for run in runs)], rows, text_columns=1 + len(runs), sortable=False)


def _flat(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Key paths with their values as text; stages by their names."""
    if isinstance(value, Mapping) and depth < 12:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value) and depth < 12:
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}.{item.get('name', number)}", depth + 1)
    elif path:
        yield path, str(value)

"""Training over time: loss terms, rates, temperatures, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdfw.report import figures
from kdfw.report.folder import RunView, StageView, mapping, mappings, written_stages
from kdfw.report.html import Child, Markup, element
from kdfw.report.numbers import as_number, short
from kdfw.report.tables import Cell, table

Points = dict[str, list[tuple[float, float]]]
TITLES = (
    "Loss", "Loss terms", "Dev split", "Learning rate", "Temperature", "Weight", "Weight of teachers", "Gradient norm",
    "Other values",
)  # fmt: skip


def training(run: RunView) -> Iterator[Child]:
    """Charts and values of every stage that trained."""
    for stage in run.stages:
        logged = series_of(stage.metrics)
        series = logged | constants(run, stage, logged)
        charts = [figures.lines(title, group) for title, group in chart_groups(series).items()]
        charts = [chart for chart in charts if chart]
        if charts:
            yield element("h3", stage.name)
            yield element("div", charts, class_="charts")
            yield _values(stage.name, logged)


def losses_of(runs: Sequence[RunView]) -> Iterator[Markup]:
    """The loss, and what was measured on the dev split, of several runs in one chart each."""
    for key, title in (("loss", "Loss of the last training stage"), ("dev", "Dev split of the last training stage")):
        found: Points = {}
        for number, run in enumerate(runs, start=1):
            trained = [series_of(stage.metrics) for stage in run.stages if series_of(stage.metrics)]
            for name, points in trained[-1].items() if trained else ():
                if name.partition("/")[0] == key:
                    label = run.name if run.name not in found else f"{run.name} ({number})"
                    found[label] = points
        if len(found) > 1:
            yield figures.lines(title, found)


def series_of(lines: Sequence[Mapping[str, Any]]) -> Points:
    """(step, value) pairs by name of the logged value."""
    found: Points = {}
    for line in lines:
        step = as_number(line.get("step"))
        if step is None:
            continue
        for key, item in line.items():
            value = as_number(item)
            if value is not None and key not in ("step", "epoch"):
                found.setdefault(key, []).append((step, value))
    return found


def constants(run: RunView, stage: StageView, logged: Mapping[str, Sequence[tuple[float, float]]]) -> Points:
    """Weights and temperatures of a stage's losses that never change, and so are not logged, as level lines."""
    steps = [step for step, _ in logged.get("loss", ())]
    if not steps:
        return {}
    written = next((each for each in written_stages(run.recipe) if each.get("name") == stage.name.split("#")[0]), {})
    found: Points = {}
    for name, options in _losses(written.get("losses")):
        weight = options.get("weight", 1.0)
        for key, value in (("weight", weight), ("temperature", options.get("temperature"))):
            number = as_number(value)
            if number is not None and f"{name}/{key}" not in logged:
                found[f"{name}/{key}"] = [(step, number) for step in dict.fromkeys((steps[0], steps[-1]))]
    for target in mappings(_diagnosed(run, stage.name).get("targets")):  # has those that the recipe leaves at default
        values = target.get("temperatures")
        number = as_number(values[0]) if isinstance(values, list) and len(values) == 1 else None
        name = f"{target.get('loss', '')}/temperature"
        if number is not None and name not in logged:
            found[name] = [(step, number) for step in dict.fromkeys((steps[0], steps[-1]))]
    return found


def _losses(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Losses as written, each with the name it has in the log."""
    rows = [mapping(item) or {"type": item} for item in value] if isinstance(value, list) else []
    types = [str(row.get("type", "")) for row in rows]
    for number, row in enumerate(rows):
        name = types[number] if types.count(types[number]) == 1 else f"{types[number]}-{number}"
        yield str(row.get("name") or name), row


def _diagnosed(run: RunView, stage: str) -> Mapping[str, Any]:
    return next((each for each in mappings(run.diagnosis.get("stages")) if each.get("stage") == stage), {})


def chart_groups(series: Mapping[str, list[tuple[float, float]]]) -> dict[str, Points]:
    """Which curves share a chart, by title, in the order they are shown."""
    groups: dict[str, Points] = {title: {} for title in TITLES}
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
        elif part.startswith("weight/"):
            title, name = "Weight of teachers", f"{base}: {part.removeprefix('weight/')}"
        else:
            title = "Other values" if part else "Loss terms"
        groups[title][name] = points
    return {title: group for title, group in groups.items() if group}


def _values(stage: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    rows: list[list[Child | Cell]] = []
    for name, points in series.items():
        values = [value for _, value in points]
        ends = (values[0], values[-1], min(values), max(values))
        rows.append([name, *(Cell(short(value), value) for value in ends), Cell(str(len(points)), len(points))])
    made = table(
        f"Values logged while {stage} trained.", ["value", "first", "last", "least", "greatest", "lines"], rows
    )
    return element("details", element("summary", "The same as a table"), made)

"""Runs side by side: means with confidence intervals, tests against a baseline, quality against cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.errors import DataError, one_of
from kdfw.evaluation.significance import (
    holm,
    interval,
    paired,
    paired_statistic,
    percentiles,
    resampled,
    statistic_value,
)
from kdfw.evaluation.statistics import INPUTS, Statistic, statistic_of
from kdfw.evaluation.systems import Compared, Evaluation, load_evaluations
from kdfw.evaluation.table import Style, grid, number
from kdfw.evaluation.tasks import has_relations
from kdfw.types import Qrels

COSTS = {
    "queries_per_second": ("queries/s", -1.0),
    "items_per_second": ("items/s", -1.0),
    "parameters": ("parameters", 1.0),
    "teacher_pairs": ("teacher pairs", 1.0),
    "teacher_seconds": ("teacher s", 1.0),
    "making_seconds": ("making s", 1.0),
}
"""Fact -> (how it is shown, 1 when less is better)."""
FACTS = (*COSTS, "megabytes", "passages_per_second", "setting", "depth", "judged@10", "seed")
DERIVED = ("macro-spearman", "spearman", "pearson", "macro-f1", "relation-f1")
"""Measures of columns that are compared where runs do not say what they were measured by."""
Seeds = Sequence[Mapping[str, Any]]
"""Query -> value (or row) of one measure, for each seed of a system."""


def compare(
    systems: Sequence[Compared], measures: Sequence[str] | None = None, baseline: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Every system against the baseline on every measure, over the queries that all of them have.

    Args:
        measures: default: what all were measured by in their runs, else those that every system has.
        baseline: name of a system; default: the first.
    Returns: a JSON value; p values of one measure are corrected together (Holm).
    Raises: DataError when the systems share no query or measure, or a name is not there.
    """
    names = [system.name for system in systems]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two of the runs are called {twice!r}; rename one of the files or folders")
    baseline = baseline or names[0]
    if baseline not in names:
        raise DataError(f"no run {baseline!r} to be the baseline; {one_of(baseline, names)}")
    classes = systems[0].facts.get("classes", ())
    values = [each for system in systems for each in system.seeds]
    shared = shared_measures(values, classes)

    def there(measure: str) -> bool:
        return measure in shared or _statistic(measure, values, classes) is not None

    missing = next((measure for measure in measures or () if not there(measure)), None)
    if missing is not None:
        raise DataError(f"not every run has the measure {missing!r}; {one_of(missing, shared)}")
    asked = {tuple(system.facts.get("asked", ())) for system in systems}
    measured_by = [measure for measure in asked.pop() if there(measure)] if len(asked) == 1 else []
    wanted = list(measures or measured_by or shared)
    if not wanted:
        raise DataError("the runs share no measure")
    result: dict[str, Any] = {"baseline": baseline, "measures": wanted, "order": names, "systems": {}}
    for system in systems:
        facts = {key: system.facts[key] for key in FACTS if system.facts.get(key) is not None}
        facts |= {key: value for key, value in system.facts.items() if key.startswith("teacher_cost_")}
        result["systems"][system.name] = {"seeds": len(system.seeds), **facts, "measures": {}}
    for measure in wanted:
        statistic = _statistic(measure, [values for system in systems for values in system.seeds], classes)
        columns = (measure,) if statistic is None else statistic.columns
        sets = [set(values[column]) for system in systems for values in system.seeds for column in columns]
        common = set.intersection(*sets)
        if not common:
            raise DataError(f"the runs share no query on {measure!r}; were they made on the same data?")
        queries = [query for query in systems[0].seeds[0][columns[0]] if query in common]
        result["queries"] = len(queries)
        result["left_out_queries"] = len(set.union(*sets)) - len(queries)
        tables = {system.name: [rows_of(values, columns, queries) for values in system.seeds] for system in systems}
        for name, entry in compare_measure(tables, baseline, statistic, seed).items():
            result["systems"][name]["measures"][measure] = entry
    result["pareto"] = _pareto(result, wanted[0])
    return result


def compare_runs(
    paths: Sequence[Path],
    qrels: Qrels | None = None,
    measures: Sequence[str] | None = None,
    baseline: str | None = None,
    *,
    stage: str | None = None,
    separate_seeds: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`compare` for each evaluate stage that the runs have in common, with `stage` and what it was `measured_on`.

    Arguments and errors: see `compare` and `load_evaluations`.
    """
    found = load_evaluations(paths, qrels, measures, stage, separate_seeds)
    return [compare_evaluation(evaluation, measures, baseline, seed) for evaluation in found]


def compare_evaluation(
    evaluation: Evaluation, measures: Sequence[str] | None = None, baseline: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """`compare` of the systems of one evaluate stage, with its name and what it `measured_on`."""
    try:
        result = compare(evaluation.systems, measures, baseline, seed)
    except DataError as error:
        raise DataError(f"evaluate stage {evaluation.name}: {error}" if evaluation.name else str(error)) from error
    about = {"stage": evaluation.name, "measured_on": evaluation.measured_on, "notes": evaluation.notes}
    return {**about, **result}


def shared_measures(values: Sequence[Mapping[str, Any]], classes: Sequence[str] = ()) -> list[str]:
    """Measures that all of some systems have, per query or as a statistic of their columns."""
    first = values[0]
    derived = [name for name in DERIVED if name not in first]
    if not has_relations(classes):
        derived = [name for name in derived if name != "relation-f1"]
    own = [name for name in first if name not in INPUTS and all(name in each for each in values)]
    return own + [name for name in derived if _statistic(name, values, classes) is not None]


def _statistic(measure: str, values: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Statistic | None:
    statistic = statistic_of(measure, classes)
    there = statistic is not None and all(column in each for each in values for column in statistic.columns)
    return statistic if there else None


def measure_rows(
    values: Mapping[str, Mapping[str, Any]], measure: str, classes: Sequence[str] = ()
) -> tuple[dict[str, list[np.ndarray]], Statistic | None]:
    """What `compare_measure` wants of systems measured on the same items; nothing where they have no such values.

    Args:
        values: system -> measure or column -> item -> value.
    """
    statistic = _statistic(measure, list(values.values()), classes)
    columns = (measure,) if statistic is None else statistic.columns
    if not all(column in each for each in values.values() for column in columns):
        return {}, None
    queries = list(next(iter(values.values()))[columns[0]])
    return {name: [rows_of(each, columns, queries)] for name, each in values.items()}, statistic


def rows_of(values: Mapping[str, Mapping[str, Any]], columns: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """(Q, S) rows of some queries, their columns side by side."""
    parts = [np.asarray([values[column][query] for query in queries], dtype=np.float64) for column in columns]
    return np.column_stack(parts)


def compare_measure(
    systems: Mapping[str, Sequence[np.ndarray]], baseline: str, statistic: Statistic | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """One measure of several systems over the same queries.

    Args:
        systems: by name, for each seed (Q, S) rows: one column with per-query values, or what the statistic reads.
    Returns: by name `mean`, the 95 % interval `low` to `high`, with several seeds `by_seed` and `spread`, and
        `against_baseline`: the fields of `Paired`, and p values after Holm's correction.
    """
    draws: dict[str, np.ndarray] = {}
    entries: dict[str, dict[str, Any]] = {}
    compared: dict[str, dict[str, Any]] = {}
    for name, seeds in systems.items():
        by_seed = [_value([rows], statistic) for rows in seeds]
        mean = float(np.mean(by_seed))
        if not math.isfinite(mean):  # a correlation with scores that are all the same
            entries[name] = {"mean": None, "low": None, "high": None}
            continue
        if statistic is None:
            low, high = interval(_mean(seeds), seed=seed)
        else:
            draws[name] = resampled(seeds, statistic, seed=seed)
            low, high = percentiles(draws[name])
        entries[name] = {"mean": mean, "low": low, "high": high}
        if len(seeds) > 1:
            entries[name] |= {"by_seed": by_seed, "spread": float(np.std(by_seed, ddof=1))}
    for name, seeds in systems.items():
        if name == baseline or entries[name]["mean"] is None or entries[baseline]["mean"] is None:
            continue
        if statistic is None:
            found = paired(_mean(seeds), _mean(systems[baseline]), seed=seed)
        else:
            values = draws[name], draws[baseline]
            found = paired_statistic(seeds, systems[baseline], statistic, seed=seed, values=values)
        compared[name] = dataclasses.asdict(found)
        entries[name]["against_baseline"] = compared[name]
    for test in ("randomisation", "t_test"):
        corrected = holm([entry[test] for entry in compared.values()])
        for entry, p_value in zip(compared.values(), corrected, strict=True):
            entry[f"{test}_holm"] = p_value
    return entries


def _value(seeds: Sequence[np.ndarray], statistic: Statistic | None) -> float:
    return float(_mean(seeds).mean()) if statistic is None else statistic_value(seeds, statistic)


def _mean(seeds: Sequence[np.ndarray]) -> np.ndarray:
    """(Q,) per-query values, mean over seeds."""
    found: np.ndarray = np.mean([rows[:, 0] for rows in seeds], axis=0)
    return found


def _pareto(result: Mapping[str, Any], measure: str) -> dict[str, list[str]]:
    """For each kind of cost that is known of a system, the systems that no other beats in both quality and cost."""
    found: dict[str, list[str]] = {}
    money = sorted({key for system in result["systems"].values() for key in system if key.startswith("teacher_cost_")})
    for cost, sign in [*((cost, sign) for cost, (_, sign) in COSTS.items()), *((key, 1.0) for key in money)]:
        points = {
            name: (system["measures"][measure]["mean"], sign * system[cost])
            for name, system in result["systems"].items()
            if system.get(cost) is not None and system["measures"][measure]["mean"] is not None
        }
        if points:
            found[cost] = [
                name
                for name, (quality, price) in points.items()
                if not any(q >= quality and p <= price and (q, p) != (quality, price) for q, p in points.values())
            ]
    return found


# ---------------------------------------------------------------- as text


def comparison_table(result: Mapping[str, Any], style: Style = "text") -> str:
    """Mean [95 % interval] of every system and measure, the tests in full, and quality against cost."""
    parts = [_means(result, style), _tests(result, style), _costs(result, style), _notes(result, style)]
    return "\n\n".join(part for part in parts if part)


def _means(result: Mapping[str, Any], style: Style) -> str:
    rows = []
    for name, system in result["systems"].items():
        cells = [name + (" (baseline)" if name == result["baseline"] else "")]
        for measure in result["measures"]:
            entry = system["measures"][measure]
            if entry["mean"] is None:
                cells.append("")
                continue
            against = entry.get("against_baseline") or {}
            p_value = against.get("randomisation_holm")
            star = "*" if p_value is not None and p_value < 0.05 else ""
            spread = f" ± {number(measure, entry['spread'])}" if "spread" in entry else ""
            low, high = number(measure, entry["low"]), number(measure, entry["high"])
            cells.append(f"{number(measure, entry['mean'])}{spread}{star} [{low}, {high}]")
        judged = system.get("judged@10")
        cells += [system.get("setting", ""), str(system.get("depth", "")), "" if judged is None else f"{judged:.0%}"]
        rows.append(cells)
    head = ["system", *result["measures"], "setting", "depth", "judged@10"]
    keep = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    return grid([head[column] for column in keep], [[row[column] for column in keep] for row in rows], style)


def _tests(result: Mapping[str, Any], style: Style) -> str:
    rows = []
    for name, system in result["systems"].items():
        for measure in result["measures"]:
            found = system["measures"][measure].get("against_baseline")
            if not found:
                continue
            change, low, high = (_signed(measure, found[key]) for key in ("difference", "low", "high"))
            rows.append(
                [
                    name,
                    measure,
                    f"{change} [{low}, {high}]",
                    _p_value(found["randomisation_holm"]),
                    _p_value(found["t_test_holm"]),
                    "" if found["effect"] is None else f"{found['effect']:+.2f}",
                    "" if found["wins"] is None else f"{found['wins']}/{found['ties']}/{found['losses']}",
                ]
            )
    head = ["system", "measure", "difference [95 %]", "p random.", "p t-test", "d_z", "win/tie/loss"]
    return grid(head, rows, style) if rows else ""


def _costs(result: Mapping[str, Any], style: Style) -> str:
    """The first measure beside each kind of cost, with a star where no other system beats it in both."""
    if not result["pareto"]:
        return ""
    measure = result["measures"][0]
    rows = []
    for name, system in result["systems"].items():
        mean = system["measures"][measure]["mean"]
        cells = [name, "" if mean is None else number(measure, mean)]
        for cost, best in result["pareto"].items():
            value = system.get(cost)
            cells.append("" if value is None else _amount(cost, value) + ("*" if name in best else ""))
        rows.append(cells)
    head = [COSTS[cost][0] if cost in COSTS else f"teacher {cost.rpartition('_')[2]}" for cost in result["pareto"]]
    note = f"a star: no other system is better in both {measure} and this cost"
    gap = "\n\n" if style == "markdown" else "\n"
    return grid(["quality against cost", measure, *head], rows, style) + gap + _note(note, style)


def _notes(result: Mapping[str, Any], style: Style) -> str:
    where = f" of {result['measured_on']}" if result.get("measured_on") else ""
    text = f"{result['queries']} queries{where}; against {result['baseline']}; "
    text += "p values after Holm's correction; * p < 0.05"
    if result["left_out_queries"]:
        text += f"; {result['left_out_queries']} queries that not every run has are left out"
    if result.get("notes"):
        text += f"\n{result['notes']}"
    if any("spread" in entry for system in result["systems"].values() for entry in system["measures"].values()):
        text += (
            "\n± is the standard deviation over seeds; intervals and tests are over queries, on the means of the seeds"
        )
    return _note(text.replace("\n", "  \n") if style == "markdown" else text, style)


def _note(text: str, style: Style) -> str:
    return "\n".join(f"% {line}" for line in text.splitlines()) if style == "latex" else text


def _signed(measure: str, value: float) -> str:
    return ("-" if value < 0 else "+") + number(measure, abs(value))


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _amount(cost: str, value: float) -> str:
    if cost == "parameters":
        return f"{value / 1e6:.1f}M"
    return f"{value:,.2f}" if cost.startswith("teacher_cost_") else f"{value:,.0f}"

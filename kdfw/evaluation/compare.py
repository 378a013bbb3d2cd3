"""Runs side by side: means with confidence intervals, tests against a baseline, seeds taken together."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.errors import DataError, one_of
from kdfw.evaluation.significance import holm, interval, paired
from kdfw.evaluation.table import Style, grid, number, read_result
from kdfw.types import Qrels

Values = dict[str, dict[str, float]]
"""Measure -> query -> value."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A system, with its per-query values and what is known of its cost."""

    name: str
    seeds: Sequence[Values]
    """One entry a seed; usually one."""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def mean_values(self, measure: str) -> dict[str, float]:
        """Per-query values, mean over seeds."""
        return {
            query: float(np.mean([seed[measure][query] for seed in self.seeds])) for query in self.seeds[0][measure]
        }


def load_systems(path: Path, qrels: Qrels | None, measures: Sequence[str] | None) -> list[Compared]:
    """The systems of a run folder, an evaluate stage's folder, a per-query file, or a run file (which needs qrels).

    Raises: DataError for a path that is none of these.
    """
    if path.is_dir():
        stages = [path] if (path / "per_query.jsonl").is_file() else []
        stages += sorted(file.parent for file in path.glob("stages/*/per_query.jsonl"))
        if not stages:
            raise DataError(f"{path}: no evaluation in it (per_query.jsonl); run its recipe, or name a run file")
        return [system for stage in stages for system in _stage_systems(stage, path)]
    if path.suffix == ".jsonl":
        return _stage_systems(path.parent, path.parent, path)
    from kdfw.evaluation.api import evaluate

    if qrels is None:
        raise DataError(f"{path}: a run file is compared by its judgements; add --qrels FILE")
    found = evaluate(path, qrels, list(measures or ["nDCG@10", "RR@10", "R@100", "AP"]))
    values = {measure: dict(each) for measure, each in found.per_query.items()}
    return [Compared(name=_stem(path), seeds=[values], facts={"depth": found.depth, "judged@10": found.judged})]


def _stem(path: Path) -> str:
    return re.sub(r"(\.trec|\.tsv|\.txt|\.run|\.json|\.gz)+$", "", path.name)


def _stage_systems(stage: Path, root: Path, file: Path | None = None) -> list[Compared]:
    file = file or stage / "per_query.jsonl"
    systems: dict[str, Values] = {}
    for line_number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            query, name = str(row.pop("query")), str(row.pop("system", _stem(file)))
            for measure, value in row.items():
                systems.setdefault(name, {}).setdefault(measure, {})[query] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = '{"query": id, "system": name, measure: number}'
            raise DataError(f"{file}:{line_number}: not a per-query line ({error}); expected {expected}") from error
    facts = (read_result(stage) or {}).get("systems", {})
    label = "" if root == stage else f"{root.name}/"
    return [Compared(name=label + name, seeds=[values], facts=facts.get(name, {})) for name, values in systems.items()]


def merge_seeds(systems: Sequence[Compared]) -> list[Compared]:
    """Systems whose names differ only in `seed<number>` become one with several seeds."""
    groups: dict[str, list[Compared]] = {}
    for system in systems:
        groups.setdefault(re.sub(r"[-_.]?seed[-_=]?\d+", "", system.name), []).append(system)
    merged = []
    for name, group in groups.items():
        if len(group) == 1:
            merged.append(group[0])
        else:
            seeds = [seed for system in group for seed in system.seeds]
            merged.append(Compared(name=name, seeds=seeds, facts=group[0].facts))
    return merged


def compare(
    systems: Sequence[Compared], measures: Sequence[str] | None = None, baseline: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Every system against the baseline on every measure, over the queries that all of them have.

    Args:
        measures: default: those that every system has.
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
    shared = [m for m in systems[0].seeds[0] if all(m in values for system in systems for values in system.seeds)]
    for measure in measures or ():
        if measure not in shared:
            raise DataError(f"not every run has the measure {measure!r}; {one_of(measure, shared)}")
    wanted = list(measures or shared)
    if not wanted:
        raise DataError("the runs share no measure")
    result: dict[str, Any] = {"baseline": baseline, "measures": wanted, "systems": {}}
    base_system = next(system for system in systems if system.name == baseline)
    for system in systems:
        keys = ("parameters", "megabytes", "queries_per_second", "setting", "depth", "judged@10")
        facts = {key: system.facts[key] for key in keys if key in system.facts}
        result["systems"][system.name] = {"seeds": len(system.seeds), **facts, "measures": {}}
    for measure in wanted:
        sets = [set(values[measure]) for system in systems for values in system.seeds]
        common = set.intersection(*sets)
        if not common:
            raise DataError(f"the runs share no query on {measure!r}; were they made on the same data?")
        queries = [query for query in systems[0].seeds[0][measure] if query in common]
        result["queries"] = len(queries)
        result["left_out_queries"] = len(set.union(*sets)) - len(queries)
        base = np.array([base_system.mean_values(measure)[query] for query in queries])
        others = []
        for system in systems:
            means = system.mean_values(measure)
            values = np.array([means[query] for query in queries])
            low, high = interval(values, seed=seed)
            entry: dict[str, Any] = {"mean": float(values.mean()), "low": low, "high": high}
            if len(system.seeds) > 1:
                by_seed = [float(np.mean([run[measure][query] for query in queries])) for run in system.seeds]
                entry |= {"by_seed": by_seed, "spread": float(np.std(by_seed, ddof=1))}
            result["systems"][system.name]["measures"][measure] = entry
            if system.name != baseline:
                entry["against_baseline"] = dataclasses.asdict(paired(values, base, seed=seed))
                others.append(entry["against_baseline"])
        for test in ("randomisation", "t_test"):
            for entry, p_value in zip(others, holm([entry[test] for entry in others]), strict=True):
                entry[f"{test}_holm"] = p_value
    result["pareto"] = _pareto(result, wanted[0])
    return result


def _pareto(result: Mapping[str, Any], measure: str) -> dict[str, list[str]]:
    """For each kind of cost, the systems that no other beats in both quality and cost."""
    found: dict[str, list[str]] = {}
    for cost, sign in (("queries_per_second", -1.0), ("parameters", 1.0)):
        points = {
            name: (system["measures"][measure]["mean"], sign * system[cost])
            for name, system in result["systems"].items()
            if system.get(cost) is not None
        }
        found[cost] = [
            name
            for name, (quality, price) in points.items()
            if not any(q >= quality and p <= price and (q, p) != (quality, price) for q, p in points.values())
        ]
    return found


def comparison_table(result: Mapping[str, Any], style: Style = "text") -> str:
    """Mean [95 % interval] of every system and measure; `*` where Holm's p < 0.05; then the tests in full."""
    rows, tests = [], []
    for name, system in result["systems"].items():
        cells = [name + (" (baseline)" if name == result["baseline"] else "")]
        for measure in result["measures"]:
            entry = system["measures"][measure]
            against = entry.get("against_baseline")
            star = "*" if against and against["randomisation_holm"] < 0.05 else ""
            spread = f" ± {number(measure, entry['spread'])}" if "spread" in entry else ""
            low, high = number(measure, entry["low"]), number(measure, entry["high"])
            cells.append(f"{number(measure, entry['mean'])}{spread}{star} [{low}, {high}]")
            if against:
                tests.append(
                    [
                        name,
                        measure,
                        f"{against['difference']:+.4f} [{against['low']:+.4f}, {against['high']:+.4f}]",
                        _p_value(against["randomisation_holm"]),
                        _p_value(against["t_test_holm"]),
                        f"{against['effect']:+.2f}",
                        f"{against['wins']}/{against['ties']}/{against['losses']}",
                    ]
                )
        rows.append(cells)
    parts = [grid(["system", *result["measures"]], rows, style)]
    if tests:
        head = ["system", "measure", "difference [95 %]", "p random.", "p t-test", "d_z", "win/tie/loss"]
        parts.append(grid(head, tests, style))
    note = f"{result['queries']} queries; against {result['baseline']}; p values after Holm's correction; * p < 0.05"
    if result["left_out_queries"]:
        note += f"; {result['left_out_queries']} queries that not every run has are left out"
    best = [f"{cost}: {', '.join(names)}" for cost, names in result["pareto"].items() if names]
    if best:
        note += f"\nnot beaten in both {result['measures'][0]} and " + "; ".join(best)
    if style == "latex":
        note = "\n".join(f"% {line}" for line in note.splitlines())
    return "\n\n".join([*parts, note])


def _p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"

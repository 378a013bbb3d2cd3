"""What is compared: the systems of run folders, evaluate stages, per-query files and run files.

Runs of one recipe with several seeds become one system with several seeds; a system that came out the same in every
run (BM25, the teacher) stands there once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.errors import DataError, one_of
from kdfw.evaluation.cost import costs_of
from kdfw.evaluation.table import benchmark_note, read_result
from kdfw.files import plain_yaml
from kdfw.fingerprint import fingerprint
from kdfw.types import Qrels

Values = dict[str, dict[str, Any]]
"""Measure -> query -> value; or, of what a measure is computed from (`kdfw.evaluation.statistics`), numbers."""

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@100", "AP")
"""What a run file is measured by when nothing is asked for."""
_SEED = re.compile(r"[-_.]?seed[-_=]?\d+")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A system, with its per-query values and what is known of its cost."""

    name: str
    seeds: Sequence[Values]
    """One entry a seed; usually one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    """Label of the run folder it comes from; empty for a file."""
    recipe: str = ""
    """Of a run folder: hash of its recipe but for the seed."""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Systems measured on the same items."""

    name: str
    """Of the evaluate stage; empty for files."""
    measured_on: str
    """Split or benchmark, in words; empty when unknown."""
    notes: str = ""
    """Convention of a benchmark, and in what its data differ from the official ones."""
    systems: Sequence[Compared]


def load_evaluations(
    paths: Sequence[Path],
    qrels: Qrels | None = None,
    measures: Sequence[str] | None = None,
    stage: str | None = None,
    separate_seeds: bool = False,
) -> list[Evaluation]:
    """What several paths have in common: one entry for each evaluate stage that all run folders have.

    Args:
        paths: run folders, folders of evaluate stages, per-query files, or run files (which need `qrels`).
        measures: what run files are measured by.
        stage: only this evaluate stage of run folders.
        separate_seeds: leave runs of one recipe that differ in the seed alone apart.
    Raises: DataError for a path that is none of these, or when nothing is in common.
    """
    labels = _labels(paths)
    loaded = [_load(path, label, qrels, measures) for path, label in zip(paths, labels, strict=True)]
    folders = {label: list(found) for label, found in zip(labels, loaded, strict=True) if "" not in found}
    if stage is not None:
        for label, names in folders.items():
            if stage not in names:
                raise DataError(f"{label}: no evaluate stage {stage!r}; {one_of(stage, names)}")
    evaluations = []
    for chosen in _common(folders, stage):
        found = [each.get("") or each[chosen.get(label, "")] for label, each in zip(labels, loaded, strict=True)]
        systems = [system for each in found for system in each.systems]
        if not separate_seeds:
            systems = merge_seeds(systems)
        stages = dict.fromkeys(each.name for each in found if each.name)
        words = dict.fromkeys(each.measured_on for each in found if each.measured_on)
        notes = "\n".join(dict.fromkeys(each.notes for each in found if each.notes))
        about = {"name": ", ".join(stages), "measured_on": ", ".join(words), "notes": notes}
        evaluations.append(Evaluation(systems=_named(systems), **about))
    return evaluations


def _common(folders: Mapping[str, Sequence[str]], stage: str | None) -> list[dict[str, str]]:
    """For each comparison, which evaluate stage of each run folder is in it."""
    if not folders:
        return [{}]
    if stage is not None:
        return [dict.fromkeys(folders, stage)]
    if all(len(names) == 1 for names in folders.values()):
        return [{label: names[0] for label, names in folders.items()}]
    shared = [name for name in next(iter(folders.values())) if all(name in names for names in folders.values())]
    if not shared:
        have = "; ".join(f"{label}: {', '.join(names)}" for label, names in folders.items())
        raise DataError(f"the runs have no evaluate stage in common ({have}); name folders of stages instead")
    return [dict.fromkeys(folders, name) for name in shared]


def _load(path: Path, label: str, qrels: Qrels | None, measures: Sequence[str] | None) -> dict[str, Evaluation]:
    """By evaluate stage; a file has one entry with the name ''."""
    if path.is_dir():
        own = (path / "per_query.jsonl").is_file()
        stages = [path] if own else sorted(file.parent for file in path.glob("stages/*/per_query.jsonl"))
        if not stages:
            raise DataError(f"{path}: no evaluation in it (per_query.jsonl); run its recipe, or name a run file")
        run = path.parent.parent if own and path.parent.name == "stages" else path
        return {_stage_name(folder): _stage(folder, run, label) for folder in stages}
    if path.suffix == ".jsonl":
        systems = read_per_query(path)
        found = [Compared(name=name, seeds=[values]) for name, values in systems.items()]
        return {"": Evaluation(name="", measured_on="", systems=found)}
    from kdfw.evaluation.api import evaluate

    if qrels is None:
        raise DataError(f"{path}: a run file is compared by its judgements; add --qrels FILE")
    result = evaluate(path, qrels, list(measures or DEFAULT_MEASURES))
    values = {measure: dict(each) for measure, each in result.per_query.items()}
    facts = {"depth": result.depth, "judged@10": result.judged}
    return {"": Evaluation(name="", measured_on="", systems=[Compared(name=label, seeds=[values], facts=facts)])}


def _stage(folder: Path, run: Path, label: str) -> Evaluation:
    """The systems of one evaluate stage, with what each cost."""
    result = read_result(folder) or {}
    facts = result.get("systems", {})
    costs = costs_of(run, folder)
    recipe, seed = _recipe_of(run)
    systems = [
        Compared(
            name=name,
            seeds=[values],
            facts={
                **facts.get(name, {}),
                **costs.get(name.partition(".")[0], {}),
                "classes": result.get("classes", []),
                "asked": result.get("measures", []),
            },
            run=label,
            recipe=recipe,
            seed=seed,
        )
        for name, values in read_per_query(folder / "per_query.jsonl").items()
    ]
    notes = benchmark_note(result).strip()
    split = result.get("split")
    where = f"{'' if notes else 'split '}{split}" if isinstance(split, str) else ""
    return Evaluation(name=_stage_name(folder), measured_on=where, systems=systems, notes=notes)


def _stage_name(folder: Path) -> str:
    return re.sub(r"^\d+-", "", folder.name)


def read_per_query(file: Path) -> dict[str, Values]:
    """System -> measure -> query -> value of a per-query file. A file without systems has one, of the file's name.

    Raises: DataError with the line for anything that is no per-query line.
    """
    systems: dict[str, Values] = {}
    for line_number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            query, name = str(row.pop("query")), str(row.pop("system", _stem(file)))
            for measure, value in row.items():
                number = [float(each) for each in value] if isinstance(value, list) else float(value)
                systems.setdefault(name, {}).setdefault(measure, {})[query] = number
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = '{"query": id, "system": name, measure: number}'
            raise DataError(f"{file}:{line_number}: not a per-query line ({error}); expected {expected}") from error
    if not systems:
        raise DataError(f"{file}: no per-query lines in it")
    return systems


def _stem(path: Path) -> str:
    return re.sub(r"(\.trec|\.tsv|\.txt|\.run|\.jsonl|\.json|\.gz)+$", "", path.name)


def _labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, with as many before it as make all of them different."""
    plain = [path.resolve() for path in paths]
    # the folder of a stage is called by its run, unless another stage of the run is there too
    runs = [path.parent.parent if path.is_dir() and path.parent.name == "stages" else path for path in plain]
    for chosen in (runs, plain):
        parts = [(*path.parent.parts[1:], path.name if path.is_dir() else _stem(path)) for path in chosen]
        for length in range(1, max(map(len, parts)) + 1):
            labels = ["/".join(each[-length:]) for each in parts]
            if len(set(labels)) == len(labels):
                return labels
    twice = next(path for path, each in zip(paths, parts, strict=True) if parts.count(each) > 1)
    raise DataError(f"{twice} is given twice; two of the runs cannot be told apart")


def _recipe_of(run: Path) -> tuple[str, int | None]:
    """(hash of a run's recipe without seed and names, its seed); empty and None where it cannot be read."""
    try:
        recipe = plain_yaml((run / "recipe.yaml").read_text(encoding="utf-8"))
        seed = recipe["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", None
    rest = {key: value for key, value in recipe.items() if key not in ("seed", "name", "description", "trackers")}
    return fingerprint(json.loads(json.dumps(rest, default=str))), seed if isinstance(seed, int) else None


def merge_seeds(systems: Sequence[Compared]) -> list[Compared]:
    """Runs of one recipe with different seeds become one system with several seeds.

    Of run folders the recipe decides; files and systems that differ only in a `seed<number>` of their name go together.
    A system that the seed does not change (BM25) has one seed.
    """
    groups: dict[tuple[str, str], list[Compared]] = {}
    for system in systems:
        key = (system.recipe, system.name) if system.recipe else ("", _SEED.sub("", _full(system)))
        groups.setdefault(key, []).append(system)
    merged: list[Compared] = []
    for (recipe, _), group in groups.items():
        repeated = recipe and len({system.seed for system in group}) < len(group)
        if len(group) == 1 or repeated:
            merged += group
            continue
        seeds = [seed for system in group for seed in system.seeds]
        merged.append(
            replace(
                group[0],
                name=_SEED.sub("", group[0].name) if not recipe else group[0].name,
                run=_common_label([system.run for system in group]),
                seeds=seeds[:1] if all(seed == seeds[0] for seed in seeds) else seeds,
                facts=_mean_facts([system.facts for system in group]),
                seed=None,
            )
        )
    return merged


def _common_label(labels: Sequence[str]) -> str:
    """What names of runs share but for the seed; else all of them."""
    plain = {_SEED.sub("", label) for label in labels}
    return (plain.pop() if len(plain) == 1 else "") or "+".join(dict.fromkeys(labels))


def _mean_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the numbers that all have; of the rest that of the first."""
    found = dict(facts[0])
    for key, value in facts[0].items():
        each = [other.get(key) for other in facts]
        if isinstance(value, float) and all(isinstance(number, (int, float)) for number in each):
            found[key] = float(np.mean(each))  # type: ignore[arg-type]
    return found


def _shared(systems: Sequence[Compared]) -> list[Compared]:
    """Systems of several runs whose values are the same in all of them, once and without the run's name."""
    by_name: dict[str, list[Compared]] = {}
    for system in systems:
        if system.run:
            by_name.setdefault(system.name, []).append(system)
    runs = {system.run for system in systems if system.run}
    files = {system.name for system in systems if not system.run}
    found: list[Compared] = []
    for system in systems:
        group = by_name.get(system.name, []) if system.run else []
        everywhere = len(group) > 1 and {member.run for member in group} == runs
        if not everywhere or system.name in files or any(member.seeds != group[0].seeds for member in group):
            found.append(system)
        elif system is group[0]:
            found.append(replace(system, run="", facts=_mean_facts([member.facts for member in group])))
    return found


def _named(systems: Sequence[Compared]) -> list[Compared]:
    """With the run's label in the name where there are several runs, but for what is the same in all of them."""
    several = len({system.run for system in systems}) > 1
    return [replace(system, name=_full(system)) for system in _shared(systems)] if several else list(systems)


def _full(system: Compared) -> str:
    return f"{system.run}/{system.name}" if system.run else system.name

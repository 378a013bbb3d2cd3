"""`kdfw.sweep`: a small grid of runs over one cache, each an ordinary run in processes of its own; their comparison.

A cell that fails, runs out of memory or is killed does not take the others along. A sweep that was stopped goes on with
the same command: finished cells are recognised by their plans, an interrupted one goes on inside its stage.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdfw.engine.api import columns, find_recipe, plan_rows
from kdfw.engine.artifacts import ArtifactStore
from kdfw.engine.cells import Cell, axes_of, cells_of
from kdfw.engine.launch import launch
from kdfw.engine.run import LOCK, default_cache, finished_manifest
from kdfw.engine.sweep_result import CellResult, SweepResult, choice_of, sweep_text, sweep_values
from kdfw.errors import ConfigError, DataError, Problem, one_of
from kdfw.evaluation.compare import compare_evaluation
from kdfw.evaluation.systems import load_evaluations
from kdfw.files import write_atomic, write_json

log = logging.getLogger("kdfw")
MESSAGE_LINES = 12


def sweep(
    recipe: str | Path,
    grid: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    seeds: int | Sequence[int] | None = None,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    baseline: str | None = None,
    measures: Sequence[str] | None = None,
    processes: int = 1,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> SweepResult:
    """Run every combination of some values of a recipe's keys, with several seeds, or go on where that stopped.

    Args:
        grid: values by key path, or texts `key.path=v1,v2`.
        seeds: how many, from the recipe's own on; or which.
        settings: `key.path=value` texts for every run.
        out: folder of the sweep, with a run folder for each cell; default `runs/<name>-sweep`.
        cache: shared by all cells; default as for a run in `out`.
        baseline: what the others are tested against: values as the table names them (`temperature=1`) or a system.
        measures: of the comparison; default: all.
        processes: of each run.
    Raises: ConfigError with every fault of every cell before anything runs; KeyboardInterrupt after a clean stop.
    """
    if "WORLD_SIZE" in os.environ:
        fix = "start it once, without a launcher; --processes N is for each of its runs"
        raise ConfigError(Problem(where="sweep", found="one of several processes", fix=fix))
    if processes < 1:
        raise ConfigError(Problem(where="processes", found=str(processes), fix="a whole number from 1 on"))
    path = find_recipe(recipe)
    out, cells = cells_of(path, settings, axes_of(grid), seeds, Path(out) if out else None)
    _check_baseline(cells, baseline)
    flags = ["--processes", str(processes), "--cache", str(cache or default_cache(out))]
    flags += ["--offline"] * offline + ["--trust-remote-code"] * trust_remote_code
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".sweep.lock", timeout=0):
            results = []
            for number, cell in enumerate(cells, start=1):
                results.append(_run_cell(path, cell, f"{number}/{len(cells)} {cell.name}", flags))
                _write_state(out, path, cells, results)
            return _finish(out, results, baseline, measures)
    except Timeout:
        raise ConfigError(Problem(where=str(out), found="another sweep is at work in this folder")) from None


def plan_text(
    recipe: str | Path,
    grid: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    seeds: int | Sequence[int] | None = None,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    as_json: bool = False,
) -> str:
    """The cells of a sweep and what each has to do, as a table or as JSON; nothing is run.

    A stage that an earlier cell makes is not to be done again: `shared`.
    """
    out, cells = cells_of(find_recipe(recipe), settings, axes_of(grid), seeds, Path(out) if out else None)
    folder = Path(cache) if cache else default_cache(out)
    store = ArtifactStore(folder, fallback=folder) if folder.exists() else None
    made: set[str] = set()
    rows: list[dict[str, Any]] = []
    for cell in cells:
        stages = plan_rows(cell.plan, store)
        to_do = [row for row in stages if not row["cached"]]
        rows.append(
            {
                "name": cell.name,
                "settings": list(cell.settings),
                "seed": cell.seed,
                "finished": finished_manifest(cell.folder, cell.plan) is not None,
                "to_do": [row["name"] for row in to_do if row["fingerprint"] not in made],
                "shared": [row["name"] for row in to_do if row["fingerprint"] in made],
                "cached": [row["name"] for row in stages if row["cached"]],
            }
        )
        made |= {row["fingerprint"] for row in to_do}
    if as_json:
        return json.dumps({"folder": str(out), "cells": rows}, indent=2, ensure_ascii=False)
    cells_text = [["cell", "state", "to do", "shared", "cached"]]
    for row in rows:
        state = "finished" if row["finished"] else "to do"
        cells_text.append([row["name"], state, *(", ".join(row[key]) or "-" for key in ("to_do", "shared", "cached"))])
    return f"{out}: {len(rows)} runs, {len(made)} stages to do\n{columns(cells_text)}"


# ---------------------------------------------------------------- cells


def _run_cell(recipe: Path, cell: Cell, title: str, flags: Sequence[str]) -> CellResult:
    """Run one cell unless it is finished. Raises KeyboardInterrupt when it was stopped."""
    _wait_for_others(cell.folder)
    if finished_manifest(cell.folder, cell.plan) is not None:
        log.info("%s: finished already", title)
        return CellResult(cell=cell, code=0)
    path = cell.folder.with_name(f"{cell.name}.log")
    log.info("%s: running (%s)", title, path)
    began = time.monotonic()
    with path.open("ab") as output:
        begin = output.tell()
        code = launch(
            _processes(flags), ["run", str(recipe), *cell.settings, "--out", str(cell.folder), *flags], output
        )
    seconds = time.monotonic() - began
    if code == 130:
        raise KeyboardInterrupt
    if code == 0:
        log.info("%s: done in %.1f s", title, seconds)
        return CellResult(cell=cell, code=0, seconds=seconds)
    message = _end_of(path, begin)
    log.error("%s: failed with exit code %d\n%s", title, code, message)
    return CellResult(cell=cell, code=code, message=message, seconds=seconds)


def _wait_for_others(folder: Path) -> None:
    """Let a run end that a killed sweep has left behind: what it does need not be done again."""
    if not folder.exists():
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("a process is running in %s; waiting until it is done", folder)
        lock.acquire()
    lock.release()


def _processes(flags: Sequence[str]) -> int:
    return int(flags[flags.index("--processes") + 1])


def _end_of(log_file: Path, begin: int) -> str:
    """The last lines that a run wrote: from its error on, where there is one."""
    with log_file.open("rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode("utf-8", "replace").splitlines()
    lines = [line.rpartition("\r")[2] for line in lines if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error:") or line.endswith(" problems:")]
    return "\n".join(lines[errors[-1] :][:MESSAGE_LINES] if errors else lines[-MESSAGE_LINES:])


def _write_state(out: Path, recipe: Path, cells: Sequence[Cell], results: Sequence[CellResult]) -> None:
    """What is done and what is not, for people and programs."""
    known = {result.cell.name: result for result in results}
    rows = []
    for cell in cells:
        result = known.get(cell.name)
        state = "to do" if result is None else "finished" if result.done else "failed"
        row: dict[str, Any] = {"name": cell.name, "settings": cell.settings, "seed": cell.seed, "state": state}
        if result is not None and not result.done:
            row |= {"exit_code": result.code, "message": result.message}
        rows.append(row)
    write_json(out / "sweep.json", {"recipe": str(recipe), "cells": rows})


# ---------------------------------------------------------------- what came of it


def _finish(
    out: Path, results: Sequence[CellResult], baseline: str | None, measures: Sequence[str] | None
) -> SweepResult:
    """Compare the cells that are done; write the comparison as text, Markdown and JSON."""
    done = [result.cell for result in results if result.done]
    notes: list[str] = []
    comparisons: list[dict[str, Any]] = []
    choice = None
    if done:
        choice = choice_of(done)
        try:
            for evaluation in load_evaluations([cell.folder for cell in done]):
                chosen = _baseline_of([system.name for system in evaluation.systems], done[0], baseline)
                comparisons.append(compare_evaluation(evaluation, measures, chosen))
        except DataError as error:
            notes.append(f"nothing is compared: {error}")
    result = SweepResult(folder=out, cells=results, comparisons=comparisons, choice=choice, notes=notes)
    write_atomic(out / "comparison.txt", sweep_text(result) + "\n")
    write_atomic(out / "comparison.md", sweep_text(result, "markdown") + "\n")
    write_json(out / "comparison.json", sweep_values(result))
    return result


def _check_baseline(cells: Sequence[Cell], baseline: str | None) -> None:
    """Raises ConfigError for a baseline that no table of this sweep can have."""
    stages = [stage.stage for stage in cells[0].plan.stages if "measures" in stage.stage.produces]
    systems = [name.split("|")[0].strip() for stage in stages for name in getattr(stage, "systems", ())]
    groups = list(dict.fromkeys(cell.group for cell in cells if cell.group))
    known = [*groups, *dict.fromkeys(systems), *(f"{group}/{system}" for group in groups for system in systems)]
    if baseline is not None and baseline not in known:
        raise ConfigError(Problem(where="--baseline", found=f"no {baseline!r}", fix=one_of(baseline, known)))


def _baseline_of(names: Sequence[str], first: Cell, wanted: str | None) -> str | None:
    """A system of the comparison: the one that is wanted, else the last of the first cell that is its own."""

    def last_of(group: str) -> str | None:
        labels = (f"{group}/", f"{group}_seed")
        return next((name for name in reversed(names) if group and name.startswith(labels)), None)

    if wanted is None or wanted in names:
        return wanted or last_of(first.group)
    group, _, system = wanted.rpartition("/")
    same = [name for name in names if name in (system, f"{first.group}/{system}")]
    return last_of(wanted) or next(iter(same), wanted)

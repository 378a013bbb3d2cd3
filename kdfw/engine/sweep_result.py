"""What came of a sweep: which cells finished, which values are best on dev, the comparison; as values and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.engine.cells import Cell
from kdfw.evaluation.compare import comparison_table
from kdfw.evaluation.table import Style, grid, number, read_result
from kdfw.files import read_json

BEST_DEV = "best dev "
"""Before the name of the measure, in the summary of a training stage that chose its checkpoint on a dev split."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What became of one cell."""

    cell: Cell
    code: int
    """0 finished, 2 the user can mend it, 1 our fault or killed."""
    message: str = ""
    """The end of the log of a cell that failed."""
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        return self.code == 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which values are best by a dev measure."""

    measure: str
    measured_by: str
    """In words: the stage, and that it looked at dev."""
    values: Mapping[str, Sequence[float]]
    """Group of cells -> one value a seed."""

    @property
    def best(self) -> str:
        """The group with the highest mean."""
        return max(self.values, key=lambda group: float(np.mean(self.values[group])))


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep that has gone through all of its cells."""

    folder: Path
    cells: Sequence[CellResult]
    comparisons: Sequence[Mapping[str, Any]] = ()
    """One for each evaluate stage (`kdfw.evaluation.compare.compare_runs`); none when nothing could be compared."""
    choice: Choice | None = None
    notes: Sequence[str] = ()

    @property
    def failed(self) -> list[CellResult]:
        """Cells without a result."""
        return [result for result in self.cells if not result.done]

    @property
    def exit_code(self) -> int:
        """0; of several failures 1 (ours) before 2 (the user's)."""
        return min((result.code for result in self.failed), default=0)


def choice_of(cells: Sequence[Cell]) -> Choice | None:
    """Values of a dev measure by group: of a training stage's choice of checkpoints, else of an evaluation on dev."""
    plan = cells[0].plan
    for stage in reversed(plan.stages):
        if stage.kind == "train":
            found = [_best_dev(cell, stage.name) for cell in cells]
            names = {name for name, _ in found}
            if len(names) == 1 and "" not in names:
                return Choice(
                    measure=names.pop(),
                    measured_by=f"best checkpoint of stage {stage.name} on its dev split",
                    values=_by_group(cells, [value for _, value in found]),
                )
    for stage in reversed(plan.stages):
        if "measures" in stage.stage.produces and getattr(stage.stage, "split", None) == "dev":
            results = [read_result(cell.folder / "stages" / stage.folder) or {} for cell in cells]
            system = next(name for name in reversed(results[0]["order"]))
            measure = results[0]["measures"][0]
            values = [result["systems"][system]["measures"][measure] for result in results]
            return Choice(
                measure=measure,
                measured_by=f"{system} in stage {stage.name} on split dev",
                values=_by_group(cells, values),
            )
    return None


def _best_dev(cell: Cell, stage: str) -> tuple[str, float]:
    """(measure, value) of a training stage's best checkpoint; an empty name where none was chosen."""
    manifest = read_json(cell.folder / "manifest.json")
    summary: dict[str, Any] = next((row["summary"] for row in manifest["stages"] if row["name"] == stage), {})
    found = [(key.removeprefix(BEST_DEV), float(value)) for key, value in summary.items() if key.startswith(BEST_DEV)]
    return found[0] if found else ("", 0.0)


def _by_group(cells: Sequence[Cell], values: Sequence[float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for cell, value in zip(cells, values, strict=True):
        found.setdefault(cell.group, []).append(value)
    return found


def sweep_values(result: SweepResult) -> dict[str, Any]:
    """A sweep's result as a JSON value."""
    choice = None
    if result.choice is not None:
        found = result.choice
        rows = {group: {"mean": float(np.mean(each)), "by_seed": list(each)} for group, each in found.values.items()}
        choice = {"measure": found.measure, "measured_by": found.measured_by, "best": found.best, "values": rows}
    return {
        "cells": [
            {
                "name": each.cell.name,
                "settings": list(each.cell.settings),
                "seed": each.cell.seed,
                "state": "finished" if each.done else "failed",
                **({} if each.done else {"exit_code": each.code, "message": each.message}),
            }
            for each in result.cells
        ],
        "choice": choice,
        "comparisons": list(result.comparisons),
        "notes": list(result.notes),
    }


def sweep_text(result: SweepResult, style: Style = "text") -> str:
    """What `kdfw sweep` prints at the end: the choice by a dev measure, the comparisons, what failed."""
    parts = [_choice_text(result, style)]
    for comparison in result.comparisons:
        heading = f"stage {comparison['stage']}, measured on {comparison['measured_on'] or 'unknown data'}"
        heading = f"## {heading}" if style == "markdown" else f"{heading}:"
        parts.append(f"{heading}\n\n{comparison_table(comparison, style)}")
    parts += result.notes
    if result.failed:
        lines = [f"{len(result.failed)} of {len(result.cells)} runs failed and are in no table:"]
        for each in result.failed:
            first = each.message.splitlines()[0] if each.message else ""
            lines.append(f"- {each.cell.name}: exit code {each.code}: {first} ({each.cell.name}.log)")
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def _choice_text(result: SweepResult, style: Style) -> str:
    groups = {each.cell.group for each in result.cells}
    if len(groups) < 2:
        return ""
    choice = result.choice
    if choice is None:
        where = ", ".join(dict.fromkeys(str(each["measured_on"]) for each in result.comparisons)) or "the test data"
        return (
            "nothing is chosen: no stage of the recipe measured on a dev split. To choose by the tables below is to "
            f"choose on {where}: give the training stage `dev: dev`, or evaluate on a split dev."
        )
    rows = []
    for group, values in choice.values.items():
        spread = f" ± {number(choice.measure, float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
        mark = "  best" if group == choice.best else ""
        rows.append([group, number(choice.measure, float(np.mean(values))) + spread + mark])
    table = grid(["chosen on dev", choice.measure], rows, style)
    return f"{table}\n\nbest by {choice.measure} ({choice.measured_by}): {choice.best}"

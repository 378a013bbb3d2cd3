"""What it took to make a system: how much its teachers scored, for how long, for how much money.

A teacher's scores are counted where a stage wrote them down. A teacher that runs inside training leaves no scores: its
cost is part of the training time, `making_seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdfw.files import read_json

MONEY = "cost_"
"""Before the currency in the summary of a stage whose teacher is paid for."""


def costs_of(run: Path, evaluation: Path) -> dict[str, dict[str, float]]:
    """Costs of the systems of an evaluate stage that stages of the run made, by name, with and without the cycle.

    `making_seconds` is the time of all stages it goes back to, each as long as it took when it was really done;
    `teacher_pairs` and `teacher_seconds` are those of its score stages, `teacher_cost_USD` the money they paid.
    Whatever cannot be read is left out.
    """
    stages = _stages(run)
    measured = next((stage for stage in stages.values() if stage["folder"] == evaluation.name), None)
    found: dict[str, dict[str, float]] = {}
    for name in measured["inputs"] if measured is not None else ():
        if stages.get(name, {}).get("type") == "train":
            found[name] = found[name.partition("#")[0]] = _cost(name, stages)
    return found


def _cost(name: str, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    behind = [stages[each] for each in _ancestors(name, stages)]
    scored = [stage for stage in behind if stage["type"] == "score"]
    facts = {"making_seconds": float(sum(stage["seconds"] for stage in behind))}
    if scored:
        facts["teacher_pairs"] = float(sum(stage["summary"].get("pairs", 0) for stage in scored))
        facts["teacher_seconds"] = float(sum(stage["seconds"] for stage in scored))
    for stage in scored:
        for key, value in stage["summary"].items():
            if key.startswith(MONEY):
                facts[f"teacher_{key}"] = facts.get(f"teacher_{key}", 0.0) + float(value)
    return facts


def _ancestors(name: str, stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The stage and all that it goes back to."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in stages and current not in found:
            found[current] = None
            waiting += stages[current]["inputs"]
    return list(found)


def _stages(run: Path) -> dict[str, dict[str, Any]]:
    """Stages of a run folder by name: type, inputs, seconds and summary."""
    try:
        planned = read_json(run / "plan.json")["stages"]
        found = {}
        for stage in planned:
            folder = run / "stages" / Path(stage["folder"]).name
            made = read_json(folder / "artifact.json")
            found[str(stage["name"])] = {
                "type": str(stage["type"]),
                "folder": folder.name,
                "inputs": [str(name) for name in stage["inputs"]],
                "seconds": float(made["seconds"]),
                "summary": dict(made["summary"]),
            }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found

"""What tests read from the folder of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdfw.engine.run import RunResult


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(stage: Path) -> list[float]:
    """The logged values of a training stage's whole loss."""
    return [line["loss"] for line in lines(stage / "metrics.jsonl") if "loss" in line]


def measures(stage: Path) -> dict[str, dict[str, float]]:
    """Measures of each system of an evaluation stage."""
    found = json.loads((stage / "measures.json").read_text(encoding="utf-8"))
    return {name: system["measures"] for name, system in found["systems"].items()}


def check_report(result: RunResult) -> None:
    """The report is there, names the stages, and needs nothing from elsewhere."""
    assert result.report is not None and result.report.name == "report.html"
    text = result.report.read_text(encoding="utf-8")
    assert all(name in text for name in result.stages)
    assert 'src="http' not in text and "<link" not in text


def check_items(stage: Path, number: int) -> None:
    """`per_query.jsonl` has one line for each item and system."""
    rows = lines(stage / "per_query.jsonl")
    systems = measures(stage)
    assert number > 0 and len(rows) == number * len(systems)
    assert len({(row["query"], row["system"]) for row in rows}) == len(rows)

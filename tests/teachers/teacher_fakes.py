"""Stand-ins for what the engine gives a stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdfw.components import Model, Teacher
from kdfw.context import Workers
from kdfw.data.ranking import Ranking


class Bar:
    """A progress display that shows nothing."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def update(self, amount: int = 1, **shown: object) -> None:
        return None


@dataclass
class FakeContext:
    """A `StageContext` with what a test puts in."""

    cache: Path
    folder: Path
    sets: Any = None
    lists: Mapping[str, Ranking] = field(default_factory=dict)
    teachers: Mapping[str, Model | Teacher] = field(default_factory=dict)
    workers: Workers = field(default_factory=Workers)
    seed: int = 13
    precision: str = "fp32"
    offline: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("kdfw"))
    summaries: dict[str, Any] = field(default_factory=dict)

    def data(self, name: str | None = None) -> Any:
        return self.sets

    def model(self, name: str) -> Model:
        found = self.teachers[name]
        assert isinstance(found, Model)
        return found

    def model_fingerprint(self, name: str) -> str:
        return f"fingerprint of {name}"

    def teacher(self, name: str) -> Model | Teacher:
        return self.teachers[name]

    def candidates(self, name: str) -> Ranking:
        return self.lists[name]

    def scores(self, name: str) -> Ranking:
        return self.lists[name]

    def artifact(self, name: str) -> Path:
        return self.folder

    def progress(self, total: int, title: str, unit: str = "it") -> Bar:
        return Bar()

    def record(self, **values: Any) -> None:
        return None

    def summary(self, values: Mapping[str, Any]) -> None:
        self.summaries |= dict(values)


class Lengths(Teacher):
    """Scores a passage by its length minus that of the query, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.special: dict[str, float] = {}

    def fingerprint(self) -> str:
        return "lengths"

    def score(
        self, query: Sequence[str], passages: Sequence[Sequence[str]], ids: Sequence[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        self.asked += [(text, passage) for text, row in zip(query, passages, strict=True) for passage in row]
        return [
            np.asarray([self.special.get(p, float(len(p) - len(text))) for p in row], dtype=np.float32)
            for text, row in zip(query, passages, strict=True)
        ]

"""Losses written as recipe terms, run on bare scores: what adapters of ranking methods share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdfw.components import Constant
from kdfw.errors import Problem
from kdfw.losses import LOSSES
from kdfw.options import check
from kdfw.types import Batch, Clock, Signals

CLOCK = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)


class Engine:
    """The engine's own losses, as option checking asks for them."""

    known: Mapping[str, Mapping[str, Any]] = {"schedule": {"constant": Constant}, "loss": LOSSES, "weighting": {}}

    def names(self, kind: str) -> list[str]:
        return sorted(self.known[kind])

    def get(self, kind: str, name: str) -> Any:
        return self.known[kind][name]


def term_values(
    terms: Sequence[Mapping[str, Any]], student: Signals, teachers: Sequence[Signals], batch: Batch
) -> dict[str, Tensor]:
    """Each term by its name, without its weight, and `loss`, the weighted sum."""
    found: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for term in terms:
        problems: list[Problem] = []
        spec = check("loss", term, (), Engine(), str, problems)
        assert spec is not None, problems
        loss = spec.build()
        chosen = teachers if loss.settings.teachers is None else [teachers[i] for i in loss.settings.teachers]
        value = loss(student, chosen, batch, CLOCK).total
        found[loss.settings.name or term["type"]] = value
        total = total + loss.settings.weight(CLOCK) * value
    return {**found, "loss": total}


def list_batch(num_queries: int, length: int, positive_rows: Tensor | None = None) -> Batch:
    """Each query has its own `length` passages; the positive is the first, or the passage row given."""
    candidates = torch.arange(num_queries * length).reshape(num_queries, length)
    rows = candidates[:, 0] if positive_rows is None else positive_rows
    return Batch(
        task="ranking",
        ids=tuple(f"q{row}" for row in range(num_queries)),
        inputs={},
        num_items=num_queries,
        candidates=candidates,
        mask=torch.ones(num_queries, length, dtype=torch.bool),
        labels=(candidates == rows[:, None]).to(torch.float64),
    )


def embedded(queries: Tensor, passages: Tensor) -> Signals:
    """Inner products of queries (Q, H) with all passages (P, H): `batch_logits` (Q, P), `logits` of the own ones."""
    everything = queries @ passages.T
    own = list_batch(len(queries), len(passages) // len(queries)).candidates
    assert own is not None
    return Signals(logits=everything.gather(1, own), extra={"batch_logits": everything})

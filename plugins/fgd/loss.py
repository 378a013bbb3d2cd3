"""One KL for each granularity, over all units of all candidates of a query, plus the contrastive term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss
from kdfw.losses.kl import kl_divergence
from kdfw.losses.masking import compared
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def granular_values(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """(Q,) KL(softmax(teacher / tau) || softmax(student / tau)), without tau squared.

    The softmax runs over the units of all candidates of a query: the student has to pick the document and locate the
    part in it. Unit counts differ from query to query; `mask` (Q, U) is False at padding.
    """
    return kl_divergence(student / temperature, teacher / temperature, mask)


class Granular(Loss):
    """sum over granularities of lambda_g * KL_g. The contrastive term is a core loss beside it.

    Granularity `document` reads the signal `logits`, any other `logits/<name>` with its mask in `mask/<name>`.

    Args:
        weights: lambda by granularity; one that is not named is off.
    """

    paper = "arXiv:2212.10423 (formulas reconstructed from the abstract)"

    def __init__(
        self,
        *,
        weights: Annotated[Mapping[str, Annotated[float, Field(ge=0)]], Field(min_length=1)] = {  # noqa: B006
            "document": 1.0,
            "passage": 1.0,
            "sentence": 1.0,
        },
        temperature: Annotated[float, Field(gt=0, description="divides both sides")] = 1.0,
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.temperature = temperature

    @property
    def needs(self) -> Needs:
        names = frozenset(signal_name(granularity) for granularity in self.weights)
        return Needs(student=names, teacher=names, teachers=(1, 1), tasks=frozenset({"ranking"}))

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        parts: dict[str, Tensor] = {}
        total: Tensor | None = None
        for granularity, weight in self.weights.items():
            ours, theirs, mask = compared(student, teachers[0], signal_name(granularity), batch)
            value = granular_values(ours, theirs, mask, self.temperature).sum() / batch.num_items
            parts[granularity] = value.detach()
            total = weight * value if total is None else total + weight * value
        return LossTerms(total=torch.zeros(()) if total is None else total, parts=parts)


def signal_name(granularity: str) -> str:
    """The signal that holds a granularity's scores."""
    return "logits" if granularity == "document" else f"logits/{granularity}"

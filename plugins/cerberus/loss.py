"""Each head learns from its own teacher and from the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss, Schedule, as_schedule
from kdfw.errors import TrainingError
from kdfw.losses.cross_entropy import cross_entropy
from kdfw.losses.kl import kl_divergence
from kdfw.losses.masking import divide, labels_of, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def head_values(
    heads: Tensor, teachers: Tensor, labels: Tensor, temperature: float | Tensor, label_weight: float
) -> Tensor:
    """(K, Q) alpha * CE(s_k, y) + (1 - alpha) * tau^2 * KL(softmax(t_k / tau) || softmax(s_k / tau)).

    The formula holds for every alpha, also 0.

    Args:
        heads, teachers: (K, Q, C) logits, paired in order; teachers constant.
        labels: (Q,) long.
    """
    everything = torch.ones_like(heads[0], dtype=torch.bool)
    values = []
    for own, other in zip(heads, teachers.detach(), strict=True):
        soft = kl_divergence(divide(own, temperature), divide(other, temperature), everything)
        values.append(label_weight * cross_entropy(own, labels) + (1 - label_weight) * temperature**2 * soft)
    return torch.stack(values)


class HeadDistillation(Loss):
    """Head k of the student learns from teacher k; the order of teachers is the order of heads.

    Args:
        label_weight: alpha, the share of the labels' cross-entropy.
        reduction: over heads.
    """

    paper = "arXiv:2201.05767"

    def __init__(
        self,
        *,
        label_weight: Annotated[float, Field(ge=0, le=1)] = 0.1,
        temperature: Annotated[Schedule | float, Field(gt=0, description="divides both sides")] = 3.0,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.label_weight = label_weight
        self.temperature = as_schedule(temperature)
        self.reduction = reduction

    @property
    def needs(self) -> Needs:
        return self.temperature.needs | Needs(
            student=frozenset({"head_logits"}),
            teacher=frozenset({"logits"}),
            labels=True,
            teachers=(1, None),
            tasks=frozenset({"classification"}),
        )

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        heads = wide(student["head_logits"])
        if len(heads) != len(teachers):
            raise TrainingError(f"loss cerberus: {len(heads)} heads and {len(teachers)} teachers; give one for each")
        others = torch.stack([wide(teacher["logits"]).to(heads.device) for teacher in teachers])
        temperature = self.temperature.at(clock, student, teachers)
        values = head_values(heads, others, labels_of(student, batch), temperature, self.label_weight)
        per_head = values.sum(-1) / batch.num_items
        total = per_head.sum() if self.reduction == "sum" else per_head.mean()
        return LossTerms(total=total, parts={f"head_{k}": one.detach() for k, one in enumerate(per_head)})

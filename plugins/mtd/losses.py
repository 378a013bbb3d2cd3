"""The student's loss: cross-entropy plus one KL for each teacher, which are core losses, and the averaged variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss, Schedule, as_schedule
from kdfw.losses.masking import compared, divide, masked_log_softmax
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def stage_losses(*, num_teachers: int, teacher_weight: float = 0.3, temperature: float = 2.4) -> list[dict[str, Any]]:
    """CE + w * sum over teachers of KD, in the language of recipes. Core `kl` is a mean over teachers, hence w * M."""
    return [
        {"type": "cross-entropy", "name": "task"},
        {"type": "kl", "name": "teachers", "weight": teacher_weight * num_teachers, "temperature": temperature},
    ]


def mean_teacher_kl(student: Tensor, teachers: Sequence[Tensor], mask: Tensor, temperature: float | Tensor) -> Tensor:
    """tau^2 * KL(mean over teachers of softmax(z_m / tau) || softmax(s / tau)).

    Args:
        student: (Q, D) logits. teachers: each (Q, D). mask: (Q, D) bool.
    Returns: (Q,) in nats.
    """
    target = torch.stack([masked_log_softmax(divide(one, temperature), mask).exp() for one in teachers]).mean(0)
    log_s = masked_log_softmax(divide(student, temperature), mask)
    values: Tensor = temperature**2 * (torch.special.xlogy(target, target) - target * log_s).sum(-1)
    return values


class MeanTeacherKL(Loss):
    """KL from the average of the teachers' softened distributions, instead of one term for each teacher."""

    paper = "arXiv:2112.01048, variant in the released code"

    def __init__(
        self, *, temperature: Annotated[Schedule | float, Field(gt=0, description="divides all logits")] = 2.4
    ) -> None:
        super().__init__()
        self.temperature = as_schedule(temperature)

    @property
    def needs(self) -> Needs:
        logits = frozenset({"logits"})
        return self.temperature.needs | Needs(student=logits, teacher=logits, teachers=(1, None))

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        pairs = [compared(student, teacher, "logits", batch) for teacher in teachers]
        mask = torch.stack([mask for _, _, mask in pairs]).all(0)
        temperature = self.temperature.at(clock, student, teachers)
        values = mean_teacher_kl(pairs[0][0], [theirs for _, theirs, _ in pairs], mask, temperature)
        return LossTerms(total=values.sum() / batch.num_items)

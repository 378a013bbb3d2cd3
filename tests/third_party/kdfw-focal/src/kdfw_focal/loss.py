"""KL divergence that looks at the items on which student and teacher still disagree."""

from __future__ import annotations

from typing import Annotated

import torch
from kdfw.components import DistillationLoss, Schedule
from kdfw.types import Batch, Signals
from pydantic import Field
from torch import Tensor


def focal_kl(student: Tensor, teacher: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """(1 - overlap)**gamma * KL(teacher || student), overlap the sum of the smaller of the two probabilities.

    Args:
        student: (Q, D) scores, already divided by their temperature; gradients flow here, also through the overlap.
        teacher: (Q, D) scores, likewise; constant.
        mask: (Q, D) bool, True where the alternative is real; at least one per row.
        gamma: >= 0; 0 is the plain divergence.
    Returns: (Q,) in nats, >= 0; 0 where the two distributions are equal.
    """
    floor = torch.finfo(student.dtype).min / 2
    log_p = teacher.detach().masked_fill(~mask, floor).log_softmax(-1)
    log_q = student.masked_fill(~mask, floor).log_softmax(-1)
    overlap = torch.minimum(log_p.exp(), log_q.exp()).sum(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    # rounding can put the overlap a little above 1, and a negative base has no real power
    return (1.0 - overlap).clamp(min=0.0) ** gamma * divergence


class FocalKL(DistillationLoss):
    """KL divergence, weighted down for items on which student and teacher already agree."""

    paper = "after arXiv:1708.02002"

    def __init__(
        self,
        *,
        temperature: Annotated[Schedule | float, Field(description="divides teacher and student scores; > 0")] = 1.0,
        gamma: Annotated[float, Field(ge=0, le=10, description="how fast an item that agrees loses weight")] = 2.0,
    ) -> None:
        super().__init__(temperature=temperature)
        self.gamma = gamma

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs = student["logits"], teacher["logits"]
        mask = torch.ones_like(ours, dtype=torch.bool) if student.mask is None else student.mask
        return focal_kl(ours / student_temperature, theirs / teacher_temperature, mask, self.gamma)

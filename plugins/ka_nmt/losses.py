"""Filtration of a teacher's tokens, and the terms of one step of accumulation.

The negative term and the weights are conventions of this framework (see README); the plain KD, the smoothed
cross-entropy and the learning rate are those of the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss
from kdfw.losses.cross_entropy import cross_entropy
from kdfw.losses.kl import kl_divergence
from kdfw.losses.masking import compared, labels_of, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, normalize: bool = True) -> Tensor:
    """(Q,) cross-entropy with 1 - e on the label and e / (V - 1) on every other token.

    `normalize` adds the constant that makes the least value 0.

    Args:
        logits: (Q, V). labels: (Q,) long.
    """
    log_p = logits.log_softmax(-1)
    size = logits.shape[-1]
    right, rest = 1 - smoothing, smoothing / (size - 1)
    picked = log_p.gather(-1, labels[:, None])[:, 0]
    values = -(right * picked + rest * (log_p.sum(-1) - picked))
    if normalize and smoothing:
        values = values + right * math.log(right) + (size - 1) * rest * math.log(rest + 1e-20)
    return values


def knows_better(teacher: Tensor, previous: Tensor, labels: Tensor) -> Tensor:
    """(Q,) bool: the teacher's cross-entropy with the reference token is below that of the student before this step.

    Args:
        teacher, previous: (Q, V) logits. labels: (Q,) long.
    """
    return cross_entropy(teacher, labels) < cross_entropy(previous, labels)


def unlikelihood(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """-sum over v != y of p_T(v) log(1 - p_S(v)): pushes down what the teacher wrongly prefers. Returns: (Q,)."""
    log_s = student.log_softmax(-1)
    # log(1 - p) from log p; near p = 1 the plain difference would round to log 0
    rest = torch.log(-torch.expm1(log_s.clamp(max=-torch.finfo(log_s.dtype).eps)))
    reference = torch.zeros_like(student, dtype=torch.bool).scatter(1, labels[:, None], True)
    return -(teacher.softmax(-1) * rest).masked_fill(reference, 0.0).sum(-1)


def filtered(student: Tensor, teacher: Tensor, previous: Tensor, labels: Tensor, alpha: float = 1.0) -> Tensor:
    """KD on tokens where the teacher knows better, alpha * unlikelihood on the others. Returns: (Q,)."""
    good = knows_better(teacher, previous, labels)
    imitate = kl_divergence(student, teacher, torch.ones_like(student, dtype=torch.bool))
    return torch.where(good, imitate, alpha * unlikelihood(student, teacher, labels))


def new_share(number: int) -> float:
    """lambda_t = 1 / (t + 1) for teacher number t = 1, 2, ...: the weight of the new teacher against what is known."""
    return 1.0 / (number + 1)


def stage_losses(*, share: float, alpha: float = 1.0, smoothing: float = 0.0) -> list[dict[str, Any]]:
    """CE + share * KF + (1 - share) * KI in the language of recipes.

    Teacher 0 is the new teacher, teacher 1 the student as it was before this step.
    """
    task: dict[str, Any] = {"type": "cross-entropy", "name": "task"}
    if smoothing:
        task = {"type": "ka-nmt-cross-entropy", "name": "task", "smoothing": smoothing}
    return [
        task,
        {"type": "ka-nmt-filtration", "name": "filtration", "weight": share, "alpha": alpha},
        {"type": "kl", "name": "inheritance", "weight": 1 - share, "teachers": [1]},
    ]


class SmoothedCrossEntropy(Loss):
    """Label-smoothed cross-entropy as the released code writes it: nothing on the label from the smoothing mass."""

    def __init__(
        self,
        *,
        smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        normalize: Annotated[bool, Field(description="subtract the least value, so that 0 can be reached")] = True,
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.normalize = normalize

    @property
    def needs(self) -> Needs:
        tasks = frozenset({"translation", "classification"})
        return Needs(student=frozenset({"logits"}), labels=True, tasks=tasks)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        labels = labels_of(student, batch)
        values = smoothed_cross_entropy(wide(student["logits"]), labels.clamp(min=0), self.smoothing, self.normalize)
        return LossTerms(total=values.masked_fill(labels < 0, 0.0).sum() / batch.num_items)


class Filtration(Loss):
    """Learns a token from the new teacher (the first) where it beats the previous student (the second).

    Args:
        alpha: weight of the term that moves away from the teacher on the other tokens.
    """

    def __init__(self, *, alpha: Annotated[float, Field(ge=0)] = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    @property
    def needs(self) -> Needs:
        logits = frozenset({"logits"})
        tasks = frozenset({"translation", "classification"})
        return Needs(student=logits, teacher=logits, labels=True, teachers=(2, 2), tasks=tasks)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        ours, theirs, _ = compared(student, teachers[0], "logits", batch)
        _, before, _ = compared(student, teachers[1], "logits", batch)
        labels = labels_of(student, batch)
        known = labels.clamp(min=0)
        values = filtered(ours, theirs, before, known, self.alpha).masked_fill(labels < 0, 0.0)
        share = knows_better(theirs, before, known).float().sum() / batch.num_items
        return LossTerms(total=values.sum() / batch.num_items, parts={"from_teacher": share})

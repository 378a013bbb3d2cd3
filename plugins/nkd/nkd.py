"""NKD: a soft weight on the target class and a cross-entropy over the others, each group normalised to one."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import DistillationLoss, Schedule, Weighting
from kdfw.errors import TrainingError
from kdfw.losses.masking import compared, divide, labels_of, masked_log_softmax
from kdfw.types import Batch, Needs, Signals


def target_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(Q,) long target and (Q,) bool whether there is one.

    Args:
        labels: (Q,) long, negative where unknown; or (Q, D) soft labels or relevance grades, of which the first
            largest is the target.
    """
    if labels.dim() == 1:
        return labels.clamp(min=0), labels >= 0
    return labels.argmax(-1), labels.amax(-1) > 0


def target_term(student: Tensor, teacher: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """-softmax(t)[y] * log_softmax(s)[y], temperature 1 on both sides; the teacher is a constant.

    Args:
        student, teacher: (Q, D) logits.
        mask: (Q, D) bool, True where the alternative is real.
        target: (Q,) long.
    Returns: (Q,).
    """
    column = target[:, None]
    weight = masked_log_softmax(teacher.detach(), mask).gather(1, column)[:, 0].exp()
    return -weight * masked_log_softmax(student, mask).gather(1, column)[:, 0]


def non_target_term(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    target: Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """-sum_j P_j log Q_j over the alternatives without the target, P and Q normalised there.

    A cross-entropy, not a KL: the teacher's entropy is not subtracted, and the least value is that entropy.

    Args:
        student, teacher: (Q, D) logits.
        mask: (Q, D) bool.
        target: (Q,) long.
        temperature: a number, () or (Q,), of both sides.
    Returns: (Q,); 0 where no other alternative is left.
    """
    others = mask.scatter(1, target[:, None], False)
    p = masked_log_softmax(divide(teacher.detach(), temperature), others).exp()
    log_q = masked_log_softmax(divide(student, temperature), others)
    return -(p * log_q).masked_fill(~others, 0.0).sum(-1)


class NKD(DistillationLoss):
    """Normalised knowledge distillation; added to the task loss, it does not replace it.

    The temperature applies to the non-target term only; the target term compares probabilities at temperature 1, so a
    student whose scores are cosines needs `scale: 20` or so. In ranking the target is the first of the most relevant
    candidates, and a query without a relevant one adds nothing.

    Args:
        gamma: weight of the non-target term, beside temperature squared (1.5 on ImageNet, 3.5 on CIFAR-100).
    """

    paper = "arXiv:2208.10139"

    def __init__(
        self,
        *,
        gamma: Annotated[float, Field(ge=0)] = 1.5,
        temperature: Annotated[
            Schedule | float, Field(gt=0, description="divides the non-target logits of both sides")
        ] = 1.0,
        weighting: Annotated[
            Weighting | None, Field(description="weights of teachers and items; default: equal")
        ] = None,
        signal: Annotated[str, Field(description="the signal of both sides that is compared")] = "logits",
    ) -> None:
        super().__init__(temperature=temperature, weighting=weighting, signal=signal)
        self.gamma = gamma

    @property
    def needs(self) -> Needs:
        return super().needs | Needs(labels=True, tasks=frozenset({"ranking", "classification", "translation"}))

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        labels = labels_of(student, batch)
        target, known = target_class(labels)
        if self.signal == "batch_logits":  # its columns are the passages of the step
            assert batch.candidates is not None
            target = batch.candidates.to(target.device).gather(1, target[:, None])[:, 0]
        elif labels.dim() == 2 and labels.shape != ours.shape:
            raise TrainingError(
                f"loss nkd: labels of shape {tuple(labels.shape)} for the signal {self.signal!r} of shape "
                f"{tuple(ours.shape)}; it needs a signal over the labelled alternatives"
            )
        others = non_target_term(ours, theirs, mask, target, teacher_temperature)
        values = target_term(ours, theirs, mask, target) + self.gamma * teacher_temperature**2 * others
        return torch.where(known & mask.any(-1), values, torch.zeros_like(values))

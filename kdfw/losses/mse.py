"""Squared difference between the scores of teacher and student."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdfw.components import DistillationLoss
from kdfw.losses.masking import compared, divide, masked_mean, scaled
from kdfw.losses.options import Activation, Scale, Signal, StudentTemperature, TargetOption, Teachers, Temperature
from kdfw.losses.targets import labels_as_teacher, target_needs
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def score_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """(Q,) mean over each item's real alternatives of (student - teacher)**2; arguments (Q, D)."""
    return masked_mean((student - teacher) ** 2, mask)


class MSE(DistillationLoss):
    """Mean squared error between scores, or between scores and gold labels.

    An item's value is the mean over its alternatives. `teacher_activation: sigmoid` puts a cross-encoder's logits on
    the scale of a cosine (arXiv:2109.13059: cross to bi).
    """

    paper = "arXiv:1412.6550"
    compares = "scores"

    def __init__(
        self,
        *,
        temperature: Temperature = 1.0,
        student_temperature: StudentTemperature = None,
        weighting: Teachers = None,
        signal: Signal = "logits",
        target: TargetOption = "teacher",
        teacher_activation: Activation = "none",
        student_activation: Activation = "none",
        teacher_scale: Scale = "none",
        student_scale: Scale = "none",
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.target = target
        self.teacher_activation = teacher_activation
        self.student_activation = student_activation
        self.teacher_scale = teacher_scale
        self.student_scale = student_scale

    @property
    def needs(self) -> Needs:
        return target_needs(super().needs, self.target)

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        ours = divide(scaled(ours, mask, self.student_scale), student_temperature)
        theirs = divide(scaled(theirs, mask, self.teacher_scale), teacher_temperature)
        if self.student_activation == "sigmoid":
            ours = ours.sigmoid()
        if self.teacher_activation == "sigmoid":
            theirs = theirs.sigmoid()
        return score_mse(ours, theirs, mask)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        if self.target == "labels":
            teachers = [labels_as_teacher(student, batch, self.signal)]
        return super().forward(student, teachers, batch, clock)

"""Binary cross-entropy of each alternative with a hard or soft target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import softplus

from kdfw.components import DistillationLoss
from kdfw.errors import DataError
from kdfw.losses.masking import compared, divide, masked_mean
from kdfw.losses.options import Activation, Signal, StudentTemperature, TargetOption, Teachers, Temperature
from kdfw.losses.targets import labels_as_teacher, target_needs
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def binary_cross_entropy(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over an item's alternatives of log(1 + exp(z)) - z * y: the cross-entropy of sigmoid(z) with y.

    Args:
        student: (Q, D) logits z; gradients flow here.
        target: (Q, D) targets y. Usually in [0, 1]; not clipped: a negative target pushes its logit down for good,
            which arXiv:2109.13059 uses on purpose (raw cosines).
        mask: (Q, D) bool.
    Returns: (Q,) in nats.
    """
    return masked_mean(softplus(student) - student * target, mask)


def probabilities(labels: Tensor, task: str) -> Tensor:
    """Labels as targets: any relevance grade from 1 on is 1, a gold score stays as it is (NaN: no label).

    Raises: DataError for gold scores outside 0 to 1: with them the loss has no minimum, and the scores run away.
    """
    if task == "ranking":
        return labels.clamp(0, 1)
    known = labels[~labels.isnan()]
    if known.numel() and not (0 <= known.min() and known.max() <= 1):
        raise DataError(
            f"bce: labels from {float(known.min()):g} to {float(known.max()):g}, expected 0 to 1; "
            "give the data `gold_range: [LOWEST, HIGHEST]`"
        )
    return labels


class BCE(DistillationLoss):
    """Binary cross-entropy with labels or with teacher scores as soft targets.

    The target is used raw, after `temperature` and then `teacher_activation` (`sigmoid` when the teacher gives
    logits; `none` when it gives cosines or probabilities). Of labels, a class becomes one-hot, a relevance grade 0
    or 1, and a gold score must lie between 0 and 1.
    """

    paper = "arXiv:2109.13059"
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
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.target = target
        self.teacher_activation = teacher_activation

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
        # labels are already targets: only a teacher's scores have a temperature and an activation
        if self.target == "teacher":
            theirs = divide(theirs, teacher_temperature)
            if self.teacher_activation == "sigmoid":
                theirs = theirs.sigmoid()
        return binary_cross_entropy(divide(ours, student_temperature), theirs, mask)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        if self.target == "labels":
            labels = labels_as_teacher(student, batch, self.signal)
            values = probabilities(labels[self.signal], batch.task)
            teachers = [replace(labels, logits=values, extra={self.signal: values})]
        return super().forward(student, teachers, batch, clock)

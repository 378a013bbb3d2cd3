"""Kullback-Leibler divergence between the distributions of teacher and student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from kdfw.components import DistillationLoss
from kdfw.losses.masking import compared, divide, masked_log_softmax
from kdfw.losses.options import Signal, StudentTemperature, Teachers, Temperature
from kdfw.types import Batch, Needs, Signals

Direction = Literal["forward", "reverse"]


def kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor, direction: Direction = "forward") -> Tensor:
    """KL divergence of each item's two distributions, in nats.

    Args:
        student: (Q, D) scores, already divided by their temperature; gradients flow here.
        teacher: (Q, D) scores, likewise.
        mask: (Q, D) bool, True where the alternative is real.
        direction: `forward` is KL(teacher || student), which makes the student cover whatever the teacher finds
            likely; `reverse` is KL(student || teacher), which makes it avoid what the teacher finds unlikely.
    Returns: (Q,), >= 0; 0 for an item with fewer than two real alternatives.
    """
    log_t = masked_log_softmax(teacher, mask)
    log_s = masked_log_softmax(student, mask)
    if direction == "reverse":
        log_t, log_s = log_s, log_t
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def temperature_factor(temperature: float | Tensor, squared: bool | None = None) -> float | Tensor:
    """What a divergence of scores over `temperature` (a number, () or (Q,)) is multiplied by; its gradient is kept.

    Args:
        squared: True: temperature**2; False: 1; None: max(1, temperature)**2.
    """
    if squared is False:
        return 1.0
    if squared is None:
        temperature = temperature.clamp(min=1.0) if isinstance(temperature, Tensor) else max(1.0, temperature)
    return temperature**2


class KL(DistillationLoss):
    """KL divergence between softened distributions: the classic of distillation, for every task.

    Per item: f * KL(softmax(teacher / tau) || softmax(student / tau)). For ranking the distribution is over the item's
    candidates (ListNet's top-one probabilities up to a constant), or over all passages of the step with
    `signal: batch_logits`.

    The factor f keeps the gradient's size, which is d/ds = (softmax(s / tau_s) - softmax(t / tau_t)) / tau_s. Above 1 a
    temperature softens the scores and f is the student's temperature squared (sec. 2). Below 1 it is the scale of a
    similarity (a cosine over 0.05): the scores proper are s / tau_s, on which the gradient has its size already, and
    f is 1; squared, 0.05 would make the term 400 times smaller and lose it beside any other.
    """

    paper = "arXiv:1503.02531"

    def __init__(
        self,
        *,
        temperature: Temperature = 1.0,
        student_temperature: StudentTemperature = None,
        weighting: Teachers = None,
        signal: Signal = "logits",
        direction: Annotated[
            Direction, Field(description="forward: KL(teacher || student); reverse: KL(student || teacher)")
        ] = "forward",
        scale_by_temperature: Annotated[
            bool | None,
            Field(description="multiply by the student's temperature squared; default: where it is above 1"),
        ] = None,
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.direction = direction
        self.scale_by_temperature = scale_by_temperature

    @property
    def needs(self) -> Needs:
        own = super().needs
        if self.signal == "batch_logits":
            return own
        # a sentence pair has one score: its distribution is always 1, and the loss always 0
        return own | Needs(tasks=own.tasks - {"pairs"})

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        value = kl_divergence(
            divide(ours, student_temperature), divide(theirs, teacher_temperature), mask, self.direction
        )
        return value * temperature_factor(student_temperature, self.scale_by_temperature)

"""The KL of the instance-wise form, as released: the teacher's probabilities carry a small offset."""

from __future__ import annotations

from torch import Tensor

from kdfw.components import DistillationLoss
from kdfw.losses.masking import compared, divide, masked_log_softmax
from kdfw.types import Batch, Needs, Signals


def offset_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    temperature: float | Tensor,
    student_temperature: float | Tensor | None = None,
    *,
    offset: float = 1e-7,
) -> Tensor:
    """T_b^2 * sum_j p'_j (log p'_j - log q_j) with p' = softmax(teacher / T_b) + offset, not renormalised.

    Args:
        student, teacher: (Q, D) logits.
        mask: (Q, D) bool, True where the alternative is real.
        temperature: a number, () or (Q,); its gradient flows through the square and both distributions.
        student_temperature: divides the student's logits instead, and is the one that is squared.
    Returns: (Q,) in nats.
    """
    cool = temperature if student_temperature is None else student_temperature
    p = masked_log_softmax(divide(teacher, temperature), mask).exp() + offset
    log_q = masked_log_softmax(divide(student, cool), mask)
    return cool**2 * (p * (p.log() - log_q)).masked_fill(~mask, 0.0).sum(-1)


class InstanceTemperatureKL(DistillationLoss):
    """KL from teacher to student as the instance-wise form of CTKD writes it; meant for `ctkd-instance`."""

    paper = "arXiv:2211.16231, released snippet"

    @property
    def needs(self) -> Needs:
        own = super().needs
        # a sentence pair has one score, so no distribution
        return own if self.signal == "batch_logits" else own | Needs(tasks=own.tasks - {"pairs"})

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        return offset_kl(ours, theirs, mask, teacher_temperature, student_temperature)

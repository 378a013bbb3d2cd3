"""Cross-entropy with a class or token label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdfw.components import Loss
from kdfw.losses.masking import labels_of, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def cross_entropy(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with (1 - smoothing) on the label and smoothing / D on every class (arXiv:1512.00567).

    Args:
        scores: (Q, D) logits; gradients flow here.
        labels: (Q,) long; a negative label means unknown.
        smoothing: in [0, 1).
    Returns: (Q,) in nats; 0 where the label is unknown.
    """
    log_probs = scores.log_softmax(-1)
    values = -log_probs.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    if smoothing:
        values = (1 - smoothing) * values - smoothing * log_probs.mean(-1)
    return values.masked_fill(labels < 0, 0.0)


class CrossEntropy(Loss):
    """Cross-entropy with hard labels: classes of a text or image, or the reference token of every target position.

    Items with an unknown label add nothing; the mean still divides by `batch.num_items`.
    """

    paper = "arXiv:1512.00567"

    def __init__(
        self,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1, description="probability spread over all classes")] = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    @property
    def needs(self) -> Needs:
        return Needs(student=frozenset({"logits"}), labels=True, tasks=frozenset({"classification", "translation"}))

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        values = cross_entropy(wide(student["logits"]), labels_of(student, batch), self.label_smoothing)
        return LossTerms(total=values.sum() / batch.num_items)

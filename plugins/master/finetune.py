"""Distillation of the reranker into the pre-trained encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdfw.components import Loss
from kdfw.losses.masking import compared, masked_log_softmax
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def distillation_values(
    student: Tensor, ranker: Tensor, mask: Tensor, temperature: float = 1.0, eps: float = 1e-7
) -> Tensor:
    """-sum_m softmax(ranker / T)_m * log(softmax(student)_m + eps): a cross-entropy, T on the ranker only.

    Args:
        student, ranker: (Q, D) scores. mask: (Q, D) bool.
    Returns: (Q,).
    """
    target = masked_log_softmax(ranker.detach() / temperature, mask).exp()
    log_p = (masked_log_softmax(student, mask).exp() + eps).log()
    return -(target * log_p).masked_fill(~mask, 0.0).sum(-1)


class RankerDistillation(Loss):
    """Cross-entropy with the ranker's distribution over the query's own candidates.

    The paper's fourth stage adds 0.2 of `info-nce` with `in_batch: true`.
    """

    paper = "arXiv:2212.07841"

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0, description="divides the ranker's scores only")] = 1.0,
        eps: Annotated[float, Field(ge=0, description="added to the student's probabilities")] = 1e-7,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.eps = eps

    @property
    def needs(self) -> Needs:
        logits = frozenset({"logits"})
        return Needs(student=logits, teacher=logits, teachers=(1, 1), tasks=frozenset({"ranking"}))

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        ours, theirs, mask = compared(student, teachers[0], "logits", batch)
        values = distillation_values(ours, theirs, mask, self.temperature, self.eps)
        return LossTerms(total=values.sum() / batch.num_items)

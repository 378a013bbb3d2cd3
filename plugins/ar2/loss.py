"""The retriever's loss in its phase. The ranker's is the core loss `localized-contrastive` on its own list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss
from kdfw.losses.masking import compared, masked_log_softmax
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def reward(ranker: Tensor, eps: float = 1e-7) -> Tensor:
    """r_ij = log(sigmoid(R_i0 - R_ij) + eps): how surely the positive (column 0) beats candidate j. (Q, D)."""
    return (torch.sigmoid(ranker[:, :1] - ranker) + eps).log()


def retriever_terms(
    retriever: Tensor, ranker: Tensor, mask: Tensor, *, temperature: float = 1.0, eps: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """Distillation and adversarial value of each query; the ranker is a constant.

    distillation = -sum_j D_j log(P_j + eps), D = softmax(ranker / temperature), P = softmax(retriever);
    adversarial = sum_j r_j log(P_j + eps): minimising it raises P where the ranker prefers j to the positive.

    Args:
        retriever, ranker: (Q, D) scores, positive first.
        mask: (Q, D) bool.
    Returns: (Q,) and (Q,).
    """
    ranker = ranker.detach()
    log_p = (masked_log_softmax(retriever, mask).exp() + eps).log()
    target = masked_log_softmax(ranker / temperature, mask).exp()
    distillation = -(target * log_p).masked_fill(~mask, 0.0).sum(-1)
    adversarial = (reward(ranker, eps) * log_p).masked_fill(~mask, 0.0).sum(-1)
    return distillation, adversarial


class RetrieverLoss(Loss):
    """adversarial_weight * L_adv + (1 - adversarial_weight) * L_dist, over the query's own list, positive first.

    As released, L_adv is summed over the queries of the step while L_dist is their mean.
    """

    paper = "arXiv:2110.03611"

    def __init__(
        self,
        *,
        adversarial_weight: Annotated[float, Field(ge=0, le=1, description="lambda")] = 0.5,
        temperature: Annotated[float, Field(gt=0, description="divides the ranker's scores in the target only")] = 1.0,
        eps: Annotated[float, Field(ge=0, description="added to probabilities before the logarithm")] = 1e-7,
        adversarial_mean: Annotated[
            bool, Field(description="average the adversarial term over queries too (the weight needs re-tuning)")
        ] = False,
    ) -> None:
        super().__init__()
        self.adversarial_weight = adversarial_weight
        self.temperature = temperature
        self.eps = eps
        self.adversarial_mean = adversarial_mean

    @property
    def needs(self) -> Needs:
        logits = frozenset({"logits"})
        return Needs(student=logits, teacher=logits, teachers=(1, 1), tasks=frozenset({"ranking"}))

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        ours, theirs, mask = compared(student, teachers[0], "logits", batch)
        distillation, adversarial = retriever_terms(ours, theirs, mask, temperature=self.temperature, eps=self.eps)
        mean = distillation.sum() / batch.num_items
        against = adversarial.sum() / (batch.num_items if self.adversarial_mean else 1)
        total = self.adversarial_weight * against + (1 - self.adversarial_weight) * mean
        return LossTerms(total=total, parts={"distill": mean.detach(), "adversarial": against.detach()})

"""Weights of teachers for each item, from each teacher's cross-entropy with the label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdfw.components import Weighting
from kdfw.losses.masking import labels_of, masked_log_softmax, wide
from kdfw.types import Batch, Clock, Needs, Signals


def label_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with the label at temperature 1.

    Args:
        logits: (..., Q, D).
        labels: (Q,) long, or (Q, D) soft labels or relevance grades, taken as a distribution over the alternatives.
        mask: (Q, D) bool, True where the alternative is real.
    Returns: (..., Q) in nats.
    """
    log_p = logits.log_softmax(-1) if mask is None else masked_log_softmax(logits, mask)
    if labels.dim() == 1:
        return -log_p.gather(-1, labels.expand(log_p.shape[:-1])[..., None])[..., 0]
    shares = labels.to(log_p.dtype).clamp_min(0.0)
    if mask is not None:
        shares = shares.masked_fill(~mask, 0.0)
    total = shares.sum(-1, keepdim=True)
    terms = shares / torch.where(total > 0, total, torch.ones_like(total)) * log_p
    return -terms.masked_fill(shares == 0, 0.0).sum(-1)


def confidence_weights(losses: Tensor) -> Tensor:
    """w[k] = (1 - softmax over teachers of the losses) / (K - 1): a lower loss never gets a lower weight.

    Args:
        losses: (K, Q) cross-entropies, K >= 2; a gradient flows where they carry one.
    Returns: (K, Q), summing to 1 over the first axis, each in [0, 1 / (K - 1)].
    """
    return (1 - losses.softmax(0)) / (len(losses) - 1)


class ConfidenceWeighting(Weighting):
    """Weights of teachers by their cross-entropy with the label, for any distillation loss.

    In ranking the label of an item is its relevance grades as a distribution over the candidates; an item without any
    relevant candidate weighs all teachers alike.

    Args:
        scale: `released` divides by the number of teachers on top of weights that sum to one, as the authors' code
            does; `paper` does not.
    """

    paper = "arXiv:2201.00007"

    def __init__(self, *, scale: Literal["released", "paper"] = "released") -> None:
        super().__init__()
        self.scale = scale

    @property
    def needs(self) -> Needs:
        return Needs(
            teacher=frozenset({"logits"}),
            labels=True,
            teachers=(2, None),
            tasks=frozenset({"ranking", "classification", "translation"}),
        )

    def weights(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> Tensor:
        """(K, Q), without gradient."""
        labels, mask = labels_of(student, batch), student.mask
        scores = [wide(teacher["logits"]).detach().to(labels.device) for teacher in teachers]
        losses = torch.stack([label_cross_entropy(logits, labels, mask) for logits in scores])
        shares = confidence_weights(losses) / batch.num_items
        return shares / len(teachers) if self.scale == "released" else shares

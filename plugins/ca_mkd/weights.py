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
        labels: (Q,) long, negative where unknown; or (Q, D) soft labels or relevance grades, taken as a distribution
            over the alternatives.
        mask: (..., Q, D) bool, True where there is a score; a label elsewhere costs about 1e38 nats.
    Returns: (..., Q) in nats; 0 for an item without a label.
    """
    log_p = logits.log_softmax(-1) if mask is None else masked_log_softmax(logits, mask)
    if labels.dim() == 1:
        picked = log_p.gather(-1, labels.clamp(min=0).expand(log_p.shape[:-1])[..., None])[..., 0]
        return -torch.where(labels >= 0, picked, torch.zeros_like(picked))
    shares = labels.to(log_p.dtype).clamp_min(0.0)
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
    relevant candidate weighs all teachers alike. A teacher without a score for the relevant ones counts nothing there.

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
        labels, real = labels_of(student, batch), student.mask
        if labels.dim() == 2 and real is not None:
            labels = labels.masked_fill(~real, 0)
        losses = []
        for teacher in teachers:
            logits = wide(teacher["logits"]).detach().to(labels.device)
            scored = logits.isfinite()
            for mask in (real, teacher.mask):
                scored = scored if mask is None else scored & mask.to(scored.device)
            losses.append(label_cross_entropy(logits, labels, scored))
        shares = confidence_weights(torch.stack(losses)) / batch.num_items
        return shares / len(teachers) if self.scale == "released" else shares

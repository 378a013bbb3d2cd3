"""What a model says about unlabelled pairs; several models are averaged (mutual distillation)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity


def labels_from_bi(left: Tensor, right: Tensor) -> Tensor:
    """Mean over models of the raw cosine: may be negative, is not rescaled.

    Args:
        left, right: (M, Q, H) sentence embeddings of M bi-encoders.
    Returns: (Q,) in [-1, 1].
    """
    return cosine_similarity(left, right, dim=-1).mean(0)


def labels_from_cross(logits: Tensor) -> Tensor:
    """Mean over models of the sigmoid of their logits (M, Q). Returns: (Q,) in (0, 1)."""
    return logits.sigmoid().mean(0)

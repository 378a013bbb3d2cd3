"""Training of the cross-encoder teacher: listwise cross-entropy, with two dropout passes that agree (R-Drop)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdfw.losses.kl import kl_divergence


def ranker_values(logits: Tensor, positive: int = 0) -> Tensor:
    """(Q,) -log softmax of the positive's logit; logits (Q, G)."""
    return -logits.log_softmax(-1)[:, positive]


def r_drop_values(first: Tensor, second: Tensor, positive: int = 0) -> Tensor:
    """(Q,) half of both cross-entropies plus half of both divergences between the two passes (Q, G)."""
    mask = torch.ones_like(first, dtype=torch.bool)
    agree = kl_divergence(first, second, mask) + kl_divergence(second, first, mask)
    return 0.5 * (ranker_values(first, positive) + ranker_values(second, positive)) + 0.5 * agree

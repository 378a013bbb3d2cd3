"""The lexicon-aware teacher's representation, and the fusion of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

Id = TypeVar("Id")


def body_mask(attention: Tensor) -> Tensor:
    """(R, L) 0/1 without the first and the last real token ([CLS] and [SEP]): m'_i = m_{i+1}, ends 0."""
    body = torch.zeros_like(attention)
    body[:, 1:-1] = attention[:, 2:]
    return body


def splade_vector(logits: Tensor, mask: Tensor) -> Tensor:
    """e_v = max_i m_i * log(1 + relu(x_iv)).

    Args:
        logits: (R, L, V) of a masked language model.
        mask: (R, L) 0/1.
    Returns: (R, V), >= 0.
    """
    return (logits.relu().log1p() * mask[:, :, None]).amax(1)


def fuse_runs(first: Mapping[Id, float], second: Mapping[Id, float]) -> dict[Id, float]:
    """Sum of the two runs of one query, each min-max normalised; a missing passage adds 0.

    Best first; of equal scores the one met first, the first run before the second. A run of equal scores gives 0.
    """
    fused: dict[Id, float] = {}
    for run in (first, second):
        low, high = min(run.values()), max(run.values())
        for passage, score in run.items():
            fused[passage] = fused.get(passage, 0.0) + ((score - low) / (high - low) if high > low else 0.0)
    return dict(sorted(fused.items(), key=lambda item: -item[1]))

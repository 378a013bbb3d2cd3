"""Which pairs are kept, and which passages an epoch shows. Deterministic, no random draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

Id = TypeVar("Id")


def consistency_ranks(queries: Tensor, passages: Tensor, pool: Tensor) -> Tensor:
    """(Q,) rank of each pair's own passage against a pool: 1 + the number of pool passages with a larger cosine.

    Args:
        queries, passages: (Q, H), one pair a row. pool: (P, H) random passages. All are normalised here.
    """
    from torch.nn.functional import normalize

    query, own, others = (normalize(vectors, dim=-1) for vectors in (queries, passages, pool))
    return 1 + (query @ others.T > (query * own).sum(-1, keepdim=True)).sum(-1)


def group(positives: Sequence[Id], negatives: Sequence[Id], num_negatives: int, offset: int) -> list[Id]:
    """One positive, then a window of negatives that moves on by whole windows; `offset` is epoch + seed."""
    window = [negatives[(offset * num_negatives + number) % len(negatives)] for number in range(num_negatives)]
    return [positives[offset % len(positives)], *window]


def trusted_positives(positives: Sequence[Id], scores: Sequence[float], negative_scores: Sequence[float]) -> list[Id]:
    """The first positive, and those scored at least as high as it or above every negative (`use_first_positive`)."""
    best = max(negative_scores, default=float("-inf"))
    return [
        positive
        for number, (positive, score) in enumerate(zip(positives, scores, strict=True))
        if number == 0 or score >= scores[0] or score > best
    ]

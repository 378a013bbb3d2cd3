"""Several views of a passage at inference: averaged in the index, or compared one by one."""

from __future__ import annotations

from torch import Tensor


def average_scores(queries: Tensor, views: Tensor) -> Tensor:
    """(Q, P) inner products with the mean of each passage's views; queries (Q, H), views (K, P, H)."""
    return queries @ views.mean(0).T


def best_scores(queries: Tensor, views: Tensor) -> Tensor:
    """(Q, P) best inner product over each passage's views; never below the average."""
    return (queries @ views.transpose(1, 2)).amax(0)

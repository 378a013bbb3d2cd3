"""The joint distribution of negatives that several retrievers (generators) span. The draws are the core sampler's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from typing import TypeVar

Id = TypeVar("Id")


def kept_list(ranked: Sequence[Id], positives: Container[Id], depth: int) -> list[Id]:
    """The first `depth` passages of a generator's list after labelled positives are taken out."""
    return [passage for passage in ranked if passage not in positives][:depth]


def equal_share_probabilities(lists: Sequence[Sequence[Id]], weights: Sequence[float] | None = None) -> dict[Id, float]:
    """First-draw probability when each generator gives its share: p(d) = sum_g w_g * [d in L_g] / |L_g|.

    Args:
        weights: of the generators, normalised here; default: equal. Empty lists have no share.
    """
    given = [1.0] * len(lists) if weights is None else list(weights)
    given = [weight if ids else 0.0 for weight, ids in zip(given, lists, strict=True)]
    found: dict[Id, float] = {}
    for weight, ids in zip(given, lists, strict=True):
        for passage in ids if weight else ():
            found[passage] = found.get(passage, 0.0) + weight / sum(given) / len(ids)
    return found


def pool_probabilities(lists: Sequence[Sequence[Id]]) -> dict[Id, float]:
    """First-draw probability from the joined lists: (number of lists naming d) / sum_g |L_g|."""
    counts = Counter(passage for ids in lists for passage in ids)
    total = sum(counts.values())
    return {passage: count / total for passage, count in counts.items()}

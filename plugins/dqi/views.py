"""How a view is laid out, and how the best view stands for its document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Id = TypeVar("Id")


def view_tokens(
    query: Sequence[int], title: Sequence[int], text: Sequence[int], separator: int, max_tokens: int
) -> list[int]:
    """query + [SEP] + title + text, cut to `max_tokens`; special tokens at the ends are added by the model.

    The query is not cut on its own, so a long one takes room from the text.
    """
    return [*query, separator, *title, *text][:max_tokens]


def corpus_views(
    queries: Sequence[Sequence[int]],
    title: Sequence[int],
    text: Sequence[int],
    *,
    num_views: int,
    separator: int,
    max_tokens: int,
) -> list[list[int]]:
    """The first `num_views` generated queries, each in front of the document."""
    return [view_tokens(query, title, text, separator, max_tokens) for query in queries[:num_views]]


def best_views(
    scores: np.ndarray, documents: Sequence[Id], depth: int, search_depth: int
) -> tuple[list[Id], list[float]]:
    """The `depth` documents of one query by their best view, and its score.

    Walks the best `search_depth` views and keeps the first one met of each document; exact whenever
    `search_depth >= depth * views per document`.

    Args:
        scores: (views,) of one query. documents: the document of each view.
    """
    order = np.argsort(-scores, kind="stable")[:search_depth]
    found: dict[Id, float] = {}
    for view in order:
        found.setdefault(documents[int(view)], float(scores[view]))
        if len(found) == depth:
            break
    return list(found), list(found.values())


def turning_window(items: Sequence[Id], size: int, epoch: int) -> list[Id]:
    """`size` items from a window that moves on by its size each epoch; `items` is already shuffled by a fixed seed."""
    start = (epoch * size) % len(items)
    return [items[(start + number) % len(items)] for number in range(size)]

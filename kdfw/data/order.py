"""The one order of results: score descending, equal scores by passage id descending, as trec_eval orders them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdfw.errors import DataError

if TYPE_CHECKING:
    from kdfw.types import TextSource


def ranked(
    rows: np.ndarray, scores: np.ndarray, corpus: TextSource, depth: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best `depth` of one query's results, in order.

    Ids are looked up only where scores are equal, so a corpus of millions of ids is never sorted.

    Args:
        rows: (n,) distinct rows of the corpus, in any order.
        scores: (n,) float32; compared as they are, so equal means equal bits.
        depth: how many to keep; None keeps all.
    """
    if depth is not None and len(scores) > depth:
        bound = np.partition(scores, len(scores) - depth)[len(scores) - depth] if depth else np.inf
        keep = np.flatnonzero(scores >= bound)  # with everything that ties with the last one
        rows, scores = rows[keep], scores[keep]
    order = np.argsort(-scores, kind="stable")
    rows, scores = rows[order], scores[order]
    new = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1], [True])))
    for group in np.flatnonzero(np.diff(new) > 1):
        tied = slice(new[group], new[group + 1])
        rows[tied] = sorted(rows[tied].tolist(), key=corpus.id, reverse=True)
    return rows[:depth], scores[:depth]


def trec_order(results: Mapping[str, float], query: str = "") -> list[str]:
    """Passage ids of one query, best first, in trec_eval's order.

    trec_eval keeps scores in single precision, so scores that differ by less than float32 resolves are ties; equal
    scores are ordered by id descending. Python compares strings by code point, which is the order of their UTF-8
    bytes and therefore that of trec_eval's strcmp.

    Raises: DataError naming query and passage for a score that is not a number.
    """
    ids = list(results)
    values = np.fromiter(results.values(), dtype=np.float64, count=len(ids))
    if np.isnan(values).any():
        passage = ids[int(np.flatnonzero(np.isnan(values))[0])]
        raise DataError(f"query {query!r}, passage {passage!r}: the score is not a number (NaN), so it has no rank")
    with np.errstate(over="ignore"):
        scores = values.astype(np.float32)
    if len(ids) > 1 and not (scores[1:] < scores[:-1]).all():
        order = np.argsort(-scores, kind="stable")
        scores = scores[order]
        ids = [ids[position] for position in order.tolist()]
        edges = [0, *(np.flatnonzero(scores[1:] != scores[:-1]) + 1).tolist(), len(ids)]
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            if end - begin > 1:
                ids[begin:end] = sorted(ids[begin:end], reverse=True)
    return ids

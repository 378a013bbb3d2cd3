"""The order of a ranked list: score descending, ties by passage id descending, as trec_eval orders it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kdfw.errors import DataError


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

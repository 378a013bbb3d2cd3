"""The one order of results: score descending, equal scores by passage id descending (trec_eval's order)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kdfw.data.ranking import Ranking
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


def merge_blocks(
    parts: list[tuple[np.ndarray, np.ndarray]], corpus: TextSource, depth: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per query the best `depth` of the results of several parts of the corpus.

    Args:
        parts: (rows (Q, n), scores (Q, n)) of each part; row -1 means no result.
    """
    rows = np.concatenate([part[0] for part in parts], axis=1)
    scores = np.concatenate([part[1] for part in parts], axis=1)
    found = []
    for query in range(len(rows)):
        real = rows[query] >= 0
        found.append(ranked(rows[query][real], scores[query][real], corpus, depth))
    return found


def cut(ranking: Ranking, keep: np.ndarray) -> Ranking:
    """The ranking without the entries where `keep` (total,) is False."""
    from kdfw.data.ranking import Ranking

    before = np.concatenate(([0], np.cumsum(keep, dtype=np.int64)))
    return Ranking(
        query_ids=ranking.query_ids,
        starts=before[ranking.starts],
        passages=np.asarray(ranking.passages)[keep],
        scores=np.asarray(ranking.scores)[keep],
    )

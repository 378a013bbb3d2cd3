"""Search query by query, shared out over the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfw.data.ranking import Ranking

if TYPE_CHECKING:
    from kdfw.context import StageContext, Workers
    from kdfw.errors import Problem
    from kdfw.types import TextSource

Found = tuple[np.ndarray, np.ndarray]
"""(rows, scores) of one query, in order."""


def check_searched(plan: Any, model: str, search: str) -> Iterator[Problem]:
    """That a retriever's model is of the kind it searches with (`Model.search`)."""
    from kdfw.retrieval import SEARCHES

    own = getattr(plan.model(model), "search", "")
    if own != search:
        fix = f"let it re-rank what another finds: {{type: rerank, first: bm25, model: {model}}}"
        if own in SEARCHES:
            fix = f"use {{type: {SEARCHES[own]}, model: {model}}}"
        yield plan.problem("model", found=f"{model!r}, which a {SEARCHES[search]} search cannot use", fix=fix)


def search_in_shares(queries: TextSource, search: Callable[[int], Found], context: StageContext, title: str) -> Ranking:
    """Each process searches its share of the queries; every process returns the whole ranking.

    `search` gets the number of a query and must not depend on which other queries there are.
    """
    share = context.workers.share(len(queries))
    found = []
    with context.progress(len(share), title, "queries") as progress:
        for number in share:
            found.append(search(number))
            progress.update()
    return gathered(found, [queries.id(number) for number in range(len(queries))], context.workers)


def gathered(found: Sequence[Found], query_ids: Sequence[str], workers: Workers) -> Ranking:
    """The ranking of all queries on every process, from each process's results of its share, in rank order."""
    if workers.world_size == 1:
        return as_ranking(found, query_ids)
    own = as_ranking(found, query_ids[: len(found)])
    lengths = workers.gather(np.diff(own.starts))
    return Ranking(
        query_ids=tuple(query_ids),
        starts=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        passages=workers.gather(own.passages),
        scores=workers.gather(own.scores),
    )


def as_ranking(found: Sequence[Found], query_ids: Sequence[str]) -> Ranking:
    """One list a query."""
    return Ranking.from_lists((id, rows, scores) for id, (rows, scores) in zip(query_ids, found, strict=True))

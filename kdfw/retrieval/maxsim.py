"""Late interaction: a query token counts with its best passage token, added up over the query (arXiv:2004.12832)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.amounts import Workload
from kdfw.components import Retriever
from kdfw.data.order import ranked
from kdfw.references import ModelRef
from kdfw.retrieval.encode import Ragged, encode_ragged
from kdfw.retrieval.indexes import TIES, Found, in_order, narrow
from kdfw.retrieval.queries import check_searched, gathered, search_in_shares
from kdfw.retrieval.store import Opened

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.errors import Problem
    from kdfw.types import TextSource

BLOCK_QUERIES = 16
"""Queries compared at once, and the unit in which they are shared out."""
BLOCK_TOKENS = 32_768
"""Passage tokens compared at once: with 32-token queries 64 MB of similarities."""


class LateInteraction(Retriever):
    """MaxSim over stored token vectors: of the whole corpus, or of what a first retriever finds."""

    def __init__(
        self,
        *,
        model: Annotated[ModelRef, Field(description="a model that gives each token a vector")],
        first: Annotated[
            Retriever | None, Field(description="finds the passages that are scored; null scores all of them")
        ] = None,
        first_depth: Annotated[int, Field(ge=1, description="how many passages `first` finds for a query")] = 1000,
    ) -> None:
        self.model = model
        self.first = first
        self.first_depth = first_depth
        self._opened = Opened[TokenVectors]()

    def check(self, plan: Any) -> Iterator[Problem]:
        return check_searched(plan, self.model, "maxsim")

    def estimate(self, plan: Any, split: str, depth: int) -> Workload:
        """Every token of every passage has a vector of two-byte numbers."""
        sizes = plan.sizes
        queries = sizes.of(sizes.items, split)
        work: Workload = plan.encoding(self.model, queries=queries, passages=sizes.passages, split=split)
        if "tokens" in work.amounts:
            work = work + plan.vectors(self.model, work.amounts["tokens"], 2)
        return work if self.first is None else self.first.estimate(plan, split, self.first_depth) + work

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """Scores are sums over the query's tokens of cosines. A passage without a scored token has score 0."""
        corpus = data.corpus
        wanted = TokenVectors(encode_ragged(self.model, queries, "query", context, kind="maxsim"))
        stored = self._opened.get(
            (corpus.fingerprint, context.model_fingerprint(self.model)),
            lambda: TokenVectors(encode_ragged(self.model, corpus, "passage", context, kind="maxsim")),
        )
        if self.first is not None:
            given = self.first.search(data, queries, max(depth, self.first_depth), context)

            def one(number: int) -> tuple[np.ndarray, np.ndarray]:
                rows = np.sort(given.of(number)[0])
                scores = stored.scores([wanted.of(number)], rows)[0]
                return ranked(rows, scores, corpus, depth)

            return search_in_shares(queries, one, context, "late interaction")
        starts = range(0, len(queries), BLOCK_QUERIES)
        own = context.workers.share(len(starts))
        lists: list[tuple[np.ndarray, np.ndarray]] = []
        with context.progress(len(own), "late interaction", "blocks") as progress:
            for number in own:
                some = range(starts[number], min(starts[number] + BLOCK_QUERIES, len(queries)))
                vectors = [wanted.of(query) for query in some]
                best: list[Found] = []
                for begin in range(0, len(corpus), stored.store.window):
                    rows = np.arange(begin, min(begin + stored.store.window, len(corpus)))
                    best.append((np.broadcast_to(rows, (len(some), len(rows))), stored.scores(vectors, rows)))
                    best = [narrow(best, depth + TIES)]
                lists.extend(in_order(best[0], corpus, depth) if best else [_EMPTY] * len(some))
                progress.update()
        return gathered(lists, [queries.id(number) for number in range(len(queries))], context.workers)


_EMPTY = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


class TokenVectors:
    """Token vectors of texts, by row."""

    def __init__(self, store: Ragged) -> None:
        self.store = store
        self._windows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, row: int) -> np.ndarray:
        """(tokens, H) float32 of one text."""
        number, inside = divmod(row, self.store.window)
        starts, values = self._window(number)
        return values[starts[inside] : starts[inside + 1]].astype(np.float32)

    def _window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._windows:
            columns = self.store.read(number)
            starts = np.concatenate(([0], np.cumsum(columns["counts"], dtype=np.int64)))
            self._windows[number] = (starts, columns["values"])
        return self._windows[number]

    def scores(self, queries: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """(Q, rows) float32 MaxSim of each query with each row.

        Args:
            queries: Q arrays (tokens, H).
            rows: (n,) ascending.
        """
        tokens = np.concatenate(queries)
        sizes = np.asarray([len(query) for query in queries])
        result = np.zeros((len(queries), len(rows)), dtype=np.float32)
        counts = np.asarray([self._count(row) for row in rows.tolist()], dtype=np.int64)
        group = np.cumsum(counts) // BLOCK_TOKENS
        for number in np.unique(group):
            part = np.flatnonzero((group == number) & (counts > 0))  # reduceat needs at least one token each
            if not len(part):
                continue
            passages = self._consecutive(rows[part])
            similar = tokens @ passages.T
            begins = np.concatenate(([0], np.cumsum(counts[part])[:-1]))
            best = np.maximum.reduceat(similar, begins, axis=1)
            edges = np.concatenate(([0], np.cumsum(sizes)))
            for query in range(len(queries)):
                result[query, part] = best[edges[query] : edges[query + 1]].sum(axis=0)
        return result

    def _count(self, row: int) -> int:
        number, inside = divmod(row, self.store.window)
        starts = self._window(number)[0]
        return int(starts[inside + 1] - starts[inside])

    def _consecutive(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([self.of(int(row)) for row in rows])

"""Learned sparse retrieval: exact search in the inverted lists of a model's term weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.amounts import Workload
from kdfw.components import Retriever
from kdfw.fingerprint import fingerprint
from kdfw.references import ModelRef
from kdfw.retrieval.encode import Ragged, encode_ragged
from kdfw.retrieval.postings import Entries, Postings, invert
from kdfw.retrieval.queries import check_searched, search_in_shares
from kdfw.retrieval.store import Opened, kept

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.errors import Problem
    from kdfw.types import TextSource


class Sparse(Retriever):
    """Search with a sparse encoder's weights, encoded once and kept in the cache."""

    def __init__(
        self,
        *,
        model: Annotated[ModelRef, Field(description="a model that weighs the words of its vocabulary")],
    ) -> None:
        self.model = model
        self._opened = Opened[Postings]()

    def check(self, plan: Any) -> Iterator[Problem]:
        return check_searched(plan, self.model, "sparse")

    def estimate(self, plan: Any, split: str, depth: int) -> Workload:
        """Every passage and every query is encoded; how many words they keep is known then."""
        queries, passages = plan.sizes.of(plan.sizes.items, split), plan.sizes.passages
        work: Workload = plan.encoding(self.model, queries=queries, passages=passages, split=split)
        return work

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """Passages that share a weighted term with the query; lists may be shorter than `depth`."""
        wanted = encode_ragged(self.model, queries, "query", context, kind="sparse")
        lists = self._opened.get(
            (data.corpus.fingerprint, context.model_fingerprint(self.model)),
            lambda: _lists(encode_ragged(self.model, data.corpus, "passage", context, kind="sparse"), context),
        )
        weights = [wanted.read(number) for number in range(len(wanted))]
        starts = [np.concatenate(([0], np.cumsum(columns["counts"]))) for columns in weights]

        def one(number: int) -> tuple[np.ndarray, np.ndarray]:
            window, row = divmod(number, wanted.window)
            part = slice(starts[window][row], starts[window][row + 1])
            terms, values = weights[window]["terms"][part], weights[window]["values"][part]
            known = terms < len(lists.starts) - 1  # a term beyond them occurs in no passage
            return lists.search(terms[known], values[known], depth, data.corpus)

        return search_in_shares(queries, one, context, "searching")


def _lists(stored: Ragged, context: StageContext) -> Postings:
    def blocks() -> Iterator[Entries]:
        for number in range(len(stored)):
            columns = stored.read(number)
            rows = np.repeat(np.arange(len(columns["counts"])), columns["counts"]) + stored.rows(number).start
            order = np.argsort(columns["terms"], kind="stable")
            yield columns["terms"][order], rows[order], columns["values"][order]

    def make(folder: Path) -> None:
        largest = [int(columns.max(initial=-1)) for columns in (stored.read(n)["terms"] for n in range(len(stored)))]
        invert(blocks, folder, max(largest, default=-1) + 1)

    key = fingerprint(["postings", stored.folder.name])
    return Postings.open(kept(context.cache / "sparse" / key, make), stored.num_rows)

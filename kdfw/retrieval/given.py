"""Results that are given: a run file, or the negatives of given triples, as a first stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.components import Retriever
from kdfw.data.order import ranked
from kdfw.data.ranking import Ranking
from kdfw.errors import DataError
from kdfw.retrieval.queries import as_ranking
from kdfw.retrieval.store import Opened

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import RankingData
    from kdfw.errors import Problem
    from kdfw.types import TextSource

BLOCK_TRIPLES = 4_000_000
"""Triples looked at at once: about a gigabyte while they are sorted."""


class RunFile(Retriever):
    """The results in a run file: a first stage made elsewhere."""

    def __init__(
        self,
        *,
        path: Annotated[
            Path,
            Field(description="TREC run `qid Q0 pid rank score tag`, or MS MARCO `qid pid rank`; .gz is read"),
        ],
    ) -> None:
        self.path = path

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """The file's bytes."""
        from kdfw.data.store import remembered_digest

        return {"file": remembered_digest(self.path)}

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """The file's lists in kdfw's order; an empty list for a query that is not in the file."""
        from kdfw.data.runs import read_run

        run = read_run(self.path)
        lists = []
        for query in (queries.id(number) for number in range(len(queries))):
            results = run.get(query, {})
            try:
                rows = np.asarray([data.corpus.row(passage) for passage in results], dtype=np.int64)
            except KeyError as error:
                raise DataError(
                    f"{self.path}: query {query!r}: no passage {error.args[0]!r} in the corpus of {data.name!r}"
                ) from None
            lists.append(ranked(rows, np.asarray(list(results.values()), dtype=np.float32), data.corpus, depth))
        return as_ranking(lists, [queries.id(number) for number in range(len(queries))])


class Triples(Retriever):
    """Negatives that the data set's triples name for a query: a random sample of them, in random order.

    The sample is a function of the data alone (no seed): each pair of query and negative has a fixed random number, and
    a query keeps the negatives with the lowest. Memory: 8 bytes for each that is kept.
    """

    def __init__(
        self,
        *,
        split: Annotated[str, Field(description="whose triples")] = "train",
        per_query: Annotated[
            int | None, Field(ge=1, description="negatives of a query; default: the depth asked for")
        ] = None,
    ) -> None:
        self.split = split
        self.per_query = per_query
        self._sampled = Opened[Ranking]()

    def check(self, plan: Any) -> Iterator[Problem]:
        """That the data set, where it tells, has triples of the split."""
        known = plan.triples
        if known is not None and self.split not in known:
            fix = "name a file of triples in the data set's options"
            have = f" (splits with triples: {', '.join(sorted(known)) or 'none'})"
            yield plan.problem("split", found=f"no triples for the split {self.split!r}{have}", fix=fix)

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """At most `depth` or `per_query` negatives a query; an empty list for a query without triples."""
        depth = min(depth, self.per_query or depth)
        if self.split not in data.triples:
            have = ", ".join(sorted(data.triples)) or "none"
            raise DataError(
                f"data {data.name!r} has no triples for split {self.split!r} (splits with triples: {have}); name "
                "a file of triples in the data set's options"
            )
        sample = self._sampled.get((data.fingerprint, depth), lambda: self._sample(data, depth))
        numbers = sample.index()
        nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        ids = [queries.id(number) for number in range(len(queries))]
        return as_ranking([sample.of(numbers[id]) if id in numbers else nothing for id in ids], ids)

    def _sample(self, data: RankingData, depth: int) -> Ranking:
        rows, negatives = sample_negatives(data.triples[self.split], depth)
        starts = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1]))) if len(rows) else rows
        lengths = np.diff(np.concatenate((starts, [len(rows)])))
        places = np.arange(len(rows)) - np.repeat(starts, lengths)
        queries = data.queries[self.split]
        return Ranking(
            query_ids=tuple(queries.id(int(row)) for row in rows[starts]),
            starts=np.concatenate((starts, [len(rows)])).astype(np.int64),
            passages=negatives,
            scores=-places.astype(np.float32),
        )


def sample_negatives(triples: np.ndarray, depth: int, block: int = BLOCK_TRIPLES) -> tuple[np.ndarray, np.ndarray]:
    """Up to `depth` distinct negatives of each query, drawn at random.

    Args:
        triples: (T, 3) rows of queries, positives, negatives; read in blocks, so it may be a memory map.
    Returns: (n,) query rows, ascending, and (n,) negatives, in random order within each query.
    """
    rows, negatives = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for begin in range(0, len(triples), block):
        part = np.asarray(triples[begin : begin + block])
        rows, negatives = np.concatenate((rows, part[:, 0])), np.concatenate((negatives, part[:, 2]))
        order = np.lexsort((negatives, _noise(rows, negatives), rows))
        rows, negatives = rows[order], negatives[order]
        new = np.concatenate(([True], (rows[1:] != rows[:-1]) | (negatives[1:] != negatives[:-1])))
        rows, negatives = rows[new], negatives[new]
        starts = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1])))
        lengths = np.diff(np.concatenate((starts, [len(rows)])))
        first = np.arange(len(rows)) - np.repeat(starts, lengths) < depth
        rows, negatives = rows[first], negatives[first]
    return rows, negatives


def _noise(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) uint64: a fixed random number for each pair (the mixing of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + others.astype(np.uint64)
        for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(multiplier)
        noise: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return noise

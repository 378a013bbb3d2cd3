"""Dense retrieval: queries and passages as one vector each, compared by inner product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.amounts import Workload
from kdfw.components import Retriever
from kdfw.fingerprint import fingerprint
from kdfw.references import ModelRef
from kdfw.retrieval.encode import DType, Vectors, encode_vectors
from kdfw.retrieval.indexes import Approximate, Flat, Found, IndexOptions, build_index, in_order, load_faiss, nearest
from kdfw.retrieval.queries import as_ranking, check_searched, gathered
from kdfw.retrieval.store import Opened, kept

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.errors import Problem
    from kdfw.types import TextSource

BLOCK_QUERIES = 4_096
"""Queries searched at once; also how queries are shared out, so that cuts change no bit of a score."""


class Dense(Retriever):
    """Search with a bi-encoder's embeddings, encoded once and kept in the cache."""

    def __init__(
        self,
        *,
        model: Annotated[ModelRef, Field(description="a model that gives each text one vector")],
        index: IndexOptions = Flat(),  # noqa: B008  (frozen)
        dtype: Annotated[DType, Field(description="how embeddings are stored; searched in float32")] = "float32",
    ) -> None:
        self.model = model
        self.index = index
        self.dtype: DType = dtype
        self._opened = Opened[Vectors]()
        self._approximate = Opened[Approximate]()

    def check(self, plan: Any) -> Iterator[Problem]:
        return check_searched(plan, self.model, "dense")

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """Version of faiss where it decides what is found; exact search does not depend on it."""
        return {} if isinstance(self.index, Flat) else {"faiss": _faiss_version()}

    def estimate(self, plan: Any, split: str, depth: int) -> Workload:
        """Every passage and every query has a vector."""
        queries, passages = plan.sizes.of(plan.sizes.items, split), plan.sizes.passages
        work: Workload = plan.encoding(self.model, queries=queries, passages=passages, split=split)
        stored: Workload = plan.vectors(self.model, queries + passages, np.dtype(self.dtype).itemsize)
        return work + stored

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """Exact search: each process searches its share of the corpus. Approximate: its share of the queries."""
        workers, corpus = context.workers, data.corpus
        wanted = encode_vectors(self.model, queries, "query", context)
        ids = [queries.id(number) for number in range(len(queries))]
        starts = range(0, len(queries), BLOCK_QUERIES)
        key = (corpus.fingerprint, context.model_fingerprint(self.model))
        lists = []
        if not len(corpus) or not len(queries):
            return as_ranking([_empty()] * len(queries), ids)
        if isinstance(self.index, Flat):
            vectors = self._opened.get(
                key, lambda: encode_vectors(self.model, corpus, "passage", context, dtype=self.dtype, whole=False)
            )
            windows = workers.share(len(vectors))
            rows = range(windows.start * vectors.window, min(windows.stop * vectors.window, len(corpus)))
            with context.progress(len(queries), "searching", "queries") as progress:
                for begin in starts:
                    block = wanted.block(begin, min(begin + BLOCK_QUERIES, len(queries)))
                    found = nearest(block, vectors, rows, depth, context.device)
                    lists.extend(in_order(_from_all(found, context), corpus, depth))
                    progress.update(len(block))
            return as_ranking(lists, ids)  # every process has merged all of it
        index = self._approximate.get(
            key,
            lambda: self._open(encode_vectors(self.model, corpus, "passage", context, dtype=self.dtype), context),
        )
        own = workers.share(len(starts))
        with context.progress(len(own), "searching", "blocks") as progress:
            for number in own:
                block = wanted.block(starts[number], min(starts[number] + BLOCK_QUERIES, len(queries)))
                lists.extend(in_order(index.search(block, depth), corpus, depth))
                progress.update()
        return gathered(lists, ids, workers)

    def _open(self, vectors: Vectors, context: StageContext) -> Approximate:
        assert not isinstance(self.index, Flat)
        options = self.index
        building = options.model_dump(exclude={"probes", "ef_search", "rescore"})
        key = fingerprint([vectors.folder.name, building, self.version, _faiss_version()])
        folder = kept(context.cache / "faiss" / key, lambda folder: build_index(vectors, options, folder))
        return Approximate(folder, options, vectors, context.device)


def _from_all(found: Found, context: StageContext) -> Found:
    """The results of every process's share of the corpus side by side."""
    workers = context.workers
    if workers.world_size == 1:
        return found
    width = int(workers.gather(np.asarray([found[0].shape[1]])).max())
    missing = width - found[0].shape[1]
    rows = np.pad(found[0], ((0, 0), (0, missing)), constant_values=-1)
    scores = np.pad(found[1], ((0, 0), (0, missing)), constant_values=-np.inf)
    shape = (workers.world_size, len(rows), width)
    rows, scores = workers.gather(rows).reshape(shape), workers.gather(scores).reshape(shape)
    return np.concatenate(list(rows), axis=1), np.concatenate(list(scores), axis=1)


def _empty() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)


def _faiss_version() -> str:
    return str(load_faiss().__version__)

"""Results that are given, and results that are scored again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.components import Retriever
from kdfw.data.ranking import Ranking
from kdfw.errors import DataError
from kdfw.references import ModelRef
from kdfw.retrieval.order import ranked
from kdfw.retrieval.queries import as_ranking, gathered

if TYPE_CHECKING:
    from kdfw.components import Model
    from kdfw.data.sets import RankingData
    from kdfw.engine.context import StageContext
    from kdfw.types import TextSource

BLOCK_QUERIES = 8
"""Queries whose candidates go through the model together, so that equal passages are computed once."""


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


class Rerank(Retriever):
    """What a first retriever finds, scored again by a model and put in its order."""

    def __init__(
        self,
        *,
        first: Annotated[Retriever, Field(description="finds the passages")],
        model: Annotated[ModelRef, Field(description="scores them: a cross-encoder or any other model")],
        depth: Annotated[int, Field(ge=1, description="how many passages of a query are scored again")] = 100,
    ) -> None:
        self.first = first
        self.model = model
        self.depth = depth

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """At most `self.depth` passages a query: what was not scored again is left out."""
        given = self.first.search(data, queries, self.depth, context)
        scored = score_lists(self.model, given, data.corpus, queries, context)
        lists = []
        for number in range(len(given)):
            rows, scores = scored.of(number)
            lists.append(ranked(np.array(rows), np.array(scores), data.corpus, depth))
        return as_ranking(lists, given.query_ids)


def score_lists(model: str, lists: Ranking, corpus: TextSource, queries: TextSource, context: StageContext) -> Ranking:
    """The same lists with the model's scores, in the same order; blocks of queries are shared out."""
    loaded = context.model(model)
    starts = range(0, len(lists), BLOCK_QUERIES)
    share = context.workers.share(len(starts))
    found = []
    with context.progress(len(share), f"scoring with {model}", "blocks") as progress:
        for block in share:
            numbers = range(starts[block], min(starts[block] + BLOCK_QUERIES, len(lists)))
            found.extend(_score_block(loaded, lists, numbers, corpus, queries, context))
            progress.update()
    return gathered(found, lists.query_ids, context.workers)


def _score_block(
    model: Model, lists: Ranking, numbers: range, corpus: TextSource, queries: TextSource, context: StageContext
) -> list[tuple[np.ndarray, np.ndarray]]:
    import torch

    from kdfw.models.forward import signals_of
    from kdfw.models.precision import autocast_dtype
    from kdfw.types import Batch, Text

    rows = [np.asarray(lists.of(number)[0]) for number in numbers]
    width = max(len(list_rows) for list_rows in rows)
    if width == 0:
        return [(list_rows, np.zeros(0, dtype=np.float32)) for list_rows in rows]
    filled = [number for number, list_rows in zip(numbers, rows, strict=True) if len(list_rows)]
    unique, inverse = np.unique(np.concatenate(rows), return_inverse=True)
    places = np.split(inverse, np.cumsum([len(list_rows) for list_rows in rows])[:-1])
    candidates = np.stack([np.pad(p, (0, width - len(p)), constant_values=p[0]) for p in places if len(p)])
    mask = np.stack([np.arange(width) < len(p) for p in places if len(p)])
    batch = Batch(
        task="ranking",
        ids=tuple(lists.query_ids[number] for number in filled),
        inputs={
            "query": [Text(source=queries, row=queries.row(lists.query_ids[number])) for number in filled],
            "passage": [Text(source=corpus, row=int(row)) for row in unique],
        },
        num_items=float(len(filled)),
        candidates=torch.from_numpy(candidates),
        mask=torch.from_numpy(mask),
        passage_ids=tuple(corpus.id(int(row)) for row in unique),
    )
    signals = signals_of(
        model,
        batch,
        frozenset({"logits"}),
        device=context.device,
        autocast=autocast_dtype(context.precision),
    )
    logits = iter(signals["logits"].float().cpu().numpy())
    return [
        (list_rows, next(logits)[: len(list_rows)] if len(list_rows) else np.zeros(0, dtype=np.float32))
        for list_rows in rows
    ]

"""Results scored again by a model and put in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.amounts import Workload
from kdfw.components import Retriever
from kdfw.context import Workers
from kdfw.data.order import ranked
from kdfw.references import ModelRef
from kdfw.retrieval.queries import as_ranking, gathered

if TYPE_CHECKING:
    import torch

    from kdfw.components import Model
    from kdfw.context import Progress, StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.models.forward import Budget
    from kdfw.types import TextSource

BLOCK_QUERIES = 8
"""Queries whose candidates go through the model together, so that equal passages are computed once."""


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

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What all of them read."""
        return self.first.reads

    def estimate(self, plan: Any, split: str, depth: int) -> Workload:
        """The first retriever's work, and the pairs that are scored again."""
        queries = plan.sizes.of(plan.sizes.items, split)
        pairs = (queries * self.depth).at_most()
        scoring: Workload = plan.scoring(self.model, queries=queries, pairs=pairs, split=split)
        return self.first.estimate(plan, split, self.depth) + scoring

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """At most `self.depth` passages a query: what was not scored again is left out."""
        from kdfw.models.precision import autocast_dtype

        given = self.first.search(data, queries, self.depth, context)
        with context.progress(len(given), f"scoring with {self.model}", "queries") as progress:
            found = rerank_lists(
                context.model(self.model),
                data.corpus,
                queries,
                given,
                device=context.device,
                workers=context.workers,
                autocast=autocast_dtype(context.precision),
                progress=progress,
            )
        lists = [found.of(number) for number in range(len(found))]
        return as_ranking([(rows[:depth], scores[:depth]) for rows, scores in lists], found.query_ids)


def rerank_lists(model: Model, corpus: TextSource, queries: TextSource, lists: Ranking, **road: Any) -> Ranking:
    """The lists with the model's scores, in the order of those scores. Further arguments as in `score_lists`."""
    scored = score_lists(model, corpus, queries, lists, **road)
    ordered = [ranked(np.array(rows), np.array(scores), corpus) for rows, scores in map(scored.of, range(len(scored)))]
    return as_ranking(ordered, lists.query_ids)


def score_lists(
    model: Model,
    corpus: TextSource,
    queries: TextSource,
    lists: Ranking,
    *,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    workers: Workers | None = None,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """The same lists in the same order with the model's scores; each process scores its share of blocks of queries.

    Args:
        queries: holds the texts of `lists.query_ids`, found by id.
    """
    from kdfw.models.forward import Budget

    workers, budget = workers or Workers(), budget or Budget()
    starts = range(0, len(lists), BLOCK_QUERIES)
    found = []
    for block in workers.share(len(starts)):
        numbers = range(starts[block], min(starts[block] + BLOCK_QUERIES, len(lists)))
        found.extend(_score_block(model, corpus, queries, lists, numbers, device, budget, autocast))
        if progress is not None:
            progress.update(len(numbers))
    return gathered(found, lists.query_ids, workers)


def _score_block(
    model: Model,
    corpus: TextSource,
    queries: TextSource,
    lists: Ranking,
    numbers: range,
    device: torch.device | str,
    budget: Budget,
    autocast: torch.dtype | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    import torch

    from kdfw.models.forward import signals_of
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
        device=device,
        budget=budget,
        autocast=autocast,
    )
    logits = iter(signals["logits"].float().cpu().numpy())
    return [
        (list_rows, next(logits)[: len(list_rows)] if len(list_rows) else np.zeros(0, dtype=np.float32))
        for list_rows in rows
    ]

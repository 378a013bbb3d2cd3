"""Evaluation on a dev split: how the best checkpoint, or the best of several models, is chosen. Never a test split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdfw.components import Model
from kdfw.data.ranking import Ranking
from kdfw.data.sets import Data, PairData, RankingData
from kdfw.errors import DataError, Problem, one_of
from kdfw.models.forward import Budget, signals_of
from kdfw.types import Batch, Text

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.recipe.view import PlanView

DEFAULT_MEASURE = {
    "ranking": "nDCG@10",
    "pairs": "spearman",
    "classification": "accuracy",
    "translation": "token accuracy",
}
QUERIES_AT_ONCE = 32


def check_dev(
    plan: PlanView, key: str, split: str, measure: tuple[str, str | None], candidates: str | None, model: str
) -> Iterator[Problem]:
    """What keeps a model from being measured on a dev split.

    Args:
        key: the option that names the split.
        measure: the option that names the measure, and its value.
        model: a reference to the model.
    """
    if plan.splits and split not in plan.splits:
        yield plan.problem(key, found=f"no split {split!r}", fix=one_of(split, plan.splits))
    if measure[1] is not None:
        yield from _check_measure(plan, measure[0], measure[1])
    measured = plan.model(model)
    if plan.task == "ranking" and candidates is None and isinstance(measured, Model) and measured.search != "dense":
        fix = "name candidates to re-rank: a stage that mined the dev split"
        yield plan.problem(key, found="a model that cannot search a pool of passages by itself", fix=fix)


def _check_measure(plan: PlanView, key: str, measure: str) -> Iterator[Problem]:
    from kdfw.evaluation.measures import parse_measures
    from kdfw.evaluation.tasks import MEASURES

    if plan.task == "ranking":
        try:
            parse_measures([measure])
        except DataError as error:
            yield plan.problem(key, found=str(error))
    elif measure not in MEASURES[plan.task]:
        found = f"no measure {measure!r} for {plan.task}"
        yield plan.problem(key, found=found, fix=one_of(measure, MEASURES[plan.task]))


class DevEvaluation:
    """Measures models on a dev split. Higher is better for every measure here.

    Args:
        measure: default: that of the task.
        candidates: stage whose lists of the split are re-ranked; default: search a pool of passages.
        pool: passages in that pool, besides the relevant ones.
    Raises: DataError when the split has nothing to compare with.
    """

    def __init__(
        self,
        context: StageContext,
        data: Data,
        *,
        split: str,
        measure: str | None = None,
        candidates: str | None = None,
        pool: int = 5000,
    ) -> None:
        self.split = split
        self.context = context
        self.data = data
        self.name = measure or DEFAULT_MEASURE[data.task]
        if isinstance(data, RankingData):
            self._prepare_ranking(data, candidates, pool)
        elif isinstance(data, PairData):
            from kdfw.evaluation.tasks import gold_of

            gold_of(data, split, [self.name])  # says now what would otherwise be said after hundreds of steps

    def _prepare_ranking(self, data: RankingData, candidates: str | None, pool: int) -> None:
        from kdfw.evaluation.arrays import JudgedRows

        qrels = data.qrels.get(self.split)
        if not qrels:
            raise DataError(f"data {data.name!r} has no judgements for the split {self.split!r}")
        self.judged = JudgedRows.of(qrels, data.corpus.row, len(data.corpus))
        self.queries = data.queries[self.split]
        self.candidates = None if candidates is None else self.context.candidates(candidates)
        self.pool = np.zeros(0, dtype=np.int64)
        if self.candidates is None:
            rng = np.random.default_rng(0)  # the pool is part of the measure, so it does not follow the recipe's seed
            size = min(pool, len(data.corpus))
            drawn = rng.choice(len(data.corpus), size=size, replace=False)
            relevant = [
                data.corpus.row(passage) for rows in qrels.values() for passage in rows if passage in data.corpus
            ]
            self.pool = np.unique(np.concatenate([drawn, np.asarray(relevant, dtype=np.int64)]))

    def measure(self, model: Model, budget: Budget, autocast: torch.dtype | None) -> float:
        """The measure, the same on every process."""
        road: dict[str, Any] = {
            "device": self.context.device, "budget": budget, "workers": self.context.workers, "autocast": autocast,
        }  # fmt: skip
        if isinstance(self.data, RankingData):
            ranking = self._rerank(model, road) if self.candidates is not None else self._search_pool(model, road)
            from kdfw.evaluation.arrays import score_ranking

            return float(score_ranking(ranking, self.judged, [self.name])[self.name].mean())
        from kdfw.evaluation.tasks import measure_split

        return measure_split(model, self.data, self.split, self.name, **road)

    def _search_pool(self, model: Model, road: dict[str, Any]) -> Ranking:
        data = self.data
        assert isinstance(data, RankingData)
        queries = [Text(source=self.queries, row=row) for row in range(len(self.queries))]
        passages = [Text(source=data.corpus, row=int(row)) for row in self.pool]
        # every query against every passage is what `batch_logits` is; the candidate lists stay empty of meaning
        batch = Batch(
            task="ranking",
            ids=tuple(self.queries.id(row) for row in range(len(queries))),
            inputs={"query": queries, "passage": passages},
            num_items=float(len(queries)),
            candidates=torch.zeros(len(queries), 1, dtype=torch.long),
            mask=torch.ones(len(queries), 1, dtype=torch.bool),
            labels=torch.zeros(len(queries), 1),
            passage_ids=tuple(data.corpus.id(int(row)) for row in self.pool),
        )
        scores = signals_of(model, batch, frozenset({"batch_logits"}), **road)["batch_logits"].float().cpu().numpy()
        depth = min(1000, scores.shape[1])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return Ranking.from_lists(
            (query, self.pool[order[number]], scores[number][order[number]]) for number, query in enumerate(batch.ids)
        )

    def _rerank(self, model: Model, road: dict[str, Any]) -> Ranking:
        from kdfw.retrieval.rerank import rerank_lists

        assert isinstance(self.data, RankingData) and self.candidates is not None
        return rerank_lists(model, self.data.corpus, self.queries, self.candidates, **road)

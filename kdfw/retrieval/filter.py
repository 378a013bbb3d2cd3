"""Choosing queries by where their labelled positive ranks: data filters that methods and curricula need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.amounts import Workload
from kdfw.components import Stage
from kdfw.data.ranking import Ranking
from kdfw.errors import DataError, Problem
from kdfw.references import CandidatesRef, DataRef, ScoresRef
from kdfw.retrieval.mining import row_of

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import RankingData

MISSING = np.inf
"""Rank of a positive that is not in the list."""


class Filter(Stage):
    """The candidate lists of those queries whose best-ranked positive lies in a range of ranks.

    The lists must hold the positives (`mine` with `drop_positives: false`). The rank of a positive is one more than the
    number of other passages of its list with a strictly higher score; labelled positives count as other passages. With
    `scores`, a teacher's scores of the same lists, the rank the teacher gives can be asked for as well; what was scored
    beside the list (positives that a score stage adds) does not count. A query whose positive is not in its list is
    dropped.
    """

    produces = frozenset({"candidates"})

    def __init__(
        self,
        *,
        of: Annotated[CandidatesRef, Field(description="candidate lists with the positives in them")],
        scores: Annotated[ScoresRef | None, Field(description="a teacher's scores of the same lists")] = None,
        ranks: Annotated[tuple[int, int] | None, Field(description="[first, last] rank of the positive")] = None,
        score_ranks: Annotated[
            tuple[int, int] | None, Field(description="[first, last] rank of the positive by `scores`")
        ] = None,
        improves: Annotated[bool, Field(description="`scores` must rank the positive higher than the list")] = False,
        drop_positives: Annotated[bool, Field(description="leave the positives out of the lists written")] = True,
        data: Annotated[DataRef | None, Field(description="default: the recipe's data set")] = None,
        split: Annotated[str, Field(description="whose judgements")] = "train",
        min_grade: Annotated[int, Field(ge=1, description="grade from which a judged passage is a positive")] = 1,
    ) -> None:
        self.of = of
        self.scores = scores
        self.ranks = ranks
        self.score_ranks = score_ranks
        self.improves = improves
        self.drop_positives = drop_positives
        self.data = data
        self.split = split
        self.min_grade = min_grade

    def check(self, plan: Any) -> Iterator[Problem]:
        """Ranges are ranges, and a condition on a teacher's ranks has a teacher."""
        for name in ("ranks", "score_ranks"):
            ranks = getattr(self, name)
            if ranks is not None and not 1 <= ranks[0] <= ranks[1]:
                yield plan.problem(name, found=f"found {list(ranks)}", fix="write [first, last], 1 <= first <= last")
        if self.scores is None and (self.score_ranks is not None or self.improves):
            yield plan.problem("scores", found="a condition on a teacher's ranks without scores", fix="name a stage")
        if self.ranks is None and self.score_ranks is None and not self.improves:
            yield plan.problem("ranks", found="no condition", fix="give ranks, score_ranks or improves")

    def estimate(self, plan: Any) -> Workload:
        """No more than there is to choose from."""
        queries, candidates = plan.lists(self.of)
        return Workload(amounts={"queries": queries.at_most(), "candidates": candidates.at_most()})

    def run(self, context: StageContext) -> None:
        """Write the lists of the queries that are kept."""
        if not context.workers.main:
            return
        data: RankingData = context.data(self.data)  # type: ignore[assignment]
        lists = context.candidates(self.of)
        scored = None if self.scores is None else context.scores(self.scores)
        numbers = {} if scored is None else scored.index()
        positives = data.positives(self.split, self.min_grade)
        kept = []
        absent = 0
        for number, query in enumerate(lists.query_ids):
            rows, list_scores = (np.array(part) for part in lists.of(number))
            positive = np.isin(rows, [row_of(data, id) for id in positives.get(query, ())])
            if not positive.any():
                absent += 1
                continue
            teacher = None if scored is None else self._scores_of(query, rows, scored, numbers)
            if self.wanted(rank_of_best(list_scores, positive), rank_of_best(teacher, positive)):
                stays = ~positive if self.drop_positives else np.ones_like(positive)
                kept.append((query, rows[stays], list_scores[stays]))
        ranking = Ranking.from_lists(iter(kept))
        ranking.save(context.folder)
        if not kept:
            context.log.warning(
                "filter: none of %d queries is kept; %d have no positive in their list", len(lists), absent
            )
        lengths = np.diff(ranking.starts)
        context.summary(
            {
                "queries": len(lists),
                "kept": len(ranking),
                "without_positive": absent,
                "mean_length": round(float(lengths.mean()), 2) if len(lengths) else 0.0,
            }
        )

    def _scores_of(self, query: str, rows: np.ndarray, scored: Ranking, numbers: Mapping[str, int]) -> np.ndarray:
        """(n,) the teacher's scores of a list, in the list's order. Raises DataError for a passage without one."""
        known, scores = scored.of(numbers[query]) if query in numbers else (np.zeros(0, np.int64), np.zeros(0))
        order = np.argsort(known)
        places = np.minimum(np.searchsorted(known, rows, sorter=order), len(known) - 1)
        if not len(known) or (known[order[places]] != rows).any():
            raise DataError(
                f"filter: the scores of {self.scores!r} are not of the lists of {self.of!r}: query {query!r} has a "
                f"passage without a score; write `of: {self.of}` in that score stage, with its whole depth"
            )
        return np.asarray(scores[order[places]])

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        """The lists as they come: ranks mean nothing before a search."""
        lists = context.candidates(self.of)
        lists.save(context.folder)
        return {"queries": len(lists)}

    def wanted(self, rank: float, teacher_rank: float) -> bool:
        """Whether a query stays, by the rank of its positive in the list and by the teacher's scores."""
        inside = self.ranks is None or self.ranks[0] <= rank <= self.ranks[1]
        agreed = self.score_ranks is None or self.score_ranks[0] <= teacher_rank <= self.score_ranks[1]
        return inside and agreed and (not self.improves or teacher_rank < rank)


def rank_of_best(scores: np.ndarray | None, positive: np.ndarray) -> float:
    """1 + the number of passages that score strictly higher than the best positive; `MISSING` without a scored one."""
    if scores is None or np.isnan(scores[positive]).all():
        return MISSING
    return 1.0 + float((scores > np.nanmax(scores[positive])).sum())

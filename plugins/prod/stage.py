"""The stage that selects data: candidates of the kept queries only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdfw.components import Stage
from kdfw.data.ranking import Ranking
from kdfw.data.sets import RankingData
from kdfw.errors import DataError
from kdfw.references import CandidatesRef, ScoresRef
from kdfw_plugins.prod.selection import select_queries, teacher_ahead, teacher_right_student_nearly

if TYPE_CHECKING:
    from kdfw.engine.context import StageContext


class SelectQueries(Stage):
    """Keeps the queries that the teacher gets right and the student nearly does; a `mined` sampler draws from them.

    Args:
        of: the student's own search results for the training queries.
        scores: the teacher's scores of those very candidates.
        split: the split whose judgements name the positive.
        rule: `top2t15`: the student has its first labelled positive at rank 2 to 15 and the teacher at 1;
            `teacher-ahead`: the teacher has a relevant passage above the student's first, within `teacher_below`.
    """

    produces: ClassVar[frozenset[str]] = frozenset({"candidates"})
    paper = "arXiv:2209.13335, data progressive distillation"

    def __init__(
        self,
        *,
        of: CandidatesRef,
        scores: ScoresRef,
        split: str = "train",
        rule: Literal["top2t15", "teacher-ahead"] = "top2t15",
        student_ranks: Annotated[
            tuple[int, int], Field(description="rule top2t15: least and greatest rank in the student's list")
        ] = (2, 15),
        teacher_rank: Annotated[int, Field(ge=1, description="rule top2t15: rank in the teacher's list")] = 1,
        teacher_below: Annotated[int, Field(ge=1, description="rule teacher-ahead: greatest rank of the teacher")] = 15,
        data: str | None = None,
    ) -> None:
        self.of = of
        self.scores = scores
        self.split = split
        self.rule = rule
        self.student_ranks = student_ranks
        self.teacher_rank = teacher_rank
        self.teacher_below = teacher_below
        self.data = data

    def run(self, context: StageContext) -> None:
        data = context.data(self.data)
        if not isinstance(data, RankingData):
            raise DataError(f"stage prod-select: {data.name!r} is {data.task} data; give ranking data")
        searched = context.candidates(self.of)
        orders = teacher_order(searched, context.scores(self.scores), data)
        positives = data.positives(self.split)

        def positive(query: str) -> frozenset[str]:
            return frozenset(positives.get(query, ()))

        student = {query: list(passages) for query, passages in searched.run(data.corpus).items()}
        kept = select_queries(student, orders, positive, self.keep)
        if not kept:
            raise DataError(
                f"stage prod-select: none of {len(searched)} queries is kept by rule {self.rule}; "
                "widen student_ranks, or end the rounds here: the student has learned what this teacher can teach"
            )
        numbers = searched.index()
        rows = ((query, *searched.of(numbers[query])) for query in kept)
        Ranking.from_lists(rows).save(context.folder)
        context.summary({"queries": len(searched), "kept": len(kept)})

    def keep(self, student: int | None, teacher: int | None) -> bool:
        """Whether a query with these ranks of its positive stays."""
        if self.rule == "teacher-ahead":
            return teacher_ahead(student, teacher, teacher_below=self.teacher_below)
        low, high = self.student_ranks
        return teacher_right_student_nearly(
            student, teacher, student_from=low, student_to=high, teacher_at=self.teacher_rank
        )


def teacher_order(searched: Ranking, scored: Ranking, data: RankingData) -> dict[str, list[str]]:
    """Query id -> passage ids by teacher score descending, ties by passage id descending.

    Raises: DataError when the scores are not those of the searched candidates.
    """

    def ordered() -> Iterator[tuple[str, list[str]]]:
        numbers = scored.index()
        for number, query in enumerate(searched.query_ids):
            if query not in numbers:
                raise DataError(f"query {query!r} was searched and not scored; score the same candidates")
            wanted = set(searched.of(number)[0].tolist())
            rows, scores = scored.of(numbers[query])
            if not wanted <= set(rows.tolist()):
                raise DataError(f"query {query!r}: some candidates have no teacher score; score the same candidates")
            named = [
                (float(score), data.corpus.id(int(row)))
                for row, score in zip(rows, scores, strict=True)
                if int(row) in wanted and np.isfinite(score)
            ]
            yield query, [passage for _, passage in sorted(named, reverse=True)]

    return dict(ordered())

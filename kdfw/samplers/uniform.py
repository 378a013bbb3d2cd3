"""Negatives drawn from all passages alike: no retrieval before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Sizes
from kdfw.components import Sampler
from kdfw.samplers.judged import Choice, Judged, choose, example, judged_positives, ranking_data
from kdfw.types import Clock, Example

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import Data


class Uniform(Sampler):
    """Labelled positives with negatives drawn uniformly, without repetition, anew in every epoch.

    For losses that choose among many random candidates themselves, with a teacher that is asked while training.
    """

    paper = "arXiv:2207.01426"

    def __init__(
        self,
        *,
        negatives: Annotated[int, Field(ge=1, description="negatives of each example")] = 7,
        positives: Annotated[int, Field(ge=1, description="labelled positives of each example")] = 1,
        positives_choice: Annotated[Choice, Field(description="which of a query's positives")] = "first",
        pool: Annotated[
            Literal["corpus", "split"],
            Field(description="drawn from the whole corpus, or from what is relevant to some query of the split"),
        ] = "corpus",
        remove_positives: Annotated[
            bool, Field(description="a query's other labelled positives are never its negatives")
        ] = True,
        min_grade: Annotated[int, Field(ge=1, description="least grade that makes a passage a positive")] = 1,
    ) -> None:
        self.negatives, self.positives, self.positives_choice = negatives, positives, positives_choice
        self.pool_kind, self.remove_positives, self.min_grade = pool, remove_positives, min_grade
        self.num_candidates = None if positives_choice == "all" else positives + negatives

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        self.data, self.split = ranking_data(data, split, "random"), split
        judged, _ = judged_positives(self.data, split, self.min_grade)
        queries = self.data.queries[split]
        self.rows = {
            query: row for row, query in enumerate(queries.ids()) if query in judged and len(judged[query].rows)
        }
        self.ids, self.judged = list(self.rows), judged
        left_out = len(queries) - len(self.ids)
        self.skipped = {"queries without a labelled positive": left_out} if left_out else {}
        self.pool: np.ndarray | None = None
        if self.pool_kind == "split":
            self.pool = np.unique(np.concatenate([judged[query].rows for query in self.ids] or [np.zeros(0, np.int64)]))

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return sizes.of(sizes.judged, split).at_most()

    def items(self) -> Sequence[str]:
        return self.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        query = self.ids[item]
        own = self.judged[query]
        positives = choose(own, self.positives, self.positives_choice, clock.epoch + clock.seed, rng)
        negatives = self._drawn(own if self.remove_positives else positives, rng)
        grades = dict(zip(own.rows.tolist(), own.grades.tolist(), strict=True))
        return example(self.data, self.split, self.rows[query], positives, negatives, grades)

    def _drawn(self, without: Judged, rng: np.random.Generator) -> np.ndarray:
        """(negatives,) rows of the pool, or fewer when it has no more."""
        size = len(self.data.corpus) if self.pool is None else len(self.pool)
        drawn = rng.choice(size, size=min(size, self.negatives + len(without.rows)), replace=False)
        rows = drawn if self.pool is None else self.pool[drawn]
        return np.asarray(rows[~np.isin(rows, without.rows)][: self.negatives])

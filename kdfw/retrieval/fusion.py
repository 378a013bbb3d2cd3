"""One list out of several retrievers' lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import Workload
from kdfw.components import Retriever
from kdfw.data.order import ranked
from kdfw.errors import ConfigError
from kdfw.retrieval.queries import as_ranking

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.types import TextSource


class Fusion(Retriever):
    """Adds up, for each passage, what each retriever's list gives it; a passage a list lacks gets nothing from it."""

    paper = "10.1145/1571941.1572114"

    def __init__(
        self,
        *,
        retrievers: Annotated[list[Retriever], Field(description="two or more")],
        how: Annotated[
            Literal["rrf", "min-max"],
            Field(description="rrf: 1 / (k + rank); min-max: scores brought to [0, 1] within each list"),
        ] = "rrf",
        k: Annotated[float, Field(ge=0, description="of rrf: how little the first ranks stand out")] = 60.0,
        weights: Annotated[list[float] | None, Field(description="one for each retriever; default 1")] = None,
        depth_each: Annotated[
            int | None, Field(ge=1, description="how many passages each retriever finds; default: the depth asked for")
        ] = None,
    ) -> None:
        if len(retrievers) < 2:
            raise ConfigError(f"fusion: found {len(retrievers)} retriever; give two or more, or use it alone")
        if weights is not None and len(weights) != len(retrievers):
            raise ConfigError(f"fusion: {len(weights)} weights for {len(retrievers)} retrievers; give one for each")
        self.retrievers = retrievers
        self.how = how
        self.k = k
        self.weights = weights or [1.0] * len(retrievers)
        self.depth_each = depth_each

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What all of them read."""
        return frozenset({"text", "image"}).intersection(*(retriever.reads for retriever in self.retrievers))

    def estimate(self, plan: Any, split: str, depth: int) -> Workload:
        """What all of them have to do."""
        work = Workload()
        for retriever in self.retrievers:
            work = work + retriever.estimate(plan, split, self.depth_each or depth)
        return work

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """The best `depth` by the sum."""
        each = self.depth_each or depth
        found = [retriever.search(data, queries, each, context) for retriever in self.retrievers]
        lists = []
        for number in range(len(queries)):
            rows, points = [], []
            for ranking, weight in zip(found, self.weights, strict=True):
                list_rows, scores = ranking.of(number)
                rows.append(np.asarray(list_rows))
                points.append(weight * self.points(np.asarray(scores, dtype=np.float64)))
            unique, inverse = np.unique(np.concatenate(rows), return_inverse=True)
            total = np.bincount(inverse, weights=np.concatenate(points), minlength=len(unique)).astype(np.float32)
            lists.append(ranked(unique, total, data.corpus, depth))
        return as_ranking(lists, [queries.id(number) for number in range(len(queries))])

    def points(self, scores: np.ndarray) -> np.ndarray:
        """(n,) what a list, best first, gives to its passages."""
        if self.how == "rrf":
            return 1.0 / (self.k + np.arange(1, len(scores) + 1))
        if not len(scores):
            return scores
        low, high = scores.min(), scores.max()
        return np.ones_like(scores) if high == low else (scores - low) / (high - low)

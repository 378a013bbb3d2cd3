"""Several teachers as one: while they score (a teacher), or after they have (a stage)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Workload
from kdfw.components import Stage, Teacher
from kdfw.data.ranking import Ranking
from kdfw.errors import ConfigError
from kdfw.fingerprint import fingerprint
from kdfw.references import ScoresRef, TeacherRef
from kdfw.teachers.worklist import first_places
from kdfw.types import Text

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.teachers.scoring import PairScorer

Normalise = Literal["none", "min-max", "z-score", "softmax", "rank"]
Weights = Annotated[
    list[Annotated[float, Field(ge=0)]] | None,
    Field(description="one for each member; only their ratios matter; default: equal"),
]


def normalised(scores: np.ndarray, how: Normalise) -> np.ndarray:
    """One query's scores of one teacher on a common scale; NaN stays NaN and counts for nothing.

    Args:
        scores: (D,) raw scores.
        how: `min-max` to [0, 1] (0.5 where all are equal); `z-score` to mean 0 and standard deviation 1 (0 where all
            are equal); `softmax` to a distribution; `rank` to (D - rank) / (D - 1) with ties sharing their mean rank:
            the best gets 1, the worst 0 (0.5 for a single one).
    Returns: (D,) float64.
    """
    result: np.ndarray = np.asarray(scores, dtype=np.float64).copy()
    real = np.isfinite(result)
    values = result[real]
    if how == "none" or not len(values):
        return result
    spread = values.max() - values.min()
    if how == "min-max":
        result[real] = (values - values.min()) / spread if spread else 0.5
    elif how == "z-score":
        result[real] = (values - values.mean()) / values.std() if spread else 0.0
    elif how == "softmax":
        exponents = np.exp(values - values.max())
        result[real] = exponents / exponents.sum()
    else:
        ordered = np.sort(values)
        below = np.searchsorted(ordered, values, side="left")
        upto = np.searchsorted(ordered, values, side="right")
        result[real] = ((below + upto - 1) / 2) / (len(values) - 1) if len(values) > 1 else 0.5
    return result


def combined(scores: Sequence[np.ndarray], weights: Sequence[float], how: Normalise) -> np.ndarray:
    """Weighted mean of several teachers' scores of one query, over the teachers that have a score.

    Args:
        scores: K arrays (D,), NaN where a teacher has none.
        weights: K numbers >= 0; only their ratios matter.
    Returns: (D,) float32, NaN where no teacher with a positive weight has a score.
    """
    stacked = np.stack([normalised(row, how) for row in scores])
    real = np.isfinite(stacked)
    shares = np.asarray(weights, dtype=np.float64)[:, None] * real
    total = shares.sum(axis=0)
    mixed: np.ndarray = (np.where(real, stacked, 0.0) * shares).sum(axis=0)
    mean: np.ndarray = np.divide(mixed, total, out=np.full_like(mixed, np.nan), where=total > 0)
    return mean.astype(np.float32)


def checked_weights(of: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """One weight a member. Raises: ConfigError when they do not fit the members."""
    if not of:
        raise ConfigError("ensemble: `of` names no teacher; write at least one")
    if weights is not None and len(weights) != len(of):
        raise ConfigError(f"ensemble: {len(weights)} weights for {len(of)} teachers; write one for each, or none")
    if weights is not None and not sum(weights) > 0:
        raise ConfigError("ensemble: all weights are 0; at least one must be positive")
    return [1.0] * len(of) if weights is None else [float(weight) for weight in weights]


class Ensemble(Teacher):
    """Weighted mean of several teachers' scores, each first put on a common scale within the query's list.

    Members' scores go through the score store one by one; the mean itself is not stored, because a normalised score
    depends on the whole list.

    Args:
        of: names of the members: models, or other teachers, under `models:`
        normalise: scale of a member's scores within a query: as they are, min-max, z-score, softmax, or rank
    """

    keeps_own_scores: ClassVar[bool] = True

    def __init__(
        self,
        *,
        of: list[TeacherRef],
        weights: Weights = None,
        normalise: Normalise = "none",
        tokens_per_batch: Annotated[
            int | None, Field(ge=1, description="token budget of a micro-batch; default: 2048 on a CPU, 8192 on a GPU")
        ] = None,
    ) -> None:
        self.of = of
        self.weights = checked_weights(of, weights)
        self.normalise: Normalise = normalise
        self.tokens_per_batch = tokens_per_batch
        self._members: list[PairScorer] = []

    def fingerprint(self) -> str:
        """Of the options; the planner adds the members' own fingerprints."""
        return fingerprint(["ensemble", self.of, self.weights, self.normalise])

    def load(self, context: StageContext) -> None:
        from kdfw.teachers.scoring import PairScorer

        self._members = [PairScorer(context, name, tokens_per_batch=self.tokens_per_batch) for name in self.of]

    def expected(self, queries: int, pairs: int) -> str:
        said = [
            getattr(member.teacher, "expected", lambda queries, pairs: "")(queries, pairs) for member in self._members
        ]
        return "; ".join(text for text in said if text)

    def report(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for member in self._members:
            own = member.teacher.report() if isinstance(member.teacher, Teacher) else {}
            found |= {f"{member.name}: {name}": value for name, value in own.items()}
        return found

    def score(
        self, query: Sequence[str], passages: Sequence[Sequence[str]], ids: Sequence[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        queries = [Text(source=None, made=text) for text in query]
        texts = [[Text(source=None, made=text) for text in row] for row in passages]
        found = [
            member.score([id for id, _ in ids], queries, texts, [names for _, names in ids]) for member in self._members
        ]
        return [
            combined([member[item] for member in found], self.weights, self.normalise) for item in range(len(queries))
        ]


class EnsembleOfScores(Stage):
    """Weighted mean of the scores that several stages wrote, each first put on a common scale within an item's list.

    For teachers that the recipe itself trains. Lists are joined; where a stage has no score the mean is over the
    others. The result is used as the scores of one teacher.

    Args:
        of: stages that write scores
        normalise: scale of a stage's scores within an item's list: as they are, min-max, z-score, softmax, or rank
    """

    produces: ClassVar[frozenset[str]] = frozenset({"scores"})

    def __init__(self, *, of: list[ScoresRef], weights: Weights = None, normalise: Normalise = "none") -> None:
        self.of = of
        self.weights = checked_weights(of, weights)
        self.normalise: Normalise = normalise

    def estimate(self, plan: Any) -> Workload:
        """Lists are joined, and nothing is read by a model."""
        items, candidates = Amount(0), Amount(0)
        for name in self.of:
            own, pairs = plan.lists(name)
            items, candidates = items.larger(own), candidates + pairs
        if plan.task == "pairs":
            return Workload(amounts={"pairs": items})
        return Workload(amounts={"queries": items, "candidates": candidates.at_most()})

    def run(self, context: StageContext) -> None:
        if not context.workers.main:
            return
        mean = Ranking.from_lists(self._lists([context.scores(name) for name in self.of]))
        mean.save(context.folder)
        context.summary({"queries": len(mean), "pairs": len(mean.scores)})

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        self.run(context)
        return {"members": len(self.of)}

    def _lists(self, members: Sequence[Ranking]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        places = [member.index() for member in members]
        for query in dict.fromkeys(query for member in members for query in member.query_ids):
            nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
            lists = [
                member.of(place[query]) if query in place else nothing
                for member, place in zip(members, places, strict=True)
            ]
            rows = first_places(np.concatenate([own for own, _ in lists]))
            scores = []
            for own, values in lists:
                found = dict(zip(own.tolist(), values.tolist(), strict=True))
                scores.append(np.asarray([found.get(row, np.nan) for row in rows.tolist()], dtype=np.float32))
            yield query, rows, combined(scores, self.weights, self.normalise)

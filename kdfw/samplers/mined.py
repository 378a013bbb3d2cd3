"""Samplers of mined candidates: positives of the judgements, negatives of retrieved lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Sizes
from kdfw.components import Sampler
from kdfw.errors import ConfigError
from kdfw.references import CandidatesRef, ScoresRef
from kdfw.samplers.judged import NONE, NOTHING, Choice, Judged, choose, example, judged_positives, ranking_data
from kdfw.samplers.negatives import Draw, Mix, draw_from_lists, shares, window
from kdfw.types import Clock, Example

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import Data, RankingData
    from kdfw.errors import Problem

NumPositives = Annotated[int, Field(ge=0, description="labelled positives of each example; 0: candidates only")]
NumNegatives = Annotated[int, Field(ge=0, description="negatives of each example")]
Ranks = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None,
    Field(description="first and last rank drawn from, from 1, counted without the positives; default: all"),
]
DrawOption = Annotated[Draw, Field(description="how negatives are drawn from a list")]
TemperatureOption = Annotated[float, Field(gt=0, description="of a weighted draw; lower prefers the best")]
Short = Literal["repeat", "drop", "pad"]
ShortOption = Annotated[
    Short, Field(description="a query with too few negatives: repeat them, leave the query out, or have fewer")
]
ChoiceOption = Annotated[Choice, Field(description="which of a query's positives")]
MinGrade = Annotated[int, Field(ge=1, description="least grade that makes a passage a positive")]
MaxCandidates = Annotated[int | None, Field(ge=1, description="cuts an example with many positives")]


@dataclass(frozen=True, kw_only=True)
class ListDraws:
    """Options of a draw from ranked lists, and the draw itself."""

    positives: int
    negatives: int
    ranks: tuple[int, int] | None
    draw: Draw
    temperature: float
    mix: Mix
    weights: Sequence[float] | None
    unique: bool
    short: Short
    positives_choice: Choice
    remove_positives: bool
    min_grade: int
    max_candidates: int | None

    def check(self, name: str, num_lists: int) -> None:
        """Raises ConfigError for options that do not go together."""
        if self.ranks is not None and self.ranks[0] > self.ranks[1]:
            raise ConfigError(f"sampler {name}: ranks {list(self.ranks)} are empty; write [first, last]")
        if self.mix == "equal-share" and self.negatives % num_lists:
            raise ConfigError(
                f"sampler {name}: {self.negatives} negatives cannot be shared equally by {num_lists} lists; "
                f"use {self.negatives // num_lists * num_lists or num_lists}, or mix: pool"
            )
        if (self.weights is not None) != (self.mix == "proportions"):
            raise ConfigError(f"sampler {name}: `weights` go with mix: proportions, and it needs them")
        if self.weights is not None and (len(self.weights) != num_lists or not sum(self.weights) > 0):
            raise ConfigError(
                f"sampler {name}: {len(self.weights)} weights for {num_lists} lists; write one for each, not all 0"
            )
        if self.positives == 0 and self.negatives == 0:
            raise ConfigError(f"sampler {name}: neither positives nor negatives; ask for at least one")

    @property
    def num_candidates(self) -> int | None:
        """Candidates of an example where that is fixed."""
        if self.positives_choice == "all" or self.short == "pad":
            return self.max_candidates
        total = self.positives + self.negatives
        return total if self.max_candidates is None else min(total, self.max_candidates)

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        """Queries with a labelled positive, where one is drawn; some of them may have no candidates."""
        return sizes.of(sizes.judged if self.positives else sizes.items, split).at_most()


class BoundLists:
    """Draws from the lists of a split: what the samplers of this file share."""

    def __init__(
        self, options: ListDraws, data: RankingData, split: str, lists: Sequence[Ranking], scored: bool
    ) -> None:
        """`scored`: positives, too, must be in the (one) list with a score."""
        self.options, self.data, self.split, self.scored = options, data, split, scored
        self.lists = [(ranking, ranking.index()) for ranking in lists]
        judged, outside = judged_positives(data, split, options.min_grade)
        self.skipped: Counter[str] = Counter()
        if outside:
            self.skipped["labelled positives that are not in the corpus"] = outside
        self.judged: dict[str, Judged] = {}
        self.ids: list[str] = []
        self.rows: list[int] = []
        queries = data.queries[split]
        for row, query in enumerate(queries.ids()):
            own = judged.get(query, NONE)
            if scored:
                own = self._scored_only(query, own)
            reason = self._unusable(query, own, judged.get(query, NONE))
            if reason:
                self.skipped[reason] += 1
                continue
            self.ids.append(query)
            self.rows.append(row)
            self.judged[query] = own
        # what may not be a negative includes positives without a score
        self.removed = {query: judged[query].rows for query in self.ids if query in judged}

    def _scored_only(self, query: str, own: Judged) -> Judged:
        ranking, index = self.lists[0]
        if query not in index:
            return NONE
        rows, scores = ranking.of(index[query])
        have = np.isin(own.rows, rows[~np.isnan(scores)])
        return Judged(rows=own.rows[have], grades=own.grades[have])

    def _unusable(self, query: str, own: Judged, judged: Judged) -> str:
        """Why a query cannot be used, or an empty string."""
        options = self.options
        if options.positives and not len(own.rows):
            return "queries without a labelled positive" + (" that has a score" if len(judged.rows) else "")
        if not options.negatives or (options.short == "pad" and options.positives):
            return ""
        lengths = [int(ranking.starts[index[query] + 1] - ranking.starts[index[query]]) if query in index else 0
                   for ranking, index in self.lists]  # fmt: skip
        if not any(lengths):
            return "queries without candidates"
        begin = options.ranks[0] if options.ranks else 1
        if options.short != "drop" and max(lengths) > len(judged.rows) + begin + 1 and not self.scored:
            return ""  # long enough whatever is removed: no need to look
        found = self.pools(query, judged.rows if options.remove_positives else NOTHING)
        if not any(len(rows) for rows, _ in found):
            return "queries without a negative in the window"
        if options.short == "drop" and not self._enough(found):
            return "queries with too few negatives (short: drop)"
        return ""

    def _enough(self, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
        options = self.options
        if options.mix == "pool":
            rows = np.concatenate([rows for rows, _ in found])
            return len(np.unique(rows) if options.unique else rows) >= options.negatives
        counts = shares(options.negatives, options.weights or [1.0] * len(found))
        return all(len(rows) >= count for (rows, _), count in zip(found, counts, strict=True))

    def pools(self, query: str, without: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(passages, scores) of each list that may be drawn for a query; `without` are left out."""
        if self.data.query_in_corpus and query in self.data.corpus:
            without = np.append(without, self.data.corpus.row(query))
        found = []
        for ranking, index in self.lists:
            if query not in index:
                found.append((NOTHING, np.zeros(0, dtype=np.float32)))
                continue
            rows, scores = ranking.of(index[query])
            places = window(rows, scores, without, self.options.ranks)
            found.append((rows[places], scores[places]))
        return found

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        """The example of an item; positives first."""
        options, query = self.options, self.ids[item]
        judged = self.judged[query]
        turn = clock.epoch + clock.seed
        positives = (
            choose(judged, options.positives, options.positives_choice, turn, rng) if options.positives else NONE
        )
        if options.max_candidates is not None:
            keep = max(1, options.max_candidates - options.negatives)
            positives = Judged(rows=positives.rows[:keep], grades=positives.grades[:keep])
        negatives = NOTHING
        if options.negatives:
            room = options.negatives
            if options.max_candidates is not None:
                room = min(room, options.max_candidates - len(positives.rows))
            removed = self.removed.get(query, NOTHING)
            # without removal, a passage already drawn as a positive is still not drawn again
            negatives = draw_from_lists(
                self.pools(query, removed if options.remove_positives else positives.rows),
                room,
                options.draw,
                rng,
                mix=options.mix,
                weights=options.weights,
                unique=options.unique,
                temperature=options.temperature,
                turn=turn,
                repeat=options.short == "repeat",
            )
        grades = (
            {} if options.remove_positives else dict(zip(judged.rows.tolist(), judged.grades.tolist(), strict=True))
        )
        return example(self.data, self.split, self.rows[item], positives, negatives, grades)


def check_lists(plan: Any, names: Sequence[str], ranks: tuple[int, int] | None) -> Iterator[Problem]:
    """Lists of a sampler that hold nothing for it: those of another split, and those that end before its ranks."""
    stages = [plan.stage_of(name) for name in names]
    split = plan.stage.split
    others = [getattr(stage, "split", split) for stage in stages]
    if others and split not in others:
        found = f"lists for the queries of the split {others[0]!r}"
        yield plan.problem("of", found=found, fix=f"this stage trains on {split!r}: name lists for that")
    depths = [depth for depth in (getattr(stage, "depth", None) for stage in stages) if depth is not None]
    if ranks is not None and len(depths) == len(names) and max(depths) < ranks[0]:
        found = f"found {list(ranks)}, beyond the depth of the lists ({max(depths)})"
        yield plan.problem("ranks", found=found, fix="draw from better ranks, or give those stages a greater `depth`")


class Mined(Sampler):
    """Labelled positives with negatives drawn from the lists of one or several retrievers.

    Several lists are joined (`mix: pool`), share the negatives equally (`equal-share`, arXiv:2206.08063) or by
    `weights` (`proportions`). Labelled positives are never negatives. Every epoch draws anew.
    """

    paper = "arXiv:2206.08063"

    def __init__(
        self,
        *,
        of: Annotated[list[CandidatesRef], Field(description="stages or data with candidate lists")],
        positives: NumPositives = 1,
        negatives: NumNegatives = 7,
        ranks: Ranks = None,
        draw: DrawOption = "random",
        temperature: TemperatureOption = 1.0,
        mix: Annotated[Mix, Field(description="how several lists are drawn from")] = "pool",
        weights: Annotated[
            list[Annotated[float, Field(ge=0)]] | None, Field(description="of the lists, for mix: proportions")
        ] = None,
        unique: Annotated[bool, Field(description="a passage that several lists name counts once")] = False,
        short: ShortOption = "repeat",
        positives_choice: ChoiceOption = "first",
        remove_positives: Annotated[bool, Field(description="labelled positives are never drawn as negatives")] = True,
        min_grade: MinGrade = 1,
        max_candidates: MaxCandidates = None,
    ) -> None:
        if not of:
            raise ConfigError("sampler mined: `of` names no candidate lists")
        self.of = list(of)
        self.options = ListDraws(
            positives=positives, negatives=negatives, ranks=ranks, draw=draw, temperature=temperature, mix=mix,
            weights=weights, unique=unique, short=short, positives_choice=positives_choice,
            remove_positives=remove_positives, min_grade=min_grade, max_candidates=max_candidates,
        )  # fmt: skip
        self.options.check("mined", len(self.of))
        self.num_candidates = self.options.num_candidates

    def check(self, plan: Any) -> Iterator[Problem]:
        return check_lists(plan, self.of, self.options.ranks)

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return self.options.expected_items(sizes, split)

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        ranking = ranking_data(data, split, "mined")
        lists = [context.candidates(name) for name in self.of]
        self.bound = BoundLists(self.options, ranking, split, lists, scored=False)
        self.skipped = self.bound.skipped

    def items(self) -> Sequence[str]:
        return self.bound.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        return self.bound.draw(item, clock, rng)


class Scored(Sampler):
    """As `mined`, from the passages that a score stage has teacher scores for, positives included.

    Every candidate then has a stored score. `positives: 0` with `remove_positives: false` draws from the scored
    lists as they are, which needs no labels.
    """

    def __init__(
        self,
        *,
        of: ScoresRef,
        positives: NumPositives = 1,
        negatives: NumNegatives = 7,
        ranks: Ranks = None,
        draw: DrawOption = "random",
        temperature: TemperatureOption = 1.0,
        short: ShortOption = "repeat",
        positives_choice: ChoiceOption = "first",
        remove_positives: Annotated[bool, Field(description="labelled positives are never drawn as negatives")] = True,
        min_grade: MinGrade = 1,
        max_candidates: MaxCandidates = None,
    ) -> None:
        self.of = of
        self.options = ListDraws(
            positives=positives, negatives=negatives, ranks=ranks, draw=draw, temperature=temperature, mix="pool",
            weights=None, unique=True, short=short, positives_choice=positives_choice,
            remove_positives=remove_positives, min_grade=min_grade, max_candidates=max_candidates,
        )  # fmt: skip
        self.options.check("scored", 1)
        self.num_candidates = self.options.num_candidates

    def check(self, plan: Any) -> Iterator[Problem]:
        return check_lists(plan, [self.of], None)

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return self.options.expected_items(sizes, split)

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        ranking = ranking_data(data, split, "scored")
        self.bound = BoundLists(self.options, ranking, split, [context.scores(self.of)], scored=True)
        self.skipped = self.bound.skipped

    def items(self) -> Sequence[str]:
        return self.bound.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        return self.bound.draw(item, clock, rng)


class InBatch(Sampler):
    """Labelled positives only: the negatives are the other passages of the step."""

    def __init__(
        self,
        *,
        positives: Annotated[int, Field(ge=1, description="labelled positives of each example")] = 1,
        positives_choice: ChoiceOption = "first",
        min_grade: MinGrade = 1,
    ) -> None:
        self.options = ListDraws(
            positives=positives, negatives=0, ranks=None, draw="top", temperature=1.0, mix="pool", weights=None,
            unique=False, short="pad", positives_choice=positives_choice, remove_positives=True, min_grade=min_grade,
            max_candidates=None,
        )  # fmt: skip
        self.num_candidates = positives if positives_choice != "all" else None

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return self.options.expected_items(sizes, split)

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        self.bound = BoundLists(self.options, ranking_data(data, split, "in-batch"), split, [], scored=False)
        self.skipped = self.bound.skipped

    def items(self) -> Sequence[str]:
        return self.bound.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        return self.bound.draw(item, clock, rng)

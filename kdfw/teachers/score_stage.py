"""The stage `score`: teacher scores for candidate lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdfw.components import Model, Stage
from kdfw.data.ranking import Ranking
from kdfw.errors import DataError, Problem, TrainingError, one_of
from kdfw.references import CandidatesRef, DataRef, TeacherRef
from kdfw.types import Text

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import RankingData
    from kdfw.teachers.scoring import PairScorer

BINS = 20
"""Bins of the histogram of scores in the summary."""
NAMED = 10
PREFLIGHT_QUERIES = 16
PREFLIGHT_DEPTH = 16
"""Queries, and candidates of each, that a check scores with a model."""


class Score(Stage):
    """Score candidate lists with a teacher; later stages name this one as teacher or as candidates.

    Every pair goes through the score store (`docs/teachers.md`): an interrupted stage goes on where it was, and a pair
    that any earlier stage or run scored with the same teacher costs nothing.

    Args:
        teacher: a model, a stage that trains one, or a source of scores
        of: stages whose candidate lists are scored; a query's lists are joined, in this order
        data: the data set the queries belong to; default: the recipe's
        split: split of the queries and judgements
        include_positives: labelled positives that no list holds are added at the end of their query's list
    """

    version: ClassVar[int] = 1
    produces: ClassVar[frozenset[str]] = frozenset({"scores"})

    def __init__(
        self,
        *,
        teacher: TeacherRef,
        of: list[CandidatesRef],
        data: DataRef | None = None,
        split: str = "train",
        include_positives: bool = True,
        depth: Annotated[int | None, Field(ge=1, description="candidates of each list, from the top; all")] = None,
        on_missing: Annotated[
            Literal["error", "mask"],
            Field(description="a pair the teacher has no score for: stop, or write NaN, which losses mask"),
        ] = "error",
        on_constant: Annotated[
            Literal["warn", "error"], Field(description="a query whose candidates all have the same score")
        ] = "warn",
        queries_per_block: Annotated[
            int, Field(ge=1, description="queries scored together; a kill loses at most one block")
        ] = 32,
        tokens_per_batch: Annotated[
            int, Field(ge=1, description="token budget of a micro-batch of the teacher")
        ] = 8192,
    ) -> None:
        self.teacher = teacher
        self.of = of
        self.data = data
        self.split = split
        self.include_positives = include_positives
        self.depth = depth
        self.on_missing = on_missing
        self.on_constant = on_constant
        self.queries_per_block = queries_per_block
        self.tokens_per_batch = tokens_per_batch

    def check(self, plan: Any) -> Iterator[Problem]:
        if not self.of:
            yield plan.problem("of", found="no candidates to score", fix="name at least one stage that retrieves")
        if plan.task != "ranking":
            yield plan.problem(found=f"a score stage on data of the task {plan.task}", fix="it scores rankings only")
        if plan.splits and self.split not in plan.splits:
            yield plan.problem("split", found=f"no split {self.split!r}", fix=one_of(self.split, plan.splits))
        if "logits" not in plan.provides(self.teacher):
            yield plan.problem("teacher", found=f"{self.teacher!r} gives no scores", fix="name a ranking model")
        behind = plan.model(self.teacher)
        if getattr(behind, "copies_student", False):
            fix = "name the student's model instead; here nothing trains"
            yield plan.problem("teacher", found=f"{self.teacher!r} stands for the student of a training stage", fix=fix)

    def estimate(self, plan: Any) -> str:
        sizes = [size for size in (plan.size(name) for name in self.of) if size]
        cap = f", at most {self.depth} deep" if self.depth else ""
        return (
            f"{' + '.join(sizes)}{cap}" if sizes else (f"at most {self.depth} candidates a query" if self.depth else "")
        )

    def run(self, context: StageContext) -> None:
        from kdfw.teachers.scoring import PairScorer
        from kdfw.teachers.vectors import has_vectors

        work = _Work(self, context)
        scorer = PairScorer(context, self.teacher, tokens_per_batch=self.tokens_per_batch)
        blocks = work.blocks(self.queries_per_block)
        own = context.workers.share(len(blocks))
        expected = getattr(scorer.teacher, "expected", None)
        if expected is not None and context.workers.main:
            queries = sum(len(block) for block in blocks)
            sample = [len(work.list_of(number)[0]) for block in blocks[:8] for number in block]
            said = expected(queries, round(queries * float(np.mean(sample))) if sample else 0)
            if said:
                context.log.info("%s", said)
        if has_vectors(scorer.teacher):
            self._encode_passages(scorer, work, [blocks[index] for index in own], context)
        numbers: list[int] = []
        rows: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        with context.progress(len(own), f"score with {self.teacher}", unit="block") as bar:
            for block in (blocks[index] for index in own):
                for number, passages, found in work.score(block, scorer):
                    numbers.append(number)
                    rows.append(passages)
                    scores.append(found)
                bar.update(1, computed=scorer.computed, stored=scorer.known)
        if scorer.vectors is not None:
            scorer.vectors.close()
        context.log.info("%d pairs scored by %s, %d taken from the store", scorer.computed, self.teacher, scorer.known)
        gather = context.workers.gather
        lengths = gather(np.asarray([len(row) for row in rows], dtype=np.int64))
        order = gather(np.asarray(numbers, dtype=np.int64))
        all_rows = gather(np.concatenate(rows) if rows else np.zeros(0, np.int64))
        all_scores = gather(np.concatenate(scores) if scores else np.zeros(0, np.float32))
        if not context.workers.main:
            return
        ends = np.cumsum(lengths)
        place = np.argsort(order, kind="stable")
        ranking = Ranking.from_lists(
            (
                work.query_ids[int(order[at])],
                all_rows[ends[at] - lengths[at] : ends[at]],
                all_scores[ends[at] - lengths[at] : ends[at]],
            )
            for at in place
        )
        checks = self.examine(ranking, work, context)
        ranking.save(context.folder)
        text = json.dumps(checks, indent=1, sort_keys=True)
        (context.folder / "checks.json").write_text(text + "\n", encoding="utf-8")
        context.summary({name: value for name, value in checks.items() if isinstance(value, (int, float))})
        report = getattr(scorer.teacher, "report", None)
        for name, value in (report() if report is not None else {}).items():
            context.log.info("%s: %s %s", self.teacher, name, value)

    def _encode_passages(
        self, scorer: PairScorer, work: _Work, blocks: Sequence[Sequence[int]], context: StageContext
    ) -> None:
        """Compute every passage vector that some list still needs, once."""
        from kdfw.teachers.vectors import PassageVectors

        assert isinstance(scorer.teacher, Model)
        vectors = PassageVectors(
            context, scorer.teacher, work.data.corpus, work.passages(), scorer.budget, name=self.teacher
        )
        needed = [work.unscored(block, scorer) for block in blocks]
        vectors.prepare(np.unique(np.concatenate(needed)) if needed else np.zeros(0, np.int64))
        scorer.vectors = vectors

    def examine(self, ranking: Ranking, work: _Work, context: StageContext) -> dict[str, Any]:
        """What the scores look like, in numbers; raises or warns about lists nothing can be learned from."""
        missing: list[str] = []
        empty: list[str] = []
        constant: list[str] = []
        spreads: list[float] = []
        deviations: list[float] = []
        judged = beaten = 0
        for number, query in enumerate(ranking.query_ids):
            rows, scores = ranking.of(number)
            real = np.isfinite(scores)
            if not real.all():
                missing.append(query)
            if not real.any():
                empty.append(query)
                continue
            values = scores[real].astype(np.float64)
            if len(values) > 1 and values.max() == values.min():
                constant.append(query)
            spreads.append(float(values.max() - values.min()))
            deviations.append(float(values.std()))
            positive = np.isin(rows, work.positives_of(query)) & real
            if positive.any():
                judged += 1
                beaten += bool(scores[positive].max() < values.max())
        if missing and self.on_missing == "error":
            gone = int((~np.isfinite(ranking.scores)).sum())
            raise DataError(
                f"teacher {self.teacher!r} has no score for {gone} of {len(ranking.scores)} pairs, in "
                f"{len(missing)} queries: {_named(missing)}; give it those scores, or write `on_missing: mask`"
            )
        if constant:
            names = _named(constant)
            said = f"teacher {self.teacher!r}: all candidates have the same score in {len(constant)} queries: {names}"
            if self.on_constant == "error":
                raise TrainingError(f"{said}; nothing can be learned from them. Drop them or write `on_constant: warn`")
            context.log.warning("%s", said)
        if judged and beaten > judged / 2:
            context.log.warning(
                "teacher %r puts another passage above every positive for %d of %d queries",
                self.teacher,
                beaten,
                judged,
            )
        real = np.isfinite(ranking.scores)
        values = np.asarray(ranking.scores)[real]
        counts, edges = np.histogram(values, bins=BINS) if len(values) else (np.zeros(0, int), np.zeros(0))
        return {
            "queries": len(ranking),
            "pairs": len(ranking.scores),
            "missing_pairs": int((~real).sum()),
            "queries_without_scores": len(empty),
            "constant_queries": len(constant),
            "constant_query_ids": constant[:NAMED],
            "mean_spread": float(np.mean(spreads)) if spreads else 0.0,
            "mean_standard_deviation": float(np.mean(deviations)) if deviations else 0.0,
            "queries_with_positive": judged,
            "positive_not_on_top": beaten / judged if judged else 0.0,
            "lowest": float(values.min()) if len(values) else 0.0,
            "highest": float(values.max()) if len(values) else 0.0,
            "mean": float(values.astype(np.float64).mean()) if len(values) else 0.0,
            "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
            "positives_added": work.positives_added,
            "positives_not_in_corpus": work.positives_absent,
        }

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        from kdfw.teachers.scoring import PairScorer

        work = _Work(self, context)
        scorer = PairScorer(context, self.teacher, tokens_per_batch=self.tokens_per_batch)
        if scorer.store is not None:
            scorer.store.writable = False  # a check writes nothing
        numbers = [number for block in work.blocks(PREFLIGHT_QUERIES)[:1] for number in block]
        cheap = isinstance(scorer.teacher, Model)  # an endpoint costs money: two queries are enough to see it answer
        tried, depth = (numbers, PREFLIGHT_DEPTH) if cheap else (numbers[:2], 4)
        lists = list(work.score(tried, scorer, depth=depth))
        scores = [found for _, _, found in lists]
        known = {number: dict(zip(rows.tolist(), found.tolist(), strict=True)) for number, rows, found in lists}
        stand_ins = []
        for number in numbers:
            rows, _ = work.list_of(number)
            values = np.linspace(1.0, 0.0, len(rows), dtype=np.float32)  # for what was not tried
            for place, row in enumerate(rows.tolist()):
                values[place] = known.get(number, {}).get(row, values[place])
            stand_ins.append((work.query_ids[number], rows, values))
        Ranking.from_lists(iter(stand_ins)).save(context.folder)
        report: dict[str, Any] = {
            "queries": len(lists),
            "candidates": int(sum(len(found) for found in scores)),
            "missing": int(sum((~np.isfinite(found)).sum() for found in scores)),
        }
        constant = [work.query_ids[number] for number, _, found in lists if len(found) > 1 and bool(np.ptp(found) == 0)]
        if constant:
            report["warnings"] = [f"teacher {self.teacher!r}: all scores equal for {_named(constant)}"]
        return report


class _Work:
    """The lists of a stage: which queries, which passages, in which blocks."""

    def __init__(self, stage: Score, context: StageContext) -> None:
        self.stage = stage
        self.data: RankingData = context.data(stage.data)  # type: ignore[assignment]
        if stage.split not in self.data.queries:
            raise DataError(f"data {self.data.name!r} has no split {stage.split!r}; it has {sorted(self.data.queries)}")
        self.queries = self.data.queries[stage.split]
        self.rankings = [context.candidates(name) for name in stage.of]
        self.query_ids: list[str] = list(
            dict.fromkeys(query for ranking in self.rankings for query in ranking.query_ids)
        )
        strange = [query for query in self.query_ids if query not in self.queries]
        if strange:
            raise DataError(
                f"candidates {', '.join(stage.of)}: {len(strange)} queries are not in split {stage.split!r} of "
                f"{self.data.name!r}: {_named(strange)}; set `split` to the one they were retrieved for"
            )
        self.places = [ranking.index() for ranking in self.rankings]
        self.positives_added = 0
        self.positives_absent = 0
        self._positives: dict[str, np.ndarray] = {}
        judged = self.data.positives(stage.split)
        for query in self.query_ids:
            ids = judged.get(query, [])
            known = [id for id in ids if id in self.data.corpus]
            self.positives_absent += len(ids) - len(known)
            self._positives[query] = np.asarray([self.data.corpus.row(id) for id in known], dtype=np.int64)
            if stage.include_positives and known:
                self.positives_added += int((~np.isin(self._positives[query], self._retrieved(query))).sum())

    def positives_of(self, query: str) -> np.ndarray:
        """Corpus rows of the labelled positives."""
        return self._positives[query]

    def _retrieved(self, query: str) -> np.ndarray:
        lists = []
        for ranking, places in zip(self.rankings, self.places, strict=True):
            if query in places:
                lists.append(np.asarray(ranking.of(places[query])[0][: self.stage.depth]))
        rows = np.concatenate(lists) if lists else np.zeros(0, np.int64)
        return _first_places(rows)

    def list_of(self, number: int) -> tuple[np.ndarray, int]:
        """Passage rows of query `number`, and how many of them were retrieved (the rest are added positives)."""
        query = self.query_ids[number]
        rows = self._retrieved(query)
        if not self.stage.include_positives:
            return rows, len(rows)
        return _first_places(np.concatenate([rows, self._positives[query]])), len(rows)

    def blocks(self, size: int) -> list[list[int]]:
        """Query numbers in blocks of `size` distinct texts, the same whatever the number of processes.

        Queries with the same text share a block: no pair of texts is in two blocks, so what a block computes does not
        depend on which others are done, and an interrupted stage ends with the same bits.
        """
        by_text: dict[str, list[int]] = {}
        for number, query in enumerate(self.query_ids):
            by_text.setdefault(self.queries.text(self.queries.row(query)), []).append(number)
        groups = list(by_text.values())
        return [
            [number for group in groups[begin : begin + size] for number in group]
            for begin in range(0, len(groups), size)
        ]

    def score(
        self, block: Sequence[int], scorer: PairScorer, depth: int | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(query number, passage rows, scores) of a block."""
        lists, full = self._texts(block, depth)
        found = scorer.score(full.ids, full.queries, full.passages, full.passage_ids) if full.ids else []
        scores = dict(zip(full.ids, found, strict=True))
        for number, rows in zip(block, lists, strict=True):
            yield number, rows, scores.get(self.query_ids[number], np.zeros(0, np.float32))

    def unscored(self, block: Sequence[int], scorer: PairScorer) -> np.ndarray:
        """Distinct passages of the block's lists that are not wholly stored."""
        lists, full = self._texts(block, None)
        if not full.ids:
            return np.zeros(0, np.int64)
        waiting = dict(zip(full.ids, scorer.incomplete(full.queries, full.passages), strict=True))
        chosen = [rows for number, rows in zip(block, lists, strict=True) if waiting.get(self.query_ids[number])]
        return np.unique(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)

    def passages(self) -> np.ndarray:
        """Distinct passages of all lists, ascending."""
        marks = np.zeros(len(self.data.corpus), dtype=bool)
        for number in range(len(self.query_ids)):
            marks[self.list_of(number)[0]] = True
        return np.flatnonzero(marks)

    def _texts(self, block: Sequence[int], depth: int | None) -> tuple[list[np.ndarray], _Lists]:
        """Passage rows of each query of the block, and the texts of those lists that hold any."""
        lists = [self.list_of(number)[0][:depth] for number in block]
        full = _Lists()
        corpus = self.data.corpus
        for number, rows in zip(block, lists, strict=True):
            if len(rows):
                query = self.query_ids[number]
                full.ids.append(query)
                full.queries.append(Text(source=self.queries, row=self.queries.row(query)))
                full.passages.append([Text(source=corpus, row=int(row)) for row in rows])
                full.passage_ids.append([corpus.id(int(row)) for row in rows])
        return lists, full


@dataclass
class _Lists:
    """What a scorer is given."""

    ids: list[str] = field(default_factory=list)
    queries: list[Text] = field(default_factory=list)
    passages: list[list[Text]] = field(default_factory=list)
    passage_ids: list[list[str]] = field(default_factory=list)


def _first_places(rows: np.ndarray) -> np.ndarray:
    """Distinct rows in the order of their first place."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)].astype(np.int64, copy=False)


def _named(ids: Sequence[str]) -> str:
    return ", ".join(repr(id) for id in ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")

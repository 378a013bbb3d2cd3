"""The stage `score`: teacher scores for candidate lists, or for sentence pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Workload
from kdfw.components import Model, Stage, Teacher
from kdfw.data.ranking import Ranking
from kdfw.errors import DataError, Problem, TrainingError, one_of
from kdfw.references import CandidatesRef, DataRef, TeacherRef
from kdfw.teachers.worklist import NAMED, Work, named, work_of

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.teachers.scoring import PairScorer

BINS = 20
"""Bins of the histogram of scores in the summary."""
PREFLIGHT_QUERIES = 16
PREFLIGHT_DEPTH = 16
"""Queries, and candidates of each, that a check scores with a model."""


class Score(Stage):
    """Score candidate lists, or sentence pairs, with a teacher; later stages name this one as teacher or as candidates.

    A sentence pair has one score, of its sentences in the order in which they are stored. All of them go through the
    score store (`docs/teachers.md`): an interrupted stage goes on where it was, and what an earlier stage or run scored
    with the same teacher costs nothing.

    Args:
        teacher: a model, a stage that trains one, or a source of scores
        of: stages whose candidate lists are scored; a query's lists are joined, in this order; none for sentence pairs
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
        of: list[CandidatesRef] = [],  # noqa: B006
        data: DataRef | None = None,
        split: str = "train",
        include_positives: bool = True,
        depth: Annotated[int | None, Field(ge=1, description="candidates of each list, from the top; all")] = None,
        activation: Annotated[
            Literal["none", "sigmoid"],
            Field(description="applied to the scores as they are written: sigmoid makes probabilities of logits"),
        ] = "none",
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
            int | None,
            Field(
                ge=1, description="token budget of a micro-batch of the teacher; default: 2048 on a CPU, 8192 on a GPU"
            ),
        ] = None,
    ) -> None:
        self.teacher = teacher
        self.of = of
        self.data = data
        self.split = split
        self.include_positives = include_positives
        self.depth = depth
        self.activation = activation
        self.on_missing = on_missing
        self.on_constant = on_constant
        self.queries_per_block = queries_per_block
        self.tokens_per_batch = tokens_per_batch

    def check(self, plan: Any) -> Iterator[Problem]:
        if plan.task == "ranking" and not self.of:
            yield plan.problem("of", found="no candidates to score", fix="name at least one stage that retrieves")
        elif plan.task == "pairs" and self.of:
            fix = "leave it out: the pairs themselves are scored"
            yield plan.problem("of", found="candidates for data of sentence pairs", fix=fix)
        elif plan.task not in ("ranking", "pairs"):
            fix = "it scores rankings and sentence pairs"
            yield plan.problem(found=f"a score stage on data of the task {plan.task}", fix=fix)
        if plan.splits and self.split not in plan.splits:
            yield plan.problem("split", found=f"no split {self.split!r}", fix=one_of(self.split, plan.splits))
        splits = [getattr(plan.stage_of(name), "split", self.split) for name in self.of]
        if splits and self.split not in splits:
            found = f"candidates for the queries of the split {splits[0]!r}"
            yield plan.problem("of", found=found, fix=f"this stage scores {self.split!r}: name candidates for that")
        if "logits" not in plan.provides(self.teacher):
            yield plan.problem("teacher", found=f"{self.teacher!r} gives no scores", fix="name a ranking model")
        behind = plan.model(self.teacher)
        unfit = plan.unfit(behind)
        if unfit is not None:
            yield plan.problem("teacher", found=f"a model that {unfit[0]}", fix=unfit[1])
        if getattr(behind, "copies_student", False):
            fix = "name the student's model instead; here nothing trains"
            yield plan.problem("teacher", found=f"{self.teacher!r} stands for the student of a training stage", fix=fix)

    def estimate(self, plan: Any) -> Workload:
        """Lists that are joined share some passages, and what the store holds costs nothing: so at most."""
        if plan.task == "pairs":
            items = plan.sizes.of(plan.sizes.items, self.split)
            read: Workload = plan.reading(self.teacher, items=items, split=self.split)
            return Workload(amounts={"pairs": items}) + read
        queries, pairs = Amount(0), Amount(0)
        for name in self.of:
            own, candidates = plan.lists(name)
            queries = queries.larger(own)
            pairs = pairs + (candidates if self.depth is None else candidates.within(own * self.depth))
        if self.include_positives:
            pairs = pairs + plan.sizes.of(plan.sizes.positives, self.split)
        work = Workload(amounts={"queries": queries, "candidates": pairs.at_most()})
        teacher = plan.model(self.teacher)
        if isinstance(teacher, Model):
            scoring: Workload = plan.scoring(self.teacher, queries=queries, pairs=pairs.at_most(), split=self.split)
            return work + scoring
        if isinstance(teacher, Teacher) and queries.value is not None and pairs.value is not None:
            return replace(work, note=teacher.expected(int(queries.value), int(pairs.value)))
        return work

    def run(self, context: StageContext) -> None:
        from kdfw.teachers.scoring import PairScorer
        from kdfw.teachers.vectors import has_vectors

        work = work_of(self, context)
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
        if work.shares_passages and has_vectors(scorer.teacher):
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
        if self.activation == "sigmoid":
            all_scores = sigmoid(all_scores)
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
        report = getattr(scorer.teacher, "report", None)
        spent = dict(report()) if report is not None else {}
        context.summary({n: value for n, value in {**spent, **checks}.items() if isinstance(value, (int, float))})
        for name, value in spent.items():
            context.log.info("%s: %s %s", self.teacher, name, value)

    def _encode_passages(
        self, scorer: PairScorer, work: Work, blocks: Sequence[Sequence[int]], context: StageContext
    ) -> None:
        """Compute every passage vector that some list still needs, once."""
        from kdfw.teachers.vectors import PassageVectors

        assert isinstance(scorer.teacher, Model)
        vectors = PassageVectors(
            context, scorer.teacher, work.passages, work.distinct(), scorer.budget, name=self.teacher
        )
        needed = [work.unscored(block, scorer) for block in blocks]
        vectors.prepare(np.unique(np.concatenate(needed)) if needed else np.zeros(0, np.int64))
        scorer.vectors = vectors

    def examine(self, ranking: Ranking, work: Work, context: StageContext) -> dict[str, Any]:
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
                f"{len(missing)} queries: {named(missing)}; give it those scores, or write `on_missing: mask`"
            )
        real = np.isfinite(ranking.scores)
        values = np.asarray(ranking.scores)[real]
        said = ""
        if constant:
            names = named(constant)
            said = f"teacher {self.teacher!r}: all candidates have the same score in {len(constant)} queries: {names}"
        elif not work.shares_passages and len(values) > 1 and values.max() == values.min():
            said = f"teacher {self.teacher!r}: all {len(values)} pairs have the same score, {values[0]:g}"
        if said:
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
        exact = values.astype(np.float64)  # edges between neighbouring float32 numbers
        counts, edges = np.histogram(exact, bins=BINS) if len(values) else (np.zeros(0, int), np.zeros(0))
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

        work = work_of(self, context)
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
        for number, query in enumerate(work.query_ids):  # later stages draw from any of the lists
            rows, _ = work.list_of(number)
            values = np.linspace(1.0, 0.0, len(rows), dtype=np.float32)  # for what was not tried
            for place, row in enumerate(rows.tolist() if number in known else ()):
                values[place] = known[number].get(row, values[place])
            stand_ins.append((query, rows, values))
        activate = sigmoid if self.activation == "sigmoid" else np.asarray
        Ranking.from_lists((query, rows, activate(values)) for query, rows, values in stand_ins).save(context.folder)
        report: dict[str, Any] = {
            "queries": len(lists),
            "candidates": int(sum(len(found) for found in scores)),
            "missing": int(sum((~np.isfinite(found)).sum() for found in scores)),
        }
        constant = [work.query_ids[number] for number, _, found in lists if len(found) > 1 and bool(np.ptp(found) == 0)]
        if constant:
            report["warnings"] = [f"teacher {self.teacher!r}: all scores equal for {named(constant)}"]
        return report


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-s)) in float64, as float32; NaN stays NaN."""
    found: np.ndarray = (0.5 + 0.5 * np.tanh(0.5 * scores.astype(np.float64))).astype(np.float32)
    return found

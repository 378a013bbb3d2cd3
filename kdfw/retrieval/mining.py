"""Mining: candidate lists for training, from any retriever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Workload
from kdfw.components import Retriever, Stage
from kdfw.data.ranking import Ranking
from kdfw.data.store import build_folder, is_whole, read_manifest
from kdfw.errors import DataError, Problem
from kdfw.files import write_lines
from kdfw.references import DataRef, ModelRef
from kdfw.retrieval.rerank import score_lists

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import RankingData
    from kdfw.data.table import TextTable
    from kdfw.types import TextSource

BLOCK_QUERIES = 8_192
"""Queries mined between two points a killed run can go on from."""
STAND_INS = 16
"""Queries of a check."""
SMALL_RUN = 200_000
"""Results up to which `run.trec` is written too."""
COUNTS = ("own", "positives", "window", "scores", "margin", "limit")
"""Why a candidate was dropped, in the order in which it is looked at."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which of a query's results stay candidates, applied in the order of the fields.

    Positives that are not dropped are no candidates: no other rule drops them or counts them.
    """

    drop_positives: bool = True
    ranks: tuple[int, int] | None = None
    min_score: float | None = None
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    limit: int | None = None

    def keep(
        self, rows: np.ndarray, scores: np.ndarray, judged: np.ndarray, positives: Sequence[int]
    ) -> tuple[np.ndarray, dict[str, int]]:
        """(which results stay (n,) bool, how many were dropped by each rule).

        Args:
            rows: (n,) in order of rank.
            scores: (n,) the retriever's; unused by the rules but for its order.
            judged: (n,) scores the rules compare: the retriever's, or those of the filter model.
            positives: rows of the labelled positives.
        """
        positive = np.isin(rows, np.asarray(positives, dtype=np.int64))
        dropped: dict[str, int] = {}
        stays = np.ones(len(rows), dtype=bool)

        def drop(name: str, which: np.ndarray) -> None:
            which = which & stays
            dropped[name] = int(which.sum())
            stays[which] = False

        drop("positives", positive if self.drop_positives else np.zeros_like(positive))
        candidate = ~positive
        if self.ranks is not None:
            rank = np.cumsum(stays & candidate)
            drop("window", candidate & ((rank < self.ranks[0]) | (rank > self.ranks[1])))
        low = -np.inf if self.min_score is None else self.min_score
        high = np.inf if self.max_score is None else self.max_score
        drop("scores", candidate & ((judged < low) | (judged > high)))
        if self.margin is not None or self.relative_margin is not None:
            drop("margin", candidate & ~(judged <= self._highest(judged[positive])))
        if self.limit is not None:
            drop("limit", candidate & (np.cumsum(stays & candidate) > self.limit))
        return stays, dropped

    def _highest(self, positive_scores: np.ndarray) -> float:
        """The score a candidate may reach. Minus infinity where no positive was found: all candidates beat it then."""
        if not len(positive_scores):
            return -np.inf
        best = float(positive_scores.max())
        return min(
            best - (self.margin or 0.0),
            best - abs(best) * (self.relative_margin or 0.0),  # for best >= 0: (1 - share) * best
        )


class Mine(Stage):
    """Candidate lists: what a retriever finds for each query, without the labelled positives, by rank and score.

    The rules work in this order: the query's own passage is left out (data sets that say so), positives dropped, then
    the rank window (ranks among what is left, from 1), score bounds, margins, and the limit. A labelled positive that
    was not found scores at most what the last result scores, so with a margin such a query keeps nothing.
    """

    produces = frozenset({"candidates"})

    def __init__(
        self,
        *,
        retriever: Annotated[Retriever, Field(description="finds the passages; several: `fusion`, or several stages")],
        data: Annotated[DataRef | None, Field(description="default: the recipe's data set")] = None,
        split: Annotated[str, Field(description="whose queries")] = "train",
        depth: Annotated[int, Field(ge=1, description="results looked at for each query")] = 200,
        drop_positives: Annotated[bool, Field(description="leave the labelled positives out")] = True,
        include_positives: Annotated[
            bool,
            Field(description="every labelled positive is in the list, at the end where it was not found"),
        ] = False,
        min_grade: Annotated[int, Field(ge=1, description="grade from which a judged passage is a positive")] = 1,
        ranks: Annotated[
            tuple[int, int] | None, Field(description="[first, last] rank kept, from 1, positives not counted")
        ] = None,
        min_score: Annotated[float | None, Field(description="lowest score of a candidate")] = None,
        max_score: Annotated[float | None, Field(description="highest score of a candidate")] = None,
        margin: Annotated[
            float | None, Field(description="a candidate scores at most the best positive's score minus this")
        ] = None,
        relative_margin: Annotated[
            float | None,
            Field(ge=0, le=1, description="a candidate scores at most this share below the best positive"),
        ] = None,
        filter_model: Annotated[
            ModelRef | None, Field(description="scores that bounds and margins compare; default: the retriever's")
        ] = None,
        limit: Annotated[int | None, Field(ge=1, description="candidates kept for a query, best first")] = None,
    ) -> None:
        self.retriever = retriever
        self.data = data
        self.split = split
        self.depth = depth
        self.min_grade = min_grade
        self.filter_model = filter_model
        self.include_positives = include_positives
        self.rules = Rules(
            drop_positives=drop_positives and not include_positives,
            ranks=ranks,
            min_score=min_score,
            max_score=max_score,
            margin=margin,
            relative_margin=relative_margin,
            limit=limit,
        )

    def check(self, plan: Any) -> Iterator[Problem]:
        """The split exists, the data are for ranking, the window holds at least one rank of the depth."""
        if plan.task != "ranking":
            yield plan.problem("type", found=f"data for {plan.task}", fix="mining needs ranking data")
        if plan.splits and self.split not in plan.splits:
            known = ", ".join(plan.splits)
            yield plan.problem("split", found=f"no split {self.split!r}", fix=f"the data have: {known}")
        unfit = plan.unfit(self.retriever)
        if unfit is not None:
            yield plan.problem("retriever", found=f"a retriever that {unfit[0]}", fix=unfit[1])
        ranks = self.rules.ranks
        if ranks is not None and not 1 <= ranks[0] <= min(ranks[1], self.depth):
            fix = f"write [first, last] with 1 <= first <= last, first within the depth of {self.depth}"
            yield plan.problem("ranks", found=f"found {list(ranks)}", fix=fix)
        uses_scores = any(
            value is not None
            for value in (self.rules.min_score, self.rules.max_score, self.rules.margin, self.rules.relative_margin)
        )
        if self.filter_model is not None and not uses_scores:
            yield plan.problem("filter_model", found="a filter model without a bound or margin", fix="give a margin")

    def estimate(self, plan: Any) -> Workload:
        """Every query has its lists; how much of them the rules leave is known once they are there."""
        sizes, rules = plan.sizes, self.rules
        queries = sizes.of(sizes.items, self.split)
        listed = (queries * Amount(self.depth).within(sizes.passages)).at_most()
        if rules.ranks is not None:
            listed = listed.within(queries * (rules.ranks[1] - rules.ranks[0] + 1))
        if rules.limit is not None:
            listed = listed.within(queries * rules.limit)
        if not rules.drop_positives:
            listed = listed + sizes.of(sizes.positives, self.split)
        work = Workload(amounts={"queries": queries, "passages": sizes.passages, "candidates": listed.at_most()})
        work = work + self.retriever.estimate(plan, self.split, self.depth)
        if self.filter_model is not None:
            pairs = (queries * self.depth).at_most()
            work = work + plan.scoring(self.filter_model, queries=queries, pairs=pairs, split=self.split)
        return work

    def run(self, context: StageContext) -> None:
        """Write `ranking.*`, and `run.trec` when it is small."""
        data: RankingData = context.data(self.data)  # type: ignore[assignment]
        queries = self._queries(data)
        positives = data.positives(self.split, self.min_grade)
        blocks = Blocks(context.folder / "scratch", len(queries), context)
        for begin in blocks:
            rows = range(begin, min(begin + BLOCK_QUERIES, len(queries)))
            block = queries if len(rows) == len(queries) else queries.select(rows)
            blocks.write(begin, *self._mine(block, data, positives, context))
        if not context.workers.main:
            return
        ranking, counts = blocks.joined([queries.id(number) for number in range(len(queries))])
        ranking.save(context.folder)
        if len(ranking.passages) <= SMALL_RUN:
            write_run(ranking, data.corpus, context.folder / "run.trec")
        context.summary(summary_of(ranking, counts))

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        """Lists of random passages for the first queries: the search itself is not tried."""
        data: RankingData = context.data(self.data)  # type: ignore[assignment]
        queries = self._queries(data)
        ranking = stand_in(data, self.split, self.depth, include_positives=not self.rules.drop_positives)
        ranking.save(context.folder)
        unjudged = sum(not data.positives(self.split, self.min_grade).get(query) for query in ranking.query_ids)
        report: dict[str, Any] = {"queries": len(queries), "passages": len(data.corpus), "stand-ins": len(ranking)}
        if unjudged == len(ranking):
            report["warnings"] = [f"no labelled positive among the first {len(ranking)} queries of {self.split!r}"]
        return report

    def _queries(self, data: RankingData) -> TextTable:
        if self.split not in data.queries:
            raise DataError(f"data {data.name!r}: no queries for split {self.split!r}; it has: {sorted(data.queries)}")
        return data.queries[self.split]

    def _mine(
        self, queries: TextSource, data: RankingData, positives: Mapping[str, Sequence[str]], context: StageContext
    ) -> tuple[Ranking, dict[str, int]]:
        """The lists of some queries, and counts: dropped by rule, positives labelled and found."""
        from kdfw.models.precision import autocast_dtype

        found = self.retriever.search(data, queries, self.depth + data.query_in_corpus, context)
        counts = dict.fromkeys((*COUNTS, "labelled", "found"), 0)
        kept, wanted = [], []
        for number, query in enumerate(found.query_ids):
            rows, scores = (np.array(part) for part in found.of(number))
            if data.query_in_corpus:
                own = row_of(data, query)
                other = rows != own
                counts["own"] += int((~other).sum())
                rows, scores = rows[other][: self.depth], scores[other][: self.depth]
            labelled = [row for row in (row_of(data, id) for id in positives.get(query, ())) if row >= 0]
            wanted.append(labelled)
            counts["labelled"] += len(positives.get(query, ()))
            counts["found"] += int(np.isin(rows, labelled).sum())
            if self.include_positives or self.filter_model is not None:
                missing = [row for row in dict.fromkeys(labelled) if row not in set(rows.tolist())]
                rows, scores = _at_the_end(rows, scores, missing)
            kept.append((rows, scores))
        judged = [scores for _, scores in kept]
        if self.filter_model is not None:
            listed = Ranking.from_lists((id, *pair) for id, pair in zip(found.query_ids, kept, strict=True))
            scored = score_lists(
                context.model(self.filter_model),
                data.corpus,
                queries,
                listed,
                device=context.device,
                workers=context.workers,
                autocast=autocast_dtype(context.precision),
            )
            judged = [np.array(scored.of(number)[1]) for number in range(len(scored))]
        lists = []
        for id, (rows, scores), judge, labelled in zip(found.query_ids, kept, judged, wanted, strict=True):
            stays, dropped = self.rules.keep(rows, scores, judge, labelled)
            for name, count in dropped.items():
                counts[name] += count
            lists.append((id, rows[stays], scores[stays]))
        return Ranking.from_lists(iter(lists)), counts


def row_of(data: RankingData, id: str) -> int:
    """Row of a passage; -1 for one that is not in the corpus."""
    try:
        return data.corpus.row(id)
    except KeyError:
        return -1


def _at_the_end(rows: np.ndarray, scores: np.ndarray, missing: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """With rows that were not found: each scores just below the one before, which keeps the order that scores say."""
    tail = []
    last = np.float32(scores[-1]) if len(scores) else np.float32(0)
    for _ in missing:
        last = np.nextafter(last, np.float32(-np.inf))
        tail.append(last)
    return np.concatenate((rows, np.asarray(missing, dtype=np.int64))), np.concatenate(
        (scores, np.asarray(tail, dtype=np.float32))
    )


def stand_in(data: RankingData, split: str, depth: int, *, include_positives: bool) -> Ranking:
    """Random lists of a split's first judged queries, which a check uses where a search would be."""
    rng = np.random.default_rng(0)
    positives = data.positives(split)
    queries = data.queries[split]
    ids = [queries.id(row) for row in range(min(len(queries), 1000))]
    ids = ([id for id in ids if positives.get(id)] or ids)[:STAND_INS]
    lists = []
    for id in ids:
        drawn = rng.choice(len(data.corpus), size=min(depth, len(data.corpus)), replace=False)
        judged = [row for row in (row_of(data, passage) for passage in positives.get(id, ())) if row >= 0]
        rows = np.asarray([row for row in drawn if row not in judged], dtype=np.int64)
        if include_positives:
            rows = np.concatenate([np.asarray(judged, dtype=np.int64), rows])[:depth]
        lists.append((id, rows, np.linspace(1.0, 0.0, len(rows), dtype=np.float32)))
    return Ranking.from_lists(iter(lists))


class Blocks:
    """Results block by block, in a folder that survives a kill and is not part of the artifact.

    A block is written whole, with a checksum of every byte; one that is damaged since is searched again.
    """

    def __init__(self, folder: Path, total: int, context: StageContext) -> None:
        self.folder = folder
        self.total = total
        self.context = context

    def __iter__(self) -> Iterator[int]:
        """First query of each block that is not there yet; the main process decides for all."""
        for begin in range(0, self.total, BLOCK_QUERIES):
            workers = self.context.workers
            there = np.asarray([int(workers.main and is_whole(self._place(begin)))])
            if not workers.gather(there)[0]:
                yield begin

    def write(self, begin: int, ranking: Ranking, counts: Mapping[str, int]) -> None:
        """Store a block."""

        def make(folder: Path) -> dict[str, Any]:
            ranking.save(folder)
            return {"counts": dict(counts)}

        if self.context.workers.main:
            build_folder(self._place(begin), make)

    def _place(self, begin: int) -> Path:
        return self.folder / f"{begin:09d}"

    def joined(self, query_ids: Sequence[str]) -> tuple[Ranking, dict[str, int]]:
        """All blocks."""
        parts, counts = [], dict[str, int]()
        for begin in range(0, self.total, BLOCK_QUERIES):
            parts.append(Ranking.load(self._place(begin)))
            for name, value in read_manifest(self._place(begin))["counts"].items():
                counts[name] = counts.get(name, 0) + value
        lengths = [np.diff(part.starts) for part in parts]
        empty: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        return (
            Ranking(
                query_ids=tuple(query_ids),
                starts=np.concatenate(([0], np.cumsum(np.concatenate(lengths or empty)))).astype(np.int64),
                passages=np.concatenate([part.passages for part in parts] or empty),
                scores=np.concatenate([part.scores for part in parts] or empty).astype(np.float32),
            ),
            counts,
        )


def summary_of(ranking: Ranking, counts: Mapping[str, int]) -> dict[str, Any]:
    """Numbers that say what mining found and left out."""
    lengths = np.diff(ranking.starts)
    labelled = counts.get("labelled", 0)
    return {
        "queries": len(ranking),
        "mean_length": round(float(lengths.mean()), 2) if len(lengths) else 0.0,
        "empty_lists": int((lengths == 0).sum()),
        "positives_found": round(counts.get("found", 0) / labelled, 4) if labelled else None,
        **{f"dropped_{name}": counts.get(name, 0) for name in COUNTS},
    }


def write_run(ranking: Ranking, corpus: TextSource, path: Path) -> None:
    """A TREC run; scores with nine digits, which float32 needs to be read back equal."""
    write_lines(
        path,
        (
            f"{query} Q0 {corpus.id(int(row))} {rank} {float(score):.9g} kdfw\n"
            for number, query in enumerate(ranking.query_ids)
            for rank, (row, score) in enumerate(zip(*ranking.of(number), strict=True), 1)
        ),
    )

"""What a score stage scores: the candidate lists of queries, or sentence pairs, in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kdfw.data.sets import Data, PairData, RankingData, scored_texts
from kdfw.errors import DataError
from kdfw.types import Text, TextSource

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.teachers.score_stage import Score
    from kdfw.teachers.scoring import PairScorer

NAMED = 10
"""How many ids an error or a warning names."""


class Work:
    """The lists of a stage: which queries, which passages, in which blocks."""

    shares_passages = True
    """Whether a passage may stand in several lists."""
    queries: TextSource
    passages: TextSource
    query_ids: Sequence[str]
    positives_added = 0
    positives_absent = 0

    def positives_of(self, query: str) -> np.ndarray:
        """Passage rows of the labelled positives."""
        return np.zeros(0, dtype=np.int64)

    def list_of(self, number: int) -> tuple[np.ndarray, int]:
        """Passage rows of query `number`, and how many of them were retrieved (the rest are added positives)."""
        raise NotImplementedError

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

    def distinct(self) -> np.ndarray:
        """Distinct passages of all lists, ascending."""
        marks = np.zeros(len(self.passages), dtype=bool)
        for number in range(len(self.query_ids)):
            marks[self.list_of(number)[0]] = True
        return np.flatnonzero(marks)

    def _texts(self, block: Sequence[int], depth: int | None) -> tuple[list[np.ndarray], _Lists]:
        """Passage rows of each query of the block, and the texts of those lists that hold any."""
        lists = [self.list_of(number)[0][:depth] for number in block]
        full = _Lists()
        for number, rows in zip(block, lists, strict=True):
            if len(rows):
                query = self.query_ids[number]
                full.ids.append(query)
                full.queries.append(Text(source=self.queries, row=self.queries.row(query)))
                full.passages.append([Text(source=self.passages, row=int(row)) for row in rows])
                full.passage_ids.append([self.passages.id(int(row)) for row in rows])
        return lists, full


class _CandidateLists(Work):
    """Queries with the candidates that earlier stages wrote."""

    def __init__(self, stage: Score, context: StageContext, data: RankingData) -> None:
        self.stage = stage
        if stage.split not in data.queries:
            raise DataError(f"data {data.name!r} has no split {stage.split!r}; it has {sorted(data.queries)}")
        self.queries = data.queries[stage.split]
        self.passages = data.corpus
        self.rankings = [context.candidates(name) for name in stage.of]
        self.query_ids = list(dict.fromkeys(query for ranking in self.rankings for query in ranking.query_ids))
        strange = [query for query in self.query_ids if query not in self.queries]
        if strange:
            raise DataError(
                f"candidates {', '.join(stage.of)}: {len(strange)} queries are not in split {stage.split!r} of "
                f"{data.name!r}: {named(strange)}; set `split` to the one they were retrieved for"
            )
        self.places = [ranking.index() for ranking in self.rankings]
        self._positives: dict[str, np.ndarray] = {}
        judged = data.positives(stage.split)
        for query in self.query_ids:
            ids = judged.get(query, [])
            known = [id for id in ids if id in data.corpus]
            self.positives_absent += len(ids) - len(known)
            self._positives[query] = np.asarray([data.corpus.row(id) for id in known], dtype=np.int64)
            if stage.include_positives and known:
                self.positives_added += int((~np.isin(self._positives[query], self._retrieved(query))).sum())

    def positives_of(self, query: str) -> np.ndarray:
        return self._positives[query]

    def _retrieved(self, query: str) -> np.ndarray:
        lists = []
        for ranking, places in zip(self.rankings, self.places, strict=True):
            if query in places:
                lists.append(np.asarray(ranking.of(places[query])[0][: self.stage.depth]))
        return first_places(np.concatenate(lists) if lists else np.zeros(0, np.int64))

    def list_of(self, number: int) -> tuple[np.ndarray, int]:
        query = self.query_ids[number]
        rows = self._retrieved(query)
        if not self.stage.include_positives:
            return rows, len(rows)
        return first_places(np.concatenate([rows, self._positives[query]])), len(rows)


class _SentencePairs(Work):
    """Left sentences as queries, each with its right sentence as the one candidate."""

    shares_passages = False

    def __init__(self, split: str, data: Data) -> None:
        self.passages = scored_texts(data, split)
        assert isinstance(data, PairData)
        self.queries = data.splits[split].left
        self.query_ids = data.splits[split].ids

    def list_of(self, number: int) -> tuple[np.ndarray, int]:
        return np.asarray([number], dtype=np.int64), 1


def work_of(stage: Score, context: StageContext) -> Work:
    """The work of a stage on its data."""
    data = context.data(stage.data)
    if isinstance(data, RankingData):
        return _CandidateLists(stage, context, data)
    return _SentencePairs(stage.split, data)


@dataclass
class _Lists:
    """What a scorer is given."""

    ids: list[str] = field(default_factory=list)
    queries: list[Text] = field(default_factory=list)
    passages: list[list[Text]] = field(default_factory=list)
    passage_ids: list[list[str]] = field(default_factory=list)


def first_places(rows: np.ndarray) -> np.ndarray:
    """Distinct rows in the order of their first place."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)].astype(np.int64, copy=False)


def named(ids: Sequence[str]) -> str:
    """The first of some ids, for a message."""
    return ", ".join(repr(id) for id in ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")

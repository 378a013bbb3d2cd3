"""Ingested data of each task: what samplers, stages and evaluators read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kdfw.errors import DataError, one_of
from kdfw.types import Qrels

if TYPE_CHECKING:
    from kdfw.data.ranking import Ranking
    from kdfw.data.table import TextTable


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What is customary on a benchmark."""

    name: str
    measures: tuple[str, ...]
    """The official ones, the main one first."""
    text: str
    """What they mean there, in a line."""
    differs: str = ""
    """In what the data at hand differ from the official ones; empty when they do not."""


@dataclass(frozen=True, kw_only=True)
class RankingData:
    """Corpus, queries and judgements by split."""

    task = "ranking"
    name: str
    fingerprint: str
    corpus: TextTable
    queries: Mapping[str, TextTable]
    """By split."""
    qrels: Mapping[str, Qrels]
    """By split; a split without judgements has no entry."""
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    """Candidate lists that came with the data (a first-stage run to re-rank, given triples), by name."""
    triples: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By split: (T, 3) int64 rows of the split's queries, the corpus (positive) and the corpus (negative), as filed."""
    query_in_corpus: bool = False
    """Convention of the benchmark: a query is removed from its own results (ArguAna, Quora)."""
    answers: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """By split: accepted answers of questions, for data without judgements."""
    convention: Convention | None = None

    def positives(self, split: str, min_grade: int = 1) -> dict[str, list[str]]:
        """Query id -> ids of passages with at least that grade, grade descending, then in stored order."""
        return {
            query: [passage for passage, grade in sorted(rows.items(), key=lambda row: -row[1]) if grade >= min_grade]
            for query, rows in self.qrels.get(split, {}).items()
        }


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sentence pairs of one split."""

    ids: Sequence[str]
    left: TextTable
    right: TextTable
    """Row i belongs to pair i in both."""
    gold: np.ndarray | None
    """(rows,) float32, or None for unlabelled pairs."""
    groups: Sequence[str] | None = None
    """Name of the subset each pair comes from (`STS12`, ...), for averages over subsets."""


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Sentence pairs by split."""

    task = "pairs"
    name: str
    fingerprint: str
    splits: Mapping[str, Pairs]
    convention: Convention | None = None


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Texts or images of one split with their classes."""

    ids: Sequence[str]
    labels: np.ndarray
    """(rows,) int64; -1 where unknown."""
    texts: TextTable | None = None
    images: np.ndarray | None = None
    """(rows, height, width, channels) uint8, memory-mapped."""


ClassMeasure = Literal["accuracy", "accuracy@5", "macro-f1", "micro-f1", "relation-f1"]
"""What classifiers are measured by."""


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Classification data by split."""

    task = "classification"
    name: str
    fingerprint: str
    splits: Mapping[str, Labelled]
    classes: Sequence[str]
    image_mean: Sequence[float] = ()
    """Per channel, of values in [0, 1]; empty for texts."""
    image_std: Sequence[float] = ()
    measure: str = "accuracy"
    """What the data set is officially measured by."""
    convention: Convention | None = None


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Aligned sentences of one split; row i of both belongs together."""

    source: TextTable
    target: TextTable


@dataclass(frozen=True, kw_only=True)
class ParallelData:
    """Translation data by split."""

    task = "translation"
    name: str
    fingerprint: str
    splits: Mapping[str, Parallel]
    source_language: str = ""
    target_language: str = ""
    convention: Convention | None = None


Data = RankingData | PairData | LabelledData | ParallelData


def has_labels(data: Data, split: str) -> bool:
    """Whether any pair of a split has a gold score, or any text or image a class."""
    rows = getattr(data, "splits", {}).get(split)
    if isinstance(rows, Pairs):
        return rows.gold is not None
    return not isinstance(rows, Labelled) or bool((rows.labels >= 0).any())


def scored_texts(data: Data, split: str) -> TextTable:
    """What the passages of a `Ranking` with a teacher's scores are rows of.

    The corpus; of sentence pairs the right sentences of a split, where pair i is an item with the one candidate i.
    Raises: DataError for data without scored pairs, or a split that is not there.
    """
    if isinstance(data, RankingData):
        return data.corpus
    if isinstance(data, PairData):
        if split not in data.splits:
            raise DataError(f"data {data.name!r} has no split {split!r}; {one_of(split, data.splits)}")
        return data.splits[split].right
    raise DataError(f"data {data.name!r}: teacher scores are stored for rankings and sentence pairs, not {data.task}")


@dataclass(frozen=True, kw_only=True)
class SkippedLines:
    """Lines that could not be read under `on_error: skip`."""

    file: Path
    count: int
    first: tuple[tuple[int, str], ...]
    """(line number, reason) of the first few."""

    def listed(self) -> list[str]:
        """`line 3: why` of the first few, then how many more there are."""
        more = self.count - len(self.first)
        return [f"line {line}: {why}" for line, why in self.first] + ([f"and {more} more"] if more else [])

"""Queries of a split with their labelled positives, and examples made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from kdfw.errors import DataError, one_of
from kdfw.types import Candidate, Example, Text

if TYPE_CHECKING:
    from kdfw.data.sets import Data, RankingData

Choice = Literal["first", "random", "rotate", "all"]
NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Rows of the corpus that are relevant to a query, best grade first, and their grades."""

    rows: np.ndarray
    grades: np.ndarray


NONE = Judged(rows=NOTHING, grades=np.zeros(0, dtype=np.float32))


def ranking_data(data: Data, split: str, sampler: str) -> RankingData:
    """The data as ranking data with that split; raises DataError saying what there is."""
    from kdfw.data.sets import RankingData

    if not isinstance(data, RankingData):
        raise DataError(f"sampler {sampler!r} draws from ranking data; {data.name!r} is {data.task} data")
    if split not in data.queries:
        raise DataError(f"data {data.name!r} has no split {split!r}; {one_of(split, data.queries)}")
    return data


def judged_positives(data: RankingData, split: str, min_grade: int = 1) -> tuple[dict[str, Judged], int]:
    """Labelled positives of each query of a split that are in the corpus, and how many are not."""
    positives = data.positives(split, min_grade)
    qrels = data.qrels.get(split, {})
    rows = data.corpus.rows([passage for passages in positives.values() for passage in passages])
    found: dict[str, Judged] = {}
    begin = 0
    for query, passages in positives.items():
        own = rows[begin : begin + len(passages)]
        begin += len(passages)
        grades = np.asarray([qrels[query][passage] for passage in passages], dtype=np.float32)
        found[query] = Judged(rows=own[own >= 0], grades=grades[own >= 0])
    return found, int((rows < 0).sum())


def choose(judged: Judged, num: int, how: Choice, turn: int, rng: np.random.Generator) -> Judged:
    """Up to `num` of a query's positives; `all` takes every one, `rotate` starts one later every turn."""
    count = len(judged.rows)
    if how == "all":
        places = np.arange(count)
    elif how == "first":
        places = np.arange(min(num, count))
    elif how == "rotate":
        places = (turn + np.arange(min(num, count))) % max(count, 1)
    else:
        places = rng.permutation(count)[:num]
    return Judged(rows=judged.rows[places], grades=judged.grades[places])


def example(
    data: RankingData, split: str, query: int, positives: Judged, negatives: np.ndarray, grades: dict[int, float]
) -> Example:
    """The example of a query: its positives, then the drawn passages.

    Args:
        query: row of the split's queries.
        positives: passages drawn as positives.
        negatives: rows of the other passages, in order.
        grades: grades of drawn passages that are labelled positives after all (when those are not removed).
    """
    corpus, queries = data.corpus, data.queries[split]

    def candidate(row: int, grade: float) -> Candidate:
        kind = "positive" if grade > 0 else "negative"
        return Candidate(id=corpus.id(row), text=Text(source=corpus, row=row), label=grade, kind=kind)

    drawn = [(int(row), grades.get(int(row), 0.0)) for row in negatives]
    drawn.sort(key=lambda entry: entry[1] <= 0)  # positives first; the order is kept otherwise
    own = [(int(row), float(grade)) for row, grade in zip(positives.rows, positives.grades, strict=True)]
    return Example(
        id=queries.id(query),
        text=Text(source=queries, row=query),
        candidates=tuple(candidate(row, grade) for row, grade in [*own, *drawn]),
    )

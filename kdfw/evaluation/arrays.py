"""Measures from arrays in memory: the fast road for validation in training, with the values of `measures.score_run`.

Only judged passages matter, and they are few: the lists are searched once for them, and every measure is a sum over
the hits found, so the time hardly depends on the number of measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdfw.errors import DataError
from kdfw.evaluation.measures import Measure, parse_measures
from kdfw.types import Qrels

if TYPE_CHECKING:
    from kdfw.data.ranking import Ranking


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The judged passages found in Q ranked lists, in the order of (query, rank)."""

    queries: np.ndarray
    """(hits,) int64 number of the query."""
    ranks: np.ndarray
    """(hits,) int64, 0-based."""
    grades: np.ndarray
    """(hits,) int64."""
    depths: np.ndarray
    """(Q,) int64 lengths of the lists."""


@dataclass(frozen=True, kw_only=True)
class JudgedRows:
    """Qrels as arrays over the rows of a corpus. Build it once for a validation split."""

    query_ids: tuple[str, ...]
    """Q queries, in the order of the qrels: the order of all per-query values."""
    keys: np.ndarray
    """(judged in corpus,) int64, ascending: query number x `num_rows` + row."""
    key_grades: np.ndarray
    """(judged in corpus,) int64."""
    num_rows: int
    queries: np.ndarray
    """(judged,) int64 query number of every judgement, also of passages that are not in the corpus."""
    grades: np.ndarray
    """(judged,) int64, per query descending."""

    @classmethod
    def of(cls, qrels: Qrels, row: Callable[[str], int], num_rows: int) -> JudgedRows:
        """From qrels and a corpus: `row(id)` gives a passage's row and raises KeyError for an unknown one."""
        if not qrels:
            raise DataError("no judgements: the qrels have no query")
        keys: list[int] = []
        key_grades: list[int] = []
        for number, grades in enumerate(qrels.values()):
            for passage, grade in grades.items():
                try:
                    keys.append(number * num_rows + row(passage))
                except KeyError:
                    continue
                key_grades.append(grade)
        order = np.argsort(np.asarray(keys, dtype=np.int64), kind="stable")
        queries, all_grades = _flat([list(grades.values()) for grades in qrels.values()])
        return cls(
            query_ids=tuple(qrels),
            keys=np.asarray(keys, dtype=np.int64)[order],
            key_grades=np.asarray(key_grades, dtype=np.int64)[order],
            num_rows=num_rows,
            queries=queries,
            grades=all_grades,
        )

    def hits(self, ranking: Ranking) -> Hits:
        """The judged passages in a ranking, which may have queries in another order, more of them, or fewer."""
        numbers = {query: number for number, query in enumerate(self.query_ids)}
        starts = np.asarray(ranking.starts)
        list_query = np.fromiter(
            (numbers.get(query, -1) for query in ranking.query_ids), dtype=np.int64, count=len(ranking)
        )
        depths = np.zeros(len(self.query_ids), dtype=np.int64)
        known = list_query >= 0
        depths[list_query[known]] = np.diff(starts)[known]
        # first sieve by passage alone (one look-up an entry), then the few that are left by (query, passage)
        any_judged = np.zeros(self.num_rows, dtype=bool)
        any_judged[self.keys % self.num_rows] = True
        entries = np.flatnonzero(any_judged[np.asarray(ranking.passages)])
        lists = np.searchsorted(starts, entries, side="right") - 1
        queries = list_query[lists]
        keys = queries * self.num_rows + np.asarray(ranking.passages)[entries]
        place = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        found = (queries >= 0) & (self.keys[place] == keys) if len(self.keys) else np.zeros(len(keys), dtype=bool)
        order = np.argsort(queries[found], kind="stable")
        return Hits(
            queries=queries[found][order],
            ranks=(entries - starts[lists])[found][order],
            grades=self.key_grades[place[found]][order],
            depths=depths,
        )


def score_ranking(
    ranking: Ranking, judged: JudgedRows, measures: str | Sequence[str | Measure]
) -> dict[str, np.ndarray]:
    """Per-query values of a ranking: measure as written -> (Q,) float64 in the order of `judged.query_ids`.

    Lists are taken in the order in which they stand. A query without a list scores 0.
    """
    return _score(judged.hits(ranking), judged.queries, judged.grades, parse_measures(measures))


def score_gains(
    gains: np.ndarray,
    relevant: Sequence[Sequence[int]] | np.ndarray,
    measures: str | Sequence[str | Measure],
    depths: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Per-query values from grades by rank: measure as written -> (Q,) float64.

    Args:
        gains: (Q, k) integer grade of the passage at each rank; 0 where it is not relevant or not judged.
        relevant: for each query the grades of all its judged passages, retrieved or not, in any order; as a matrix
            (Q, G) padded with 0.
        depths: (Q,) lengths of the lists, where shorter than k.
    Raises: DataError for a measure that needs to know which passages are judged non-relevant (Judged, Bpref).
    """
    parsed = parse_measures(measures)
    for measure in parsed:
        if measure.kind in ("judged", "bpref"):
            raise DataError(f"measure {measure.text!r} cannot be had from gains: they do not say what was judged")
    if gains.ndim != 2 or len(relevant) != len(gains):
        raise DataError(f"gains of shape {gains.shape} for {len(relevant)} queries; expected (Q, k)")
    width = gains.shape[1]
    flat = np.flatnonzero(gains)
    queries = flat // max(width, 1)
    ranks = flat - queries * width
    lengths = np.full(len(gains), width, dtype=np.int64) if depths is None else np.asarray(depths, dtype=np.int64)
    inside = ranks < lengths[queries]
    hits = Hits(
        queries=queries[inside],
        ranks=ranks[inside],
        grades=gains.reshape(-1)[flat[inside]].astype(np.int64),
        depths=lengths,
    )
    if isinstance(relevant, np.ndarray):
        ordered = -np.sort(-relevant.astype(np.int64), axis=1)
        rel_queries, rel_grades = np.repeat(np.arange(len(relevant)), relevant.shape[1]), ordered.reshape(-1)
    else:
        rel_queries, rel_grades = _flat(relevant)
    return _score(hits, rel_queries, rel_grades, parsed)


def _flat(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(query numbers, grades) of all judgements, per query by grade descending."""
    queries = np.repeat(np.arange(len(lists)), [len(grades) for grades in lists])
    flat = np.fromiter((grade for grades in lists for grade in grades), dtype=np.int64, count=len(queries))
    return queries, flat[np.lexsort((-flat, queries))]


def _ranks_within(queries: np.ndarray, num_queries: int) -> np.ndarray:
    """0-based position of each entry among those of its query; entries are grouped by query."""
    counts = np.bincount(queries, minlength=num_queries)
    ranks: np.ndarray = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _score(
    hits: Hits, judged_queries: np.ndarray, judged_grades: np.ndarray, measures: Sequence[Measure]
) -> dict[str, np.ndarray]:
    num = len(hits.depths)

    def summed(queries: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(queries, weights=values, minlength=num).astype(np.float64)

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        values: np.ndarray = np.divide(above, below, out=np.zeros(num), where=below > 0)
        return values

    ideal_ranks = _ranks_within(judged_queries, num)
    found: dict[str, np.ndarray] = {}
    for measure in measures:
        kind, cutoff, level = measure.kind, measure.cutoff, measure.rel
        if kind == "judged":
            inside = hits.ranks < cutoff if cutoff else np.ones(len(hits.ranks), dtype=bool)
            depth = np.minimum(hits.depths, cutoff) if cutoff else hits.depths
            found[measure.text] = ratio(summed(hits.queries[inside]), depth.astype(np.float64))
            continue
        num_relevant = summed(judged_queries[judged_grades >= level])
        if kind == "r-precision":
            relevant = hits.grades >= level
            inside = relevant & (hits.ranks < num_relevant[hits.queries])
            found[measure.text] = ratio(summed(hits.queries[inside]), num_relevant)
            continue
        relevant = hits.grades >= level
        if cutoff:
            relevant &= hits.ranks < cutoff
        queries, ranks, grades = hits.queries[relevant], hits.ranks[relevant], hits.grades[relevant]
        if kind in ("ndcg", "dcg", "ndcg_burges", "dcg_burges"):

            def gain(values: np.ndarray, burges: bool = kind.endswith("burges")) -> np.ndarray:
                return 2.0**values - 1 if burges else values.astype(np.float64)

            values = summed(queries, gain(grades) / np.log2(ranks + 2))
            if kind.startswith("ndcg"):
                inside = judged_grades >= level
                if cutoff:
                    inside &= ideal_ranks < cutoff
                ideal = summed(judged_queries[inside], gain(judged_grades[inside]) / np.log2(ideal_ranks[inside] + 2))
                values = ratio(values, ideal)
        elif kind == "mrr":
            values = np.zeros(num)
            first = _ranks_within(queries, num) == 0
            values[queries[first]] = 1 / (ranks[first] + 1)
        elif kind == "map":
            precision = (_ranks_within(queries, num) + 1) / (ranks + 1)
            values = ratio(summed(queries, precision), num_relevant)
        elif kind == "bpref":
            values = _bpref(hits, judged_queries, judged_grades, measure, num_relevant)
        elif kind == "rbp":
            assert measure.persistence is not None
            values = (1 - measure.persistence) * summed(queries, grades * measure.persistence**ranks)
        else:
            count = summed(queries)
            depth = np.full(num, float(cutoff)) if cutoff else hits.depths.astype(np.float64)
            if kind == "hits":
                values = count
            elif kind == "hit_rate":
                values = (count > 0).astype(np.float64)
            elif kind == "recall":
                values = ratio(count, num_relevant)
            elif kind == "precision":
                values = ratio(count, depth)
            else:
                assert kind == "f1", kind
                precision, recall = ratio(count, depth), ratio(count, num_relevant)
                values = ratio(2 * precision * recall, precision + recall)
        found[measure.text] = values
    return found


def _bpref(
    hits: Hits, judged_queries: np.ndarray, judged_grades: np.ndarray, measure: Measure, num_relevant: np.ndarray
) -> np.ndarray:
    """bpref as trec_eval has it (SIGIR 2004, Buckley and Voorhees): judged passages only, negative grades left out."""
    num = len(num_relevant)
    pool = hits.grades >= 0
    queries, relevant = hits.queries[pool], hits.grades[pool] >= measure.rel
    others = (judged_grades >= 0) & (judged_grades < measure.rel)
    num_others = np.bincount(judged_queries[others], minlength=num)
    # judged non-relevant passages above each hit: all of the run's so far, less those of earlier queries
    above = np.cumsum(~relevant)
    before = np.concatenate([[0], np.cumsum(np.bincount(queries, weights=~relevant, minlength=num))])[:-1]
    capped = np.minimum(above - before[queries], num_relevant[queries])[relevant]
    bound = np.minimum(num_relevant, num_others)[queries[relevant]]
    share = np.divide(capped, bound, out=np.zeros(len(capped)), where=bound > 0)
    total = np.bincount(queries[relevant], weights=1 - share, minlength=num)
    values: np.ndarray = np.divide(total, num_relevant, out=np.zeros(num), where=num_relevant > 0)
    return values

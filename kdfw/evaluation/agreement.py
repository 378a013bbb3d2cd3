"""How alike two systems order the same things: Kendall's tau and the overlap of the first results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdfw.types import Qrels

CUTOFF = 10
"""First results whose overlap is counted."""
TAU_DEPTH = 100
"""Of a retrieved list, the reference's first results whose order is compared."""
TAU_QUERIES = 200
"""Queries whose whole lists are compared, evenly spaced; the overlap is that of every query."""
TAU_BINS = 20
"""Bins of the histogram of tau, from -1 to 1."""


def kendall_tau(left: np.ndarray, right: np.ndarray) -> float:
    """Kendall's tau-b of two (D,) score vectors of the same things: 1 same order, 0 unrelated, -1 reversed.

    Ties count in neither direction (Kendall 1945). NaN when a vector is constant or has fewer than two entries.
    """
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    from scipy.stats import kendalltau

    return float(kendalltau(left, right).statistic)


def overlap(left: Sequence[Any], right: Sequence[Any], cutoff: int = CUTOFF) -> float:
    """Share of the first `cutoff` of `left` that are among the first `cutoff` of `right`; NaN for an empty `left`.

    Where `left` is shorter than `cutoff` it is the share of what it has.
    """
    first = set(left[:cutoff])
    return len(first & set(right[:cutoff])) / len(first) if first else math.nan


def list_tau(reference: Mapping[str, float], other: Mapping[str, float], depth: int = TAU_DEPTH) -> float:
    """Tau-b over the reference's first `depth` results; what the other did not find stands, tied, below all it did.

    Args:
        reference, other: passage id -> score, best first.
    """
    ids = list(reference)[:depth]
    below = min(other.values(), default=0.0) - 1.0
    return kendall_tau(
        np.array([reference[id] for id in ids]), np.array([other.get(id, below) for id in ids], dtype=np.float64)
    )


def mean_of(values: Sequence[float] | np.ndarray) -> tuple[float | None, int]:
    """Mean of the values that are numbers, and how many they are; None when there are none."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return (float(known.mean()), len(known)) if len(known) else (None, 0)


def tau_summary(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, number and histogram of the taus that are defined."""
    mean, count = mean_of(values)
    known = np.asarray(values, dtype=np.float64)
    counts, _ = np.histogram(known[np.isfinite(known)], bins=TAU_BINS, range=(-1.0, 1.0))
    return {"kendall_tau": mean, "tau_items": count, "tau_histogram": counts.tolist()}


class Lists:
    """What is kept of each system's results while an evaluation runs, so that systems can be compared afterwards."""

    def __init__(self, qrels: Qrels) -> None:
        """`qrels`: judgements of the queries that are measured."""
        self.queries = list(qrels)
        self._relevant = {query: [id for id, grade in rows.items() if grade >= 1] for query, rows in qrels.items()}
        step = max(1, -(-len(self.queries) // TAU_QUERIES))
        self.sampled = self.queries[::step]
        self._first: dict[str, dict[str, list[tuple[str, float]]]] = {}
        self._whole: dict[str, dict[str, dict[str, float]]] = {}
        self._ranks: dict[str, dict[str, dict[str, int]]] = {}

    def add(self, system: str, run: Mapping[str, Mapping[str, float]]) -> None:
        """Keep the first results of every query, and the whole lists of the sampled ones; lists are best first."""
        self._first[system] = {query: list(run.get(query, {}).items())[:CUTOFF] for query in self.queries}
        self._whole[system] = {query: dict(run.get(query, {})) for query in self.sampled}
        self._ranks[system] = {query: self._places(query, run.get(query, {})) for query in self.queries}

    def _places(self, query: str, results: Mapping[str, float]) -> dict[str, int]:
        """Rank, from 1, of the first relevant passages that were found."""
        wanted = set(self._relevant[query][:CUTOFF])
        return {id: rank for rank, id in enumerate(results, start=1) if id in wanted}

    def relevant(self, query: str) -> list[str]:
        """Ids of the passages judged relevant."""
        return self._relevant[query]

    def ranks(self, query: str, passage: str) -> dict[str, int]:
        """System -> rank, from 1, that it gives one of the query's first relevant passages; absent when not found."""
        return {name: found[query][passage] for name, found in self._ranks.items() if passage in found[query]}

    def first(self, system: str, query: str, depth: int) -> list[tuple[str, float]]:
        """(passage id, score) of the first results, `depth` at most `CUTOFF`."""
        return self._first[system][query][:depth]

    @property
    def systems(self) -> list[str]:
        return list(self._first)

    def compare(self) -> dict[str, Any]:
        """Every system against every other: reference -> other -> tau and overlap, means over queries."""
        pairs: dict[str, dict[str, Any]] = {}
        for reference in self.systems:
            for other in self.systems:
                if other == reference:
                    continue
                taus = [list_tau(self._whole[reference][q], self._whole[other][q]) for q in self.sampled]
                shares = [
                    overlap([id for id, _ in self._first[reference][q]], [id for id, _ in self._first[other][q]])
                    for q in self.queries
                ]
                mean, count = mean_of(shares)
                found = {**tau_summary(taus), f"overlap@{CUTOFF}": mean, "overlap_items": count}
                pairs.setdefault(reference, {})[other] = found
        return {"queries": len(self.queries), "tau_depth": TAU_DEPTH, "tau_queries": len(self.sampled), "pairs": pairs}

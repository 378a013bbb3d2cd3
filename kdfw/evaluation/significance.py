"""Is a difference between two systems more than chance? Paired over queries.

Randomisation test and bootstrap as compared by Smucker, Allan and Carterette (CIKM 2007); Holm's correction (1979).
All draws come from a seed, so the same values give the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kdfw.evaluation.statistics import Statistic

PERMUTATIONS = 100_000
RESAMPLES = 10_000
STATISTIC_DRAWS = 2_000
"""Resamples and permutations of a measure that is no mean over items: each draw computes it anew."""
_BLOCK = 4_000_000
"""Values drawn at once, so that memory stays small for any number of queries."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A system against a baseline on one measure, over the same queries."""

    difference: float
    """Mean of system minus baseline."""
    low: float
    high: float
    """95 % bootstrap confidence interval of the difference."""
    randomisation: float | None
    """p of the two-sided paired randomisation test; None where the systems have different numbers of seeds and the
    measure is no mean over queries."""
    t_test: float | None
    """p of the two-sided paired t-test; 1 when no query differs. None for a measure that is no mean over queries."""
    effect: float | None
    """Cohen's d_z: mean difference over its standard deviation; 0 when no query differs. None where all differ by the
    same (it would be infinite), and for a measure that is no mean over queries."""
    wins: int | None
    """Queries on which the system is better; with `ties` and `losses` None where a query has no value of its own."""
    ties: int | None
    losses: int | None


def paired(system: np.ndarray, baseline: np.ndarray, seed: int = 0) -> Paired:
    """Compare per-query values (Q,) of two systems.

    Values closer than 1e-9 are a tie: they differ by the order of additions only.
    """
    if system.shape != baseline.shape or system.ndim != 1 or not len(system):
        raise ValueError(f"paired values of one shape (Q,) needed, found {system.shape} and {baseline.shape}")
    difference = system.astype(np.float64) - baseline
    difference[np.abs(difference) < 1e-9] = 0.0
    low, high = interval(difference, seed=seed)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    mean = float(difference.mean())
    effect = mean / spread if spread > 0 else None if mean else 0.0
    return Paired(
        difference=mean,
        low=low,
        high=high,
        randomisation=randomisation_test(difference, seed=seed),
        t_test=paired_t_test(difference),
        effect=effect,
        wins=int((difference > 0).sum()),
        ties=int((difference == 0).sum()),
        losses=int((difference < 0).sum()),
    )


def interval(values: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of the mean of (Q,) values."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(values))
    means = [
        values[rng.integers(0, len(values), size=(min(block, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    return percentiles(np.concatenate(means), level)


def statistic_value(seeds: Sequence[np.ndarray], statistic: Statistic) -> float:
    """A measure of a system: the mean over its seeds, each (Q, S) rows."""
    return float(np.mean([statistic.of(rows) for rows in seeds]))


def resampled(
    seeds: Sequence[np.ndarray], statistic: Statistic, draws: int = STATISTIC_DRAWS, seed: int = 0
) -> np.ndarray:
    """(draws,) values of a system's measure over items drawn anew; every system is given the same draws."""
    rng, size = np.random.default_rng(seed), len(seeds[0])
    seeds = [statistic.alike(rows) for rows in seeds]  # ranks once, instead of in every draw
    values = np.empty(draws)
    for number in range(draws):
        drawn = rng.integers(0, size, size)
        values[number] = statistic_value([rows[drawn] for rows in seeds], statistic)
    return values


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval from resampled values."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_statistic(
    system: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    statistic: Statistic,
    draws: int = STATISTIC_DRAWS,
    seed: int = 0,
    values: tuple[np.ndarray, np.ndarray] | None = None,
) -> Paired:
    """Compare two systems, each given as (Q, S) rows of every seed, by a measure that is no mean over items.

    The bootstrap draws items; the randomisation test exchanges what the two systems said about an item, on a scale that
    makes it exchangeable (`Statistic.alike`), for the n-th seed of both at once. A system of one seed, which may be one
    that no seed changes, is exchanged with each seed of the other.

    Args:
        values: what `resampled` gave for both, if that is known.
    """
    ours, theirs = values or tuple(resampled(side, statistic, draws, seed) for side in (system, baseline))
    low, high = percentiles(ours - theirs)
    return Paired(
        difference=statistic_value(system, statistic) - statistic_value(baseline, statistic),
        low=low, high=high, randomisation=_exchange_test(system, baseline, statistic, draws, seed),
        t_test=None, effect=None, wins=None, ties=None, losses=None,
    )  # fmt: skip


def _exchange_test(
    system: Sequence[np.ndarray], baseline: Sequence[np.ndarray], statistic: Statistic, draws: int, seed: int
) -> float | None:
    """p of the randomisation test; None for two systems of several seeds that are not as many."""
    times = max(len(system), len(baseline))
    if min(len(system), len(baseline)) not in (1, times):
        return None
    ours, theirs = (
        [statistic.alike(rows) for rows in side] * (times if len(side) == 1 else 1) for side in (system, baseline)
    )
    pairs = list(zip(ours, theirs, strict=True))
    rng, size = np.random.default_rng((seed, 1)), len(pairs[0][0])
    observed = abs(_exchanged(pairs, np.zeros(size, dtype=bool), statistic)) * (1 - 1e-12)
    reached = sum(abs(_exchanged(pairs, rng.random(size) < 0.5, statistic)) >= observed for _ in range(draws))
    return (1 + reached) / (draws + 1)


def _exchanged(pairs: Sequence[tuple[np.ndarray, np.ndarray]], swap: np.ndarray, statistic: Statistic) -> float:
    """The difference when the two systems change places on some items."""
    mask = swap[:, None]
    ours = [np.where(mask, right, left) for left, right in pairs]
    theirs = [np.where(mask, left, right) for left, right in pairs]
    return statistic_value(ours, statistic) - statistic_value(theirs, statistic)


def randomisation_test(difference: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """p of the two-sided paired randomisation test: how often signs drawn at random give as large a mean.

    Exact (every assignment of signs) for up to 14 queries that differ; else from `permutations` draws, the observed
    assignment among them, so that p is never 0.
    """
    moved = np.abs(difference[difference != 0])
    if not len(moved):
        return 1.0
    observed = abs(float(difference.sum())) * (1 - 1e-12)  # what ties with it counts, whatever the order of additions
    if len(moved) <= 14:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float((np.abs(signs @ moved) >= observed).mean())
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(moved))
    reached = 1
    for start in range(0, permutations, block):
        drawn = rng.integers(0, 2, size=(min(block, permutations - start), len(moved)), dtype=np.int8)
        sums = 2.0 * (drawn @ moved) - moved.sum()
        reached += int((np.abs(sums) >= observed).sum())
    return reached / (permutations + 1)


def paired_t_test(difference: np.ndarray) -> float:
    """p of the two-sided paired t-test; 1 when nothing differs or there is one query, 0 when all differ alike."""
    if len(difference) < 2 or not difference.any():
        return 1.0
    spread = float(difference.std(ddof=1))
    if spread == 0:
        return 0.0
    from scipy.stats import t

    statistic = float(difference.mean()) / (spread / np.sqrt(len(difference)))
    return float(2 * t.sf(abs(statistic), len(difference) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for being one of several tests (Holm's step-down method), in the order given.

    None stands for a test that could not be made: it is none of the several, and stays None.
    """
    made = [(p_value, index) for index, p_value in enumerate(p_values) if p_value is not None]
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for step, (p_value, index) in enumerate(sorted(made)):
        highest = max(highest, min(1.0, (len(made) - step) * p_value))
        corrected[index] = highest
    return corrected

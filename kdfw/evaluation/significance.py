"""Is a difference between two systems more than chance? Paired over queries.

Randomisation test and bootstrap as compared by Smucker, Allan and Carterette (CIKM 2007); Holm's correction (1979).
All draws come from a seed, so the same values give the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 100_000
RESAMPLES = 10_000
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
    randomisation: float
    """p of the two-sided paired randomisation test."""
    t_test: float
    """p of the two-sided paired t-test; 1 when no query differs."""
    effect: float
    """Cohen's d_z: mean difference over its standard deviation; 0 when no query differs."""
    wins: int
    ties: int
    losses: int


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
    if spread > 0:
        effect = mean / spread
    else:
        effect = float("inf") * np.sign(mean) if mean and len(difference) > 1 else 0.0
    return Paired(
        difference=mean,
        low=low,
        high=high,
        randomisation=randomisation_test(difference, seed=seed),
        t_test=paired_t_test(difference),
        effect=float(effect),
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
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for being one of several tests (Holm's step-down method), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for step, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[index]))
        corrected[index] = highest
    return corrected

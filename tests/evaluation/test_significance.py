"""Tests of differences agree with scipy, with ranx, and with hand arithmetic."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from kdfw.evaluation.significance import holm, interval, paired, paired_t_test, randomisation_test


def differences(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.05, 0.2, size)


def test_t_test_is_scipys() -> None:
    from scipy.stats import ttest_1samp

    for seed in range(5):
        values = differences(seed, 43)
        assert paired_t_test(values) == pytest.approx(ttest_1samp(values, 0).pvalue, abs=1e-12)


def test_randomisation_is_exact_for_few_queries() -> None:
    # |sum| of +-1 +-2 +-3 reaches 4 for sums 6, 4, -4, -6: 4 of 8 assignments
    assert randomisation_test(np.array([-1.0, 2.0, 3.0])) == pytest.approx(4 / 8)
    assert randomisation_test(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert randomisation_test(np.zeros(4)) == 1.0


def test_randomisation_is_scipys() -> None:
    from scipy.stats import permutation_test

    values = differences(1, 12)
    exact = permutation_test((values, np.zeros(12)), lambda a, b: np.mean(a - b), permutation_type="samples")
    assert randomisation_test(values) == pytest.approx(exact.pvalue, abs=1e-12)
    many = differences(2, 60)
    drawn = permutation_test(
        (many, np.zeros(60)), lambda a, b, axis=-1: np.mean(a - b, axis=axis), permutation_type="samples",
        n_resamples=50_000, vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert randomisation_test(many) == pytest.approx(drawn.pvalue, abs=0.006)


def test_randomisation_is_ranxs() -> None:
    values = differences(3, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ranx.statistical_tests import fisher_randomization_test

        theirs, _ = fisher_randomization_test(np.zeros(50), values, n_permutations=20_000)
    assert randomisation_test(values) == pytest.approx(theirs, abs=0.012)


def test_interval_is_scipys_and_seeded() -> None:
    from scipy.stats import bootstrap

    values = differences(4, 80)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    low, high = interval(values)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)
    assert interval(values) == (low, high)
    assert interval(values, seed=1) != (low, high)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_comparison_counts_wins_and_ties() -> None:
    result = paired(np.array([0.5, 0.2, 0.9, 0.4]), np.array([0.4, 0.2 + 1e-12, 0.5, 0.5]))
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    values = np.array([0.1, 0.0, 0.4, -0.1])
    assert result.difference == pytest.approx(0.1)
    assert result.effect == pytest.approx(values.mean() / values.std(ddof=1), abs=1e-9)
    assert result.low < 0.1 < result.high


def test_equal_systems_do_not_differ() -> None:
    result = paired(np.ones(5), np.ones(5))
    assert (result.randomisation, result.t_test, result.effect, result.ties) == (1.0, 1.0, 0.0, 5)

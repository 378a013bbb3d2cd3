"""Measures of a whole test set: the same from rows as from all items, with intervals and tests that hold."""

from __future__ import annotations

import numpy as np
import pytest

from kdfw.evaluation.compare import compare_measure, measure_rows
from kdfw.evaluation.significance import paired, paired_statistic, percentiles, resampled
from kdfw.evaluation.statistics import Statistic, statistic_of
from kdfw.evaluation.tasks import auc, pair_measures, relation_f1, translation_measures

MEAN = Statistic(columns=("x",), of=lambda rows: float(rows[:, 0].mean()))


def pairs(noise: float, seed: int, size: int = 200) -> np.ndarray:
    """Scores that follow the gold with some noise, on a scale of their own."""
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(0).integers(0, 6, size).astype(float)
    return np.column_stack([np.exp(seed + gold / 5 + noise * rng.normal(size=size)), gold])


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_correlations_of_rows_are_those_of_the_pairs(name: str) -> None:
    statistic = statistic_of(name)
    assert statistic is not None
    rows = pairs(0.5, 3)
    assert statistic.of(rows) == pytest.approx(pair_measures(rows[:, 0], rows[:, 1])[0][name], abs=1e-9)
    assert statistic.of(statistic.alike(rows)) == pytest.approx(statistic.of(rows), abs=1e-9)


def test_area_and_mean_of_groups_of_rows_are_those_of_the_pairs() -> None:
    scores, gold = pairs(2.0, 3).T
    groups = np.arange(len(gold)) % 3
    rows = np.column_stack([scores, gold, groups])
    macro, area = statistic_of("macro-spearman"), statistic_of("auc")
    assert macro is not None and area is not None and macro.columns == ("score", "gold", "group")
    expected = pair_measures(scores, gold, [f"set {group}" for group in groups])[0]["macro-spearman"]
    assert macro.of(rows) == pytest.approx(expected) == macro.of(macro.alike(rows))
    # ranks within a group, so that systems with other scales in other groups can be exchanged pair by pair
    assert macro.alike(rows)[groups == 1, 0].max() <= (groups == 1).sum()
    binary = np.column_stack([scores, gold > 2])
    assert area.of(area.alike(binary)) == pytest.approx(auc(*binary.T)) == area.of(binary)


def test_corpus_scores_of_counts_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    ours = ["the cat sat on the mat today", "a man is riding a horse", "x", "two dogs play in the snow"]
    gold = ["the cat sat on the mat", "a man rides a brown horse", "y y", "two dogs are playing in the snow"]
    found = translation_measures(ours, gold)
    for some in ([0, 1, 2, 3], [3, 3, 1], [0, 2]):
        left, right = [ours[n] for n in some], [gold[n] for n in some]
        for name, theirs in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
            statistic = statistic_of(name)
            assert statistic is not None
            value = statistic.of(found.per_item[statistic.columns[0]][some].astype(float))
            assert value == pytest.approx(theirs(left, [right]).score, abs=1e-9), (name, some)


def test_f1_of_rows() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(1)
    rows = rng.integers(0, 4, (60, 2)).astype(float)
    macro, micro = statistic_of("macro-f1"), statistic_of("micro-f1")
    assert macro is not None and micro is not None
    assert macro.of(rows) == pytest.approx(f1_score(rows[:, 1], rows[:, 0], average="macro"))
    assert micro.of(rows) == pytest.approx(f1_score(rows[:, 1], rows[:, 0], average="micro"))
    classes = ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other"]
    relations = statistic_of("relation-f1", classes)
    assert relations is not None
    labels, predicted = rows[:, 1].astype(int), rows[:, 0].astype(int)
    assert relations.of(rows) == pytest.approx(relation_f1(predicted, labels, classes))
    assert statistic_of("nDCG@10") is None


def test_for_a_mean_both_roads_agree() -> None:
    rng = np.random.default_rng(5)
    left, right = rng.normal(0.1, 0.3, 60), rng.normal(0.0, 0.3, 60)
    plain = paired(left, right)
    general = paired_statistic([left[:, None]], [right[:, None]], MEAN, draws=10_000)
    assert general.difference == pytest.approx(plain.difference, abs=1e-12)
    assert (general.low, general.high) == pytest.approx((plain.low, plain.high), abs=0.006)
    assert general.randomisation == pytest.approx(plain.randomisation, abs=0.02)
    assert general.t_test is None and general.wins is None


def test_the_interval_of_a_correlation_is_scipys() -> None:
    from scipy.stats import bootstrap, spearmanr

    rows = pairs(0.5, 1)
    statistic = statistic_of("spearman")
    assert statistic is not None
    theirs = bootstrap(
        (rows[:, 0], rows[:, 1]), lambda a, b: 100 * spearmanr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=2_000, method="percentile", rng=np.random.default_rng(2),
    )  # fmt: skip
    assert percentiles(resampled([rows], statistic)) == pytest.approx(tuple(theirs.confidence_interval), abs=0.6)


def test_a_better_model_of_pairs_is_told_from_a_worse_one_and_not_from_itself() -> None:
    statistic = statistic_of("spearman")
    assert statistic is not None
    good, poor = pairs(0.3, 1), pairs(3.0, 2)
    clear = paired_statistic([good], [poor], statistic)
    assert clear.randomisation is not None and clear.randomisation < 0.01 < clear.low < clear.difference < clear.high
    # the same scores on another scale are the same system
    same = paired_statistic([good], [np.column_stack([7 * good[:, 0] + 3, good[:, 1]])], statistic)
    assert (same.difference, same.randomisation) == (0.0, 1.0)
    # two seeds against three cannot exchange places
    uneven = paired_statistic([good, good], [poor, poor, poor], statistic)
    assert uneven.randomisation is None and uneven.difference == pytest.approx(clear.difference)


def test_a_system_of_one_seed_stands_against_every_seed_of_another() -> None:
    rng = np.random.default_rng(6)
    baseline, *seeds = (rng.normal(size=(40, 1)) + shift for shift in (0.0, 0.2, 0.4, 0.6))
    for turned in (False, True):
        sides = ([baseline], seeds) if turned else (seeds, [baseline])
        general = paired_statistic(*sides, MEAN, draws=10_000)
        plain = paired(*(np.mean([rows[:, 0] for rows in side], axis=0) for side in sides))
        assert general.difference == pytest.approx(plain.difference, abs=1e-12)
        assert general.randomisation == pytest.approx(plain.randomisation, abs=0.02)


def test_what_is_not_defined_is_said_so() -> None:
    flat = pairs(0.5, 1)
    flat[:, 0] = 1.0
    entries = compare_measure({"a": [pairs(0.5, 1)], "flat": [flat]}, "a", statistic_of("spearman"))
    assert entries["flat"] == {"mean": None, "low": None, "high": None}
    assert "against_baseline" not in entries["a"]


def test_rows_come_in_the_order_of_the_items() -> None:
    values = {"a": {"score": {"p1": 1.0, "p2": 2.0}, "gold": {"p2": 5.0, "p1": 4.0}}}
    rows, statistic = measure_rows(values, "spearman")
    assert statistic is not None and rows["a"][0].tolist() == [[1.0, 4.0], [2.0, 5.0]]
    assert measure_rows(values, "bleu") == ({}, None)

"""Evaluators of pairs, classes and translations agree with scipy, sacrebleu and hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from kdfw.errors import DataError
from kdfw.evaluation.tasks import (
    auc,
    macro_f1,
    micro_f1,
    pair_measures,
    relation_f1,
    spearman,
    top_k,
    translation_measures,
)


def test_correlations_are_scipys_with_ties() -> None:
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    scores, gold = rng.integers(0, 6, 200).astype(float), rng.integers(0, 6, 200).astype(float)
    overall, _ = pair_measures(scores, gold)
    assert overall["spearman"] == pytest.approx(100 * spearmanr(scores, gold).statistic, abs=1e-9)
    assert overall["pearson"] == pytest.approx(100 * pearsonr(scores, gold).statistic, abs=1e-9)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_groups_are_measured_apart_and_together() -> None:
    scores, gold = np.array([1.0, 2.0, 9.0, 8.0, 0.0]), np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    overall, groups = pair_measures(scores, gold, ["a", "a", "b", "b", "b"])
    assert groups["a"]["spearman"] == pytest.approx(100)
    assert groups["b"]["spearman"] == pytest.approx(-100)
    # ranks 1 2 4 3 against 1 2 3 4: 1 - 6 * 2 / (4 * 15)
    assert overall["spearman"] == pytest.approx(80)


def test_the_mean_over_groups_counts_each_group_once() -> None:
    scores, gold = np.array([1.0, 2.0, 3.0, 9.0, 8.0]), np.array([1.0, 2.0, 3.0, 3.0, 4.0])
    overall, _ = pair_measures(scores, gold, ["a", "a", "a", "b", "b"])
    assert overall["macro-spearman"] == pytest.approx((100 - 100) / 2)
    alone, _ = pair_measures(scores, gold)
    assert alone["macro-spearman"] == alone["spearman"]


def test_auc_is_scikit_learns_with_ties() -> None:
    # 2 x 3 pairs of a positive and a negative: 0.5 > 0.1, 0.5 = 0.5 (a half), 0.5 > 0.2; 0.2 > 0.1, < 0.5, = 0.2
    scores, gold = np.array([0.5, 0.1, 0.5, 0.2, 0.2]), np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    assert auc(scores, gold) == pytest.approx(100 * (1 + 0.5 + 1 + 1 + 0 + 0.5) / 6)
    assert auc(np.exp(scores), 3 * gold - 1) == auc(scores, gold)
    assert auc(-scores, gold) == pytest.approx(100 - auc(scores, gold))
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    scores, gold = rng.integers(0, 9, 300).astype(float), rng.integers(0, 2, 300).astype(float)
    assert auc(scores, gold) == pytest.approx(100 * sklearn.roc_auc_score(gold, scores), abs=1e-9)


def test_auc_of_one_class_is_undefined() -> None:
    assert np.isnan(auc(np.arange(3.0), np.ones(3)))
    assert "auc" not in pair_measures(np.arange(3.0), np.arange(3.0))[0]


def test_top_k() -> None:
    logits = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [0.0, 0.0, 0.0]])
    labels = np.array([2, 0, 1])
    assert top_k(logits, labels).tolist() == [False, True, False]  # of equal logits the first class counts
    assert top_k(logits, labels, 2).tolist() == [True, True, True]


def test_f1_by_hand() -> None:
    labels, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    # class 0: P 1/2 R 1/2; class 1: P 1/2 R 1; class 2: 0; class 3 never appears
    assert macro_f1(predicted, labels, 4) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert micro_f1(predicted, labels) == pytest.approx(0.5)
    # without class 0: right 1 of 2 found and 2 wanted
    assert micro_f1(predicted, labels, without=0) == pytest.approx(2 * 1 / (2 + 2))


def test_relation_f1_counts_a_wrong_direction_as_wrong() -> None:
    classes = ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other"]
    labels, predicted = np.array([0, 1, 2, 3]), np.array([0, 0, 2, 2])
    # A: right 1, found 2, wanted 2; B: right 1, found 2, wanted 1
    assert relation_f1(predicted, labels, classes) == pytest.approx((2 * 1 / 4 + 2 * 1 / 3) / 2)
    with pytest.raises(DataError, match="Cause-Effect"):
        relation_f1(predicted, labels, ["a", "b", "c", "d"])


def test_translations_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    ours = ["the cat sat on the mat today", "a man is riding a horse"]
    gold = ["the cat sat on the mat", "a man rides a brown horse"]
    found = translation_measures(ours, gold)
    assert found.measures["bleu"] == pytest.approx(sacrebleu.corpus_bleu(ours, [gold]).score)
    assert found.measures["chrf"] == pytest.approx(sacrebleu.corpus_chrf(ours, [gold]).score)
    assert 0 < found.measures["bleu"] < 100
    assert found.per_item["bleu"].shape == (2,)

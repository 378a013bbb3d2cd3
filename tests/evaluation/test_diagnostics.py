"""The numbers of a diagnosis: by hand, against scipy, and their properties."""

from __future__ import annotations

import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from scipy.stats import spearmanr

from kdfw.evaluation.diagnostics import (
    RULES,
    ScoredList,
    agreement,
    correlation,
    distribution,
    entropies,
    false_negatives,
    labels,
    softness,
    spread,
    suggested_temperature,
    warn,
)


def scored(item: str, scores: list[float], positive: str = "", negative: str = "") -> ScoredList:
    """Alternatives are called a, b, c, ...; `positive` and `negative` name the judged ones."""
    names = string.ascii_lowercase[: len(scores)]
    return ScoredList(
        item=item,
        scores=np.array(scores),
        positive=np.array([name in positive for name in names]),
        negative=np.array([name in negative for name in names]),
        alternatives=list(names),
    )


def test_entropy_by_hand_and_against_scipy() -> None:
    half = np.array([0.0, 0.0])
    assert entropies([half], 1.0) == pytest.approx([1.0])
    # weights 3/4 and 1/4 at temperature 2
    three = 2 * np.log(np.array([3.0, 1.0]))
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert entropies([three], 2.0) == pytest.approx([by_hand])
    rng = np.random.default_rng(0)
    for temperature in (0.05, 1.0, 7.0):
        lists = [rng.normal(0, 3, size=size) for size in (2, 5, 40)]
        expected = [scipy_entropy(softmax(x / temperature)) / math.log(len(x)) for x in lists]
        assert entropies(lists, temperature) == pytest.approx(expected, abs=1e-12)


def test_softness_by_hand() -> None:
    found = softness([np.log(np.array([3.0, 1.0])), np.zeros(4), np.array([1.0])], 1.0)
    assert found["items"] == 2 and found["alternatives"] == 3.0  # a list of one has no distribution
    assert found["top_weight"] == pytest.approx((0.75 + 0.25) / 2)
    first = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found["effective_alternatives"] == pytest.approx((first + 4.0) / 2)
    assert sum(found["entropy_histogram"]) == 2 and found["entropy_histogram"][-1] == 1


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12), st.floats(0.1, 10))
def test_entropy_grows_with_the_temperature_and_ignores_shifts(scores: list[float], temperature: float) -> None:
    lists = [np.array(scores)]
    cool, warm = entropies(lists, temperature)[0], entropies(lists, 2 * temperature)[0]
    assert 0.0 <= cool <= warm + 1e-9 <= 1.0 + 2e-9
    assert entropies([np.array(scores) + 3.0], temperature)[0] == pytest.approx(cool, abs=1e-9)


def test_the_suggested_temperature_gives_the_median_item_half_of_the_entropy() -> None:
    rng = np.random.default_rng(1)
    lists = [scale * rng.normal(size=20) for scale in rng.uniform(0.5, 8, size=101)]
    found = suggested_temperature(lists)
    assert found is not None
    assert float(np.median(entropies(lists, found))) == pytest.approx(0.5, abs=1e-3)
    # scores a hundred times larger want a temperature a hundred times higher
    assert suggested_temperature([100 * x for x in lists]) == pytest.approx(100 * found, rel=1e-3)
    # two alternatives that differ by d: H(p) = ln(2) / 2 at p = 0.88997..., so T = d / ln(p / (1 - p))
    p = 0.8899721
    assert suggested_temperature([np.array([0.0, 3.0])]) == pytest.approx(3.0 / math.log(p / (1 - p)), rel=1e-3)


def test_there_is_no_temperature_where_nothing_is_in_order() -> None:
    assert suggested_temperature([]) is None
    assert suggested_temperature([np.zeros(3), np.zeros(3), np.arange(3.0)]) is None
    assert suggested_temperature([np.array([1.0, 1.0, 0.0])]) is None  # two on top: never below ln 2 / ln 3


def test_distribution_and_spread_against_numpy() -> None:
    lists = [scored("p", [3.0, 1.0, 2.0], "a"), scored("q", [5.0, 5.0]), scored("r", [7.0], "a")]
    every = np.array([3.0, 1.0, 2.0, 5.0, 5.0, 7.0])
    found = distribution(lists)
    assert found["scores"] == 6 and found["mean"] == pytest.approx(every.mean())
    assert found["standard_deviation"] == pytest.approx(every.std())
    assert found["quantiles"]["50"] == pytest.approx(np.median(every))
    histogram = found["histogram"]
    assert sum(histogram["counts"]) == 6 and sum(histogram["positives"]) == 2
    assert histogram["edges"][0] == 1.0 and histogram["edges"][-1] == 7.0
    width = spread(lists)
    assert width["items"] == 2 and width["constant_items"] == 1 and width["constant_share"] == 0.5
    assert width["range"]["mean"] == pytest.approx(1.0)
    assert width["standard_deviation"]["mean"] == pytest.approx(np.std([3, 1, 2]) / 2)
    assert distribution([]) == {"scores": 0} and spread([]) == {"items": 0}


@pytest.mark.parametrize("close", [float(np.nextafter(np.float32(1), np.float32(2))), 1.0 + 2e-16])
def test_scores_that_hardly_differ_have_a_histogram(close: float) -> None:
    found = distribution([scored("p", [1.0, close], "a")])
    assert sum(found["histogram"]["counts"]) == 2


def test_agreement_with_judgements_by_hand() -> None:
    lists = [
        scored("top", [3.0, 1.0, 2.0], "a"),  # rank 1
        scored("third", [1.0, 2.0, 3.0], "a"),  # rank 3
        scored("tied", [2.0, 2.0, 1.0], "a"),  # tied for the first place: rank 1.5
        scored("best of two", [1.0, 3.0, 2.0], "ac"),  # the better positive is second
        scored("unjudged", [1.0, 2.0]),
        scored("nothing else", [1.0], "a"),
    ]
    found = labels(lists)
    assert found["items"] == 4
    assert found["positive_not_on_top"] == pytest.approx(2 / 4)
    assert found["reciprocal_rank"] == pytest.approx((1 + 1 / 3 + 1 / 1.5 + 1 / 2) / 4)


def test_suspected_false_negatives_by_hand() -> None:
    lists = [
        scored("q1", [1.0, 5.0, 3.0, 0.0], "a", "b"),  # b is judged, c is not: one suspect
        scored("q2", [1.0, 9.0, 2.0], "a"),  # two suspects
        scored("q3", [4.0, 1.0], "a"),
        scored("q4", [1.0, 2.0]),  # no positive: nothing to compare with
    ]
    found = false_negatives(lists, examples=5)
    unit = np.concatenate([each.scores for each in lists]).std()
    assert (found["items"], found["items_with_any"], found["suspected"]) == (3, 2, 3)
    assert found["share_of_unjudged"] == pytest.approx(3 / 5)
    first, second = found["examples"]
    assert (first["item"], first["alternative"], first["positive"]) == ("q2", "b", "a")
    assert first["surplus"] == pytest.approx(8.0 / unit)
    assert (second["item"], second["alternative"], second["score"]) == ("q1", "c", 3.0)
    assert len(false_negatives(lists, examples=1)["examples"]) == 1


def test_agreement_of_two_score_vectors() -> None:
    up = np.arange(12.0)
    half_way = np.concatenate([up[6:], up[:6]])  # best two: 10, 11 against 4, 5
    found = agreement([(up, 3 * up), (up, half_way), (np.array([1.0, 2.0]), np.array([2.0, 1.0]))])
    assert found["items"] == 3 and found["overlap_items"] == 2  # two alternatives always overlap
    shared = set(np.argsort(-half_way)[:10].tolist()) & set(range(2, 12))
    assert found["overlap@10"] == pytest.approx((1.0 + len(shared) / 10) / 2)
    # six in order, six in order, all 36 between turned round: (15 + 15 - 36) / 66
    assert found["kendall_tau"] == pytest.approx((1.0 + (30 - 36) / 66 - 1.0) / 3)
    assert found["same_best"] == pytest.approx(1 / 3)
    assert found["spread_ratio"] == pytest.approx(1.0)


def test_correlation_is_scipys() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.normal(size=30), rng.normal(size=30).round(1)
    assert correlation(left, right) == pytest.approx(spearmanr(left, right).statistic)
    assert correlation(left, np.ones(30)) is None and correlation(left[:1], right[:1]) is None


@pytest.mark.parametrize("rule", RULES)
def test_a_warning_gives_the_number_that_triggered_it(rule: str) -> None:
    names = {
        "teacher": "T", "other": "U", "loss": "kl", "temperature": 0.5, "suggestion": "Try 2.", "basis": "8 items"
    }  # fmt: skip
    limit = RULES[rule].limit
    beyond, within = (limit + 0.01, limit - 0.01) if RULES[rule].fires(1e9, limit) else (limit - 0.01, limit + 0.01)
    (found,) = warn(rule, beyond, **names)
    assert found["rule"] == rule and found["value"] == beyond and found["limit"] == limit
    shown = [f"{beyond:.1%}", f"{beyond:.2f}", f"{beyond:+.3f}"]
    assert any(number in found["text"] for number in shown) and "{" not in found["text"]
    assert warn(rule, within, **names) == [] and warn(rule, None, **names) == [] and warn(rule, math.nan, **names) == []

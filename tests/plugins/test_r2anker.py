"""Invariants of R2anker (arXiv:2206.08063)."""

import pytest

from kdfw_plugins.r2anker.pool import equal_share_probabilities, kept_list, pool_probabilities

LISTS = [["a", "b", "c"], ["b", "d"], ["b"]]


def test_probabilities_add_up_over_the_union() -> None:
    for found in (equal_share_probabilities(LISTS), pool_probabilities(LISTS)):
        assert set(found) == {"a", "b", "c", "d"} and sum(found.values()) == pytest.approx(1.0)
        assert found["b"] == max(found.values())
    assert equal_share_probabilities(LISTS)["b"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert pool_probabilities(LISTS)["b"] == pytest.approx(3 / 6)


def test_order_of_generators_and_identical_lists_do_not_matter() -> None:
    assert equal_share_probabilities(LISTS[::-1]) == pytest.approx(equal_share_probabilities(LISTS))
    assert pool_probabilities([LISTS[0]] * 3) == pytest.approx(pool_probabilities([LISTS[0]]))
    assert equal_share_probabilities([LISTS[0]] * 3) == pytest.approx(equal_share_probabilities([LISTS[0]]))


def test_a_weight_of_zero_removes_a_generator() -> None:
    assert equal_share_probabilities(LISTS, [1, 1, 0]) == pytest.approx(equal_share_probabilities(LISTS[:2]))
    assert equal_share_probabilities([*LISTS[:2], []]) == pytest.approx(equal_share_probabilities(LISTS[:2]))


def test_positives_go_before_the_cut() -> None:
    assert kept_list(["p", "a", "b", "c"], {"p"}, 2) == ["a", "b"]

"""Kendall's tau and overlap, by hand and against scipy; what is kept of systems to compare them."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfw.evaluation.agreement import Lists, kendall_tau, list_tau, overlap, tau_summary


def test_tau_by_hand() -> None:
    up = np.array([1.0, 2.0, 3.0, 4.0])
    assert kendall_tau(up, 10 * up) == pytest.approx(1.0)
    assert kendall_tau(up, -up) == pytest.approx(-1.0)
    # of the six pairs one is turned round: (5 - 1) / 6
    assert kendall_tau(up, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(4 / 6)
    # a tie on the right: 5 in order, 0 against, 1 tied -> 5 / sqrt(6 * 5)
    assert kendall_tau(up, np.array([1.0, 2.0, 2.0, 4.0])) == pytest.approx(5 / math.sqrt(30))
    assert math.isnan(kendall_tau(up, np.ones(4))) and math.isnan(kendall_tau(up[:1], up[:1]))


def counted(left: list[int], right: list[int]) -> float:
    """Tau-b from its definition."""
    signs = [(np.sign(left[i] - left[j]), np.sign(right[i] - right[j])) for i, j in combinations(range(len(left)), 2)]
    both = sum(a * b for a, b in signs)
    return float(both / math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_tau_is_that_of_its_definition(rows: list[tuple[int, int]]) -> None:
    left, right = (list(side) for side in zip(*rows, strict=True))
    found = kendall_tau(np.array(left, dtype=float), np.array(right, dtype=float))
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(counted(left, right))


def test_overlap_by_hand() -> None:
    assert overlap("abcd", "badc", 2) == 1.0
    assert overlap("abcd", "acbd", 2) == 0.5
    assert overlap("ab", "xyab", 10) == 1.0  # of what the reference has
    assert math.isnan(overlap("", "ab"))


def test_what_the_other_did_not_find_stands_below_all_it_did() -> None:
    reference = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    # c and d are missing: tied last. a > b in both, a and b above c and d in both: 5 pairs in order, 1 tied
    assert list_tau(reference, {"a": 9.0, "b": 8.0, "x": 7.0}) == pytest.approx(5 / math.sqrt(30))
    assert list_tau(reference, {"b": 9.0, "a": 8.0}, depth=2) == pytest.approx(-1.0)
    assert math.isnan(list_tau(reference, {}))


def test_systems_are_compared_over_their_queries() -> None:
    lists = Lists({"q1": {"a": 1, "z": 2, "n": 0}, "q2": {"b": 1}})
    lists.add("one", {"q1": {"a": 2.0, "b": 1.0}, "q2": {"a": 2.0, "b": 1.0}})
    lists.add("two", {"q1": {"b": 2.0, "a": 1.0}, "q2": {"a": 2.0, "c": 1.0}})
    found = lists.compare()
    row = found["pairs"]["one"]["two"]
    assert found["queries"] == found["tau_queries"] == 2
    assert row["overlap@10"] == pytest.approx((1.0 + 0.5) / 2)
    assert row["kendall_tau"] == pytest.approx((-1.0 + 1.0) / 2) and row["tau_items"] == 2
    assert row["tau_histogram"][0] == row["tau_histogram"][-1] == 1 and sum(row["tau_histogram"]) == 2
    assert lists.first("two", "q1", 1) == [("b", 2.0)]
    assert lists.relevant("q1") == ["a", "z"]
    assert lists.ranks("q1", "a") == {"one": 1, "two": 2} and lists.ranks("q1", "z") == {}


def test_a_summary_leaves_out_what_is_undefined() -> None:
    found = tau_summary([0.5, math.nan, -0.5])
    assert found["kendall_tau"] == 0.0 and found["tau_items"] == 2 and sum(found["tau_histogram"]) == 2
    assert tau_summary([math.nan])["kendall_tau"] is None

"""Draws from ranked lists: published rules, counts, probabilities."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfw.samplers.collate import epoch_order, item_rng
from kdfw.samplers.negatives import draw, draw_from_lists, shares, window

NO = np.zeros(0, dtype=np.int64)


def entry(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(rows, dtype=np.int64), -np.arange(len(rows), dtype=np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_window_counts_ranks_after_the_removal_and_leaves_out_nan() -> None:
    rows = np.asarray([4, 6, 9, 11, 0, 1])
    scores = np.asarray([9, 8, 7, np.nan, 5, 4])
    kept = rows[window(rows, scores, np.asarray([9, 3]), None)]
    assert kept.tolist() == [4, 6, 0, 1]
    assert rows[window(rows, scores, np.asarray([9, 3]), (2, 3))].tolist() == [6, 0]
    assert window(rows, scores, NO, (7, 9)).tolist() == []


@pytest.mark.parametrize(
    ("lists", "num", "expected"),
    [
        # as the sibling project of R2anker's authors draws from short lists: cycled in order, whole when equal
        ([[46, 41], [6, 41, 12]], 6, [46, 41, 46, 6, 41, 12]),
        ([[38], [21, 49], [34]], 9, [38, 38, 38, 21, 49, 21, 34, 34, 34]),
    ],
)
def test_equal_share_of_short_lists(lists: list[list[int]], num: int, expected: list[int]) -> None:
    found = draw_from_lists([entry(rows) for rows in lists], num, "random", rng(), mix="equal-share")
    assert found.tolist() == expected


def first_draws(lists: list[list[int]], **options: Any) -> dict[int, float]:
    """How often each passage is the first of a draw of one."""
    generator, count = rng(3), Counter[int]()
    for _ in range(6000):
        count[int(draw_from_lists([entry(rows) for rows in lists], 1, "random", generator, **options)[0])] += 1
    return {row: number / 6000 for row, number in count.items()}


def test_joint_pool_draws_a_passage_as_often_as_lists_name_it() -> None:
    kept = [[4, 6, 11, 0], [6, 1, 11, 4], [6, 11, 7]]
    found = first_draws(kept)
    assert found == pytest.approx({0: 1 / 11, 1: 1 / 11, 4: 2 / 11, 6: 3 / 11, 7: 1 / 11, 11: 3 / 11}, abs=0.025)
    alike = first_draws(kept, unique=True)
    assert alike == pytest.approx(dict.fromkeys([0, 1, 4, 6, 7, 11], 1 / 6), abs=0.025)


def test_equal_share_takes_the_same_number_from_each_list_without_replacement() -> None:
    lists = [entry(list(range(0, 10))), entry(list(range(100, 140))), entry(list(range(200, 203)))]
    found = draw_from_lists(lists, 9, "random", rng(), mix="equal-share")
    assert [sum(begin <= row < begin + 100 for row in found) for begin in (0, 100, 200)] == [3, 3, 3]
    assert len(set(found.tolist())) == 9


def test_proportions_add_up_and_follow_the_weights() -> None:
    assert shares(10, [1, 1, 2]) == [3, 2, 5]
    assert shares(7, [0, 3]) == [0, 7]
    lists = [entry(list(range(50))), entry(list(range(100, 150)))]
    found = draw_from_lists(lists, 8, "random", rng(), mix="proportions", weights=[3, 1])
    assert sum(row < 100 for row in found) == 6


def test_an_empty_list_leaves_its_share_to_the_others() -> None:
    lists = [entry([]), entry([1, 2, 3, 4, 5, 6])]
    found = draw_from_lists(lists, 4, "top", rng(), mix="equal-share")
    assert found.tolist() == [1, 2, 1, 2]
    assert draw_from_lists([entry([])], 4, "random", rng()).tolist() == []


def test_top_repeat_and_pad() -> None:
    assert draw(10, 3, "top", rng()).tolist() == [0, 1, 2]
    assert draw(3, 7, "random", rng()).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert draw(3, 7, "random", rng(), repeat=False).tolist() == [0, 1, 2]
    assert draw(0, 7, "random", rng()).tolist() == []


def test_rotation_goes_through_the_list_turn_by_turn() -> None:
    turns = [draw(5, 2, "rotate", rng(), turn=turn).tolist() for turn in range(4)]
    assert turns == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_score_weighted_first_draw_is_a_softmax() -> None:
    scores = np.log([1.0, 2.0, 5.0])
    generator = rng(1)
    count = Counter(int(draw(3, 1, "score-weighted", generator, scores=scores)[0]) for _ in range(8000))
    assert [count[place] / 8000 for place in range(3)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)
    count = Counter(
        int(draw(3, 1, "score-weighted", generator, scores=scores, temperature=0.5)[0]) for _ in range(8000)
    )
    assert [count[place] / 8000 for place in range(3)] == pytest.approx([1 / 30, 4 / 30, 25 / 30], abs=0.02)


def test_rank_weighted_first_draw_falls_with_the_rank() -> None:
    generator = rng(2)
    count = Counter(int(draw(3, 1, "rank-weighted", generator)[0]) for _ in range(8000))
    assert [count[place] / 8000 for place in range(3)] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.02)


@given(
    count=st.integers(1, 30),
    num=st.integers(0, 30),
    how=st.sampled_from(["random", "top", "score-weighted", "rank-weighted", "rotate"]),
    repeat=st.booleans(),
    seed=st.integers(0, 5),
)
def test_draws_have_the_right_number_and_no_repetition_where_the_list_is_long_enough(
    count: int, num: int, how: Any, repeat: bool, seed: int
) -> None:
    scores = np.linspace(1, 0, count)
    places = draw(count, num, how, rng(seed), scores=scores, turn=seed, repeat=repeat)
    assert len(places) == (num if repeat else min(num, count))
    assert ((places >= 0) & (places < count)).all()
    assert len(set(places.tolist())) == min(num, count)
    again = draw(count, num, how, rng(seed), scores=scores, turn=seed, repeat=repeat)
    assert again.tolist() == places.tolist()


def test_item_randomness_is_the_same_everywhere_and_different_for_each_item() -> None:
    # written down once: a change here changes every run's draws
    values = [int(item_rng(13, 0, "q1").integers(1 << 30)), int(item_rng(13, 1, "q1").integers(1 << 30))]
    assert json.dumps(values) == "[642639767, 344065411]"
    seen = {
        int(item_rng(seed, epoch, name).integers(1 << 40))
        for seed in (1, 11)
        for epoch in (1, 11)
        for name in ("1", "11", "a", "b")
    }
    assert len(seen) == 16


def test_epoch_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    first = epoch_order(100, 7, 0)
    assert sorted(first.tolist()) == list(range(100))
    assert first.tolist() == epoch_order(100, 7, 0).tolist()
    assert first.tolist() != epoch_order(100, 7, 1).tolist()
    assert first.tolist() != epoch_order(100, 8, 0).tolist()
    assert first.tolist() != list(range(100))

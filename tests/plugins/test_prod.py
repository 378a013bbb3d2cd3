"""Invariants of PROD (arXiv:2209.13335)."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfw.retrieval.filter import Filter
from kdfw_plugins.prod.losses import stage_losses
from kdfw_plugins.prod.method import Prod
from kdfw_plugins.prod.selection import (
    first_rank,
    negative_pool,
    select_queries,
    teacher_ahead,
    teacher_right_student_nearly,
)

ranks = st.one_of(st.none(), st.integers(1, 40))


def test_the_terms_of_both_losses() -> None:
    first = stage_losses(in_batch=True)
    assert [(term["type"], term["weight"]) for term in first] == [("info-nce", 0.1), ("kl", 0.9)]
    assert first[0]["in_batch"] and first[1]["signal"] == "batch_logits" and "temperature" not in first[0]
    second = stage_losses(reg_weight=1.0)
    assert second[:2] == stage_losses()
    assert second[2] == {**second[1], "name": "stay", "weight": 1.0, "teachers": [1]}
    assert stage_losses(distance="logit")[1]["weight"] == pytest.approx(0.45)


@given(ranks, ranks)
def test_the_passage_rule_by_its_words(student: int | None, teacher: int | None) -> None:
    kept = teacher_right_student_nearly(student, teacher)
    assert kept == (student in range(2, 16) and teacher == 1)


@given(ranks, ranks)
def test_the_answer_rule_by_its_words(student: int | None, teacher: int | None) -> None:
    from_zero = [float("inf") if rank is None else rank - 1 for rank in (student, teacher)]
    assert teacher_ahead(student, teacher) == (from_zero[1] < from_zero[0] and from_zero[1] < 15)


@settings(max_examples=50)
@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(0, 12))
def test_the_pool_has_no_positive_and_keeps_the_order(ranking: list[int], positives: set[int], size: int) -> None:
    pool = negative_pool(ranking, positives, size)
    assert not set(pool) & positives
    assert pool == sorted(pool, key=ranking.index)
    assert len(pool) == min(size, 12 - len(positives))
    assert all(one in pool or one in positives for one in ranking[: len(pool)])


def test_first_rank_counts_from_one_and_knows_absence() -> None:
    assert first_rank("abc", {"b", "c"}) == 2 and first_rank("abc", {"z"}) is None


def test_negatives_of_a_kept_query_hold_everything_ranked_above_its_positive() -> None:
    rng = np.random.default_rng(0)
    student = {query: [int(at) for at in rng.permutation(40)] for query in range(200)}
    teacher = {query: sorted(passages, key=lambda at: at != 7) for query, passages in student.items()}
    kept = select_queries(student, teacher, lambda query: {7}, teacher_right_student_nearly)
    assert 20 < len(kept) < 180
    for query in kept:
        above = student[query][: student[query].index(7)]
        assert above and set(above) <= set(negative_pool(student[query], {7}, 15))
    everything = partial(teacher_right_student_nearly, student_from=1, student_to=40)
    assert select_queries(student, teacher, lambda query: {7}, everything) == list(student)


@settings(max_examples=100)
@given(ranks, ranks)
def test_the_core_filter_keeps_what_the_rules_keep(student: int | None, teacher: int | None) -> None:
    own, other = (math.inf if rank is None else float(rank) for rank in (student, teacher))
    passages = Filter(of="search", scores="scores", ranks=(2, 15), score_ranks=(1, 1))
    assert passages.wanted(own, other) == teacher_right_student_nearly(student, teacher)
    answers = Filter(of="search", scores="scores", score_ranks=(1, 15), improves=True)
    assert answers.wanted(own, other) == teacher_ahead(student, teacher)


def by_name(**options: Any) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in Prod(**options).expand({})}


def test_the_plan_has_teachers_in_order_and_one_copy_for_each_stage() -> None:
    stages = by_name(rounds=2)
    assert list(stages) == [
        *("refresh-0", "warm-student", "warm-teacher", "refresh-1", "continued-student", "continued-teacher"),
        *("distil-1", "refresh-2", "ranker-1", "distil-2", "refresh-3", "ranker-2", "distil-3"),
        *("search-1", "scores-1", "select-1", "round-1", "search-2", "scores-2", "select-2", "round-2"),
    ]
    assert stages["distil-1"]["teachers"] == ["continued-teacher"]
    assert stages["distil-2"]["teachers"] == ["ranker-1", "frozen"]
    assert stages["distil-3"]["teachers"] == ["ranker-2", "frozen"]
    assert stages["round-2"]["teachers"] == ["ranker-2", "frozen"] and stages["round-2"]["student"] == "round-1"
    assert stages["refresh-2"]["retriever"]["model"] == "continued-teacher"
    assert stages["refresh-3"]["retriever"]["model"] == "distil-2"
    assert stages["round-1"]["sampler"]["draw"] == "top" and stages["distil-3"]["sampler"]["draw"] == "random"
    assert [len(stages[name]["losses"]) for name in ("distil-1", "distil-2", "round-1")] == [2, 3, 3]


def test_the_number_and_depth_of_teachers_and_rounds_are_the_recipes() -> None:
    stages = by_name(rankers=["only"], rounds=0, distil_train={"epochs": 1})
    assert list(stages)[-1] == "distil-2" and stages["ranker-1"]["student"] == "only"
    assert "steps" not in stages["distil-2"]["train"] and stages["distil-2"]["train"]["epochs"] == 1

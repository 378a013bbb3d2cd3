"""Invariants of PROD (arXiv:2209.13335)."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfw.data.ranking import Ranking
from kdfw.data.sets import RankingData
from kdfw.errors import DataError
from kdfw_plugins.prod.losses import stage_losses
from kdfw_plugins.prod.selection import (
    first_rank,
    negative_pool,
    select_queries,
    teacher_ahead,
    teacher_right_student_nearly,
)
from kdfw_plugins.prod.stage import SelectQueries

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


class Corpus:
    def id(self, row: int) -> str:
        return f"p{row}"


def stage(folder: Path, teacher: dict[str, list[float]], **options: Any) -> Any:
    """Three queries with four passages each; `teacher` holds the scores of p0 to p3."""
    lists = {"a": [1, 0, 2, 3], "b": [0, 1, 2, 3], "c": [3, 2, 1, 0]}
    searched = Ranking.from_lists((q, np.asarray(rows), -np.arange(4.0)) for q, rows in lists.items())
    scored = Ranking.from_lists(
        (q, np.asarray(lists[q]), np.asarray([teacher[q][row] for row in lists[q]])) for q in lists if q in teacher
    )
    qrels = {"train": {query: {"p0": 1} for query in lists}}
    corpus: Any = Corpus()
    data = RankingData(name="tiny", fingerprint="", corpus=corpus, queries={}, qrels=qrels)
    told: dict[str, int] = {}
    context: Any = SimpleNamespace(
        folder=folder,
        data=lambda name=None: data,
        candidates=lambda name: searched,
        scores=lambda name: scored,
        summary=told.update,
    )
    SelectQueries(of="searched", scores="scored", **options).run(context)
    return Ranking.load(folder), told


def test_the_stage_writes_the_lists_of_kept_queries(tmp_path: Path) -> None:
    # a: student 2nd, teacher 1st. b: student 1st already. c: student 4th, teacher 2nd.
    teacher = {"a": [9.0, 1.0, 2.0, 3.0], "b": [9.0, 1.0, 2.0, 3.0], "c": [5.0, 1.0, 2.0, 7.0]}
    kept, told = stage(tmp_path / "one", teacher)
    assert kept.query_ids == ("a",) and kept.of(0)[0].tolist() == [1, 0, 2, 3]
    assert told == {"queries": 3, "kept": 1}
    ahead, _ = stage(tmp_path / "two", teacher, rule="teacher-ahead")
    assert ahead.query_ids == ("a", "c")


def test_the_stage_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'b' was searched and not scored"):
        stage(tmp_path, {"a": [9.0, 1.0, 2.0, 3.0]})
    same = {query: [0.0, 1.0, 2.0, 3.0] for query in "abc"}
    with pytest.raises(DataError, match="none of 3 queries is kept"):
        stage(tmp_path, same)

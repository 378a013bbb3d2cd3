"""Data progressive distillation: which queries are worth another round. Only ranks decide, never scores."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TypeVar

Id = TypeVar("Id")
Query = TypeVar("Query")


def first_rank(ranking: Sequence[Id], relevant: Container[Id]) -> int | None:
    """1-based rank of the first passage that is relevant; None when there is none in the list."""
    return next((rank for rank, passage in enumerate(ranking, start=1) if passage in relevant), None)


def teacher_right_student_nearly(
    student_rank: int | None,
    teacher_rank: int | None,
    *,
    student_from: int = 2,
    student_to: int = 15,
    teacher_at: int = 1,
) -> bool:
    """The MS MARCO rule (`top2t15`): the teacher puts the positive at `teacher_at`, the student near the top but not
    there: student_from <= rank <= student_to. A positive outside the list drops the query."""
    if student_rank is None or teacher_rank is None:
        return False
    return student_from <= student_rank <= student_to and teacher_rank == teacher_at


def teacher_ahead(student_rank: int | None, teacher_rank: int | None, *, teacher_below: int = 15) -> bool:
    """The Natural Questions rule: the teacher's first hit is above the student's and among the first `teacher_below`.

    Ranks are 1-based here; the released code counts from 0 and asks for less than `teacher_below`, which is the same.
    A missing hit is infinitely far down.
    """
    if teacher_rank is None or teacher_rank > teacher_below:
        return False
    return student_rank is None or teacher_rank < student_rank


def select_queries(
    student: Mapping[Query, Sequence[Id]],
    teacher: Mapping[Query, Sequence[Id]],
    positive: Callable[[Query], Container[Id]],
    keep: Callable[[int | None, int | None], bool],
) -> list[Query]:
    """Queries, in the student's order, that a rule keeps.

    Args:
        student: query -> passages, best first; the list the teacher re-ranked.
        teacher: query -> the same passages in the teacher's order.
        positive: query -> the passages that count: those labelled (MS MARCO), or with an answer (Natural Questions).
        keep: (student rank, teacher rank) -> whether the query stays.
    """
    kept = []
    for query, ranking in student.items():
        relevant = positive(query)
        if keep(first_rank(ranking, relevant), first_rank(teacher.get(query, ()), relevant)):
            kept.append(query)
    return kept


def negative_pool(ranking: Sequence[Id], positives: Container[Id], size: int = 100) -> list[Id]:
    """The first `size` passages that are no labelled positives, in rank order (a refresh's new negatives)."""
    return [passage for passage in ranking if passage not in positives][:size]

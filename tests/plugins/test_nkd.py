"""Invariants of NKD and TF-NKD (arXiv:2208.10139)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfw.errors import TrainingError
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.nkd.nkd import NKD, non_target_term, target_term
from kdfw_plugins.nkd.teacher_free import TeacherFreeNKD, smoothed_weights, teacher_free_terms

CLOCK = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)
LABELS = torch.tensor([2, 0, 4, 2])
EVERYTHING = torch.ones(4, 6, dtype=torch.bool)


def logits(seed: int, items: int = 4, classes: int = 6) -> Tensor:
    return torch.randn(items, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def value(loss: NKD, student: Tensor, teacher: Tensor, labels: Tensor = LABELS) -> Tensor:
    batch = Batch(task="classification", ids=tuple("abcd"), inputs={}, num_items=4, labels=labels)
    return loss(Signals(logits=student), [Signals(logits=teacher)], batch, CLOCK).total


def test_without_gamma_it_is_cross_entropy_weighted_by_the_teacher() -> None:
    student, teacher = logits(1), logits(2)
    weight = teacher.softmax(-1)[range(4), LABELS]
    expected = (weight * torch.nn.functional.cross_entropy(student, LABELS, reduction="none")).mean()
    assert torch.allclose(value(NKD(gamma=0.0), student, teacher), expected)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 10))
def test_constants_and_the_target_logit_change_nothing_where_they_should_not(seed: int, temperature: float) -> None:
    student, teacher, shift = logits(seed), logits(seed + 1), logits(seed + 2)[:, :1]
    loss = NKD(temperature=temperature)
    assert torch.allclose(value(loss, student + shift, teacher), value(loss, student, teacher))
    assert torch.allclose(value(loss, student, teacher + shift), value(loss, student, teacher))
    column = LABELS[:, None]
    moved, taught = student.scatter_add(1, column, shift), teacher.scatter_add(1, column, shift)
    others = non_target_term(student, teacher, EVERYTHING, LABELS, temperature)
    assert torch.allclose(non_target_term(moved, taught, EVERYTHING, LABELS, temperature), others)
    assert not torch.allclose(
        target_term(moved, teacher, EVERYTHING, LABELS), target_term(student, teacher, EVERYTHING, LABELS)
    )


@settings(deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.floats(0, 5), tau=st.floats(0.5, 10))
def test_gradient_is_that_of_the_card(seed: int, gamma: float, tau: float) -> None:
    student, teacher = logits(seed).requires_grad_(), logits(seed + 1).requires_grad_()
    value(NKD(gamma=gamma, temperature=tau), student, teacher).backward()
    assert student.grad is not None and teacher.grad is None
    hot = torch.nn.functional.one_hot(LABELS, 6)
    weight = teacher.softmax(-1)[range(4), LABELS][:, None]
    p, q = ((one / tau).masked_fill(hot == 1, -1e300).softmax(-1) for one in (teacher, student))
    by_hand = (weight * (student.softmax(-1) - hot) + gamma * tau * (q - p)) / 4
    assert torch.allclose(student.grad, by_hand.detach(), atol=1e-10)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), tau=st.floats(0.5, 5))
def test_the_non_target_term_is_least_at_the_teacher_and_that_is_its_entropy(seed: int, tau: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    least = non_target_term(teacher + 3.0, teacher, EVERYTHING, LABELS, tau)
    rest = (teacher / tau).scatter(1, LABELS[:, None], -1e300).softmax(-1)
    assert torch.allclose(least, torch.special.entr(rest).sum(-1))
    assert bool((non_target_term(student, teacher, EVERYTHING, LABELS, tau) > least).all())


def test_two_classes_have_no_other_distribution() -> None:
    labels = torch.tensor([0, 1])
    both = torch.ones(2, 2, dtype=torch.bool)
    assert torch.equal(
        non_target_term(logits(1, 2, 2), logits(2, 2, 2), both, labels, 1.0), torch.zeros(2, dtype=torch.float64)
    )


def test_ranking_takes_the_first_relevant_candidate_and_ignores_padding() -> None:
    student, teacher = logits(1), logits(2)
    labels = torch.nn.functional.one_hot(LABELS, 6).double()
    labels[3] = 0.0  # a query without a relevant candidate adds nothing
    mask = EVERYTHING.clone()
    mask[:, 5] = False
    wide = Batch(task="ranking", ids=tuple("abcd"), inputs={}, num_items=4, labels=labels, mask=mask)
    cut = Batch(task="ranking", ids=tuple("abc"), inputs={}, num_items=4, labels=labels[:3, :5])
    first = NKD()(Signals(logits=student, mask=mask), [Signals(logits=teacher)], wide, CLOCK).total
    second = NKD()(Signals(logits=student[:3, :5]), [Signals(logits=teacher[:3, :5])], cut, CLOCK).total
    assert torch.allclose(first, second)


def test_against_the_whole_step_the_target_is_the_column_of_the_positive() -> None:
    candidates = torch.tensor([[4, 1, 2], [0, 3, 5]])
    labels = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # passages 1 and 0
    step = Batch(task="ranking", ids=("a", "b"), inputs={}, num_items=2, labels=labels, candidates=candidates)
    student, teacher = logits(1, 2, 6), logits(2, 2, 6)
    loss = NKD(signal="batch_logits")
    found = loss(Signals(extra={"batch_logits": student}), [Signals(extra={"batch_logits": teacher})], step, CLOCK)
    classes = Batch(task="classification", ids=("a", "b"), inputs={}, num_items=2, labels=torch.tensor([1, 0]))
    assert torch.allclose(found.total, NKD()(Signals(logits=student), [Signals(logits=teacher)], classes, CLOCK).total)


def test_a_signal_over_other_alternatives_than_the_labels_is_refused() -> None:
    student, teacher = (Signals(extra={"logits/sentence": logits(seed)}) for seed in (1, 2))
    step = Batch(task="ranking", ids=tuple("abcd"), inputs={}, num_items=4, labels=torch.ones(4, 3))
    with pytest.raises(TrainingError, match=r"labels of shape \(4, 3\).*'logits/sentence'"):
        NKD(signal="logits/sentence")(student, [teacher], step, CLOCK)


def test_a_positive_the_teacher_did_not_score_leaves_the_other_candidates() -> None:
    student, teacher = logits(1), logits(2)
    labels = torch.nn.functional.one_hot(LABELS, 6).double()
    teacher[0, LABELS[0]] = float("nan")
    step = Batch(task="ranking", ids=tuple("abcd"), inputs={}, num_items=1, labels=labels)
    values = [
        NKD(gamma=gamma)(Signals(logits=student), [Signals(logits=teacher)], step, CLOCK).total for gamma in (0, 2)
    ]
    known = target_term(student[1:], teacher[1:], EVERYTHING[1:], LABELS[1:]).sum()
    assert torch.allclose(values[0], known)
    others = non_target_term(student, teacher.nan_to_num(0.0), EVERYTHING, LABELS, 1.0).sum()
    assert torch.allclose(values[1], known + 2 * others)


def test_one_batch_is_its_two_halves() -> None:
    student, teacher = logits(1), logits(2)
    whole = value(NKD(), student, teacher)
    halves = 0.0
    for part in (slice(0, 2), slice(2, 4)):
        batch = Batch(task="classification", ids=("a", "b"), inputs={}, num_items=4, labels=LABELS[part])
        halves += NKD()(Signals(logits=student[part]), [Signals(logits=teacher[part])], batch, CLOCK).total
    assert torch.allclose(whole, halves)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_teacher_free_weights_have_mean_one_no_gradient_and_no_order(seed: int, order: list[int]) -> None:
    student = logits(seed).requires_grad_()
    p = student.softmax(-1)[range(4), LABELS]
    weights = smoothed_weights(p)
    assert torch.allclose(weights.mean(), torch.ones((), dtype=torch.float64)) and not weights.requires_grad
    assert bool(((p > p.mean()) == (weights > 1)).all())
    terms = teacher_free_terms(student, LABELS)
    (gradient,) = torch.autograd.grad(terms.mean(), student)
    by_hand = weights[:, None] * (student.softmax(-1) - torch.nn.functional.one_hot(LABELS, 6)) / 4
    assert torch.allclose(gradient, by_hand.detach(), atol=1e-12)
    assert torch.allclose(teacher_free_terms(student[order], LABELS[order]).sum(), terms.sum())


def test_a_single_item_gives_plain_cross_entropy() -> None:
    student = logits(1)
    single = teacher_free_terms(student[:1], LABELS[:1]).sum()
    assert torch.allclose(single, torch.nn.functional.cross_entropy(student[:1], LABELS[:1]))


def test_a_second_label_of_zero_has_no_weight() -> None:
    soft = torch.nn.functional.one_hot(LABELS, 6).double()
    student = logits(1)
    assert torch.equal(teacher_free_terms(student, soft)[1], torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(teacher_free_terms(student, soft)[0], teacher_free_terms(student, LABELS)[0])


def test_the_component_needs_no_teacher() -> None:
    loss = TeacherFreeNKD()
    assert loss.needs.teachers[0] == 0 and not loss.needs.teacher and loss.needs.whole_batch
    student = logits(1)
    batch = Batch(task="classification", ids=tuple("abcd"), inputs={}, num_items=4, labels=LABELS)
    total = loss(Signals(logits=student), [], batch, CLOCK).total
    assert torch.allclose(total, teacher_free_terms(student, LABELS).mean())


def test_teacher_free_ranking_takes_the_first_relevant_candidate_and_leaves_out_queries_without_one() -> None:
    student = logits(1)
    labels = torch.nn.functional.one_hot(LABELS, 6).double()
    labels[3] = 0.0
    mask = EVERYTHING.clone()
    mask[:, 5] = False
    step = Batch(task="ranking", ids=tuple("abcd"), inputs={}, num_items=4, labels=labels, mask=mask)
    total = TeacherFreeNKD()(Signals(logits=student, mask=mask), [], step, CLOCK).total
    assert torch.allclose(total, teacher_free_terms(student[:3, :5], LABELS[:3]).sum() / 4)

"""Invariants of NKD and TF-NKD (arXiv:2208.10139)."""

import torch
from torch import Tensor

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


def test_constants_and_the_target_logit_change_nothing_where_they_should_not() -> None:
    student, teacher, shift = logits(1), logits(2), logits(3)[:, :1]
    loss = NKD(temperature=2.0)
    assert torch.allclose(value(loss, student + shift, teacher), value(loss, student, teacher))
    assert torch.allclose(value(loss, student, teacher + shift), value(loss, student, teacher))
    moved = student.scatter_add(1, LABELS[:, None], shift)
    others = non_target_term(student, teacher, EVERYTHING, LABELS, 2.0)
    assert torch.allclose(non_target_term(moved, teacher, EVERYTHING, LABELS, 2.0), others)
    assert not torch.allclose(
        target_term(moved, teacher, EVERYTHING, LABELS), target_term(student, teacher, EVERYTHING, LABELS)
    )


def test_gradient_is_that_of_the_card() -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    gamma, tau = 3.5, 3.0
    (gradient,) = torch.autograd.grad(value(NKD(gamma=gamma, temperature=tau), student, teacher), student)
    hot = torch.nn.functional.one_hot(LABELS, 6)
    others = hot == 0
    weight = teacher.softmax(-1)[range(4), LABELS][:, None]
    p = (teacher / tau).masked_fill(~others, -1e300).softmax(-1)
    q = (student / tau).masked_fill(~others, -1e300).softmax(-1)
    by_hand = (weight * (student.softmax(-1) - hot) + gamma * tau * (q - p)) / 4
    assert torch.allclose(gradient, by_hand.detach(), atol=1e-12)


def test_the_non_target_term_is_least_at_the_teacher_and_that_is_its_entropy() -> None:
    student, teacher = logits(1), logits(2)
    least = non_target_term(teacher + 3.0, teacher, EVERYTHING, LABELS, 1.0)
    rest = teacher.scatter(1, LABELS[:, None], -1e300).softmax(-1)
    assert torch.allclose(least, torch.special.entr(rest).sum(-1))
    assert bool((non_target_term(student, teacher, EVERYTHING, LABELS, 1.0) > least).all())


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


def test_one_batch_is_its_two_halves() -> None:
    student, teacher = logits(1), logits(2)
    whole = value(NKD(), student, teacher)
    halves = 0.0
    for part in (slice(0, 2), slice(2, 4)):
        batch = Batch(task="classification", ids=("a", "b"), inputs={}, num_items=4, labels=LABELS[part])
        halves += NKD()(Signals(logits=student[part]), [Signals(logits=teacher[part])], batch, CLOCK).total
    assert torch.allclose(whole, halves)


def test_teacher_free_weights_have_mean_one_and_no_gradient() -> None:
    student = logits(1).requires_grad_()
    p = student.softmax(-1)[range(4), LABELS]
    weights = smoothed_weights(p)
    assert torch.allclose(weights.mean(), torch.ones((), dtype=torch.float64)) and not weights.requires_grad
    (gradient,) = torch.autograd.grad(teacher_free_terms(student, LABELS).mean(), student)
    by_hand = weights[:, None] * (student.softmax(-1) - torch.nn.functional.one_hot(LABELS, 6)) / 4
    assert torch.allclose(gradient, by_hand.detach(), atol=1e-12)


def test_a_single_item_gives_plain_cross_entropy_and_order_does_not_matter() -> None:
    student = logits(1)
    single = teacher_free_terms(student[:1], LABELS[:1]).sum()
    assert torch.allclose(single, torch.nn.functional.cross_entropy(student[:1], LABELS[:1]))
    order = torch.tensor([2, 3, 0, 1])
    assert torch.allclose(
        teacher_free_terms(student[order], LABELS[order]).sum(), teacher_free_terms(student, LABELS).sum()
    )


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

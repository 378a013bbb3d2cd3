"""Invariants of KA-NMT (arXiv:2212.09097) with the conventions of this framework."""

import pytest
import torch
from torch import Tensor

from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.ka_nmt.losses import (
    Filtration,
    filtered,
    knows_better,
    new_share,
    smoothed_cross_entropy,
    unlikelihood,
)
from kdfw_plugins.ka_nmt.rate import learning_rate

LABELS = torch.tensor([0, 3, 2, 1, 4])


def normal(seed: int) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def test_a_teacher_no_better_than_before_teaches_nothing_positive() -> None:
    student, teacher = normal(1), normal(2)
    assert not knows_better(teacher, teacher, LABELS).any()
    assert torch.equal(filtered(student, teacher, teacher, LABELS, alpha=0.0), torch.zeros(5, dtype=torch.float64))
    assert torch.allclose(filtered(student, teacher, teacher, LABELS), unlikelihood(student, teacher, LABELS))


def test_unlikelihood_lowers_what_the_teacher_wrongly_prefers() -> None:
    student, teacher = normal(1).requires_grad_(), normal(2)
    values = unlikelihood(student, teacher, LABELS)
    assert (values >= 0).all()
    p, q = teacher.softmax(-1), student.softmax(-1)
    hot = torch.nn.functional.one_hot(LABELS, 6).bool()
    assert torch.allclose(values, -(p * (1 - q).log()).masked_fill(hot, 0.0).sum(-1))
    sure = torch.full((5, 6), -800.0, dtype=torch.float64)
    sure[range(5), (LABELS + 1) % 6] = 800.0
    assert unlikelihood(sure, teacher, LABELS).isfinite().all()


def test_the_old_counts_more_and_more() -> None:
    assert [new_share(number) for number in (1, 2, 3)] == [1 / 2, 1 / 3, 1 / 4]


def test_smoothed_cross_entropy_is_zero_at_its_target() -> None:
    target = torch.full((5, 6), 0.1 / 5, dtype=torch.float64)
    target[range(5), LABELS] = 0.9
    assert smoothed_cross_entropy(target.log(), LABELS, 0.1).abs().max() < 1e-12
    plain = torch.nn.functional.cross_entropy(normal(1), LABELS, reduction="none")
    assert torch.allclose(smoothed_cross_entropy(normal(1), LABELS, 0.0), plain)


def test_the_rate_is_continuous_and_falls() -> None:
    assert learning_rate(4000, 7e-4, 4000) == pytest.approx(7e-4)
    assert learning_rate(4001, 7e-4, 4000) == pytest.approx(7e-4, rel=1e-3)
    assert learning_rate(16000, 7e-4, 4000) == pytest.approx(3.5e-4)


def test_unknown_tokens_add_nothing() -> None:
    clock = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)
    labels = LABELS.clone()
    labels[2:] = -1
    student, teachers = normal(1), [normal(2), normal(3)]
    batch = Batch(task="translation", ids=("a",), inputs={}, num_items=2)
    signals = [Signals(logits=one) for one in teachers]
    got = Filtration()(Signals(logits=student, labels=labels), signals, batch, clock).total
    expected = filtered(student[:2], teachers[0][:2], teachers[1][:2], LABELS[:2]).mean()
    assert torch.allclose(got, expected)

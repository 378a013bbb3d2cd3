"""The plugin's own test, as its author would write it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdfw.types import Batch, Candidate, Clock, Example, Signals, Text

from kdfw_focal.keep_negatives import KeepNegatives
from kdfw_focal.loss import FocalKL, focal_kl
from kdfw_focal.triangle import Triangle


def clock(step: int, total: int = 8) -> Clock:
    return Clock(step=step, total_steps=total, epoch=0, total_epochs=1, steps_per_epoch=total, seed=0)


def test_focal_kl_by_hand() -> None:
    teacher = torch.tensor([[3.0, 1.0, 100.0]]).log()  # p = (3/4, 1/4), q = (1/2, 1/2); the third is padding
    mask = torch.tensor([[True, True, False]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # 0.130812
    overlap = 0.5 + 0.25
    for gamma in (0.0, 2.0):
        expected = (1 - overlap) ** gamma * divergence
        assert focal_kl(torch.zeros(1, 3), teacher, mask, gamma).item() == pytest.approx(expected, abs=1e-6)


def test_the_temperature_divides_both_sides_and_items_are_averaged() -> None:
    teacher = Signals(logits=torch.stack([2 * torch.tensor([3.0, 1.0]).log(), torch.zeros(2)]))
    student = Signals(logits=torch.zeros(2, 2))
    batch = Batch(task="ranking", ids=("a", "b"), inputs={}, num_items=2.0)
    total = FocalKL(temperature=2.0, gamma=2.0)(student, [teacher], batch, clock(0)).total
    assert total.item() == pytest.approx(0.25**2 * 0.1308120 / 2, abs=1e-7)


def test_agreement_costs_nothing_and_its_gradient_is_finite() -> None:
    student = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    value = focal_kl(student, student.detach().clone(), torch.ones(1, 3, dtype=torch.bool), 2.0)
    value.sum().backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_triangle_by_hand() -> None:
    rise = Triangle(low=1.0, high=5.0, peak=0.25)
    assert [rise(clock(step)) for step in (0, 1, 2, 5)] == pytest.approx([1.0, 3.0, 5.0, 3.0])


def example(negatives: int) -> Example:
    candidates = [Candidate(id="p", text=Text(source=None, made="p"), label=1.0, kind="positive")]
    candidates += [Candidate(id=f"n{n}", text=Text(source=None, made="n")) for n in range(negatives)]
    return Example(id="q", candidates=tuple(candidates))


def test_keep_negatives_keeps_the_positive_and_the_order() -> None:
    found = KeepNegatives(count=2).apply(example(6), clock(0), np.random.default_rng(3))
    ids = [candidate.id for candidate in found.candidates]
    assert len(ids) == 3 and ids[0] == "p" and ids[1:] == sorted(ids[1:])
    draws = {
        tuple(c.id for c in KeepNegatives(count=2).apply(example(6), clock(0), np.random.default_rng(seed)).candidates)
        for seed in range(20)
    }
    assert len(draws) > 5  # another draw, other negatives
    assert len(KeepNegatives(count=9).apply(example(2), clock(0), np.random.default_rng(0)).candidates) == 3

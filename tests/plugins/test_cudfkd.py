"""Invariants of CuDFKD (arXiv:2208.13648)."""

import math

import pytest
import torch
from torch import Tensor

from kdfw_plugins.cudfkd.generator import (
    Generator,
    adversarial_loss,
    class_entropy,
    generator_loss,
    statistics_loss,
)
from kdfw_plugins.cudfkd.schedules import adversarial_weight, age
from kdfw_plugins.cudfkd.student import pace_weights, regulariser, sample_losses


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_log_weights() -> None:
    losses = torch.linspace(0, 6, 13, dtype=torch.float64, requires_grad=True)
    weights = pace_weights(losses, 2.0, "log")
    assert not weights.requires_grad and weights[0].item() == pytest.approx(1.0)
    assert (weights[:-1] > weights[1:]).all() and (weights > 0).all()
    assert pace_weights(torch.tensor([2.0]), 2.0, "log").item() == pytest.approx((1 + math.exp(-2)) / 2)
    assert torch.allclose(pace_weights(losses, 60.0, "log"), torch.ones(13, dtype=torch.float64))


@pytest.mark.parametrize("pace", ["log", "hard", "soft"])
def test_weights_are_the_least_of_what_they_minimise(pace: str) -> None:
    losses, growth = normal(50).abs() * 2, 1.5
    best = pace_weights(losses, growth, pace)  # type: ignore[arg-type]

    def value(weights: Tensor) -> float:
        return float((weights * losses).sum() + regulariser(weights, growth, pace).sum())  # type: ignore[arg-type]

    for seed in range(20):
        other = (best + 0.1 * normal(50, seed=seed)).clamp(0, 1)
        assert value(best) <= value(other) + 1e-9


def test_schedules() -> None:
    assert age(1, 2.0, 1e-4) > age(0, 2.0, 1e-4) == 2.0
    values = [adversarial_weight(epoch, 100, 0.25, 0.75, 0.5, 0.1) for epoch in range(100)]
    assert values[:26] == [0.5] * 26 and values[-1] == pytest.approx(0.5 + 50 * 0.1) and values == sorted(values)


def test_terms_of_the_generator() -> None:
    teacher, student = normal(6, 4), normal(6, 4, seed=1)
    assert class_entropy(torch.zeros(6, 4), 5.0).item() == pytest.approx(math.log(4))
    assert adversarial_loss(teacher, teacher, "kl").abs().item() < 1e-12
    assert adversarial_loss(student, teacher, "kl").item() < 0
    inputs = normal(5, 3, 2, 2)
    mean, variance = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), unbiased=False)
    assert statistics_loss(inputs, mean, variance).item() == 0.0
    assert statistics_loss(inputs, mean + 3, variance).item() == pytest.approx(math.sqrt(27))
    none = torch.zeros(())
    weights = {"temperature": 1.0, "adversarial_weight": 0.0}
    spread = generator_loss(student, torch.eye(4).repeat(2, 1)[:6] * 9, student, none, **weights)
    narrow = generator_loss(student, torch.eye(4)[:1].repeat(6, 1) * 9, student, none, **weights)
    assert spread < narrow, "more classes, lower loss: the entropy weight is negative"


def test_the_generator_has_the_published_size() -> None:
    torch.manual_seed(0)
    module = Generator(latent=1024, side=64, depth=3)
    assert sum(parameter.numel() for parameter in module.parameters()) == 35_139_139
    small = Generator(latent=8, width=2, side=32, depth=2)
    images = small(torch.randn(3, 8)).detach()
    assert images.shape == (3, 3, 32, 32) and (images > 0).all() and (images < 1).all()


def test_distances_are_zero_at_the_teacher() -> None:
    teacher = normal(3, 5)
    for distance in ("kl", "l1", "l2"):
        assert sample_losses(teacher, teacher, distance, 3.0).abs().max() < 1e-12
        assert (sample_losses(teacher.flip(1), teacher, distance, 3.0) > 0).all()

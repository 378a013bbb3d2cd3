"""Invariants of CTKD (arXiv:2211.16231)."""

import math

import pytest
import torch

from kdfw.components import DistillationLoss
from kdfw.errors import ConfigError
from kdfw.losses.kl import KL, kl_divergence
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.ctkd.curriculum import bounded_temperature, cosine_strength, linear_strength, reverse_gradient
from kdfw_plugins.ctkd.loss import InstanceTemperatureKL, offset_kl
from kdfw_plugins.ctkd.temperature import GlobalTemperature, InstanceTemperature


def clock(epoch: int = 20) -> Clock:
    return Clock(step=epoch, total_steps=100, epoch=epoch, total_epochs=100, steps_per_epoch=1, seed=0)


def batch(items: int) -> Batch:
    return Batch(task="classification", ids=tuple(map(str, range(items))), inputs={}, num_items=items)


def logits(items: int = 5, classes: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(items, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def run(loss: DistillationLoss, student: torch.Tensor, epoch: int = 20) -> torch.Tensor:
    teacher = Signals(logits=logits(*student.shape, seed=9))
    return loss(Signals(logits=student), [teacher], batch(len(student)), clock(epoch)).total


def test_curves_by_hand() -> None:
    assert [cosine_strength(n) for n in (0, 5, 10, 300)] == pytest.approx([0, -0.5, -1, -1])
    assert cosine_strength(1) == pytest.approx(-(1 - math.cos(math.pi / 10)) / 2)
    assert linear_strength(10) == pytest.approx(-0.9)
    values = [cosine_strength(n) for n in range(30)]
    assert values == sorted(values, reverse=True)


def test_the_first_epoch_of_the_clock_is_epoch_one() -> None:
    assert GlobalTemperature().strength(clock(0)) == pytest.approx(-0.02447174185242318)


def test_reversal_keeps_values_and_scales_the_gradient() -> None:
    x = logits().requires_grad_()
    y = reverse_gradient(x, -0.3)
    assert torch.equal(y, x)
    upstream = logits(seed=1)
    (gradient,) = torch.autograd.grad((y * upstream).sum(), x)
    assert torch.allclose(gradient, -0.3 * upstream)


def test_temperature_stays_inside_its_bounds() -> None:
    raw = torch.linspace(-20, 20, 101, dtype=torch.float64)
    values = bounded_temperature(raw)
    assert bool((values > 1).all()) and bool((values < 21).all())
    assert GlobalTemperature()(clock()) == pytest.approx(1 + 20 / (1 + math.exp(-1)), rel=1e-6)


def test_the_student_gradient_does_not_depend_on_the_reversal() -> None:
    student = logits(seed=3).requires_grad_()
    gradients = []
    for epoch in (0, 4, 30):
        (gradient,) = torch.autograd.grad(run(KL(temperature=GlobalTemperature().double()), student, epoch), student)
        gradients.append(gradient)
    temperature = GlobalTemperature().double()(clock())
    teacher = logits(seed=9)
    by_hand = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)) / len(student)
    for gradient in gradients:
        assert torch.allclose(gradient, by_hand.detach(), atol=1e-12)


@pytest.mark.parametrize(("strongest", "rises"), [(-1.0, True), (0.0, False)])
def test_a_step_on_theta_alone_raises_the_loss(strongest: float, rises: bool) -> None:
    temperature = GlobalTemperature(strongest=strongest).double()
    loss = KL(temperature=temperature)
    assert any(parameter is temperature.theta for parameter in loss.parameters()), "it trains with the loss"
    student = logits(seed=3)
    before = run(loss, student)
    before.backward()
    assert temperature.theta.grad is not None
    with torch.no_grad():
        temperature.theta -= 0.01 * temperature.theta.grad
    assert bool(run(loss, student) > before) is rises


def test_equal_temperatures_give_the_plain_kl_up_to_the_offset() -> None:
    student, teacher = logits(seed=3), logits(seed=9)
    everything = torch.ones_like(student, dtype=torch.bool)
    ours = offset_kl(student, teacher, everything, torch.full((5,), 3.0, dtype=torch.float64))
    assert torch.allclose(ours, 9 * kl_divergence(student / 3, teacher / 3, everything), atol=1e-4)
    assert not torch.equal(ours, offset_kl(student, teacher, everything, 3.0, offset=0.0))


def test_instance_kl_goes_with_its_items_and_ignores_padding() -> None:
    student, teacher, temperature = logits(seed=3), logits(seed=9), torch.rand(5, dtype=torch.float64) * 5 + 1
    mask = torch.ones_like(student, dtype=torch.bool)
    order = torch.tensor([3, 1, 4, 0, 2])
    values = offset_kl(student, teacher, mask, temperature)
    assert torch.allclose(offset_kl(student[order], teacher[order], mask, temperature[order]), values[order])
    mask[:, -2:] = False
    short = offset_kl(student[:, :-2], teacher[:, :-2], mask[:, :-2], temperature)
    assert torch.allclose(offset_kl(student, teacher, mask, temperature), short)


def test_instance_temperature_is_one_number_an_item_and_trains_only_its_network() -> None:
    torch.manual_seed(0)
    module = InstanceTemperature(alternatives=9).double()
    student = logits(seed=3).requires_grad_()
    signals = Signals(logits=student)
    values = module.at(clock(), signals, [Signals(logits=logits(seed=9))])
    assert values.shape == (5,) and bool((values > 1).all()) and len(set(values.tolist())) == 5
    gradients = torch.autograd.grad(values.sum(), [student, *module.parameters()], allow_unused=True)
    assert gradients[0] is None
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients[1:])
    total = run(InstanceTemperatureKL(temperature=module), student)
    assert bool(total > 0)


def test_instance_temperature_refuses_wider_logits() -> None:
    module = InstanceTemperature(alternatives=3)
    with pytest.raises(ConfigError, match="set alternatives: 7"):
        module.at(clock(), Signals(logits=logits()), [Signals(logits=logits())])

"""Invariants of CTKD (arXiv:2211.16231)."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfw.components import DistillationLoss, Model
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


@given(ramp=st.integers(1, 300), curve=st.sampled_from([cosine_strength, linear_strength]))
def test_the_adversary_grows_from_nothing_and_never_weakens(ramp: int, curve: Any) -> None:
    values = [curve(n, ramp_epochs=ramp) for n in range(ramp + 3)]
    assert values[0] == pytest.approx(0) and values == sorted(values, reverse=True) and min(values) >= -1
    last = -1 if curve is cosine_strength else -(ramp - 1) / ramp
    assert values[ramp] == values[ramp + 2] == pytest.approx(last)
    assert cosine_strength(ramp / 2, ramp_epochs=ramp) == pytest.approx(-0.5)


def test_the_first_epoch_of_the_clock_is_epoch_one() -> None:
    assert GlobalTemperature().strength(clock(0)) == pytest.approx(-0.02447174185242318)


def test_reversal_keeps_values_and_scales_the_gradient() -> None:
    x = logits().requires_grad_()
    y = reverse_gradient(x, -0.3)
    assert torch.equal(y, x)
    upstream = logits(seed=1)
    (gradient,) = torch.autograd.grad((y * upstream).sum(), x)
    assert torch.allclose(gradient, -0.3 * upstream)


@given(raw=st.floats(-20, 20), lowest=st.floats(0.01, 5), span=st.floats(0.1, 50))
def test_temperature_stays_inside_its_bounds(raw: float, lowest: float, span: float) -> None:
    value = bounded_temperature(torch.tensor(raw, dtype=torch.float64), lowest=lowest, span=span).item()
    assert lowest < value < lowest + span


def test_the_temperature_starts_where_the_released_code_starts() -> None:
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


@settings(deadline=None)
@given(seed=st.integers(0, 1000), theta=st.floats(-3, 3), strength=st.sampled_from([-1.0, -0.3, 0.0, 0.7]))
def test_a_step_on_theta_moves_the_loss_against_the_strength(seed: int, theta: float, strength: float) -> None:
    student, teacher = logits(seed=seed), logits(seed=seed + 1)
    everything = torch.ones_like(student, dtype=torch.bool)

    def value(raw: torch.Tensor) -> torch.Tensor:
        temperature = bounded_temperature(reverse_gradient(raw, strength))
        return temperature**2 * kl_divergence(student / temperature, teacher / temperature, everything).mean()

    raw = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    before = value(raw)
    (gradient,) = torch.autograd.grad(before, raw)
    if strength == 0.0:
        assert gradient.item() == 0.0
    elif abs(gradient.item()) > 1e-2:
        after = value(raw.detach() - 1e-4 * gradient.sign())
        assert bool(after > before) is (strength < 0)


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


@settings(deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(1, 21), classes=st.integers(2, 12))
def test_equal_temperatures_give_the_plain_kl_up_to_the_offset(seed: int, temperature: float, classes: int) -> None:
    student, teacher = logits(5, classes, seed), logits(5, classes, seed + 1)
    everything = torch.ones_like(student, dtype=torch.bool)
    ours = offset_kl(student, teacher, everything, torch.full((5,), temperature, dtype=torch.float64))
    plain = temperature**2 * kl_divergence(student / temperature, teacher / temperature, everything)
    assert torch.allclose(ours, plain, atol=1e-4 * temperature)
    assert torch.allclose(offset_kl(student, teacher, everything, temperature, offset=0.0), plain)
    assert not torch.equal(ours, plain)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(5)))
def test_instance_kl_goes_with_its_items_and_ignores_padding(seed: int, order: list[int]) -> None:
    student, teacher = logits(seed=seed), logits(seed=seed + 1)
    temperature = logits(5, 1, seed + 2)[:, 0].abs() + 1
    mask = torch.ones_like(student, dtype=torch.bool)
    values = offset_kl(student, teacher, mask, temperature)
    assert torch.allclose(offset_kl(student[order], teacher[order], mask, temperature[order]), values[order])
    mask[:, -2:] = False
    short = offset_kl(student[:, :-2], teacher[:, :-2], mask[:, :-2], temperature)
    assert torch.allclose(offset_kl(student, teacher, mask, temperature), short)


def instance(**options: Any) -> InstanceTemperature:
    """With its network drawn."""
    torch.manual_seed(0)
    module = InstanceTemperature(**options)
    module.setup(Model(), [])
    return module.double()


def test_instance_temperature_is_one_number_an_item_and_trains_only_its_network() -> None:
    module = instance(alternatives=9)
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
    module = instance(alternatives=3)
    with pytest.raises(ConfigError, match="set alternatives: 7"):
        module.at(clock(), Signals(logits=logits()), [Signals(logits=logits())])


def test_the_network_is_drawn_in_setup_and_a_candidate_without_a_score_is_none() -> None:
    assert not list(InstanceTemperature(alternatives=9).parameters())
    module = instance(alternatives=9, hidden=4)
    assert {tuple(p.shape) for p in module.parameters()} == {(4, 18), (4,), (1, 4), (1,)}
    student, teacher = logits(seed=3), logits(seed=9)
    short = module.at(clock(), Signals(logits=student), [Signals(logits=teacher[:, :-1])])
    teacher[:, -1] = math.nan
    assert torch.allclose(module.at(clock(), Signals(logits=student), [Signals(logits=teacher)]), short)
    teacher[:, -1] = 7.0
    mask = torch.ones_like(teacher, dtype=torch.bool)
    mask[:, -1] = False
    masked = module.at(clock(), Signals(logits=student), [Signals(logits=teacher, mask=mask)])
    assert torch.allclose(masked, short)


@pytest.mark.parametrize("make", [GlobalTemperature, lambda: instance(alternatives=7)])
def test_the_logged_temperature_of_shares_adds_up_to_its_mean(make: Any) -> None:
    loss = KL(temperature=make().double())
    student, teacher = logits(seed=3), logits(seed=9)
    whole = loss(Signals(logits=student), [Signals(logits=teacher)], batch(5), clock())
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        share = Batch(task="translation", ids=("a", "b"), inputs={}, num_items=5)
        parts.append(loss(Signals(logits=student[rows]), [Signals(logits=teacher[rows])], share, clock()))
    assert 1 < float(whole.parts["temperature"]) < 21
    assert sum(float(part.parts["temperature"]) for part in parts) == pytest.approx(float(whole.parts["temperature"]))
    assert sum(float(part.total.detach()) for part in parts) == pytest.approx(float(whole.total.detach()))


def test_a_pair_has_no_distribution() -> None:
    assert "pairs" not in InstanceTemperatureKL().needs.tasks
    assert "pairs" in InstanceTemperatureKL(signal="batch_logits").needs.tasks

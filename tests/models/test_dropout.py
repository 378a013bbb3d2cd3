"""Which values dropout keeps: how many, which ones again, and by whom."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdfw.models.dropout import Part, drawing, gain, kept

CPU = torch.device("cpu")
MANY = (1000, 1001)


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.1, 1 / 3, 0.5, 0.9, 0.99999, 1.0])
def test_as_many_are_dropped_as_asked_for(probability: float):
    torch.manual_seed(3)
    dropped = 1 - kept(MANY, probability, CPU).double().mean().item()
    deviation = math.sqrt(probability * (1 - probability) / math.prod(MANY))
    assert dropped == pytest.approx(probability, abs=5 * deviation + 1 / (1 << 16))


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_values_are_dropped_independently(probability: float):
    torch.manual_seed(4)
    left = kept(MANY, probability, CPU).double() - (1 - probability)
    variance = probability * (1 - probability)
    for distance in (1, 2, 3, 4, 5, 8, 16, 1001):
        flat = left.flatten()
        together = (flat[:-distance] * flat[distance:]).mean().item() / variance
        assert abs(together) < 5 / math.sqrt(flat.numel())


def test_draws_follow_torch_s_seed_and_differ_from_call_to_call():
    torch.manual_seed(5)
    first, second = kept(MANY, 0.5, CPU), kept(MANY, 0.5, CPU)
    torch.manual_seed(5)
    assert torch.equal(kept(MANY, 0.5, CPU), first) and not torch.equal(first, second)
    torch.manual_seed(6)
    assert not torch.equal(kept(MANY, 0.5, CPU), first)


@pytest.mark.parametrize("shape", [(7,), (1, 1), (0, 4), (3, 5, 2)])
def test_every_shape(shape: tuple[int, ...]):
    assert kept(shape, 0.5, CPU).shape == shape and kept(shape, 0.5, CPU).dtype is torch.bool


def test_the_mean_stays():
    torch.manual_seed(7)
    ones = torch.ones(MANY)
    with drawing(Part(begin=0, rows=1000, whole=1000)):
        found = nn.functional.dropout(ones, 0.1)
        written = nn.functional.dropout(ones.clone(), 0.1, inplace=True)
    assert found.unique().tolist() == [0.0, pytest.approx(gain(0.1))]
    for each in (found, written):
        assert each.double().mean().item() == pytest.approx(1.0, abs=2e-3)


def test_the_gradient_passes_where_the_value_did():
    torch.manual_seed(8)
    inputs = torch.randn(50, 20, requires_grad=True)
    with drawing(Part(begin=0, rows=50, whole=50)):
        found = nn.functional.dropout(inputs, 0.3)
    found.sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad * inputs.detach(), found.detach())
    assert 0 < int((inputs.grad == 0).sum()) < inputs.numel()


def test_parts_of_a_micro_batch_draw_what_the_whole_draws():
    torch.manual_seed(9)
    with drawing(Part(begin=0, rows=6, whole=6)):
        whole = kept((12, 3, 5), 0.4, CPU)  # two heads a row
    for begin, rows in ((0, 1), (1, 3), (4, 2)):
        torch.manual_seed(9)
        with drawing(Part(begin=begin, rows=rows, whole=6)):
            part = kept((2 * rows, 3, 5), 0.4, CPU)
        assert torch.equal(part, whole[2 * begin : 2 * (begin + rows)])

"""Token tables with the short gradient: the numbers of `nn.Embedding`, whatever they are accumulated with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kdfw.models import embedding

ROWS, WIDTH = 9000, 128


def table(padding_idx: int | None = None, *, short: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(ROWS, WIDTH, padding_idx=padding_idx))
    assert not short or embedding.prepare(model)
    return model


def accumulated(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """The gradient of the weights after a backward pass for each batch."""
    for number, ids in enumerate(batches):
        weights = torch.linspace(-1, 1, ids.numel() * WIDTH).view(*ids.shape, WIDTH) + number
        (model(ids) * weights).sum().backward()
    (weight,) = model.parameters()
    assert weight.grad is not None and weight.grad.layout is torch.strided
    return weight.grad


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_gradients_are_those_of_torch(padding_idx: int | None) -> None:
    torch.manual_seed(1)
    batches = [torch.randint(0, 50, (7, 33)) for _ in range(3)]  # ids repeat within and between batches
    expected = accumulated(table(padding_idx, short=False), batches)
    found = accumulated(table(padding_idx, short=True), batches)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    assert expected[1:50].abs().sum(1).min() > 0 and expected[50:].abs().max() == 0
    assert bool((found[0] == 0).all()) is (padding_idx == 0)
    assert torch.equal(found, accumulated(table(padding_idx, short=True), batches)), "the same bits each time"


def test_gradients_join_those_of_a_tied_output_layer() -> None:
    def gradient(short: bool) -> Tensor:
        model = table(short=short)
        (weight,) = model.parameters()
        ids = torch.arange(20).view(2, 10)
        for _ in range(2):
            states = model(ids)
            (states @ weight.T)[..., :30].square().mean().backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_it_is_an_embedding_in_all_else() -> None:
    model = table(short=True)
    ids = torch.tensor([[3, 3, 8999]])
    assert isinstance(model[0], nn.Embedding)
    assert torch.equal(model(ids), table(short=False)(ids))
    twin = copy.deepcopy(model)
    twin(ids).sum().backward()
    assert model[0].weight.grad is None and twin[0].weight.grad is not None
    assert list(model.state_dict()) == ["0.weight"]
    with torch.no_grad():
        assert not model(ids).requires_grad


def test_small_and_unusual_tables_are_left_alone() -> None:
    model = nn.ModuleList(
        [nn.Embedding(100, 8), nn.Embedding(ROWS, WIDTH, sparse=True), nn.Embedding(ROWS, WIDTH, max_norm=1.0)]
    )
    assert not embedding.prepare(model)
    assert all(type(part) is nn.Embedding for part in model)

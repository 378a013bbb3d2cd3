"""Token tables with the short gradient: the numbers of `nn.Embedding`, whatever they are accumulated with."""

from __future__ import annotations

import copy
from pathlib import Path

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


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_a_gradient_can_be_differentiated_again(padding_idx: int | None) -> None:
    def second(short: bool) -> Tensor:
        model = table(padding_idx, short=short)
        (weight,) = model.parameters()
        ids = torch.tensor([[3, 4, 3], [5, 6, 7]])
        (first,) = torch.autograd.grad(model(ids).pow(3).sum(), [weight], create_graph=True)
        first.square().sum().backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(second(True), second(False))


def test_weights_that_another_tensor_stands_in_for() -> None:
    ids = torch.tensor([[3, 3, 8999]])

    def gradients(model: nn.Module) -> tuple[Tensor, Tensor]:
        (weight,) = model.parameters()

        def loss(tensor: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(model, {"0.weight": tensor}, (ids,)).square().sum()
            return found

        loss(2 * weight).backward()  # no leaf: a warning, and no `.grad` to add to
        assert weight.grad is not None
        return weight.grad, torch.func.grad(loss)(weight.detach())

    for found, expected in zip(gradients(table(short=True)), gradients(table(short=False)), strict=True):
        torch.testing.assert_close(found, expected)


def test_short_ids_and_half_precision() -> None:
    def gradient(short: bool) -> Tensor:
        model = table(short=short).bfloat16()
        for _ in range(2):
            model(torch.tensor([[3, 3, 8999]], dtype=torch.int32)).square().sum().backward()
        (weight,) = model.parameters()
        assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
        return weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_a_table_that_was_enlarged_keeps_the_short_way(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=ROWS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = BertForMaskedLM(config)
    assert embedding.prepare(model)
    model.resize_token_embeddings(ROWS + 5, mean_resizing=False)
    found = model.get_input_embeddings()
    assert type(found) is embedding._Table and found.weight is model.cls.predictions.decoder.weight
    for _ in range(2):
        model(torch.tensor([[0, ROWS + 4, 7]])).logits.square().mean().backward()
    assert found.weight.grad.shape == (ROWS + 5, WIDTH) and bool(found.weight.grad[ROWS + 4].any())
    model.save_pretrained(tmp_path)
    assert torch.equal(BertForMaskedLM.from_pretrained(tmp_path).get_input_embeddings().weight, found.weight)


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

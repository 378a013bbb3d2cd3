"""Invariants of FGD as reconstructed here (arXiv:2212.10423)."""

import torch
from torch import Tensor

from kdfw.losses.kl import kl_divergence
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.fgd.loss import Granular, granular_values
from kdfw_plugins.fgd.units import cut_spans, pack_sentences, unit_vectors

CLOCK = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_units_are_means_of_their_own_states() -> None:
    states = normal(9, 4)
    found = unit_vectors(states, {"passage": [(1, 8)], "sentence": [(1, 2), (2, 8)]})
    assert torch.equal(found["document"], states[0])
    assert torch.allclose(found["passage"][0], states[1:8].mean(0)) and torch.equal(found["sentence"][0], states[1])
    assert cut_spans([(1, 4), (4, 9), (9, 12)], 9) == [(1, 4), (4, 9)]
    assert pack_sentences([50, 50, 50, 200, 10], 128) == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_padding_units_and_their_order_change_nothing() -> None:
    student, teacher = normal(2, 6).requires_grad_(), normal(2, 6, seed=1)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    values = granular_values(student, teacher, mask, 2.0)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient[1, 4:].abs().sum() == 0 and gradient.sum(-1).abs().max() < 1e-9
    short = granular_values(student[1:, :4], teacher[1:, :4], mask[1:, :4], 2.0)
    assert torch.allclose(values[1], short[0])
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    moved = granular_values(student[:1, order], teacher[:1, order] + 7, mask[:1], 2.0)
    assert torch.allclose(moved, values[:1])
    assert granular_values(teacher + 1, teacher, mask).abs().max() < 1e-9


def test_the_document_alone_is_plain_distillation() -> None:
    student, teacher = normal(2, 3), normal(2, 3, seed=1)
    batch = Batch(task="ranking", ids=("a", "b"), inputs={}, num_items=2)
    loss = Granular(weights={"document": 1.0})
    total = loss(Signals(logits=student), [Signals(logits=teacher)], batch, CLOCK).total
    assert torch.allclose(total, kl_divergence(student, teacher, torch.ones(2, 3, dtype=torch.bool)).mean())
    assert Granular(weights={"sentence": 0.5}).needs.student == frozenset({"logits/sentence"})

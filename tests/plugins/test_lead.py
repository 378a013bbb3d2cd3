"""Invariants of LEAD (arXiv:2212.05225)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdfw.errors import ConfigError
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.lead.layers import choose_layers, draw_layers, layer_weights
from kdfw_plugins.lead.loss import LayerDistillation, ResponseDistillation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clock(step: int = 0) -> Clock:
    return Clock(step=step, total_steps=100, epoch=0, total_epochs=1, steps_per_epoch=100, seed=3)


def batch() -> Batch:
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    candidates = torch.tensor([[0, 1], [2, 3]])
    return Batch(task="ranking", ids=("a", "b"), inputs={}, num_items=2, candidates=candidates, labels=labels)


def signals(layers: int, width: int, seed: int) -> Signals:
    queries, passages = normal(2, layers, width, seed=seed), normal(4, layers, width, seed=seed + 1)
    extra = {"query_hidden": queries, "passage_hidden": passages}
    return Signals(logits=normal(2, 2, seed=seed + 2), extra=extra)


def test_weights_of_layers() -> None:
    losses = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64, requires_grad=True)
    weights = layer_weights(losses, 10.0)
    assert not weights.requires_grad and weights.sum().item() == pytest.approx(1.0)
    assert weights.argmax() == 2 and weights.argmin() == 1
    assert torch.allclose(layer_weights(torch.ones(4), 10.0), torch.full((4,), 0.25))
    assert layer_weights(losses, 1e-3)[2].item() == pytest.approx(1.0)


def test_layers_are_distinct_in_order_and_in_range() -> None:
    for seed in range(30):
        drawn = draw_layers(6, 4, np.random.default_rng(seed))
        assert drawn == sorted(set(drawn)) and len(drawn) == 4 and 0 <= drawn[0] and drawn[-1] <= 5
    assert choose_layers("last", 6, 12, 3, np.random.default_rng(0)) == ([3, 4, 5], [9, 10, 11])
    assert choose_layers("skip", 6, 12, 3, np.random.default_rng(0)) == ([3, 4, 5], [7, 9, 11])


def test_a_model_is_its_own_perfect_teacher() -> None:
    own = signals(6, 8, 0)
    same = LayerDistillation(num_layers=6)(own, [own], batch(), clock()).total
    assert same.abs().item() < 1e-12
    assert LayerDistillation(num_layers=3)(own, [signals(12, 5, 9)], batch(), clock()).total.item() > 0


def test_the_draw_changes_every_so_many_steps_and_is_the_same_everywhere() -> None:
    loss = LayerDistillation(num_layers=3, redraw_every=10)
    draws = [loss.layers(clock(step), 6, 12) for step in range(40)]
    assert draws[:10] == [draws[0]] * 10 and len({str(draw) for draw in draws}) > 1
    assert loss.layers(clock(17), 6, 12) == LayerDistillation(num_layers=3).layers(clock(17), 6, 12)
    with pytest.raises(ConfigError, match="lower num_layers"):
        LayerDistillation(num_layers=7).layers(clock(), 6, 12)


@pytest.mark.parametrize("mutual", [True, False])
def test_a_training_teacher_gets_gradient(mutual: bool) -> None:
    ours, theirs = normal(2, 4).requires_grad_(), normal(2, 4, seed=1).requires_grad_()
    given: Any = [Signals(extra={"batch_logits": theirs})]
    total = ResponseDistillation(mutual=mutual)(Signals(extra={"batch_logits": ours}), given, batch(), clock()).total
    gradients = torch.autograd.grad(total, [ours, theirs])
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
    p, q = theirs.softmax(-1), ours.softmax(-1)
    there = (p * (p.log() - q.log())).sum(-1).mean()
    back = (q * (q.log() - p.log())).sum(-1).mean()
    assert torch.allclose(total, there + back if mutual else there)

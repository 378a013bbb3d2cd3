"""Invariants of CERBERUS (arXiv:2201.05767)."""

import torch
from torch import Tensor, nn

from kdfw_plugins.cerberus.heads import combine_heads, head_logits
from kdfw_plugins.cerberus.loss import head_values

LABELS = torch.tensor([0, 1, 1, 0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_averages_are_probabilities_and_ignore_the_order_of_heads() -> None:
    logits = normal(3, 4, 2)
    output = combine_heads(logits)
    assert torch.allclose(output.sum(-1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(combine_heads(logits[[2, 0, 1]]), output)
    assert torch.allclose(combine_heads(logits[:1].repeat(3, 1, 1)), logits[0].softmax(-1))
    assert not torch.allclose(combine_heads(logits, "logits").softmax(-1), output)


def test_a_head_learns_from_its_own_teacher_only() -> None:
    heads, teachers = normal(3, 4, 2).requires_grad_(), normal(3, 4, 2, seed=1)
    values = head_values(heads, teachers, LABELS, 3.0, 0.1)
    (gradient,) = torch.autograd.grad(values[1].sum(), heads, retain_graph=True)
    assert gradient[1].abs().sum() > 0 and gradient[[0, 2]].abs().sum() == 0
    swapped = head_values(heads, teachers[[1, 0, 2]], LABELS, 3.0, 0.1)
    assert torch.equal(swapped[2], values[2]) and not torch.allclose(swapped[0], values[0])


def test_both_ends_of_the_label_weight() -> None:
    heads, teachers = normal(2, 4, 2), normal(2, 4, 2, seed=1)
    assert torch.allclose(head_values(heads, teachers, LABELS, 3.0, 1.0), head_values(heads, heads, LABELS, 3.0, 1.0))
    assert head_values(heads, heads, LABELS, 3.0, 0.0).abs().max() < 1e-12


def test_the_body_is_shared_and_the_heads_are_not() -> None:
    torch.manual_seed(0)
    models = [[nn.Linear(4, 4).double() for _ in range(3)] for _ in range(2)]
    classifiers = [lambda hidden: hidden[:, 0, :2]] * 2
    logits = head_logits(normal(3, 2, 4), models, classifiers, num_shared=2)
    unused = [*models[1][0].parameters(), *models[1][1].parameters()]
    used = [*models[0][0].parameters(), *models[0][2].parameters(), *models[1][2].parameters()]
    gradients = torch.autograd.grad(logits.sum(), [*used, *unused], allow_unused=True)
    assert all(gradient is not None for gradient in gradients[: len(used)])
    assert all(gradient is None for gradient in gradients[len(used) :])

"""Invariants of DCD (arXiv:2207.01426)."""

import torch
from torch import Tensor

from kdfw_plugins.dcd.loss import certainty_weights, dynamic_terms, entropy_shares, hardest


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_positive_is_first_wherever_it_ranks() -> None:
    teacher = normal(4, 9)
    columns = hardest(teacher, 5)
    assert columns.shape == (4, 6) and (columns[:, 0] == 0).all()
    moved = teacher.clone()
    moved[:, 0] = -99.0
    assert torch.equal(hardest(moved, 5), columns)
    scores = teacher.gather(1, columns[:, 1:])
    assert (scores[:, :-1] >= scores[:, 1:]).all() and all(len(set(row)) == 6 for row in columns.tolist())


def test_the_less_sure_the_teacher_the_more_the_label_counts() -> None:
    teacher = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    shares, weights = entropy_shares(teacher), certainty_weights(entropy_shares(teacher))
    assert shares.argsort().tolist() == [0, 1, 2] and weights.argsort().tolist() == [2, 1, 0]
    assert torch.allclose(shares.sum(), weights.sum())
    equal = entropy_shares(torch.zeros(4, 3))
    assert torch.allclose(equal, torch.full((4,), 0.25)) and torch.allclose(certainty_weights(equal), equal)


def test_a_constant_on_the_teacher_moves_only_the_distillation() -> None:
    student, teacher = normal(3, 5), normal(3, 5, seed=1)
    distill, task = dynamic_terms(student, teacher)
    moved, same = dynamic_terms(student, teacher + 2.0)
    assert torch.allclose(task, same) and not torch.allclose(distill, moved)
    assert dynamic_terms(teacher, teacher)[0].item() == 0.0


def test_gradient_of_the_weighted_form() -> None:
    student, teacher = normal(3, 5).requires_grad_(), normal(3, 5, seed=1)
    (gradient,) = torch.autograd.grad(dynamic_terms(student, teacher)[0], student)
    weights = certainty_weights(entropy_shares(teacher))[:, None]
    assert torch.allclose(gradient, (2 * weights * (student - teacher) / 5).detach())

"""Invariants of AR2 (arXiv:2110.03611)."""

import math

import numpy as np
import torch
from torch import Tensor

from kdfw_plugins.ar2.loss import retriever_terms, reward
from kdfw_plugins.ar2.phases import laplace_weights, phase_at, phase_runs, probabilities, quadratic_weights


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_reward_falls_with_the_candidates_score_and_ignores_constants() -> None:
    ranker = normal(3, 6)
    values = reward(ranker)
    assert torch.allclose(values[:, 0], torch.full((3,), math.log(0.5 + 1e-7), dtype=torch.float64))
    assert torch.allclose(reward(ranker + 4), values) and (values <= 1e-6).all()
    assert torch.equal(values.argsort(-1), ranker.argsort(-1, descending=True))


def test_distillation_is_least_at_the_ranker_and_rows_of_the_gradient_vanish() -> None:
    mask = torch.ones(3, 6, dtype=torch.bool)
    ranker, student = normal(3, 6), normal(3, 6, seed=1).requires_grad_()
    least, _ = retriever_terms(ranker, ranker, mask)
    values, against = retriever_terms(student, ranker, mask)
    assert torch.allclose(least, torch.special.entr(ranker.softmax(-1)).sum(-1), atol=1e-5)
    assert (values > least).all()
    (gradient,) = torch.autograd.grad((values + against).sum(), student)
    assert gradient.sum(-1).abs().max() < 1e-9 < gradient.abs().max()


def test_padding_changes_nothing() -> None:
    ranker, student = normal(3, 6), normal(3, 6, seed=1)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, 4:] = False
    short = retriever_terms(student[:, :4], ranker[:, :4], mask[:, :4])
    assert all(torch.allclose(a, b) for a, b in zip(retriever_terms(student, ranker, mask), short, strict=True))


def test_each_iteration_starts_with_one_ranker_step_more() -> None:
    assert phase_runs(45, 20, 5) == [("ranker", 6), ("retriever", 14), ("ranker", 6), ("retriever", 14), ("ranker", 5)]
    assert [phase_at(step, 20, 5) for step in (0, 5, 6, 19, 20)] == [
        *("ranker", "ranker", "retriever", "retriever", "ranker")
    ]


def test_negatives_near_the_positive_are_preferred() -> None:
    scores = np.asarray([1.0, 4.0, 5.0, 9.0])
    for weights in (quadratic_weights(scores, 5.0), laplace_weights(scores, 5.0)):
        shares = probabilities(weights)
        assert shares.argmax() == 2 and shares.argmin() == 0 or shares.argmin() == 3
        assert np.isclose(shares.sum(), 1.0)
    assert quadratic_weights(scores, 5.0, b=1.0).argmax() == 1
    assert probabilities(np.zeros(4)).tolist() == [0.25] * 4

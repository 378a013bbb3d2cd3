"""Invariants of E5 (arXiv:2212.03533)."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdfw_plugins.e5.contrastive import contrastive_scores
from kdfw_plugins.e5.data import consistency_ranks, group, trusted_positives
from kdfw_plugins.e5.pooling import pool
from kdfw_plugins.e5.ranker import r_drop_values, ranker_values
from kdfw_plugins.e5.temperature import score_scale


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_full_form_has_three_more_columns_but_no_pair_with_itself() -> None:
    queries, passages = normal(4, 6), normal(8, 6, seed=1)
    positives = torch.arange(4) * 2
    scores = contrastive_scores(queries, passages, positives)
    assert scores.shape == (4, 8 + 3 * 4) and scores.isfinite().sum(-1).tolist() == [8 + 3 * 3] * 4
    assert torch.equal(contrastive_scores(queries, passages, positives, full=False), queries @ passages.T)
    assert scores[1, 8].item() == pytest.approx((passages[2] @ queries[0]).item())


def test_uniform_scores_give_the_logarithm_of_their_number() -> None:
    same = torch.ones(5, 3)
    scores = contrastive_scores(same, same, torch.arange(5), full=False)
    assert torch.nn.functional.cross_entropy(scores, torch.arange(5)).item() == pytest.approx(math.log(5))


def test_the_scale_rises_to_its_end() -> None:
    scales = [score_scale(step, 0.02, 100) for step in range(0, 200, 5)]
    assert scales == sorted(scales) and scales[0] == 1.0 and scales[-1] == pytest.approx(50.0)


def test_consistency_by_hand() -> None:
    pool_vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    own = torch.tensor([[2.0, 0.0], [0.5, 0.5]])
    ranks = consistency_ranks(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), own, pool_vectors)
    assert ranks.tolist() == [1, 3]
    more = torch.cat([pool_vectors, pool_vectors])
    twice = consistency_ranks(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), more)
    assert twice.item() == 5


def test_groups_rotate_and_come_back() -> None:
    negatives = list("abcdef")
    shown = [group(["p", "q"], negatives, 4, epoch) for epoch in range(4)]
    assert shown[0] == ["p", "a", "b", "c", "d"] and shown[1] == ["q", "e", "f", "a", "b"]
    assert shown[3][1:] == shown[0][1:]
    assert trusted_positives(["p", "q", "r"], [1.0, 0.5, 2.0], [0.7]) == ["p", "r"]


def test_masked_positions_do_not_change_the_vector() -> None:
    hidden, mask = normal(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    other = hidden.clone()
    other[0, 3], other[1, 2:] = 9.0, 9.0
    for how in ("avg", "weightedavg", "last"):
        assert torch.equal(pool(other, mask, how), pool(hidden, mask, how))
    assert torch.allclose(pool(hidden, mask, "weightedavg")[1], (hidden[1, 0] + 2 * hidden[1, 1]) / 3)
    scaled = normalize(pool(hidden * 5, mask, "avg"), dim=-1)
    assert torch.allclose(scaled, normalize(pool(hidden, mask, "avg"), dim=-1))


def test_two_equal_passes_are_one() -> None:
    logits = normal(3, 5)
    assert torch.allclose(r_drop_values(logits, logits), ranker_values(logits))
    assert (r_drop_values(logits, -logits) > 0.5 * (ranker_values(logits) + ranker_values(-logits))).all()

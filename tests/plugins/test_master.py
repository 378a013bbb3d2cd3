"""Invariants of MASTER (arXiv:2212.07841)."""

import numpy as np
import torch

from kdfw.models.bottleneck import word_groups
from kdfw_plugins.master.finetune import distillation_values
from kdfw_plugins.master.masking import complementary, draw_by_weight, keyword_weights, mask_keywords

TOKENS = ["play", "##ing", "[SEP]", "the", "rare", "##st", "##ness", "word", "the", "end"]


def test_words_keep_their_pieces_and_specials_belong_to_none() -> None:
    assert word_groups(TOKENS) == [[0, 1], [3], [4, 5, 6], [7], [8], [9]]


def test_rare_words_weigh_more() -> None:
    _, weights = keyword_weights(TOKENS, {"the": 1000, "play##ing": 10, "word": 100})
    assert weights == [0.1, 0.001, 1, 0.01, 0.001, 1]


def test_keyword_masks_reach_their_budget_and_cover_whole_words() -> None:
    frequency = {"the": 1000, "word": 3}
    hits = np.zeros(len(TOKENS))
    for seed in range(200):
        mask = mask_keywords(TOKENS, frequency, 0.5, draw_by_weight(np.random.default_rng(seed)))
        assert sum(mask) >= round(0.5 * 9) and mask[2] == 0
        assert all(len({mask[position] for position in group}) == 1 for group in word_groups(TOKENS))
        hits += mask
    assert hits[3] < hits[7] < hits[9]


def test_two_masks_complete_each_other() -> None:
    order = [5, 0, 2, 1, 3, 4]
    first, second = complementary(TOKENS, order)
    assert [a + b for a, b in zip(first, second, strict=True)] == [1] * len(TOKENS)
    assert sum(first) <= round(0.5 * len(TOKENS))


def test_distillation_is_least_at_the_ranker_and_leaves_it_alone() -> None:
    ranker = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    mask = torch.ones(2, 5, dtype=torch.bool)
    least = distillation_values(ranker.detach(), ranker, mask)
    assert torch.allclose(least, torch.special.entr(ranker.softmax(-1)).sum(-1), atol=1e-5)
    assert not least.requires_grad and (distillation_values(-ranker.detach(), ranker, mask) > least).all()

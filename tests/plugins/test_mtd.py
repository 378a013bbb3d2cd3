"""Invariants of MTD (arXiv:2112.01048)."""

import numpy as np
import torch

from kdfw.losses.kl import kl_divergence
from kdfw_plugins.mtd.losses import mean_teacher_kl
from kdfw_plugins.mtd.selection import consensus, micro_scores, most_confident


def test_the_split_is_a_partition_and_ignores_order_and_scale() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 40, 4))
    chosen, labels, rest = consensus(logits)
    assert sorted([*chosen, *rest]) == list(range(40)) and 0 < len(chosen) < 40
    assert all((logits[:, place].argmax(-1) == label).all() for place, label in zip(chosen, labels, strict=True))
    again = consensus(logits[[2, 0, 1]] * 3 + 1)
    assert all((a == b).all() for a, b in zip((chosen, labels, rest), again, strict=True))
    assert len(consensus(logits[:1])[2]) == 0


def test_equal_teachers_are_one() -> None:
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(3, 5, dtype=torch.bool)
    one = 2.4**2 * kl_divergence(student / 2.4, teacher / 2.4, mask)
    assert torch.allclose(mean_teacher_kl(student, [teacher] * 3, mask, 2.4), one)
    assert mean_teacher_kl(teacher + 2, [teacher], mask, 2.4).abs().max() < 1e-9


def test_exactly_so_many_are_taken_in_pool_order() -> None:
    assert most_confident([0.1, 0.9, 0.5, 0.9], 2).tolist() == [1, 3]
    assert most_confident([0.1, 0.9, 0.5, 0.9], 9).tolist() == [0, 1, 2, 3]


def test_the_empty_relation_does_not_count() -> None:
    assert micro_scores([1, 2, 0], [0, 0, 0]) == (1.0, 0.0, 0.0)
    assert micro_scores([1, 2, 0, 0], [1, 1, 0, 2]) == (1 / 3, 1 / 2, 0.4)

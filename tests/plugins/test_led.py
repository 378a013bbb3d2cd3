"""Invariants of LED (arXiv:2208.13661)."""

import torch
from torch import Tensor

from kdfw.losses.pairwise import PairwiseHinge
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.led.lexicon import body_mask, fuse_runs, splade_vector
from kdfw_plugins.led.losses import Ablation, ranker_kl, stage_losses

CLOCK = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rank_loss(student: Tensor, teacher: Tensor) -> Tensor:
    labels = torch.zeros_like(student)
    labels[:, 0] = 1.0
    batch = Batch(task="ranking", ids=("a", "b"), inputs={}, num_items=2, labels=labels)
    term = {key: value for key, value in stage_losses()[1].items() if key not in ("type", "name", "weight", "teachers")}
    return PairwiseHinge(**term)(Signals(logits=student), [Signals(logits=teacher)], batch, CLOCK).total


def test_only_the_teachers_order_counts() -> None:
    student, teacher = normal(2, 5), normal(2, 5, seed=1)
    assert rank_loss(teacher * 3 + 1, teacher).item() == 0.0
    assert torch.allclose(rank_loss(student, teacher.exp()), rank_loss(student, teacher))
    assert torch.allclose(rank_loss(7 * student + 2, teacher), 7 * rank_loss(student, teacher))
    assert rank_loss(-teacher, teacher) > rank_loss(student, teacher) > 0


def test_the_ranker_term_is_nearly_zero_at_the_ranker() -> None:
    ranker = normal(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert ranker_kl(ranker, ranker, mask, 3.0).abs().max() < 1e-6
    assert (ranker_kl(-ranker, ranker, mask, 3.0) > 0.01).all()


def test_a_sum_stays_a_sum() -> None:
    student, teacher = normal(2, 5), normal(2, 5, seed=1)
    batch = Batch(task="ranking", ids=("a", "b"), inputs={}, num_items=2)
    whole = Ablation(method="listnet")(Signals(logits=student), [Signals(logits=teacher)], batch, CLOCK).total
    expected = -(teacher.softmax(-1) * student.log_softmax(-1)).sum()
    assert torch.allclose(whole, expected)


def test_special_tokens_and_padding_do_not_reach_the_vector() -> None:
    logits, mask = normal(2, 6, 4), torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    other = logits.clone()
    other[:, 0], other[0, 5], other[1, 3:] = 50.0, 50.0, 50.0
    vectors = splade_vector(logits, body_mask(mask))
    assert (vectors >= 0).all() and torch.equal(splade_vector(other, body_mask(mask)), vectors)


def test_fusion_by_hand() -> None:
    assert fuse_runs({"a": 3.0, "b": 1.0, "c": 2.0}, {"c": 9.0, "d": 8.0}) == {"c": 1.5, "a": 1.0, "b": 0.0, "d": 0.0}

"""Invariants of Trans-Encoder (arXiv:2109.13059)."""

import pytest
import torch
from torch import Tensor

from kdfw.errors import ConfigError
from kdfw.losses.bce import binary_cross_entropy
from kdfw.losses.mse import score_mse
from kdfw_plugins.trans_encoder.method import TransEncoder
from kdfw_plugins.trans_encoder.pseudo_labels import labels_from_bi, labels_from_cross
from kdfw_plugins.trans_encoder.steps import learning_rate, stage_steps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_labels_of_a_bi_encoder_are_raw_cosines() -> None:
    labels = labels_from_bi(torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[4.0, 3.0], [-2.0, 0.0]]]))
    assert labels.tolist() == pytest.approx([24 / 25, -1.0])


def test_averages_do_not_care_for_order_scale_or_copies() -> None:
    left, right = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    labels = labels_from_bi(left, right)
    assert torch.allclose(labels_from_bi(left[[2, 0, 1]] * 7, right[[2, 0, 1]]), labels)
    assert torch.allclose(
        labels_from_bi(left[:1].repeat(2, 1, 1), right[:1].repeat(2, 1, 1)), labels_from_bi(left[:1], right[:1])
    )
    logits = normal(2, 5)
    assert torch.allclose(labels_from_cross(logits), (logits[0].sigmoid() + logits[1].sigmoid()) / 2)
    assert not torch.allclose(labels_from_cross(logits), logits.mean(0).sigmoid(), atol=1e-3)


def test_a_label_below_zero_always_pushes_its_logit_down() -> None:
    logits = torch.linspace(-12, 12, 25, dtype=torch.float64).requires_grad_()
    labels = torch.full((25, 1), -0.3, dtype=torch.float64)
    values = binary_cross_entropy(logits[:, None], labels, torch.ones(25, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert bool((gradient > 0).all())


def test_a_cross_stage_has_twice_the_rows_and_a_warm_up() -> None:
    assert stage_steps(1000, 32, 1, cross=True) == (63, 7)
    assert stage_steps(1000, 128, 10, cross=False) == (80, 0)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(step, 63, 7, 2e-5) for step in range(64)]
    assert rates[0] == 0.0 and rates[7] == pytest.approx(2e-5) and rates[63] == 0.0
    assert rates[:8] == sorted(rates[:8]) and rates[7:] == sorted(rates[7:], reverse=True)
    assert learning_rate(0, 80, 0, 5e-5) == 5e-5


def test_students_start_anew_and_learn_from_the_latest_teachers() -> None:
    stages = {stage["name"]: stage for stage in TransEncoder(cycles=2).expand({})}
    assert list(stages) == ["cross-1", "bi-1", "cross-2", "bi-2"]
    assert [stages[name]["teachers"] for name in stages] == [["bi"], ["cross-1"], ["bi-1"], ["cross-2"]]
    assert [stages[name]["student"] for name in stages] == ["cross", "bi", "cross", "bi"]
    assert [stages[name]["sampler"]["symmetric"] for name in stages] == [True, False, True, False]
    going_on = {stage["name"]: stage for stage in TransEncoder(cycles=2, continue_weights=True).expand({})}
    assert going_on["cross-2"]["student"] == "cross-1" and going_on["bi-2"]["student"] == "bi-1"


def test_two_lines_teach_each_other() -> None:
    stages = {stage["name"]: stage for stage in TransEncoder(bi=["a", "b"], cross=["c", "d"], cycles=1).expand({})}
    assert list(stages) == ["cross-1-1", "cross-1-2", "bi-1-1", "bi-1-2"]
    assert stages["cross-1-2"]["student"] == "d" and stages["cross-1-2"]["teachers"] == ["a", "b"]
    assert stages["bi-1-1"]["teachers"] == ["cross-1-1", "cross-1-2"]
    with pytest.raises(ConfigError, match="one of each a line"):
        TransEncoder(bi=["a", "b"])


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_a_mean_of_losses_has_the_gradient_of_the_mean_label(kind: str) -> None:
    student, labels = normal(6, 1).requires_grad_(), normal(2, 6, 1, seed=1)
    everything = torch.ones(6, 1, dtype=torch.bool)
    value = binary_cross_entropy if kind == "bce" else score_mse
    apart = torch.stack([value(student, label, everything) for label in labels]).mean()
    joint = value(student, labels.mean(0), everything).mean()
    gradients = [torch.autograd.grad(one, student)[0] for one in (apart, joint)]
    assert torch.allclose(*gradients)
    assert torch.allclose(apart, joint) is (kind == "bce")

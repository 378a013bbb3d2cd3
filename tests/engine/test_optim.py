"""Learning rates by hand, and parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdfw.engine.optim import check_patterns, make_optimizer, rate_factor, set_rate
from kdfw.engine.settings import OptimizerSettings, TrainSettings
from kdfw.errors import ConfigError
from kdfw.types import Clock


def clock(step: int, total: int = 100, per_epoch: int = 10) -> Clock:
    return Clock(
        step=step, total_steps=total, epoch=step // per_epoch, total_epochs=total // per_epoch,
        steps_per_epoch=per_epoch, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"decay": "linear", "warmup": 0.1}, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 99: 1 / 90}),
        ({"decay": "cosine", "warmup": 0}, {0: 1.0, 50: 0.5, 25: 0.5 * (1 + math.cos(math.pi / 4))}),
        ({"decay": "constant", "warmup": 20}, {0: 0.0, 10: 0.5, 20: 1.0, 99: 1.0}),
        ({"decay": "rsqrt", "warmup": 25}, {0: 1 / 25, 24: 1.0, 99: 0.5}),
        ({"decay": "milestones", "warmup": 0, "milestones": (2, 4), "gamma": 0.1}, {19: 1.0, 20: 0.1, 40: 0.01}),
    ],
)
def test_rates_by_hand(options: dict, values: dict[int, float]):
    settings = OptimizerSettings(**options)
    for step, expected in values.items():
        assert rate_factor(settings, clock(step)) == pytest.approx(expected), step


def test_a_share_of_warm_up_steps_is_rounded_up():
    settings = OptimizerSettings(decay="constant", warmup=0.1)
    # 63 steps: 7 of warm-up, not 6
    assert [rate_factor(settings, clock(step, total=63)) for step in (0, 6, 7)] == pytest.approx([0, 6 / 7, 1])


def test_groups_factors_decay_and_freezing():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 1)})
    settings = OptimizerSettings(lr=0.1, weight_decay=0.5, groups={"head": 10.0}, freeze=("body",), warmup=0)
    optimizer = make_optimizer(settings, model, [], torch.device("cpu"))
    found = {(group["factor"], group["weight_decay"]): len(group["params"]) for group in optimizer.param_groups}
    assert found == {(1.0, 0.0): 2, (10.0, 0.0): 1, (10.0, 0.5): 1}  # norm pair; head bias; head weight
    assert not model["body"].weight.requires_grad
    assert set_rate(optimizer, settings, clock(0)) == pytest.approx(0.1)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1, 1.0])


def test_everything_frozen_is_refused():
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(OptimizerSettings(freeze=("weight", "bias")), nn.Linear(1, 1), [], torch.device("cpu"))


def test_epochs_and_steps_together_are_refused():
    with pytest.raises(ValueError, match="not both"):
        TrainSettings(epochs=1, steps=2)
    with pytest.raises(ValueError, match="divide"):
        TrainSettings(batch_size=10, accumulate=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": "milestones"}, "go together"),
        ({"milestones": (2,)}, "go together"),
        ({"gamma": 0.5}, "`gamma` is for"),
        ({"momentum": 0.9, "nesterov": True}, "`momentum`, `nesterov` are for `optimizer: sgd`"),
        ({"optimizer": "sgd", "eps": 1e-6}, "`eps` is for `optimizer: adamw`"),
        ({"freeze": ("",)}, "at least 1 character"),
        ({"groups": {"": 2.0}}, "at least 1 character"),
        ({"groups": {"head": -1.0}}, "greater than or equal to 0"),
        ({"lr": float("nan")}, "finite"),
    ],
)
def test_settings_without_an_effect_are_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        TrainSettings(**options)


def test_a_pattern_that_no_parameter_has_is_refused_with_names_that_are_there():
    names = ["encoder.layer.0.weight", "head.bias"]
    check_patterns(OptimizerSettings(freeze=("encoder",), groups={"head": 3.0}), names)
    with pytest.raises(ConfigError, match=r"train.groups: .* 'encodr'; names are like encoder.layer.0.weight"):
        check_patterns(OptimizerSettings(groups={"encodr": 3.0}), names)
    with pytest.raises(ConfigError, match="train.freeze: .* 'nothing_here'"):
        check_patterns(OptimizerSettings(freeze=("nothing_here",)), names)

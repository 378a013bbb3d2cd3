"""Optimizers and learning rates. The rate is a pure function of the clock: nothing to save, nothing to drift."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch
from torch import nn

from kdfw.engine.settings import OptimizerSettings
from kdfw.errors import ConfigError
from kdfw.types import Clock


def rate_factor(settings: OptimizerSettings, clock: Clock) -> float:
    """What the peak rate is multiplied by in this step: in [0, 1].

    Linear warm-up reaches 1 after `warmup` updates; `linear` then falls to 0 at the last step, `cosine` along half a
    cosine, `rsqrt` as sqrt(warmup / step), `milestones` by `gamma` at each given epoch.
    """
    warmup = settings.warmup_steps(clock.total_steps)
    if clock.step < warmup:
        return clock.step / warmup if settings.decay != "rsqrt" else (clock.step + 1) / warmup
    done = (clock.step - warmup) / max(1, clock.total_steps - warmup)
    if settings.decay == "linear":
        return max(0.0, 1.0 - done)
    if settings.decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if settings.decay == "rsqrt":
        return math.sqrt(max(1, warmup) / max(1, clock.step + 1))
    if settings.decay == "milestones":
        passed = sum(clock.step >= epoch * clock.steps_per_epoch for epoch in settings.milestones)
        return settings.gamma**passed
    return 1.0


def make_optimizer(
    settings: OptimizerSettings, model: nn.Module, others: Iterable[tuple[str, nn.Parameter]], device: torch.device
) -> torch.optim.Optimizer:
    """An optimizer over a model's parameters and the trainable parts of its losses.

    Groups carry `factor` (on the rate). Frozen parameters get `requires_grad = False`.
    """
    buckets: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *others]:
        if any(part in name for part in settings.freeze):
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        factor = math.prod(value for part, value in settings.groups.items() if part in name)
        plain = parameter.ndim <= 1 and not settings.decay_all
        buckets.setdefault((factor, 0.0 if plain else settings.weight_decay), []).append(parameter)
    groups = [
        {"params": parameters, "factor": factor, "weight_decay": decay, "lr": settings.lr}
        for (factor, decay), parameters in sorted(buckets.items(), key=lambda item: item[0])
    ]
    if not groups:
        raise ConfigError(f"nothing to train: `freeze: {list(settings.freeze)}` leaves no parameter out")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def check_patterns(settings: OptimizerSettings, names: Sequence[str]) -> None:
    """Raises ConfigError for a `freeze` or `groups` that none of the parameters it is for is meant by."""
    for key, patterns in (("freeze", settings.freeze), ("groups", settings.groups)):
        for pattern in patterns:
            if not any(pattern in name for name in names):
                near = get_close_matches(pattern, names, n=2, cutoff=0.0)
                shown = list(dict.fromkeys([*near, names[0], names[-1]]))
                raise ConfigError(
                    f"train.{key}: no parameter's name contains {pattern!r}; names are like {', '.join(shown)}"
                )


def set_rate(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, clock: Clock) -> float:
    """Set this step's rate on every group; returns the rate of groups without a factor of their own."""
    rate = settings.lr * rate_factor(settings, clock)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate

"""How strongly the temperature is trained against the student, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def cosine_strength(epoch: float, *, first: float = 0.0, last: float = -1.0, ramp_epochs: int = 10) -> float:
    """c(n): `first` at epoch 0, `last` from `ramp_epochs` on, half a cosine between. Epochs of training count from 1.

    The value multiplies the gradient as it is: negative means that the temperature maximises the loss.
    """
    done = min(max(epoch, 0.0), ramp_epochs) / ramp_epochs
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def linear_strength(epoch: float, *, first: float = 0.0, last: float = -1.0, ramp_epochs: int = 10) -> float:
    """The linear option as released: -n (first - last) / ramp_epochs, with n held at `ramp_epochs - 1`.

    It starts at 0 whatever `first` is, and stops one step before `last`.
    """
    return -min(max(epoch, 0.0), ramp_epochs - 1) * (first - last) / ramp_epochs


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.strength * upstream[0], None


def reverse_gradient(values: Tensor, strength: float) -> Tensor:
    """`values` unchanged; going back, the gradient is multiplied by `strength` (in [-1, 0] for a reversal).

    There is no other minus sign: a negative strength here and a minus elsewhere would make the temperature help the
    student, and drift to a bound.
    """
    scaled: Tensor = _ScaleGradient.apply(values, strength)  # type: ignore[no-untyped-call]
    return scaled


def bounded_temperature(raw: Tensor, *, lowest: float = 1.0, span: float = 20.0) -> Tensor:
    """T = lowest + span * sigmoid(raw), always inside (lowest, lowest + span). Any shape."""
    return lowest + span * torch.sigmoid(raw)

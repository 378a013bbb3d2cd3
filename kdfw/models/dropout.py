"""Dropout whose draws do not depend on who computes which rows of a micro-batch.

A micro-batch may be cut: its parts go to several processes, or memory runs out. Every part draws for the whole
micro-batch, from the same seed, and takes its own rows of it; so the parts together see what the whole would see.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

STEPS = 1 << 16
"""Probabilities are multiples of 1 / STEPS, so that two random bytes decide on a value."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of a micro-batch."""

    begin: int
    rows: int
    whole: int
    """Rows of the whole micro-batch."""


_part: contextvars.ContextVar[Part | None] = contextvars.ContextVar("part", default=None)


@contextlib.contextmanager
def drawing(part: Part | None) -> Iterator[None]:
    """Inside, dropout draws as this part of a micro-batch. None: torch's own dropout."""
    if part is None:
        yield
        return
    before = _part.set(part)
    try:
        with _Draws():
            yield
    finally:
        _part.reset(before)


def recomputing() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """For activation checkpointing (`context_fn`): what is computed again draws as it did the first time."""
    return contextlib.nullcontext(), drawing(_part.get())


def kept(shape: Sequence[int], probability: float, device: torch.device) -> Tensor:
    """Which values stay: bool, of a shape.

    Args:
        shape: its first dimension is the rows of the part, or a multiple of them (attention heads); where it is
            neither, every part draws the same.
        probability: of a value to be dropped.
    """
    part = None if torch.compiler.is_compiling() else _part.get()  # the compiler cannot follow a context variable
    first = shape[0] if len(shape) else 0
    if part is None or not part.rows or first % part.rows:
        return _kept(tuple(shape), probability, device)
    each = first // part.rows
    whole = _kept((each * part.whole, *shape[1:]), probability, device)
    return whole[each * part.begin : each * (part.begin + part.rows)]


def _kept(shape: tuple[int, ...], probability: float, device: torch.device) -> Tensor:
    dropped = _steps(probability)
    if device.type != "cpu" or torch.compiler.is_compiling() or dropped == STEPS:
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - dropped / STEPS)
    # torch draws one value after the other: 41 ms for 4.4 million, which are the attention weights of 2,048 tokens in
    # rows of 192; these take 7 ms. The seed comes from torch's generator, so what holds of that holds of these.
    seed = int(torch.randint(1 << 62, ()))
    count = math.prod(shape)
    drawn = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16))
    return (drawn[:count] >= dropped - STEPS // 2).view(shape)


def _steps(probability: float) -> int:
    return round(probability * STEPS)


def gain(probability: float) -> float:
    """What is left is multiplied by this, so that sums stay on average."""
    left = STEPS - _steps(probability)
    return STEPS / left if left else 0.0


class _Draws(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.dropout:
            return func(*args, **(kwargs or {}))
        return _dropout(*args, **(kwargs or {}))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """The interface of `nn.functional.dropout`."""
    if not training or not p:
        return input
    factor = kept(input.shape, p, input.device).to(input.dtype).mul_(gain(p))
    return input.mul_(factor) if inplace else input * factor

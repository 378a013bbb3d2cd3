"""How the age of the curriculum and the adversarial weight grow."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from kdfw.components import Schedule
from kdfw.types import Clock


def age(iteration: int, start: float, growth: float, cap: int = 500_000_000) -> float:
    """lambda = start + growth * min(iteration, cap); iterations are student steps, from 0, never reset."""
    return start + growth * min(iteration, cap)


def adversarial_weight(epoch: int, epochs: int, begin: float, end: float, start: float, growth: float) -> float:
    """a0 + g * clip(e - floor(b E), 0, floor(f E) - floor(b E)): set after epoch e (from 0), used from the next on."""
    first, last = math.floor(begin * epochs), math.floor(end * epochs)
    return start + growth * min(max(epoch - first, 0), last - first)


class AdversarialWeight(Schedule):
    """Constant, then a straight line by epochs, then constant."""

    def __init__(
        self,
        *,
        start: Annotated[float, Field(ge=0, description="value until the ramp (a0)")] = 0.0,
        growth: Annotated[float, Field(ge=0, description="added in each epoch of the ramp (g)")] = 0.5,
        begin: Annotated[float, Field(ge=0, le=1, description="where it begins, as a share of all epochs")] = 0.25,
        end: Annotated[float, Field(ge=0, le=1, description="where it ends")] = 0.75,
    ) -> None:
        self.start = start
        self.growth = growth
        self.begin = begin
        self.end = end

    def __call__(self, clock: Clock) -> float:
        if clock.epoch == 0:
            return self.start
        return adversarial_weight(clock.epoch - 1, clock.total_epochs, self.begin, self.end, self.start, self.growth)

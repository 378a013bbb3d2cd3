"""The temperature's warm-up: from 1 down to its value."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdfw.components import Schedule
from kdfw.types import Clock


def score_scale(step: int, temperature: float, warmup_steps: int) -> float:
    """What scores are multiplied by: max(1, (1 / temperature) * min(1, step / warmup_steps))."""
    done = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return max(1.0, done / temperature)


class WarmTemperature(Schedule):
    """1 at first, then 1 / scale, with the scale growing linearly to 1 / `temperature` over the warm-up."""

    paper = "arXiv:2207.02578, released code"

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0, description="value after the warm-up")] = 0.02,
        warmup_steps: Annotated[int, Field(ge=0, description="optimizer steps")] = 1000,
    ) -> None:
        self.temperature = temperature
        self.warmup_steps = warmup_steps

    def __call__(self, clock: Clock) -> float:
        return 1.0 / score_scale(clock.step, self.temperature, self.warmup_steps)

"""Learning rate of the released code: linear warm-up, then the inverse square root of the step."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from kdfw.components import Schedule
from kdfw.types import Clock


def learning_rate(step: int, peak: float, warmup_steps: int) -> float:
    """peak / w + (peak - peak / w) * step / w up to step w, then peak * sqrt(w / step)."""
    if step <= warmup_steps:
        first = peak / warmup_steps
        return first + (peak - first) * step / warmup_steps
    return peak * math.sqrt(warmup_steps) / math.sqrt(step)


class WarmupInverseSquareRoot(Schedule):
    """Rises linearly to `peak` over the warm-up, then falls with the square root of the step."""

    def __init__(
        self,
        *,
        peak: Annotated[float, Field(gt=0)] = 7e-4,
        warmup_steps: Annotated[int, Field(ge=1, description="optimizer steps")] = 4000,
    ) -> None:
        self.peak = peak
        self.warmup_steps = warmup_steps

    def __call__(self, clock: Clock) -> float:
        return learning_rate(clock.step, self.peak, self.warmup_steps)

"""A number that rises and falls."""

from __future__ import annotations

from typing import Annotated

from kdfw.components import Schedule
from kdfw.types import Clock
from pydantic import Field


class Triangle(Schedule):
    """From `low` up to `high` at the share `peak` of training, and back to `low` at its end, in straight lines."""

    def __init__(
        self,
        *,
        low: Annotated[float, Field(description="value at both ends")] = 0.0,
        high: Annotated[float, Field(description="value at the peak")],
        peak: Annotated[float, Field(gt=0, lt=1, description="share of training where the peak is")] = 0.5,
    ) -> None:
        self.low = low
        self.high = high
        self.peak = peak

    def __call__(self, clock: Clock) -> float:
        up = clock.progress / self.peak
        down = (1.0 - clock.progress) / (1.0 - self.peak)
        return self.low + (self.high - self.low) * min(up, down)

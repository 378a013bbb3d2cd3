"""Schedules: numbers that change in training, each a pure function of the clock."""

from __future__ import annotations

import bisect
import math
from typing import Annotated, Literal

from pydantic import Field

from kdfw.components import Constant, Schedule
from kdfw.errors import ConfigError
from kdfw.types import Clock

Unit = Literal["step", "epoch", "progress"]
UnitOption = Annotated[
    Unit, Field(description="how positions are counted: optimizer steps, whole epochs, or share of the training")
]
Begin = Annotated[float, Field(ge=0, description="position up to which the value is `start`")]
Until = Annotated[float | None, Field(description="position from which it is `end`; default: the end of training")]


def position(clock: Clock, unit: Unit) -> float:
    """Where training stands: steps done, epochs done (whole, so that a value changes once an epoch), or their share."""
    if unit == "progress":
        return clock.progress
    return float(clock.step if unit == "step" else clock.epoch)


def whole(clock: Clock, unit: Unit) -> float:
    """The position at the end of training."""
    return {"step": float(clock.total_steps), "epoch": float(clock.total_epochs), "progress": 1.0}[unit]


def share_done(clock: Clock, begin: float, until: float | None, unit: Unit) -> float:
    """How much of the way from `begin` to `until` is done, in [0, 1]."""
    at, last = position(clock, unit), whole(clock, unit) if until is None else until
    if at <= begin:
        return 0.0
    return 1.0 if at >= last else (at - begin) / (last - begin)


def _between(*values: float) -> tuple[float, float]:
    return float(min(values)), float(max(values))


def _check_way(name: str, begin: float, until: float | None, unit: Unit) -> None:
    if until is not None and not begin < until:
        raise ConfigError(f"schedule {name}: begin {begin} must be less than until {until}")
    if unit == "progress" and (begin >= 1 or (until is not None and until > 1)):
        raise ConfigError(
            f"schedule {name}: begin {begin} and until {until} are shares of the training, 0 to 1; "
            "for steps or epochs set unit: step or unit: epoch"
        )


class Linear(Schedule):
    """A straight line from `start` to `end`; with `power: 2` a parabola that starts flat (SPLADE's ramp)."""

    def __init__(
        self,
        *,
        start: float,
        end: float,
        begin: Begin = 0.0,
        until: Until = None,
        unit: UnitOption = "progress",
        power: Annotated[float, Field(gt=0, description="exponent of the share of the way")] = 1.0,
    ) -> None:
        _check_way("linear", begin, until, unit)
        self.start, self.end, self.begin, self.until, self.unit = start, end, begin, until, unit
        self.power = power

    @property
    def bounds(self) -> tuple[float, float]:
        return _between(self.start, self.end)

    def __call__(self, clock: Clock) -> float:
        done = float(share_done(clock, self.begin, self.until, self.unit) ** self.power)
        return self.start * (1.0 - done) + self.end * done


class Cosine(Schedule):
    """Half a cosine wave from `start` to `end`: slow, fast, slow."""

    def __init__(
        self, *, start: float, end: float, begin: Begin = 0.0, until: Until = None, unit: UnitOption = "progress"
    ) -> None:
        _check_way("cosine", begin, until, unit)
        self.start, self.end, self.begin, self.until, self.unit = start, end, begin, until, unit

    @property
    def bounds(self) -> tuple[float, float]:
        return _between(self.start, self.end)

    def __call__(self, clock: Clock) -> float:
        done = (1.0 - math.cos(math.pi * share_done(clock, self.begin, self.until, self.unit))) / 2.0
        return self.start * (1.0 - done) + self.end * done


class Exponential(Schedule):
    """From `start` to `end` with the same factor in every equal part of the way; both > 0."""

    def __init__(
        self,
        *,
        start: Annotated[float, Field(gt=0)],
        end: Annotated[float, Field(gt=0)],
        begin: Begin = 0.0,
        until: Until = None,
        unit: UnitOption = "progress",
    ) -> None:
        _check_way("exponential", begin, until, unit)
        self.start, self.end, self.begin, self.until, self.unit = start, end, begin, until, unit

    @property
    def bounds(self) -> tuple[float, float]:
        return _between(self.start, self.end)

    def __call__(self, clock: Clock) -> float:
        done = share_done(clock, self.begin, self.until, self.unit)
        if done in (0.0, 1.0):  # exact at both ends, which powers are not
            return self.end if done else self.start
        return float(self.start ** (1.0 - done) * self.end**done)


def _check_milestones(name: str, milestones: list[float], unit: Unit) -> None:
    if any(later <= earlier for earlier, later in zip(milestones, milestones[1:], strict=False)):
        raise ConfigError(f"schedule {name}: milestones {milestones} must rise")
    if unit == "progress" and milestones and milestones[-1] >= 1:
        raise ConfigError(f"schedule {name}: milestone {milestones[-1]} is no share of the training below 1")


class Piecewise(Schedule):
    """Constant pieces: `values[0]` before the first milestone, `values[k]` from milestone k - 1 on."""

    def __init__(
        self,
        *,
        values: Annotated[list[float], Field(min_length=1)],
        milestones: list[Annotated[float, Field(ge=0)]],
        unit: UnitOption = "epoch",
    ) -> None:
        if len(values) != len(milestones) + 1:
            raise ConfigError(
                f"schedule piecewise: {len(values)} values for {len(milestones)} milestones; write one more value"
            )
        _check_milestones("piecewise", milestones, unit)
        self.values, self.milestones, self.unit = values, milestones, unit

    @property
    def bounds(self) -> tuple[float, float]:
        return _between(*self.values)

    def __call__(self, clock: Clock) -> float:
        return float(self.values[bisect.bisect_right(self.milestones, position(clock, self.unit))])


class Steps(Schedule):
    """`start`, multiplied by `gamma` at every milestone passed."""

    def __init__(
        self,
        *,
        start: float = 1.0,
        milestones: list[Annotated[float, Field(ge=0)]],
        gamma: Annotated[float, Field(gt=0, description="factor at each milestone")] = 0.1,
        unit: UnitOption = "epoch",
    ) -> None:
        _check_milestones("steps", milestones, unit)
        self.start, self.milestones, self.gamma, self.unit = start, milestones, gamma, unit

    @property
    def bounds(self) -> tuple[float, float]:
        return _between(self.start, self.start * self.gamma ** len(self.milestones))

    def __call__(self, clock: Clock) -> float:
        passed = bisect.bisect_right(self.milestones, position(clock, self.unit))
        return float(self.start * self.gamma**passed)


class Cycle(Schedule):
    """`on` for the first `duty` of every `period`, then `off`: alternating phases.

    Two models that train in turns have two cycles with the same period; the second one's `offset` is the first one's
    duty (arXiv:2110.03611: period 2000, ranker duty 501, retriever duty 1499 with offset 501).
    """

    def __init__(
        self,
        *,
        period: Annotated[float, Field(gt=0)],
        duty: Annotated[float, Field(gt=0, description="length of the `on` part, in the same unit")],
        on: float = 1.0,
        off: float = 0.0,
        offset: Annotated[float, Field(ge=0, description="position at which the first `on` part begins")] = 0.0,
        unit: UnitOption = "step",
    ) -> None:
        if duty > period:
            raise ConfigError(f"schedule cycle: duty {duty} is longer than the period {period}")
        self.period, self.duty, self.on, self.off, self.offset, self.unit = period, duty, on, off, offset, unit

    @property
    def bounds(self) -> tuple[float, float]:
        return _between(self.on, self.off)

    def __call__(self, clock: Clock) -> float:
        return self.on if (position(clock, self.unit) - self.offset) % self.period < self.duty else self.off


Shape = Literal["constant", "linear", "cosine", "rsqrt"]
WarmupAmount = Annotated[float, Field(ge=0, description="length of the warm-up, in `unit`")]


def warmup_steps(clock: Clock, warmup: float, unit: Unit) -> int:
    """Steps of a warm-up given as steps, epochs or a share of the training; rounded up."""
    per_unit = {"step": 1, "epoch": clock.steps_per_epoch, "progress": clock.total_steps}[unit]
    # 0.1 * 30 is 3.0000000000000004: without rounding that would be 4 steps
    return math.ceil(round(warmup * per_unit, 9))


def warmup_factor(step: int, total_steps: int, warmup: int, shape: Shape, floor: float = 0.0) -> float:
    """Learning-rate factor at a step (0-based): rises from 0 in a straight line, then holds or falls.

    Step s of a warm-up of w steps has the factor s / w, so the first step of all does not learn, and step w is at 1;
    `linear` and `cosine` reach `floor` at `total_steps`; `rsqrt` is sqrt(w / s) (w = 1 without a warm-up), never
    below `floor`.
    """
    if step < warmup:
        return step / warmup
    if shape == "constant":
        return 1.0
    if shape == "rsqrt":
        return max(floor, math.sqrt(max(warmup, 1) / max(step, 1)))
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1.0 - done if shape == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
    return floor + (1.0 - floor) * left


class Warmup(Schedule):
    """Rises from 0 to `peak`, then holds (`constant`) or falls (`linear`, `cosine`, `rsqrt`) towards `floor * peak`.

    The warm-up is counted in `unit`, in the decay every step has its own value.
    """

    def __init__(
        self,
        *,
        peak: float = 1.0,
        warmup: WarmupAmount = 0.0,
        then: Annotated[Shape, Field(description="what follows the warm-up")] = "constant",
        floor: Annotated[float, Field(ge=0, le=1, description="least share of the peak in the decay")] = 0.0,
        unit: UnitOption = "progress",
    ) -> None:
        _check_warmup("warmup", warmup, unit)
        self.peak, self.warmup, self.then, self.floor, self.unit = peak, warmup, then, floor, unit

    @property
    def bounds(self) -> tuple[float, float]:
        lowest = 0.0 if self.warmup else 1.0 if self.then == "constant" else self.floor
        return _between(lowest * self.peak, self.peak)

    def __call__(self, clock: Clock) -> float:
        rise = warmup_steps(clock, self.warmup, self.unit)
        return self.peak * warmup_factor(clock.step, clock.total_steps, rise, self.then, self.floor)


def _check_warmup(name: str, warmup: float, unit: Unit) -> None:
    if unit == "progress" and warmup > 1:
        raise ConfigError(
            f"schedule {name}: warmup {warmup} is no share of the training; for a number of steps set unit: step"
        )


class WarmupLinear(Warmup):
    """Warm-up, then a straight line to 0 at the end of training: the usual one of fine-tuning."""

    def __init__(self, *, peak: float = 1.0, warmup: WarmupAmount = 0.0, unit: UnitOption = "progress") -> None:
        super().__init__(peak=peak, warmup=warmup, then="linear", unit=unit)


class WarmupCosine(Warmup):
    """Warm-up, then half a cosine wave to 0 at the end of training."""

    def __init__(self, *, peak: float = 1.0, warmup: WarmupAmount = 0.0, unit: UnitOption = "progress") -> None:
        super().__init__(peak=peak, warmup=warmup, then="cosine", unit=unit)


class WarmupConstant(Warmup):
    """Warm-up, then the peak."""

    def __init__(self, *, peak: float = 1.0, warmup: WarmupAmount = 0.0, unit: UnitOption = "progress") -> None:
        super().__init__(peak=peak, warmup=warmup, then="constant", unit=unit)


class WarmupRsqrt(Warmup):
    """Warm-up, then the peak times sqrt(warm-up steps / step): the schedule of the Transformer (arXiv:1706.03762)."""

    def __init__(self, *, peak: float = 1.0, warmup: WarmupAmount = 0.0, unit: UnitOption = "progress") -> None:
        super().__init__(peak=peak, warmup=warmup, then="rsqrt", unit=unit)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "cycle": Cycle,
    "exponential": Exponential,
    "linear": Linear,
    "piecewise": Piecewise,
    "steps": Steps,
    "warmup": Warmup,
    "warmup-constant": WarmupConstant,
    "warmup-cosine": WarmupCosine,
    "warmup-linear": WarmupLinear,
    "warmup-rsqrt": WarmupRsqrt,
}

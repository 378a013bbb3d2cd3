"""Schedules: values by hand at both ends and between, ranges, monotonicity."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfw import schedules
from kdfw.components import Constant
from kdfw.errors import ConfigError
from kdfw.types import Clock


def clock(step: int, total: int = 100, epochs: int = 10) -> Clock:
    per_epoch = total // epochs
    return Clock(
        step=step, total_steps=total, epoch=step // per_epoch, total_epochs=epochs, steps_per_epoch=per_epoch, seed=0
    )


def test_linear_by_hand() -> None:
    line = schedules.Linear(start=2.0, end=6.0, begin=20, until=60, unit="step")
    assert [line(clock(step)) for step in (0, 20, 30, 59, 60, 99)] == pytest.approx([2, 2, 3, 5.9, 6, 6])


def test_linear_with_power_two_is_a_quarter_of_the_way_at_half_time() -> None:
    assert schedules.Linear(start=0.0, end=8.0, power=2)(clock(50)) == pytest.approx(2.0)


def test_linear_in_epochs_changes_once_an_epoch() -> None:
    line = schedules.Linear(start=0.0, end=1.0, until=5, unit="epoch")
    assert [line(clock(step)) for step in (0, 9, 10, 19, 49, 50, 99)] == pytest.approx([0, 0, 0.2, 0.2, 0.8, 1, 1])


def test_cosine_by_hand() -> None:
    wave = schedules.Cosine(start=1.0, end=0.0, until=40, unit="step")
    assert wave(clock(0)) == 1.0
    assert wave(clock(10)) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert wave(clock(20)) == pytest.approx(0.5)
    assert wave(clock(40)) == wave(clock(99)) == 0.0


def test_exponential_halves_in_equal_parts() -> None:
    decay = schedules.Exponential(start=8.0, end=1.0, until=30, unit="step")
    assert [decay(clock(step)) for step in (0, 10, 20, 30, 80)] == pytest.approx([8, 4, 2, 1, 1])


def test_piecewise_and_steps_change_at_the_milestone_itself() -> None:
    pieces = schedules.Piecewise(values=[5, 3, 7], milestones=[2, 4])
    assert [pieces(clock(step)) for step in (0, 19, 20, 39, 40, 99)] == [5, 5, 3, 3, 7, 7]
    factors = schedules.Steps(start=2.0, milestones=[15, 18], gamma=0.5, unit="step")
    assert [factors(clock(step)) for step in (14, 15, 17, 18)] == [2, 1, 1, 0.5]


def test_cycles_alternate_like_ar2() -> None:
    ranker = schedules.Cycle(period=20, duty=6)
    retriever = schedules.Cycle(period=20, duty=14, offset=6)
    on = [step for step in range(60) if ranker(clock(step)) == 1.0]
    assert on == [*range(6), *range(20, 26), *range(40, 46)]
    assert all(ranker(clock(step)) + retriever(clock(step)) == 1.0 for step in range(100))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # total 100, warm-up 10; steps 0, 5, 10, 55, 99
        ("warmup-linear", [0, 0.5, 1, 0.5, 1 / 90]),
        ("warmup-cosine", [0, 0.5, 1, 0.5, (1 + math.cos(math.pi * 89 / 90)) / 2]),
        ("warmup-constant", [0, 0.5, 1, 1, 1]),
        ("warmup-rsqrt", [0, 0.5, 1, math.sqrt(10 / 55), math.sqrt(10 / 99)]),
    ],
)
def test_warmups_by_hand(name: str, expected: list[float]) -> None:
    kind: Any = schedules.SCHEDULES[name]
    steps = (0, 5, 10, 55, 99)
    assert [kind(warmup=0.1)(clock(step)) for step in steps] == pytest.approx(expected)
    assert [kind(warmup=10, unit="step", peak=3.0)(clock(step)) for step in steps] == pytest.approx(
        [3 * value for value in expected]
    )
    assert [kind(warmup=1, unit="epoch")(clock(step)) for step in steps] == pytest.approx(expected)


def test_warmup_equals_transformers() -> None:
    import torch
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for name, theirs in (
        ("warmup-linear", get_linear_schedule_with_warmup),
        ("warmup-cosine", get_cosine_schedule_with_warmup),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = theirs(optimizer, num_warmup_steps=7, num_training_steps=30)
        mine: Any = schedules.SCHEDULES[name]
        curve = mine(warmup=7, unit="step")
        for step in range(30):
            assert curve(clock(step, total=30)) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            scheduler.step()


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    for name in ("warmup-linear", "warmup-cosine", "warmup-constant", "warmup-rsqrt"):
        kind: Any = schedules.SCHEDULES[name]
        assert kind(peak=2.0)(clock(0)) == 2.0


def test_a_warmup_share_is_not_rounded_up_by_float_noise() -> None:
    assert 0.1 * 3 > 0.3
    assert schedules.warmup_steps(clock(0, total=30), 0.1, "progress") == 3
    assert schedules.warmup_steps(clock(0, total=30, epochs=10), 0.11, "progress") == 4


def test_decay_ends_at_the_floor() -> None:
    curve = schedules.Warmup(peak=2.0, warmup=0.1, then="linear", floor=0.25)
    assert schedules.warmup_factor(100, 100, 10, "linear", 0.25) == 0.25
    assert curve(clock(55)) == pytest.approx(2 * (0.25 + 0.75 * 0.5))


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"start": 0, "end": 1, "begin": 5, "until": 5, "unit": "step"}),
    ("linear", {"start": 0, "end": 1, "until": 10}),
    ("cosine", {"start": 0, "end": 1, "begin": 3, "until": 2, "unit": "epoch"}),
    ("exponential", {"start": 1, "end": 2, "begin": 1.0}),
    ("piecewise", {"values": [1, 2], "milestones": [1, 2]}),
    ("piecewise", {"values": [1, 2, 3], "milestones": [2, 1]}),
    ("steps", {"milestones": [0.5, 1.0], "unit": "progress"}),
    ("cycle", {"period": 3, "duty": 4}),
    ("warmup", {"warmup": 500}),
]


@pytest.mark.parametrize(("name", "options"), WRONG)
def test_impossible_options_are_refused(name: str, options: dict[str, Any]) -> None:
    kind: Any = schedules.SCHEDULES[name]
    with pytest.raises(ConfigError, match=f"schedule {name}:"):
        kind(**options)


RISING: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"begin": 0.2, "until": 0.9}),
    ("linear", {"power": 3}),
    ("cosine", {"until": 7, "unit": "epoch"}),
    ("exponential", {"begin": 10, "unit": "step"}),
]


@pytest.mark.parametrize(("name", "options"), RISING)
@given(start=st.floats(0.01, 100), end=st.floats(0.01, 100), a=st.integers(0, 99), b=st.integers(0, 99))
def test_ramps_are_monotone_and_stay_between_their_ends(
    name: str, options: dict[str, Any], start: float, end: float, a: int, b: int
) -> None:
    kind: Any = schedules.SCHEDULES[name]
    ramp = kind(start=start, end=end, **options)
    first, second = ramp(clock(min(a, b))), ramp(clock(max(a, b)))
    slack = 1e-9 * max(start, end)
    assert (second - first) * (1 if end >= start else -1) >= -slack
    assert min(start, end) - slack <= first <= max(start, end) + slack
    assert ramp(clock(0)) == pytest.approx(start)


@given(warmup=st.integers(0, 60), a=st.integers(0, 99), b=st.integers(0, 99))
def test_warmups_rise_then_never_rise_again(warmup: int, a: int, b: int) -> None:
    a, b = min(a, b), max(a, b)
    for shape in ("constant", "linear", "cosine", "rsqrt"):
        early, late = (schedules.warmup_factor(step, 100, warmup, shape) for step in (a, b))  # type: ignore[arg-type]
        assert 0 <= early <= 1 and 0 <= late <= 1
        if b <= warmup:
            assert early <= late
        if a >= warmup:
            assert early >= late - 1e-12


def test_every_schedule_is_built_and_pure() -> None:
    assert len(schedules.SCHEDULES) >= 12
    options: dict[str, dict[str, Any]] = {
        "constant": {"value": 2},
        "cycle": {"period": 4, "duty": 1},
        "piecewise": {"values": [1, 2], "milestones": [3]},
        "steps": {"milestones": [3]},
    }
    for name, kind in schedules.SCHEDULES.items():
        make: Any = kind
        ends = {"start": 1.0, "end": 2.0} if name in ("linear", "cosine", "exponential") else {}
        schedule = make(**options.get(name, ends))
        forwards = [schedule(clock(step)) for step in range(100)]
        backwards = [schedule(clock(step)) for step in reversed(range(100))]
        assert forwards == backwards[::-1]
        assert schedule.at(clock(3)) == schedule(clock(3))
        if not isinstance(schedule, Constant) and name not in ("warmup", "warmup-constant"):
            assert len(set(forwards)) > 1


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(value=-2.0),
        schedules.Linear(start=4.0, end=-1.0, until=0.5, power=2),
        schedules.Cosine(start=0.0, end=3.0, until=0.5),
        schedules.Exponential(start=8.0, end=0.5, until=0.5),
        schedules.Piecewise(values=[5, 3, 7], milestones=[2, 4]),
        schedules.Steps(start=-2.0, milestones=[2, 4], gamma=0.5),
        schedules.Cycle(period=20, duty=6, on=-1.0, off=2.0),
        schedules.Warmup(peak=2.0, warmup=0.1, then="linear", floor=0.5),
        schedules.WarmupConstant(peak=2.0),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_schedule_reaches_its_bounds_and_does_not_leave_them(schedule: Any) -> None:
    values = [schedule(clock(step)) for step in range(100)]
    assert schedule.bounds == pytest.approx((min(values), max(values)))

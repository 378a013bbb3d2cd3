"""Killed at any moment, a run goes on and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_runs import RECIPE, STAGES, in_child, results, run

from kdfw.plugins import registry

EVERY_KIND = (
    RECIPE
    + """\
  - {{name: joined, type: ensemble, of: [scores]}}
  - {{name: best, type: select, of: [distill]}}
"""
)
EVERY_STAGE = (*STAGES, "joined", "best")
ROUNDS = 4
"""Kills in each stage; two at random moments, two in the middle of a random write."""
WRITES = ("fsync", "replace")
"""Calls of `os` that a write ends with: its bytes are on their way, its file has no name yet."""


def watched(recipe: Path, out: Path, notes: Path) -> None:
    """An undisturbed run that notes, by stage, how long it took and how often it called what a write ends with."""
    from kdfw.engine import run as engine

    found: dict[str, dict[str, float]] = {}
    calls = [0]
    for name in WRITES:
        setattr(os, name, _counted(getattr(os, name), calls))
    work = engine._work

    def noting(runtime: Any, planned: Any) -> Any:
        began, before = time.monotonic(), calls[0]
        made = work(runtime, planned)
        found[planned.name] = {"seconds": time.monotonic() - began, "writes": calls[0] - before}
        return made

    engine._work = noting
    run(recipe, out)
    notes.write_text(json.dumps(found), encoding="utf-8")


def _counted(call: Any, calls: list[int], kill_at: float = float("inf")) -> Any:
    def counting(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **named)

    return counting


def killed(recipe: Path, out: Path, stage: str, seconds: float | None, write: int | None) -> None:
    """A run that is killed so many seconds after a stage has begun, or at its so-manyeth write."""
    from kdfw.engine import run as engine

    work = engine._work

    def dying(runtime: Any, planned: Any) -> Any:
        if planned.name == stage and seconds is not None:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if planned.name == stage and write is not None:
            calls = [0]
            for name in WRITES:
                setattr(os, name, _counted(getattr(os, name), calls, kill_at=write))
        return work(runtime, planned)

    engine._work = dying
    run(recipe, out)


def run_again(recipe: Path, out: Path) -> None:
    result = run(recipe, out)
    assert result is not None and result.nothing_to_do


def run_and_interrupt(recipe: Path, out: Path) -> None:
    from kdfw.engine.training import Trainer

    steps = iter(range(100))
    original = Trainer.step

    def step(self: Any, batch: Any, clock: Any) -> Any:
        if next(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, clock)

    Trainer.step = step  # type: ignore[method-assign]
    run(recipe, out)


@pytest.fixture(scope="module")
def recipe(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace's, with a stage of every kind."""
    path = tmp_path_factory.mktemp("every-kind") / "recipe.yaml"
    path.write_text(EVERY_KIND.format(root=workspace), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A finished run, and what each of its stages took."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert in_child(watched, recipe, root / "run", root / "notes.json") == 0
    yield root / "run", json.loads((root / "notes.json").read_text(encoding="utf-8"))


def test_there_is_a_stage_of_every_kind(undisturbed: tuple[Path, dict[str, Any]]):
    plan = json.loads((undisturbed[0] / "plan.json").read_text(encoding="utf-8"))
    assert {stage["type"] for stage in plan["stages"]} == set(registry().names("stage"))


@pytest.mark.slow
def test_kills_in_every_stage_change_nothing(recipe: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path):
    finished, took = undisturbed
    assert set(took) == set(EVERY_STAGE)
    seed = int(os.environ.get("KDFW_KILL_SEED", "0")) or time.time_ns()
    rng = random.Random(seed)
    kills: dict[str, int] = dict.fromkeys(EVERY_STAGE, 0)
    for number in range(ROUNDS):
        out = tmp_path / f"round-{number}" / "run"
        for stage in EVERY_STAGE:  # one after the other, in the same run
            seconds = rng.uniform(0, took[stage]["seconds"]) if number % 2 else None
            write = None if number % 2 else rng.randint(1, int(took[stage]["writes"]))
            code = in_child(killed, recipe, out, stage, seconds, write)
            assert code in (0, -signal.SIGKILL)
            kills[stage] += code != 0
        assert in_child(run, recipe, out) == 0
        assert results(out) == results(finished), f"KDFW_KILL_SEED={seed}, round {number}"
        left = [*out.rglob("*.tmp"), *(out.parent / "cache" / "artifacts").rglob("*.tmp")]
        assert not left and not list((out.parent / "cache" / "work").iterdir())
    assert sum(kills.values()) >= 20 and all(kills.values()), kills


def test_an_interrupt_stops_cleanly_with_a_checkpoint_and_the_run_goes_on(
    recipe: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
):
    out = tmp_path / "run"
    assert in_child(run_and_interrupt, recipe, out) == 130
    checkpoints = list((tmp_path / "cache" / "work").glob("train-*/checkpoints/step-*"))
    assert max(path.name for path in checkpoints) == "step-00000005"
    assert in_child(run, recipe, out) == 0
    assert results(out) == results(undisturbed[0])


def test_a_finished_run_does_nothing_and_a_change_reruns_only_what_depends_on_it(workspace: Path, tmp_path: Path):
    out, recipe = tmp_path / "run", workspace / "recipe.yaml"
    assert in_child(run, recipe, out) == 0
    assert in_child(run_again, recipe, out) == 0
    assert in_child(run, recipe, out, "stages.distill.losses.0.weight=0.5") == 0
    manifest = json.loads((out / "manifest.json").read_text())
    cached = {stage["name"]: stage["cached"] for stage in manifest["stages"]}
    assert cached == {name: name in ("mined", "scores") for name in STAGES}

"""Killed at any moment, a run goes on and ends with the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdfw.files import files_below
from kdfw.fingerprint import file_digest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["kdfw.engine.api", "kdfw.builtin", "kdfw.models.forward", "transformers.models.bert"])
KILLS = 24
"""Over all stage kinds; each a SIGKILL at a random moment, then the run goes on."""


def results(out: Path) -> dict[str, str]:
    """Digest of every file in the stage folders: weights, metrics, run files, rankings, measures, model cards.

    Only how long things took may differ: it has a file of its own, which the artifact's checksums list.
    """
    stages = out / "stages"
    names = [name for name in files_below(stages) if name.name not in ("timing.json", "artifact.json")]
    assert len(names) > 20
    return {name.as_posix(): file_digest(stages / name) for name in names}


def in_child(work: Callable[..., None], *arguments: Any, kill_after: float | None = None) -> int:
    """Run `work(*arguments)` in a process of its own (forked from one with warm imports), killed after some seconds.

    Returns: the exit code; negative for a signal.
    """
    process = SERVER.Process(target=child, args=(work, arguments))
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def child(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        work(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)


def run(recipe: Path, out: Path, *settings: str) -> None:
    import kdfw

    kdfw.run(recipe, settings, out=out, cache=out.parent / "cache")


def run_again(recipe: Path, out: Path) -> None:
    import kdfw

    result = kdfw.run(recipe, out=out, cache=out.parent / "cache")
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
def reference(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], float]]:
    """What an undisturbed run ends with, and how long it takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    began = time.monotonic()
    assert in_child(run, workspace / "recipe.yaml", out) == 0
    yield results(out), time.monotonic() - began


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(
    workspace: Path, reference: tuple[dict[str, str], float], tmp_path: Path
):
    expected, seconds = reference
    rng = random.Random(int(os.environ.get("KDFW_KILL_SEED", "0")) or time.time_ns())
    recipe = workspace / "recipe.yaml"
    kills, rounds = 0, 0
    while kills < KILLS:
        out = tmp_path / f"round-{rounds}" / "run"
        rounds += 1
        while True:
            code = in_child(run, recipe, out, kill_after=rng.uniform(0.05, 0.9) * seconds)
            if code != -signal.SIGKILL:
                assert code == 0
                break
            kills += 1
            if kills % 6 == 0:  # let a round finish now and then
                assert in_child(run, recipe, out) == 0
                break
        assert results(out) == expected, f"round {rounds} after {kills} kills"
    assert kills >= KILLS


def test_an_interrupt_stops_cleanly_with_a_checkpoint_and_the_run_goes_on(
    workspace: Path, reference: tuple[dict[str, str], float], tmp_path: Path
):
    expected, _ = reference
    out = tmp_path / "run"

    assert in_child(run_and_interrupt, workspace / "recipe.yaml", out) == 130
    checkpoints = list((tmp_path / "cache" / "work").glob("train-*/checkpoints/step-*"))
    assert max(path.name for path in checkpoints) == "step-00000005"
    assert in_child(run, workspace / "recipe.yaml", out) == 0
    assert results(out) == expected


def test_a_finished_run_does_nothing_and_a_change_reruns_only_what_depends_on_it(
    workspace: Path, reference: tuple[dict[str, str], float], tmp_path: Path
):
    out, recipe = tmp_path / "run", workspace / "recipe.yaml"
    assert in_child(run, recipe, out) == 0
    assert in_child(run_again, recipe, out) == 0
    assert in_child(run, recipe, out, "stages.distill.losses.0.weight=0.5") == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert {stage["name"]: stage["cached"] for stage in manifest["stages"]} == {
        "mined": True, "scores": True, "distill": False, "hard": False, "test": False,
    }  # fmt: skip


def test_a_truncated_checkpoint_is_passed_over(
    workspace: Path, reference: tuple[dict[str, str], float], tmp_path: Path
):
    expected, seconds = reference
    out, recipe = tmp_path / "run", workspace / "recipe.yaml"
    for share in (0.6, 0.7, 0.8, 0.5, 0.4):
        in_child(run, recipe, out, kill_after=share * seconds)
        found = sorted((tmp_path / "cache" / "work").glob("train-*/checkpoints/step-*"))
        if found:
            weights = found[-1] / "student.weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:100])
            break
    assert in_child(run, recipe, out) == 0
    assert results(out) == expected

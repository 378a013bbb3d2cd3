"""A run folder belongs to one run at a time, and what happens to the shared cache meanwhile does not touch it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from whole_runs import SERVER, STAGES, in_child, results, run

from kdfw.cli import main
from kdfw.engine import run as engine
from kdfw.engine.artifacts import ArtifactStore
from kdfw.errors import ArtifactError


@pytest.fixture(scope="module")
def finished(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    run(workspace / "recipe.yaml", root / "run")
    return root


def waiting(recipe: Path, out: Path, there: Any, go: Any) -> None:
    """A run that stops before it trains until it is told to go on."""
    import torch

    torch.set_num_threads(1)
    work = engine._work

    def wait(runtime: Any, planned: Any) -> Any:
        if planned.name == "distill":
            there.set()
            assert go.wait(120)
        return work(runtime, planned)

    engine._work = wait
    run(recipe, out)


@pytest.mark.parametrize("fresh", [False, True], ids=["again", "fresh"])
def test_a_second_run_in_the_same_folder_says_who_is_there_and_touches_nothing(
    workspace: Path, finished: Path, tmp_path: Path, fresh: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setattr("kdfw.cli.tune_process", lambda: None)
    out = tmp_path / "run"
    there, go = SERVER.Event(), SERVER.Event()
    first = SERVER.Process(target=waiting, args=(workspace / "recipe.yaml", out, there, go))
    first.start()
    try:
        assert there.wait(120)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        arguments = ["run", str(workspace / "recipe.yaml"), "stages.test.split=dev", "--out", str(out)]
        assert main([*arguments, "--cache", str(tmp_path / "cache"), *["--fresh"][: int(fresh)]]) == 2
        said = capsys.readouterr().err
        assert f"{out}: process {first.pid} on " in said and "--out" in said and "Traceback" not in said
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    finally:
        go.set()
        first.join(120)
    assert first.exitcode == 0
    assert results(out) == results(finished / "run")
    assert not (out / ".holder").exists()


def killed_while_training(recipe: Path, out: Path) -> None:
    engine._work = lambda runtime, planned: os.kill(os.getpid(), signal.SIGKILL)
    run(recipe, out)


def test_a_killed_run_holds_nothing(workspace: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "run"
    assert in_child(killed_while_training, workspace / "recipe.yaml", out) == -signal.SIGKILL
    assert (out / ".holder").exists()
    run(workspace / "recipe.yaml", out)
    assert results(out) == results(finished / "run")


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_place_that_cannot_be_a_run_folder_is_named(workspace: Path, tmp_path: Path, name: str):
    (tmp_path / "file").write_text("here is something else")
    with pytest.raises(ArtifactError, match=f"{tmp_path / name}: cannot be written: .*--out"):
        run(workspace / "recipe.yaml", tmp_path / name, cache=tmp_path / "cache")
    assert (tmp_path / "file").read_text() == "here is something else"


def test_the_cache_may_be_cleared_or_remade_while_a_run_goes_on(
    workspace: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What `--fresh` of another run does to a shared cache, and what a person does who needs space."""
    work = engine._work

    def clearing(runtime: Any, planned: Any) -> Any:
        for kind in ("artifacts", "bm25", "embeddings", "tokens"):
            shutil.rmtree(tmp_path / "cache" / kind, ignore_errors=True)
        return work(runtime, planned)

    monkeypatch.setattr(engine, "_work", clearing)
    run(workspace / "recipe.yaml", tmp_path / "run")
    assert results(tmp_path / "run") == results(finished / "run")


def test_a_fresh_start_uses_nothing_of_an_interrupted_run(
    workspace: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from kdfw.engine.training import Trainer

    step = Trainer.step

    def stopping(self: Trainer, batch: Any, clock: Any) -> Any:
        if clock.step == 3:
            raise KeyboardInterrupt
        return step(self, batch, clock)

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stopping)
        run(workspace / "recipe.yaml", out)
    checkpoint = max(tmp_path.glob("cache/work/train-*/checkpoints/step-*"))
    began = []
    monkeypatch.setattr(
        Trainer, "step", lambda self, batch, clock: began.append(clock.step) or step(self, batch, clock)
    )
    run(workspace / "recipe.yaml", out, fresh=True)
    assert began[0] == 0
    assert results(out) == results(finished / "run")
    assert len(list(tmp_path.glob(f"cache/replaced/train-*/checkpoints/{checkpoint.name}"))) == 1  # kept
    old = [path for path in tmp_path.iterdir() if path.name.startswith("run.")]
    assert len(old) == 1 and {path.name for path in (old[0] / "stages").iterdir()} == {"01-mined", "02-scores"}


def test_two_fresh_starts_in_one_second_keep_both_old_runs(workspace: Path, finished: Path, tmp_path: Path):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    monday = time.strptime("2024-01-01 12:00:00", "%Y-%m-%d %H:%M:%S")
    real = time.strftime
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "strftime", lambda form, *at: real(form, monday))
        for fresh in (False, True, True):
            run(workspace / "recipe.yaml", tmp_path / "run", "stages=[{type: mine, name: mined, retriever: bm25}]",
                fresh=fresh)  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {
        "cache", "run", "run.20240101-120000", "run.20240101-120000+"
    }  # fmt: skip


def test_what_a_kill_left_of_a_write_is_no_part_of_any_result(workspace: Path, finished: Path, tmp_path: Path):
    plan = json.loads((finished / "run" / "plan.json").read_text(encoding="utf-8"))
    store = ArtifactStore(tmp_path / "cache", tmp_path / "own")
    for stage in plan["stages"]:
        work = store.work_folder(stage["type"], stage["fingerprint"])
        (work / ".measures.json.abc.tmp").write_text("{")
    (tmp_path / "run" / "stages" / ".01-mined.making").mkdir(parents=True)
    (tmp_path / "run" / "stages" / ".01-mined.making" / "half").write_text("x")
    (tmp_path / "run" / ".manifest.json.abc.tmp").write_text("{")
    run(workspace / "recipe.yaml", tmp_path / "run")
    assert results(tmp_path / "run") == results(finished / "run")
    assert not list(tmp_path.rglob("*.tmp"))
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == {
        f"{number:02}-{name}" for number, name in enumerate(STAGES, 1)
    }

"""What an interrupted stage has left is verified before the stage goes on: no damaged part of it is used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_runs import flip, results, run

from kdfw.engine import checkpoint
from kdfw.engine.training import Trainer
from kdfw.errors import ArtifactError


@pytest.fixture(scope="module")
def finished(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    run(workspace / "recipe.yaml", root / "run")
    return root


@pytest.fixture(scope="module")
def interrupted(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its sixth step: checkpoints after steps 2, 3 (the best so far), and 4."""
    root = tmp_path_factory.mktemp("interrupted")
    step = Trainer.step

    def stopping(self: Trainer, batch: Any, clock: Any) -> Any:
        if clock.step == 5:
            raise KeyboardInterrupt
        return step(self, batch, clock)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stopping)
        run(workspace / "recipe.yaml", root / "run")
    return root


def left_over(root: Path) -> Path:
    (found,) = (root / "cache" / "work").glob("train-*")
    return found


def parts(root: Path) -> Iterator[Path]:
    for path in sorted(left_over(root).rglob("*")):
        if path.is_file() and path.stat().st_size:
            yield path.relative_to(root)


def test_the_newest_and_the_best_checkpoint_are_kept(interrupted: Path):
    kept = {path.name for path in (left_over(interrupted) / "checkpoints").iterdir()}
    assert kept == {"step-00000003", "step-00000004"}
    newest = left_over(interrupted) / "checkpoints" / "step-00000004"
    state = json.loads((newest / "state.json").read_text())
    assert (state["best_step"], state["refers"]) == (3, 3)
    assert (newest / "metrics.jsonl").exists() and (newest / "probe.safetensors").exists()


def test_a_byte_changed_in_anything_an_interrupted_training_left_changes_no_result(
    workspace: Path, finished: Path, interrupted: Path, tmp_path: Path
):
    expected = results(finished / "run")
    rng = random.Random(3)
    names = list(parts(interrupted))
    assert {name.name for name in names} >= {
        "student.weights.safetensors", "student.optimizer.safetensors", "student.optimizer.json", "state.json",
        "checksums.json", "metrics.jsonl", "probe.safetensors",
    }  # fmt: skip
    for number, name in enumerate(names):
        root = tmp_path / str(number)
        shutil.copytree(interrupted, root)
        flip(root / name, rng.randrange((root / name).stat().st_size))
        run(workspace / "recipe.yaml", root / "run")
        assert results(root / "run") == expected, name
        shutil.rmtree(root)


@pytest.mark.parametrize("damage", ["truncated", "removed", "emptied", "no checksums", "empty checksums"])
@pytest.mark.parametrize("which", ["step-00000003", "step-00000004"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    workspace: Path, finished: Path, interrupted: Path, tmp_path: Path, damage: str, which: str
):
    shutil.copytree(interrupted, tmp_path / "w")
    folder = left_over(tmp_path / "w") / "checkpoints" / which
    weights = folder / "student.weights.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "removed":
        shutil.rmtree(folder)
    elif damage == "emptied":
        weights.unlink()
    else:
        (folder / "checksums.json").write_text("" if damage == "no checksums" else "{}")
    began: list[int] = []
    step = Trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", lambda self, batch, clock: began.append(clock.step) or step(self, batch, clock))
        run(workspace / "recipe.yaml", tmp_path / "w" / "run")
    # the newer one needs the weights of the older, which were the best
    assert began[0] == (0 if which == "step-00000003" else 3)
    assert results(tmp_path / "w" / "run") == results(finished / "run")


def test_a_best_checkpoint_damaged_while_training_goes_on_is_never_used(
    workspace: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step = Trainer.step

    def spoiling(self: Trainer, batch: Any, clock: Any) -> Any:
        if clock.step == self.feed.total_steps - 1:
            for folder in (self.context.folder / "checkpoints").iterdir():
                flip(folder / "student.weights.safetensors", 5000)
        return step(self, batch, clock)

    # the last evaluation is no better, so an earlier checkpoint has the weights that count
    measures = iter([0.5, 0.4])
    monkeypatch.setattr("kdfw.engine.dev.DevEvaluation.measure", lambda *given: next(measures))
    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="step-00000003: damaged.*run again"):
        patch.setattr(Trainer, "step", spoiling)
        run(workspace / "recipe.yaml", tmp_path / "run")
    measures = iter([0.5, 0.4])
    run(workspace / "recipe.yaml", tmp_path / "run")
    measures = iter([0.5, 0.4])
    run(workspace / "recipe.yaml", tmp_path / "other" / "run")
    assert results(tmp_path / "run") == results(tmp_path / "other" / "run")


@pytest.mark.parametrize("what", ["mined", "vectors"])
def test_a_byte_changed_in_anything_an_interrupted_search_or_scoring_left_changes_no_result(
    workspace: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
):
    from kdfw.retrieval import mining
    from kdfw.teachers.vectors import PassageVectors

    monkeypatch.setattr(mining, "BLOCK_QUERIES", 4)
    monkeypatch.setattr("kdfw.teachers.vectors.CHUNK", 8)
    recipe = tmp_path / "recipe.yaml"
    text = (workspace / "recipe.yaml").read_text(encoding="utf-8").split("  - name: distill")[0]
    recipe.write_text(text.replace("teacher: teacher,", "teacher: student,"), encoding="utf-8")  # one vector a text
    run(recipe, tmp_path / "undisturbed" / "run")
    owner, name = (mining.Blocks, "write") if what == "mined" else (PassageVectors, "_encode")
    original, calls = getattr(owner, name), iter(range(1000))

    def stopping(*given: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, stopping)
        run(recipe, tmp_path / "left" / "run")
    names = [path for path in (tmp_path / "left" / "cache" / "work").rglob("*") if path.is_file()]
    names = [path.relative_to(tmp_path / "left") for path in names if path.stat().st_size]
    assert len(names) >= (8 if what == "mined" else 3)
    rng = random.Random(4)
    for number, part in enumerate(names):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "left", root)
        flip(root / part, rng.randrange((root / part).stat().st_size))
        run(recipe, root / "run")
        assert results(root / "run") == results(tmp_path / "undisturbed" / "run"), part


def test_checkpoints_that_are_referred_to_stay(tmp_path: Path):
    import torch

    modules = {"student": torch.nn.Linear(2, 2)}
    for step, best in [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4)]:
        checkpoint.save(tmp_path, step, modules, {}, {}, refers=best)
        names = {int(path.name[5:]) for path in tmp_path.iterdir()}
        assert names == {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {1, 3, 4}, 5: {4, 5}, 6: {4, 5, 6}}[step]
    found = checkpoint.latest(tmp_path)
    assert found is not None and checkpoint.step_of(found) == 6
    flip(tmp_path / "step-00000004" / "student.weights.safetensors", 0)
    assert checkpoint.latest(tmp_path) is None

"""Trackers see what the log sees, never touch the fingerprint, and say which package is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdfw
from kdfw.errors import ConfigError, MissingDependencyError
from kdfw.tracking import TRACKERS, Trackers


def test_a_missing_tracker_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TRACKERS, "wandb", "no_such_package_anywhere")
    with pytest.raises(MissingDependencyError, match=r"pip install 'kdfw\[trackers\]'"):
        Trackers(("wandb",), "run", "stage", tmp_path, {})


def test_an_unknown_tracker_is_a_fault_of_the_recipe(workspace: Path):
    with pytest.raises(ConfigError, match="trackers.*tensorboard"):
        kdfw.plan(workspace / "recipe.yaml", ["trackers=[tensorbord]"])


def test_trackers_do_not_change_what_a_stage_is(workspace: Path):
    plain = kdfw.plan(workspace / "recipe.yaml")
    shown = kdfw.plan(workspace / "recipe.yaml", ["trackers=[tensorboard]"])
    assert [stage.fingerprint for stage in plain.stages] == [stage.fingerprint for stage in shown.stages]


def test_tensorboard_gets_the_loss_of_every_logged_step(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(("tensorboard",), "run", "fit", tmp_path, {"lr": 0.1, "name": "x", "left_out": None})
    for step, loss in [(1, 0.5), (2, 0.25)]:
        trackers.log(step, {"loss": loss})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "run-fit"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]

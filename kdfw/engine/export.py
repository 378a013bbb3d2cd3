"""`kdfw export`: the student of a run as a folder that other libraries load."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from kdfw.errors import ConfigError, one_of
from kdfw.files import files_below, inside, sync_file


def trained_stages(run: Path) -> dict[str, Path]:
    """Stage name -> folder of every finished stage that left a model, in order. Raises ConfigError for no run."""
    try:
        plan: dict[str, Any] = json.loads((run / "plan.json").read_text(encoding="utf-8"))
        stages = [(str(stage["name"]), str(stage["folder"])) for stage in plan["stages"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise ConfigError(f"{run}: not a run folder (no readable plan.json)") from None
    found = {}
    for name, place in stages:
        folder = inside(run / "stages", place)
        if (folder / "model").is_dir():
            found[name] = folder
    return found


def export_student(run: Path, to: Path, *, stage: str | None = None) -> Path:
    """Copy a trained student, with its model card, to a new folder.

    Args:
        run: a run folder, or a folder with `model/` in it.
        to: a folder that does not exist yet, or is empty.
        stage: which training stage; default: the last.
    Raises: ConfigError when there is no such student or `to` holds something.
    """
    if (run / "model").is_dir():
        source = run / "model"
    else:
        stages = trained_stages(run)
        if not stages:
            raise ConfigError(f"{run}: no finished training stage; run the recipe first")
        if stage is not None and stage not in stages:
            raise ConfigError(f"{run}: no finished training stage {stage!r}; {one_of(stage, stages)}")
        source = stages[stage or list(stages)[-1]] / "model"
    if to.exists() and any(to.iterdir()):
        raise ConfigError(f"{to} is not empty; give a new folder, nothing there was touched")
    building = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    for name in files_below(source):
        (building / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, building / name)
        sync_file(building / name)
    if to.exists():
        to.rmdir()
    os.replace(building, to)
    return to

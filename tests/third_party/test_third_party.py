"""A package by someone else: installed, discovered by its entry point, listed, checked in a recipe, run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from installing import install, run

PACKAGE = Path(__file__).parent / "kdfw-focal"

RECIPE = """
import json, sys
from kdfw.plugins import registry
from kdfw.recipe.recipe import build
from kdfw.recipe.source import parse

TEXT = '''
kdfw: 1
name: third-party
data: {type: pydocs}
models:
  student: {type: bi-encoder, base: some/model}
stages:
  - {name: mined, type: mine, retriever: bm25}
  - name: distill
    type: train
    student: student
    teachers: [student]
    sampler: {type: mined, of: mined}
    augment: [{type: keep-negatives, count: 3}]
    losses: [{type: focal-kl, GAMMA: 1.5, weight: {type: triangle, high: 2.0}, temperature: 4}]
'''
good = build(parse(TEXT.replace("GAMMA", "gamma")), registry())
bad = build(parse(TEXT.replace("GAMMA", "gama")), registry())
stage = next(entry for entry in good.stages if entry.name == "distill").spec.build()
loss, augmenter = stage.losses[0], stage.augment[0]
print(json.dumps({
    "problems": [str(problem) for problem in good.problems],
    "faults": [str(problem) for problem in bad.problems],
    "loss": [type(loss).__module__, loss.gamma, type(loss.settings.weight).__name__, loss.settings.weight.high],
    "augmenter": [type(augmenter).__module__, augmenter.count],
}))
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(PACKAGE, tmp_path_factory.mktemp("focal"))


def test_it_is_discovered_and_listed_with_origin_and_version(target: Path) -> None:
    done = run(target, "-m", "kdfw", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = next(plugin for plugin in json.loads(done.stdout) if plugin["name"] == "focal")
    assert found == {
        "name": "focal",
        "distribution": "kdfw-focal",
        "version": "0.3.1",
        "module": "kdfw_focal",
        "components": {"loss": ["focal-kl"], "augmenter": ["keep-negatives"], "schedule": ["triangle"]},
    }


def test_its_components_are_explained(target: Path) -> None:
    done = run(target, "-m", "kdfw", "explain", "loss", "focal-kl")
    assert done.returncode == 0, done.stderr
    assert "kdfw-focal 0.3.1" in done.stdout
    assert "float, default 2.0, >= 0, <= 10" in done.stdout


def test_a_recipe_uses_them_and_their_options_are_checked(target: Path) -> None:
    done = run(target, "-c", RECIPE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["loss"] == ["kdfw_focal.loss", 1.5, "Triangle", 2.0]
    assert found["augmenter"] == ["kdfw_focal.keep_negatives", 3]
    assert len(found["faults"]) == 1
    assert "stages[1].losses[0].gama: unknown key 'gama'; did you mean 'gamma'?" in found["faults"][0]


def test_its_own_tests_pass_where_it_is_installed(target: Path, tmp_path: Path) -> None:
    done = run(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={PACKAGE}", str(PACKAGE / "tests"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout

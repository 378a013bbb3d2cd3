"""The JSON schema of recipes: what kdfw accepts it accepts, typical mistakes it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kdfw.plugins import registry
from kdfw.recipe.recipe import TOP_KEYS, build
from kdfw.recipe.reference import BEGIN, reference_text, with_reference
from kdfw.recipe.schema import recipe_schema
from kdfw.recipe.source import Source, load, parse

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed (extra `test`)")

GOOD = """
kdfw: 1
name: good
data: {type: pydocs}
models:
  student: {type: bi-encoder, base: some/model, pooling: mean}
  teacher: {type: cross-encoder, base: some/ranker}
train: {lr: 1e-5}
stages:
  - {name: mined, type: mine, retriever: bm25, depth: 100}
  - repeat: 2
    stages:
      - {name: scores, type: score, teacher: teacher, of: mined}
      - name: distill
        type: train
        student: distill | student
        teachers: [scores]
        sampler: {type: mined, of: mined}
        losses: [{type: kl, temperature: {type: linear, start: 1, end: 4, until: 10, unit: step}}, info-nce]
        train: {epochs: 1, batch_size: 8}
  - method: {type: trans-encoder, cycles: 2}
"""
SHORT = """
data: pydocs
student: {type: bi-encoder, base: some/model}
teacher: {type: cross-encoder, base: some/ranker}
loss: {type: margin-mse, weight: 0.5}
candidates: {depth: 50}
"""


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema, allow_nan=False)
    return jsonschema.Draft202012Validator(schema)


def faults(validator: Any, value: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def test_there_are_recipes_to_validate() -> None:
    assert {"quickstart.yaml", "scifact.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(validator: Any, path: Path) -> None:
    assert faults(validator, load(path).value) == []


BARE = """
data: {type: pydocs, packages: json}
student: {type: bi-encoder, base: some/model}
teachers: {type: cross-encoder, base: some/ranker}
losses: {type: kl, teachers: 0}
train: {freeze: embeddings, decay: milestones, milestones: 3}
evaluate: {measures: nDCG@10}
trackers: tensorboard
"""


@pytest.mark.parametrize("text", [GOOD, SHORT, BARE])
def test_full_and_short_forms_are_valid_for_schema_and_kdfw_alike(validator: Any, text: str) -> None:
    source = parse(text, "good.yaml")
    assert faults(validator, source.value) == []
    assert list(build(source, registry()).problems) == []


def change(path: str, value: Any) -> dict[str, Any]:
    """The good recipe with one value replaced, or removed when it is `...`."""
    raw = copy.deepcopy(parse(GOOD).value)
    here: Any = raw
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        here = here[part]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nam", "x"),
        ("kdfw", 2),
        ("name", "../up"),
        ("seed", -1),
        ("data", ...),
        ("data", {"type": "pydoc"}),
        ("models.student.poling", "mean"),
        ("models.student.pooling", "men"),
        ("models.student.base", ...),
        ("train", {"learning_rate": 1}),
        ("train.lr", "fast"),
        ("train.lr", -1),
        ("stages", []),
        ("stages.0.type", "mines"),
        ("stages.0.depth", 0),
        ("stages.0.retriever", "bm52"),
        ("stages.1.repeat", 0),
        ("stages.1.type", "train"),
        ("stages.1.stages.1.student", ...),
        ("stages.1.stages.1.student", 3),
        ("stages.1.stages.1.losses.0.temprature", 4),
        ("stages.1.stages.1.losses.0.type", "lk"),
        ("stages.1.stages.1.losses.0.weight", "much"),
        ("stages.1.stages.1.losses.0.temperature", {"type": "linear", "start": 1}),
        ("stages.1.stages.1.train.batch_size", 0),
        ("stages.1.stages.1.train.optimizer", "adam"),
    ],
)
def test_a_typical_mistake_is_refused_by_schema_and_kdfw_alike(validator: Any, path: str, value: Any) -> None:
    raw = change(path, value)
    assert faults(validator, raw) != []
    assert list(build(Source(value=raw, file="test"), registry()).problems) != []


def test_every_top_key_and_every_component_is_in_it() -> None:
    schema = recipe_schema()
    assert set(schema["properties"]) == set(TOP_KEYS)
    for key, value in schema["properties"].items():
        assert len(value) > 1, f"the top-level key {key!r} has a description but no schema"
    for kind in ("loss", "schedule", "stage", "student", "dataset"):
        for name in registry().names(kind):
            assert schema["$defs"][f"{kind}.{name}"]["description"]
    kl = schema["$defs"]["loss.kl"]["properties"]
    assert kl["direction"]["enum"] == ["forward", "reverse"] and kl["direction"]["default"] == "forward"


def test_the_reference_in_the_docs_is_up_to_date() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert BEGIN in page
    assert page == with_reference(page, reference_text()), "run: python -m kdfw.recipe.reference"


def test_the_examples_in_the_docs_are_valid(validator: Any) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```yaml\n")[1:]]
    whole = [parse(block).value for block in blocks if block.startswith("kdfw: 1")]
    assert len(whole) >= 2
    for value in whole:
        assert faults(validator, value) == []
    repeated = next(block for block in blocks if "repeat: 3" in block)
    assert faults(validator, {"data": "pydocs", **parse(repeated).value}) == []

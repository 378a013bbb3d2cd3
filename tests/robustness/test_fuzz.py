"""Whatever stands in a recipe, an option or a file: a value or an error that says where, and never anything else."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from odd_values import HUGE, ODD, fuzzing, some_place

from kdfw.cli import main
from kdfw.components import KINDS
from kdfw.describe import describe, explain_text
from kdfw.errors import ConfigError, KdfwError
from kdfw.options import check, options_of
from kdfw.plugins import registry
from kdfw.recipe.plan import make_plan
from kdfw.recipe.recipe import build, read
from kdfw.recipe.source import parse

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
QUICK = fuzzing(60)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A shipped recipe with a few of its values removed, renamed, replaced or nested."""
    raw = yaml.safe_load(draw(st.sampled_from(RECIPES)).read_text(encoding="utf-8"))
    for _ in range(draw(st.integers(1, 4))):
        holder, key = some_place(draw, raw)
        kind = draw(st.sampled_from(["replace", "replace", "delete", "rename", "nest", "repeat"]))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(ODD))  # later changes must not reach what others draw
        elif kind == "delete":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = holder.pop(key)
        elif kind == "nest":
            for _ in range(draw(st.integers(1, 40))):
                holder[key] = [holder[key]] if draw(st.booleans()) else {"type": holder[key]}
        elif kind == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
    return str(yaml.safe_dump(raw, allow_unicode=True)).replace(HUGE, "0x" + "f" * 4000)


def test_there_are_recipes_to_change():
    assert len(RECIPES) >= 5


@fuzzing(300)
@given(text=mutated())
def test_a_mutated_recipe_gives_a_plan_or_an_error_with_a_place(text: str):
    try:
        plan = make_plan(build(parse(text, "fuzz.yaml"), registry()))
    except ConfigError as error:
        assert error.problems
        assert all(problem.where.startswith("fuzz.yaml") and problem.found for problem in error.problems)
        return
    assert plan.stages and len({stage.fingerprint for stage in plan.stages}) >= 1


@QUICK
@given(path=st.sampled_from(RECIPES), key=st.sampled_from(["seed", "name", "train.lr", "stages.0.type",
       "models.student.base", "stages.distill.losses.0.weight", "a.b.c", "data.type", "stages", "x=y"]),
       value=ODD | st.text(max_size=20))  # fmt: skip
def test_any_setting_gives_a_plan_or_an_error(path: Path, key: str, value: Any):
    try:
        make_plan(read(path, registry(), [f"{key}={value}".replace(HUGE, "0x" + "f" * 4000)]))
    except ConfigError as error:
        assert str(error)


COMPONENTS = [(kind, name) for kind in KINDS for name in registry().names(kind)]


def test_every_kind_has_components():
    assert {kind for kind, _ in COMPONENTS} >= {"loss", "student", "teacher", "sampler", "dataset", "stage", "schedule"}


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=[f"{kind}-{name}" for kind, name in COMPONENTS])
def test_every_component_is_explained_and_takes_wrong_values_as_errors(kind: str, name: str):
    found = describe(kind, name, registry())
    assert found.summary and name in explain_text(kind, name)
    cls = registry().get(kind, name)
    required = [option for option, declared in options_of(cls).items() if declared.required]
    problems: list[Any] = []
    spec = check(kind, {"type": name}, (), registry(), str, problems)
    if required:
        assert spec is None and all(any(option in str(problem) for problem in problems) for option in required)
    else:
        assert spec is not None, problems
        try:
            spec.build()
            json.dumps(spec.canonical())
        except ConfigError:
            pass  # its options are fine one by one and not together
    wrong = [
        None,
        True,
        -1,
        0,
        10**25,
        1.5,
        math.nan,
        -math.inf,
        "",
        "\0",
        "no such name",
        [],
        [None],
        {},
        {"type": 1},
        [[]],
    ]
    names = [*options_of(cls), *(options_of(cls.common) if cls.common is not None else ())]
    for option in names:
        for value in wrong:
            problems = []
            spec = check(kind, {"type": name, option: value}, (), registry(), str, problems)
            assert (spec is None) == bool(problems)
            if spec is not None:
                try:
                    spec.build()
                except KdfwError as error:
                    assert str(error)


@QUICK
@given(
    run=st.binary(max_size=200),
    qrels=st.binary(max_size=200),
    suffix=st.sampled_from([".trec", ".json", ".tsv", ".jsonl", ".gz", ""]),
)
def test_evaluate_and_compare_take_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, run: bytes, qrels: bytes, suffix: str
):
    root = tmp_path_factory.mktemp("bytes")
    (root / f"run{suffix}").write_bytes(run)
    (root / f"other{suffix}").write_bytes(run[::-1])
    (root / "qrels").write_bytes(qrels)
    for command in (
        ["evaluate", "--run", str(root / f"run{suffix}"), "--qrels", str(root / "qrels")],
        ["compare", str(root / f"run{suffix}"), str(root / f"other{suffix}"), "--qrels", str(root / "qrels")],
    ):
        assert main(command) in (0, 2)

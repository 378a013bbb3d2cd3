"""YAML with line numbers: places, refusals, overrides; and any bytes give a value or a ConfigError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdfw.errors import ConfigError
from kdfw.recipe.source import load, override, parse

TEXT = """\
name: a
train:
  lr: 1e-5
stages:
  - name: mine
    depth: 10
  - name: distill
    losses:
      - {type: kl,
         weight: 0.5}
"""


def test_every_value_knows_its_line():
    source = parse(TEXT, "r.yaml")
    assert source.value["train"]["lr"] == 1e-5  # YAML 1.1 would read this as text
    assert source.where(("train", "lr")) == "r.yaml:3: train.lr"
    assert source.where(("stages", 1, "losses", 0, "weight")) == "r.yaml:10: stages[1].losses[0].weight"
    # a key that is not there is reported at its parent
    assert source.where(("stages", 0, "retriever")) == "r.yaml:5: stages[0].retriever"


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("a: 1\nb: [1,\n", "r.yaml:3", "not valid YAML"),
        ("a: 1\na: 2\n", "r.yaml:2", "key 'a' again"),
        ("- 1\n", "r.yaml", "a list"),
        ("", "r.yaml", "an empty file"),
        ("a: !!python/object/apply:os.system ['true']\n", "r.yaml:1", "the tag tag:yaml.org,2002:python"),
        ("a: !!python/name:os.system\n", "r.yaml:1", "the tag"),
        ("a: 0x" + "f" * 4000, "r.yaml:1", "beyond 64 bits"),
        (f"b: [1,\n {1 << 63}]", "r.yaml:2", "beyond 64 bits"),
        ("a: {1: 2, [3]: 4}\n", "r.yaml:1", "a key that is not text"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", "r.yaml:3", "a merge key"),
    ],
)
def test_what_is_refused_names_file_and_line(text: str, where: str, found: str):
    with pytest.raises(ConfigError) as caught:
        source = parse(text, "r.yaml")
        assert isinstance(source.value, dict)
    problem = caught.value.problems[0]
    assert problem.where == where
    assert found in problem.found


def test_list_tags_cannot_build_objects():
    with pytest.raises(ConfigError, match="tag"):
        parse("a: !foo 3\n", "r.yaml")


def test_aliases_cannot_blow_a_small_file_up():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than"):
        parse("\n".join(lines), "r.yaml")


def test_overrides_reach_keys_items_and_named_items():
    source = parse(TEXT, "r.yaml")
    changed = override(source, ["train.lr=2e-3", "stages.distill.losses.0.weight=0.25", "seed=7", "stages.0.depth=5"])
    assert changed.value["train"]["lr"] == 2e-3
    assert changed.value["stages"][1]["losses"][0]["weight"] == 0.25
    assert changed.value["stages"][0]["depth"] == 5
    assert changed.value["seed"] == 7
    assert changed.where(("seed",)) == "command line (seed=7): seed"
    assert source.value["train"]["lr"] == 1e-5, "the source itself must not change"


def test_overrides_reach_stages_of_repeated_blocks():
    text = "stages:\n  - {name: mine}\n  - repeat: 2\n    stages:\n      - {name: scores}\n      - {name: distill}\n"
    changed = override(parse(text, "r.yaml"), ["stages.distill.train.lr=1"])
    assert changed.value["stages"][1]["stages"][1]["train"] == {"lr": 1}
    place = ("stages", 1, "stages", 1, "train", "lr")
    assert changed.where(place) == "command line (stages.distill.train.lr=1): stages[1].stages[1].train.lr"
    with pytest.raises(ConfigError, match="did you mean 'distill'"):
        override(parse(text, "r.yaml"), ["stages.distil.train.lr=1"])


def test_overrides_that_do_not_fit_are_all_named():
    source = parse(TEXT, "r.yaml")
    with pytest.raises(ConfigError) as caught:
        override(source, ["stages.distil.x=1", "name.x=2", "nothing"])
    assert len(caught.value.problems) == 3
    assert "did you mean 'distill'?" in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="a folder"):
        load(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=200), st.text(alphabet="ab:-[]{}&*!|>'\"#%@,?\n \t0e~<", max_size=80).map(str.encode)
    )
)
def test_any_bytes_give_a_mapping_or_a_config_error(tmp_path: Path, data: bytes):
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    try:
        assert isinstance(load(path).value, dict)
    except ConfigError as error:
        assert str(path) in str(error)

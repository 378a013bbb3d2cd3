"""Options of models that are wrong for their base: said with file, line and key before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import write_beir, write_bert

from kdfw.engine import api
from kdfw.errors import ConfigError

RECIPE = """\
kdfw: 1
name: small
data: {{type: beir, folder: {folder}/data}}
models:
  student:
    type: bi-encoder
    base: {base}
    layers: {layers}
stages:
  - {{name: test, type: evaluate, models: [student]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    write_beir(folder / "data")
    write_bert(folder / "bert", layers=2)
    return folder


def planned(folder: Path, tmp_path: Path, layers: Any, base: str = "") -> Any:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.format(folder=folder, base=base or folder / "bert", layers=layers))
    return api.plan(recipe)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("99", "found 99, but the base has 2 layers; the last one is 1"),
        ("[2]", r"found \[2\], but the base has 2 layers"),
        ("last-3", "found 'last-3', but the base has 2 layers"),
        ("[]", r"found \[\], which keeps no layer"),
        ("0", "found 0, which keeps no layer"),
        ("[-1]", r"found \[-1\]; keep at least one; layers count from 0"),
        ("middle-2", "found 'middle-2'; write a number"),
        ("[1, 1]", r"found \[1, 1\], which names a layer twice"),
    ],
)
def test_layers_that_the_base_does_not_have(folder: Path, tmp_path: Path, layers: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"small.yaml:8: models.student.layers: " + said):
        planned(folder, tmp_path, layers)


def test_of_a_base_that_is_not_here_only_the_form_is_judged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdfw.models.checkpoint.commit", lambda *_: None)
    assert planned(folder, tmp_path, 99, base="org/elsewhere")
    with pytest.raises(ConfigError, match="models.student.layers: found 'middle-2'"):
        planned(folder, tmp_path, "middle-2", base="org/elsewhere")


def test_layers_that_it_has(folder: Path, tmp_path: Path) -> None:
    for layers in ("1", "2", "[1, 0]", "first-1", "null"):
        assert planned(folder, tmp_path, layers)

"""Classes mean the same to the teacher and the student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from whole_runs import run

from kdfw.errors import ConfigError
from tests.tiny import WORDS, write_bert

RECIPE = """\
kdfw: 1
name: classes
precision: fp32
data:
  one: {{type: text-classification, files: {{train: {root}/rows.jsonl}}, classes: [good, bad]}}
  other: {{type: text-classification, files: {{train: {root}/rows.jsonl}}, classes: [{classes}]}}
models:
  model: {{type: text-classifier, base: {root}/bert, max_tokens: 16}}
train: {{steps: 1, batch_size: 4}}
stages:
  - {{name: teach, type: train, data: one, student: model, losses: [{{type: cross-entropy}}]}}
  - {{name: learn, type: train, data: other, student: model, teachers: [teach],
     losses: [{{type: kl}}]}}
"""


@pytest.mark.parametrize(("classes", "refused"), [("good, bad", False), ("bad, good", True)])
def test_a_teacher_with_the_classes_in_another_order_is_refused(tmp_path: Path, classes: str, refused: bool) -> None:
    write_bert(tmp_path / "bert", layers=1)
    rows = [{"text": WORDS[number], "label": ("good", "bad")[number % 2]} for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=tmp_path, classes=classes))
    if not refused:
        run(recipe, tmp_path / "out")
        return
    with pytest.raises(
        ConfigError, match=r"'teach' has the classes \['good', 'bad'\], the data 'other' \['bad', 'good'\]"
    ):
        run(recipe, tmp_path / "out")

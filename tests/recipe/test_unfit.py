"""A model that cannot read what the data hold is refused when the plan is made."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from tiny import write_bert

from kdfw.errors import ConfigError
from kdfw.plugins import registry
from kdfw.recipe.plan import make_plan
from kdfw.recipe.recipe import build
from kdfw.recipe.source import parse


def problems(text: str) -> list[str]:
    try:
        make_plan(build(parse(text, "r.yaml"), registry()))
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_models_of_texts_for_images(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"image": "a.png", "caption": "x", "split": "train"}) + "\n")
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as stream:
        stream.writestr("train/a/a.png", b"")
    text = f"""\
data:
  pictures: {{type: image-text, captions: {tmp_path}/c.jsonl, images: {tmp_path}/i.zip}}
  classes: {{type: images, path: {tmp_path}/i.zip}}
models:
  words: {{type: bi-encoder, base: org/words}}
  both: {{type: image-text-encoder, net: resnet8, text_base: org/words}}
  labels: {{type: text-classifier, base: org/words}}
  eyes: {{type: image-classifier, net: resnet8}}
stages:
  - {{name: good, type: train, student: both, sampler: in-batch, losses: [info-nce]}}
  - {{name: also-good, type: train, data: classes, student: eyes, losses: [cross-entropy]}}
  - {{name: one, type: train, student: words, teachers: [words], sampler: in-batch, losses: [kl]}}
  - {{name: two, type: train, data: classes, student: labels, losses: [cross-entropy]}}
  - {{name: three, type: score, of: [], teacher: words}}
  - {{name: four, type: evaluate, split: train, models: [both, words], against: [both, bm25]}}
  - {{name: five, type: mine, retriever: bm25}}
  - {{name: six, type: mine, retriever: {{type: fusion, retrievers: [bm25, {{type: dense, model: both}}]}}}}
"""
    reads = "that reads no image; the data hold: image, text"
    found = problems(text)
    assert [line for line in found if "reads" in line] == [
        f"r.yaml:12: stages[2].student: a model {reads}",
        f"r.yaml:12: stages[2].teachers[0]: a teacher {reads}",
        "r.yaml:13: stages[3].student: a model that reads no image; the data hold: image",
        f"r.yaml:14: stages[4].teacher: a model {reads}",
        "r.yaml:15: stages[5].against: 'bm25' reads no image; the data hold: image, text",
        "r.yaml:15: stages[5].models: 'words' reads no image; the data hold: image, text",
        f"r.yaml:16: stages[6].retriever: a retriever {reads}",
        f"r.yaml:17: stages[7].retriever: a retriever {reads}",
    ]


@pytest.mark.parametrize("student", ["image-classifier, net: resnet8", "bi-encoder, base: org/words"])
def test_models_of_images_for_texts(tmp_path: Path, student: str) -> None:
    (tmp_path / "t.tsv").write_text("a text\t1\n")
    text = (
        f"data: {{type: text-classification, files: {{train: {tmp_path}/t.tsv}}}}\n"
        f"models: {{student: {{type: {student}}}}}\n"
        "stages:\n  - {type: train, student: student, losses: [cross-entropy]}\n"
    )
    (found,) = problems(text)
    expected = {
        "image-classifier": "a model that reads no text; the data hold: text",
        "bi-encoder": "a model that does not serve the task classification; it serves: pairs, ranking",
    }
    assert expected[student.partition(",")[0]] in found


def test_losses_that_need_labels_on_splits_that_have_none(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("one\tother\n")
    write_bert(tmp_path / "bert", layers=1)
    text = f"""\
data:
  pairs: {{type: tsv-pairs, files: {{train: {tmp_path}/p.tsv}}, unlabelled: [train]}}
  bare: {{type: tsv-pairs, files: {{train: {tmp_path}/p.tsv}}, gold: null, left: 0, right: 1}}
  texts: {{type: text-classification, files: {{train: {tmp_path}/p.tsv}}, unlabelled: [train]}}
models:
  student: {{type: bi-encoder, base: {tmp_path}/bert}}
  labels: {{type: text-classifier, base: {tmp_path}/bert}}
stages:
  - {{name: gold, type: train, student: student, losses: [{{type: mse, target: labels}}]}}
  - {{name: teacher, type: train, student: student, teachers: [student], losses: [mse]}}
  - {{name: none, type: train, data: bare, student: student, losses: [{{type: mse, target: labels}}]}}
  - {{name: classes, type: train, data: texts, student: labels, losses: [cross-entropy]}}
"""
    found = [line.partition(";")[0] for line in problems(text)]
    needs = "a loss that needs labels, of which the split 'train' has none"
    assert found == [f"r.yaml:{line}: stages[{line - 9}].losses[0]: {needs}" for line in (9, 11, 12)]


def test_the_short_form_knows_the_task_of_data_that_are_given_one(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    write_bert(tmp_path / "bert", layers=1)
    text = (
        f"data: {{type: huggingface, path: {tmp_path}/hub, task: classification, splits: {{train: a, test: b}}}}\n"
        f"student: {{type: text-classifier, base: {tmp_path}/bert}}\n"
    )
    assert problems(text) == []

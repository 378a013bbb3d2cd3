"""Images and captions: a teacher is trained, a student learns from its hardest random captions; both directions."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e_results import check_items, check_report, lines, losses, measures
from tiny import WORDS, write_bert

import kdfw

pytest.importorskip("PIL", reason="Pillow is not installed (extra `images`)")


@pytest.mark.slow
def test_a_student_finds_pictures_by_name_and_names_by_picture(run_recipe: Any) -> None:
    settings = ["stages.teach.train.log_every=1", "stages.distill.train.log_every=1"]
    result = run_recipe("emoji-tiny", settings)
    for stage, steps in (("teach", 80), ("distill", 60)):
        values = losses(result.stages[stage])
        assert len(values) == steps and np.mean(values[-10:]) < 0.92 * np.mean(values[:10])
    written = lines(result.stages["distill"] / "metrics.jsonl")
    assert all(line["dcd/distill"] > 0 and line["dcd/task"] > 0 for line in written if "loss" in line)
    for stage in ("image-to-text", "text-to-image"):
        check_items(result.stages[stage], 161)
        found = {name: system["Success@10"] for name, system in measures(result.stages[stage]).items()}
        # chance is 10 of 161, 0.06; 0.54 (teach) and 0.20 (distill) were measured
        assert found["teach"] > 0.35 and found["distill"] > 0.12 and found["distill"] > 1.5 * found["student"]
    check_report(result)


def write_squares(folder: Path) -> None:
    """Squares of ten colours, each named by a word; six and a half dozen to learn from, one of each to be tested on."""
    from PIL import Image

    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "squares.zip", "w") as archive, (folder / "names.jsonl").open("w") as names:
        for number in range(80):
            colour = np.array([25 * (number % 10), 250 - 25 * (number % 10), 120]) + rng.integers(-5, 6, 3)
            Image.new("RGB", (8, 8), tuple(int(value) for value in colour.clip(0, 255))).save(folder / "one.png")
            archive.write(folder / "one.png", f"{number}.png")
            split = "test" if number < 10 else "train"
            row = {"image": f"{number}.png", "captions": [f"a {WORDS[number % 10]} square"], "split": split}
            names.write(json.dumps(row) + "\n")


def test_hard_captions_and_stored_scores(tmp_path: Path) -> None:
    write_squares(tmp_path)
    write_bert(tmp_path / "bert", layers=1)
    files = f"captions: {tmp_path}/names.jsonl, images: {tmp_path}/squares.zip"
    model = f"{{type: image-text-encoder, net: resnet8, text_base: {tmp_path}/bert, projection: 16}}"
    (tmp_path / "squares.yaml").write_text(
        f"""\
name: squares
data:
  squares: {{type: image-text, {files}, splits: [train]}}
  unseen: {{type: image-text, {files}, splits: [test]}}
models:
  teacher: {model}
  student: {model}
stages:
  - name: teach
    type: train
    student: teacher
    sampler: in-batch
    losses: [{{type: info-nce, in_batch: true, symmetric: true}}]
    train: {{steps: 40, batch_size: 35, lr: 3e-3, log_every: 1}}
  - {{name: near, type: mine, retriever: {{type: dense, model: teach}}, depth: 70}}
  - {{name: scores, type: score, teacher: teach, of: near}}
  - name: distill
    type: train
    student: student
    teachers: [scores]
    sampler: {{type: scored, of: scores, negatives: 7}}
    losses: [kl]
    train: {{steps: 40, batch_size: 35, lr: 3e-3, log_every: 1}}
  - {{name: test, type: evaluate, data: unseen, models: [distill], against: [teach, student], measures: [RR]}}
"""
    )
    result = kdfw.run(tmp_path / "squares.yaml", out=tmp_path / "run", cache=tmp_path / "cache", offline=True)
    assert result is not None
    for stage in ("teach", "distill"):
        values = losses(result.stages[stage])
        assert np.mean(values[-5:]) < 0.6 * np.mean(values[:5])
    found = {name: system["RR"] for name, system in measures(result.stages["test"]).items()}
    # chance is 0.29
    assert found["teach"] > 0.6 and found["distill"] > 0.5 and found["student"] < 0.5, found
    again = kdfw.run(tmp_path / "squares.yaml", out=tmp_path / "run", cache=tmp_path / "cache", offline=True)
    assert again is not None and again.nothing_to_do

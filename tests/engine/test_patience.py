"""Early stopping: what a run says of a stage that ended before its time."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import kdfw

RECIPE = """\
data: {{type: beir, folder: {root}/beir}}
models: {{student: {{type: bi-encoder, base: {root}/student, max_query_tokens: 16, max_passage_tokens: 32}}}}
stages:
  - name: distill
    type: train
    student: student
    sampler: in-batch
    losses: [{{type: info-nce, in_batch: true}}]
    dev: dev
    dev_every: 1
    patience: 2
    train: {{steps: 9, batch_size: 4, lr: 1e-12, activation_checkpointing: true}}
"""


def test_the_steps_are_those_that_were_made(workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(root=workspace), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        kdfw.run(recipe, out=tmp_path / "run", cache=tmp_path / "cache")
    (stage,) = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert stage["summary"]["steps"] == 3 and stage["summary"]["steps without early stopping"] == 9
    assert "trained 3 steps in" in caplog.text

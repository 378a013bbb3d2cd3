"""A folder with tiny models, tiny data and a recipe that goes through every stage kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_beir, write_bert

RECIPE = """\
kdfw: 1
name: tiny
seed: 5
precision: fp32
data: {{type: beir, folder: {root}/beir}}
models:
  teacher: {{type: cross-encoder, base: {root}/teacher, max_pair_tokens: 48}}
  student: {{type: bi-encoder, base: {root}/student, max_query_tokens: 16, max_passage_tokens: 32}}
stages:
  - {{name: mined, type: mine, retriever: bm25, depth: 12}}
  - {{name: scores, type: score, teacher: teacher, of: mined, queries_per_block: 3}}
  - name: distill
    type: train
    student: student
    teachers: [scores]
    sampler: {{type: mined, of: mined, negatives: 3}}
    losses:
      - {{type: kl, temperature: {{type: linear, start: 1.0, end: 2.0}}, weight: 1.0}}
      - {{type: info-nce, weight: 0.1}}
    dev: dev
    train: {{epochs: 3, batch_size: 4, lr: 1e-3, checkpoint_every: 2, log_every: 1, precision: fp32}}
  - {{name: hard, type: mine, retriever: {{type: dense, model: distill}}, depth: 8}}
  - {{name: test, type: evaluate, split: test, models: [student, distill], against: [bm25], measures: [nDCG@10, R@100]}}
"""


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only for tests: `recipe.yaml`, `teacher/`, `student/`, `beir/`."""
    root = tmp_path_factory.mktemp("workspace")
    write_bert(root / "teacher", layers=2, seed=1)
    write_bert(root / "student", layers=1, seed=2)
    write_beir(root / "beir")
    (root / "recipe.yaml").write_text(RECIPE.format(root=root), encoding="utf-8")
    return root

"""A recipe through every stage kind, and a way to run it in several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_processes import Together
from tiny import write_beir, write_bert


@pytest.fixture
def together(tmp_path: Path) -> Together:
    return Together(tmp_path)


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
      - {{type: info-nce, weight: 0.1, in_batch: true}}
    dev: dev
    train: {{epochs: 3, batch_size: 4, lr: 1e-3, checkpoint_every: 2, log_every: 1, precision: fp32, dropout: false}}
  - {{name: hard, type: mine, retriever: {{type: dense, model: distill}}, depth: 8}}
  - {{name: test, type: evaluate, split: test, models: [student, distill], against: [bm25, teacher],
      measures: [nDCG@10, R@100]}}
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe through every stage kind, on tiny models and data."""
    root = tmp_path_factory.mktemp("together")
    write_bert(root / "teacher", layers=2, seed=1)
    write_bert(root / "student", layers=1, seed=2)
    write_beir(root / "beir")
    (root / "recipe.yaml").write_text(RECIPE.format(root=root), encoding="utf-8")
    return root / "recipe.yaml"

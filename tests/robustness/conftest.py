"""A tiny workspace whose recipe goes through every stage kind."""

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
  - {{name: mined, type: mine, retriever: bm25, depth: 8}}
  - {{name: scores, type: score, teacher: teacher, of: mined, queries_per_block: 3}}
  - name: distill
    type: train
    student: student
    teachers: [scores]
    sampler: {{type: mined, of: mined, negatives: 3}}
    losses: [{{type: kl}}, {{type: info-nce, weight: 0.1}}]
    train: {{epochs: 2, batch_size: 4, lr: 1e-3, checkpoint_every: 2, log_every: 1, precision: fp32}}
  - {{name: hard, type: mine, retriever: {{type: dense, model: distill}}, depth: 30, drop_positives: false}}
  - {{name: kept, type: filter, of: hard, ranks: [1, 30]}}
  - {{name: test, type: evaluate, split: test, models: [distill], against: [bm25], measures: [nDCG@10, R@100]}}
"""


def write_workspace(root: Path, recipe: str = RECIPE) -> Path:
    """`recipe.yaml`, `teacher/`, `student/` and `beir/` below `root`."""
    write_bert(root / "teacher", layers=1, seed=1)
    write_bert(root / "student", layers=1, seed=2)
    write_beir(root / "beir", passages=40, queries=24)
    (root / "recipe.yaml").write_text(recipe.format(root=root), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only for tests; see `write_workspace`."""
    return write_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)

"""Tiny workspaces and whole runs in them, for tests of what a run survives and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import write_beir, write_bert

from kdfw.fingerprint import file_digest

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


UNLIKE = ("timing.json", "artifact.json")
"""Files of a stage folder that hold times: they may differ between equal runs."""


def run(recipe: Path, out: Path, *settings: str, **options: Any) -> Any:
    """A run whose cache is `cache` beside its folder, unless said otherwise."""
    import kdfw

    options.setdefault("cache", out.parent / "cache")
    return kdfw.run(recipe, settings, out=out, **options)


def results(out: Path) -> dict[str, str]:
    """Digest of every result file in the stage folders, but for times."""
    stages = out / "stages"
    return {
        path.relative_to(stages).as_posix(): file_digest(path)
        for path in sorted(stages.rglob("*"))
        if path.is_file() and path.name not in UNLIKE and not path.relative_to(stages).parts[0].startswith(".")
    }


def flip(path: Path, at: int) -> None:
    """Change one byte in place: size and name stay."""
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0x04]))

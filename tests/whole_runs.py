"""A tiny workspace, and whole runs in it: for tests of what a run survives, what it refuses, and what it shares."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
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
    dev: dev
    train: {{epochs: 2, batch_size: 4, lr: 1e-3, checkpoint_every: 2, log_every: 1, precision: fp32}}
  - {{name: hard, type: mine, retriever: {{type: dense, model: distill}}, depth: 30, drop_positives: false}}
  - {{name: kept, type: filter, of: hard, ranks: [1, 30]}}
  - {{name: vectors, type: encode, model: distill}}
  - {{name: test, type: evaluate, split: test, models: [distill], against: [bm25], measures: [nDCG@10, R@100]}}
"""
"""Most stage kinds there are, in a second."""
STAGES = ("mined", "scores", "distill", "hard", "kept", "vectors", "test")


def write_workspace(root: Path, recipe: str = RECIPE) -> Path:
    """`recipe.yaml`, `teacher/`, `student/` and `beir/` below `root`."""
    write_bert(root / "teacher", layers=1, seed=1)
    write_bert(root / "student", layers=1, seed=2)
    write_beir(root / "beir", passages=40, queries=24)
    (root / "recipe.yaml").write_text(recipe.format(root=root), encoding="utf-8")
    return root


SERVER = multiprocessing.get_context("forkserver")
"""Processes of their own that begin with what a run imports, which takes longer than the run."""
SERVER.set_forkserver_preload(
    [
        "kdfw.engine.api", "kdfw.builtin", "kdfw.models.forward", "transformers.models.bert.modeling_bert",
        "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
        "transformers.tokenization_utils_tokenizers", "accelerate", "bm25s", "faiss", "ranx", "Stemmer",
    ]
)  # fmt: skip


def in_child(work: Callable[..., None], *arguments: Any, kill_after: float | None = None) -> int:
    """Run `work(*arguments)` in a process of its own, killed after some seconds.

    Returns: the exit code; negative for a signal.
    """
    process = SERVER.Process(target=_child, args=(work, arguments))
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def _child(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        work(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)


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

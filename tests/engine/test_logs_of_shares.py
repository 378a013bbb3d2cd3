"""What is logged of a step does not depend on the shares it was computed in."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS
from whole_runs import run

RECIPE = """\
kdfw: 1
name: shares
seed: 5
precision: fp32
data: {{type: parallel, folder: {folder}, source: en, target: de}}
models:
  teacher: {{type: seq2seq, scratch: {{layers: 1, width: 16, heads: 2, vocabulary: 100, dropout: 0}}}}
  other: {{type: seq2seq, scratch: {{layers: 1, width: 24, heads: 2, vocabulary: 100, dropout: 0}}}}
  student: {{type: seq2seq, scratch: {{layers: 1, width: 8, heads: 2, vocabulary: 100, dropout: 0}}}}
stages:
  - name: distill
    type: train
    student: student
    teachers: [teacher, other]
    losses:
      - {{type: kl, temperature: {{type: linear, start: 2.0, end: 6.0, unit: step}}}}
      - {{type: cross-entropy, weight: {{type: linear, start: 1.0, end: 0.0, unit: step}}}}
      - {{type: kl, name: learned, temperature: {{type: ctkd}}, weight: 0.5}}
      - {{type: kl, name: fixed, weighting: {{type: fixed, weights: [3, 1]}}}}
      - {{type: kl, name: sure, weighting: {{type: ca-mkd, scale: paper}}}}
    train: {{steps: 4, batch_size: 16, log_every: 1, token_budget: 64, precision: fp32}}
"""


@pytest.mark.slow
def test_changing_numbers_are_logged_as_they_are(tmp_path: Path) -> None:
    rng = random.Random(0)
    for split, number in (("train", 64), ("dev", 8)):
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(number)]
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")

    def logged(name: str, *settings: str) -> list[dict[str, Any]]:
        result = run(tmp_path / "recipe.yaml", tmp_path / name, *settings)
        text = (result.stages["distill"] / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    shares, whole = logged("shares"), logged("whole", "stages.distill.train.token_budget=100000")
    assert [line["kl-0/temperature"] for line in shares] == pytest.approx([2, 3, 4, 5])
    assert [line["cross-entropy/weight"] for line in shares] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [1 < line["learned/temperature"] < 21 for line in shares] == [True] * 4
    assert [line["fixed/weight/teacher"] for line in shares] == pytest.approx([0.75] * 4)
    assert [line["fixed/weight/other"] for line in shares] == pytest.approx([0.25] * 4)
    assert [line["sure/weight/teacher"] + line["sure/weight/other"] for line in shares] == pytest.approx([1] * 4)
    for one, other in zip(shares, whole, strict=True):
        assert one == pytest.approx(other, rel=1e-4)

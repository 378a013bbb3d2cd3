"""Sentence pairs through the engine: labels stored once, models trained on them, the best one chosen by a dev split."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS, write_bert

import kdfw
from kdfw.engine.select import best_of
from kdfw.errors import ConfigError, DataError

RECIPE = """\
kdfw: 1
name: pairs
seed: 5
precision: fp32
data: {{type: tsv-pairs, files: {{train: {root}/train.tsv, dev: {root}/dev.tsv, test: {root}/test.tsv}}}}
models:
  bi: {{type: bi-encoder, base: {root}/bert, max_query_tokens: 16, max_passage_tokens: 16}}
  other: {{type: bi-encoder, base: {root}/bert, max_query_tokens: 12, max_passage_tokens: 12}}
  cross: {{type: cross-encoder, base: {root}/bert, max_pair_tokens: 32}}
stages:
  - {{name: labels, type: score, teacher: bi, queries_per_block: 8}}
  - name: short
    type: train
    student: cross
    teachers: [labels]
    sampler: {{type: pairs, symmetric: true}}
    losses: [bce]
    train: {{steps: 2, batch_size: 4, lr: 1e-3, warmup: 0, precision: fp32}}
  - name: long
    type: train
    student: cross
    teachers: [labels]
    sampler: {{type: pairs, symmetric: true}}
    losses: [bce]
    dev: dev
    dev_every: [15, epoch]
    train: {{steps: 60, batch_size: 8, lr: 3e-3, precision: fp32}}
  - {{name: best, type: select, of: [cross, short, long]}}
  - {{name: of-long, type: score, teacher: long, split: test}}
  - {{name: of-short, type: score, teacher: short, split: test}}
  - {{name: mean, type: ensemble, of: [of-long, of-short]}}
  - name: test
    type: evaluate
    models: [cross, short, long, best]
    against: [of-long, mean]
    measures: [spearman, pearson, macro-spearman]
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_bert(root / "bert", layers=1, seed=3)
    rng = random.Random(1)
    for split, number in (("train", 24), ("dev", 16), ("test", 16)):
        lines = []
        for _ in range(number):
            left = [rng.choice(WORDS) for _ in range(5)]
            same = rng.randrange(6)
            right = left[:same] + [rng.choice(WORDS) for _ in range(5 - same)]
            lines.append(f"{same}\t{' '.join(left)}\t{' '.join(right)}\n")
        (root / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE.format(root=root), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def result(pairs: Path) -> Any:
    return kdfw.run(pairs / "recipe.yaml", out=pairs / "run", cache=pairs / "cache")


def read(result: Any, stage: str, file: str) -> Any:
    return json.loads((result.stages[stage] / file).read_text(encoding="utf-8"))


def test_the_best_by_the_dev_split_is_taken_and_all_values_are_kept(result: Any) -> None:
    found = read(result, "best", "selection.json")
    assert (found["measure"], found["split"]) == ("spearman", "dev")
    assert set(found["values"]) == {"cross", "short", "long"}
    assert found["chosen"] == max(found["values"], key=found["values"].__getitem__)
    assert result.summaries["best"]["chosen"] == found["chosen"]
    # what the training stage saw of its best checkpoint is what the selection sees of the model
    assert found["values"]["long"] == pytest.approx(result.summaries["long"]["best dev spearman"], abs=1e-3)


def test_the_name_of_the_stage_means_the_chosen_model(result: Any) -> None:
    chosen = read(result, "best", "selection.json")["chosen"]
    systems = read(result, "test", "measures.json")["systems"]
    assert systems["best"]["measures"] == systems[chosen]["measures"]
    others = [systems[name]["measures"] for name in ("cross", "short", "long") if name != chosen]
    assert systems["best"]["measures"] not in others


def test_stored_scores_are_measured_as_the_model_that_gave_them(result: Any) -> None:
    found = read(result, "test", "measures.json")
    systems = found["systems"]
    assert found["baseline"] == "of-long" and systems["of-long"]["setting"] == "stored scores"
    assert systems["of-long"]["measures"] == pytest.approx(systems["long"]["measures"], abs=1e-3)
    assert systems["mean"]["measures"] != systems["of-long"]["measures"]
    assert systems["long"]["measures"]["macro-spearman"] == pytest.approx(systems["long"]["measures"]["spearman"])
    assert "spearman" in systems["mean"]["against_baseline"] and "macro-spearman" in systems["mean"]["against_baseline"]


def test_it_is_a_stage_like_any_other(result: Any, pairs: Path) -> None:
    again = kdfw.run(pairs / "recipe.yaml", out=pairs / "run", cache=pairs / "cache")
    assert again is not None and again.nothing_to_do
    shown = kdfw.plan(pairs / "recipe.yaml").stage("best")
    assert set(shown.inputs) == {"short", "long"}
    changed = kdfw.plan(pairs / "recipe.yaml", ["stages.long.train.lr=2e-3"]).stage("best")
    assert changed.fingerprint != shown.fingerprint


def test_its_card_is_that_of_the_training_stage(result: Any) -> None:
    chosen = read(result, "best", "selection.json")["chosen"]
    card = (result.stages["best"] / "model" / "README.md").read_text(encoding="utf-8")
    assert chosen in ("short", "long") and "pairs/best" in card and "bce" in card


def test_the_labels_are_cosines_and_the_cross_encoder_learned_them(result: Any) -> None:
    checks = read(result, "labels", "checks.json")
    assert checks["pairs"] == 24 and -1 <= checks["lowest"] < checks["highest"] <= 1.0001
    lines = [json.loads(line) for line in (result.stages["long"] / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["dev/spearman"] for line in lines if "dev/spearman" in line}
    # 48 items in batches of 8: the end of an epoch every 6 steps, and every 15 steps
    assert list(values) == sorted({*range(6, 61, 6), *range(15, 61, 15)})
    assert result.summaries["long"]["best dev spearman"] == max(values.values())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages.best.of=[]", "no models"),
        ("stages.best.of=[cross, bi]", "'bi' and 'cross' are not the same model under `models:`"),
        ("stages.best.of=[bi, other]", "not the same model"),
        ("stages.best.split=tset", "no split 'tset'"),
        ("stages.best.measure=nDCG@10", "no measure 'nDCG@10' for pairs"),
        ("stages.best.of=[labels]", "no model 'labels' at this point"),
        ("stages.long.dev_measure=spaerman", "no measure 'spaerman' for pairs"),
        ("stages.labels.split=dev", "scores of the split 'dev'"),
        ("stages.of-long.split=dev", "scores of the split 'dev' ('of-long')"),
        ("stages.long.dev_every=[0]", "dev_every[0]: found 0; write a whole number >= 1"),
        ("stages.labels.of=[short]", "no stage with candidates 'short'"),
    ],
)
def test_faults_are_found_while_planning(pairs: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        kdfw.plan(pairs / "recipe.yaml", [setting])


def test_the_check_goes_through_every_stage(pairs: Path, tmp_path: Path) -> None:
    reports = {report["name"]: report for report in kdfw.check(pairs / "recipe.yaml", cache=tmp_path / "cache")}
    assert [report["state"] for report in reports.values()] == ["ready"] * 8
    assert reports["best"]["measure"] == "spearman" and reports["long"]["loss"]["bce"] > 0


def test_auc_needs_two_gold_values_and_says_so_before_training(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="auc needs two gold values, the split 'dev' has 6"):
        kdfw.check(pairs / "recipe.yaml", ["stages.long.dev_measure=auc"], cache=tmp_path / "cache")


def test_the_first_of_equal_values_is_the_best_and_nan_never_is() -> None:
    nan = float("nan")
    assert best_of({"a": nan, "b": 0.5, "c": 0.7, "d": 0.7}) == "c"
    with pytest.raises(DataError, match="none of a, b"):
        best_of({"a": nan, "b": nan})

"""Invariants of Trans-Encoder (arXiv:2109.13059): its mathematics, its stages, and a whole run of both kinds."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import WORDS, write_bert
from torch import Tensor
from torch.nn.functional import cosine_similarity

import kdfw
from kdfw.data.ranking import Ranking
from kdfw.engine.optim import rate_factor
from kdfw.engine.settings import OptimizerSettings
from kdfw.errors import ConfigError
from kdfw.evaluation.tasks import spearman
from kdfw.fingerprint import file_digest
from kdfw.losses.bce import binary_cross_entropy
from kdfw.losses.mse import score_mse
from kdfw.models.bi_encoder import BiEncoder
from kdfw.models.forward import signals_of
from kdfw.teachers.ensemble import combined
from kdfw.teachers.score_stage import sigmoid
from kdfw.teachers.scoring import ranking_batch
from kdfw.types import Clock, Text
from kdfw_plugins.trans_encoder.method import TransEncoder
from kdfw_plugins.trans_encoder.pseudo_labels import labels_from_bi, labels_from_cross
from kdfw_plugins.trans_encoder.steps import learning_rate, stage_steps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything(number: int) -> Tensor:
    return torch.ones(number, 1, dtype=torch.bool)


# ---------------------------------------------------------------- labels


def test_labels_of_a_bi_encoder_are_raw_cosines() -> None:
    labels = labels_from_bi(torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[4.0, 3.0], [-2.0, 0.0]]]))
    assert labels.tolist() == pytest.approx([24 / 25, -1.0])


@given(seed=st.integers(0, 999), models=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_labels_lie_in_their_range_and_means_do_not_care_for_order_scale_or_copies(seed: int, models: int) -> None:
    left, right = normal(models, 5, 4, seed=seed), normal(models, 5, 4, seed=seed + 1000)
    labels, order = labels_from_bi(left, right), torch.randperm(models)
    assert bool((labels.abs() <= 1 + 1e-12).all())
    assert torch.allclose(labels_from_bi(left[order] * 7, right[order] / 3), labels)
    assert torch.allclose(labels_from_bi(left.repeat(2, 1, 1), right.repeat(2, 1, 1)), labels)
    logits = 5 * normal(models, 5, seed=seed)
    probabilities = labels_from_cross(logits)
    assert bool(((probabilities > 0) & (probabilities < 1)).all())
    assert torch.allclose(labels_from_cross(logits[order]), probabilities)
    # what the stages compute: each model's scores, its sigmoid, the mean of the models
    stored = combined([sigmoid(row.numpy()) for row in logits], [1.0] * models, "none")
    assert stored == pytest.approx(probabilities.numpy(), abs=1e-6)
    cosines = combined(list(cosine_similarity(left, right, dim=-1).numpy()), [1.0] * models, "none")
    assert cosines == pytest.approx(labels.numpy(), abs=1e-6)


def test_the_mean_is_of_probabilities_and_not_of_logits() -> None:
    logits = normal(2, 5)
    assert torch.allclose(labels_from_cross(logits), (logits[0].sigmoid() + logits[1].sigmoid()) / 2)
    assert not torch.allclose(labels_from_cross(logits), logits.mean(0).sigmoid(), atol=1e-3)


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_spearman_does_not_care_whether_scores_are_logits_or_probabilities(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, gold = rng.normal(size=40), rng.integers(0, 6, 40).astype(float)
    assert spearman(1 / (1 + np.exp(-scores)), gold) == pytest.approx(spearman(scores, gold), abs=1e-9)


# ---------------------------------------------------------------- losses


@given(label=st.floats(0.001, 0.999))
@settings(max_examples=30, deadline=None)
def test_bce_is_least_where_the_probability_is_the_label_and_is_not_zero_there(label: float) -> None:
    target = torch.full((1, 1), label, dtype=torch.float64)
    best = torch.logit(target).requires_grad_()
    value = binary_cross_entropy(best, target, everything(1))
    entropy = -(label * np.log(label) + (1 - label) * np.log(1 - label))
    assert value.item() == pytest.approx(entropy, abs=1e-9) and value.item() > 0
    (gradient,) = torch.autograd.grad(value.sum(), best)
    assert gradient.abs().item() < 1e-9
    for other in (best.detach() - 0.3, best.detach() + 0.3):
        assert binary_cross_entropy(other, target, everything(1)).item() > value.item()


def test_a_label_of_zero_or_less_always_pushes_its_logit_down() -> None:
    for label in (0.0, -0.3):
        logits = torch.linspace(-12, 12, 25, dtype=torch.float64).requires_grad_()
        labels = torch.full((25, 1), label, dtype=torch.float64)
        values = binary_cross_entropy(logits[:, None], labels, everything(25))
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert bool((gradient > 0).all()), "negative labels are neither clipped nor rescaled"


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_mse_reaches_zero_ignores_lengths_and_turns_vectors_only(seed: int, scale: float) -> None:
    u, v = normal(6, 4, seed=seed).requires_grad_(), normal(6, 4, seed=seed + 1000)
    labels = torch.rand(6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def value(left: Tensor, right: Tensor, wanted: Tensor) -> Tensor:
        return score_mse(cosine_similarity(left, right)[:, None], wanted, everything(6)).mean()

    assert torch.allclose(value(u * scale, v / scale, labels), value(u, v, labels))
    assert value(u, v, cosine_similarity(u, v)[:, None].detach()).item() == pytest.approx(0, abs=1e-15)
    (gradient,) = torch.autograd.grad(value(u, v, labels), u)
    assert (gradient * u).sum(1).abs().max().item() < 1e-10


# ---------------------------------------------------------------- steps


def test_a_cross_stage_has_twice_the_rows_and_a_warm_up() -> None:
    assert stage_steps(1000, 32, 1, cross=True) == (63, 7)
    assert stage_steps(1000, 128, 10, cross=False) == (80, 0)


@pytest.mark.parametrize("cross", [True, False])
def test_the_trainer_takes_these_steps_at_these_rates(cross: bool) -> None:
    stage = {stage["name"]: stage for stage in TransEncoder(cycles=1).expand({})}["cross-1" if cross else "bi-1"]
    train = stage["train"]
    total, warmup = stage_steps(1000, train["batch_size"], train["epochs"], cross=cross)
    given = OptimizerSettings(lr=train["lr"], warmup=train["warmup"])
    for step in (0, 1, warmup, total // 2, total - 1):
        clock = Clock(step=step, total_steps=total, epoch=0, total_epochs=1, steps_per_epoch=total, seed=0)
        assert given.lr * rate_factor(given, clock) == pytest.approx(learning_rate(step, total, warmup, train["lr"]))


# ---------------------------------------------------------------- stages


def by_name(method: TransEncoder, recipe: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in method.expand(recipe or {})}


def test_one_line_labels_trains_and_chooses() -> None:
    stages = by_name(TransEncoder(cycles=2, evaluate={"measures": ["spearman"]}))
    cycle_1 = ["bi-0-scores", "cross-1", "cross-1-scores", "bi-1"]
    cycle_2 = ["bi-1-scores", "cross-2", "cross-2-scores", "bi-2"]
    assert list(stages) == [*cycle_1, *cycle_2, "best-bi", "best-cross", "test"]
    assert [stages[name]["teacher"] for name in stages if name.endswith("scores")] == [
        "bi",
        "cross-1",
        "bi-1",
        "cross-2",
    ]
    assert [stages[name]["activation"] for name in stages if name.endswith("scores")] == ["none", "sigmoid"] * 2
    trained = [stage for stage in stages.values() if stage["type"] == "train"]
    assert [stage["teachers"] for stage in trained] == [[name] for name in stages if name.endswith("scores")]
    assert [stage["losses"] for stage in trained] == [[{"type": "bce"}], [{"type": "mse"}]] * 2
    assert [stage["sampler"]["symmetric"] for stage in trained] == [True, False] * 2
    assert [stage["dev_every"] for stage in trained] == [[200, "epoch"]] * 4
    assert stages["best-bi"]["of"] == ["bi-1", "bi-2"] and stages["best-cross"]["of"] == ["cross-1", "cross-2"]
    assert stages["test"]["models"] == ["bi", "bi-1", "bi-2", "cross-1", "cross-2", "best-bi", "best-cross"]


def test_students_start_anew_unless_they_go_on_from_the_other_form() -> None:
    anew = by_name(TransEncoder(cycles=2))
    assert [anew[name]["student"] for name in ("cross-1", "bi-1", "cross-2", "bi-2")] == ["cross", "bi", "cross", "bi"]
    assert not any("encoder_from" in stage for stage in anew.values())
    going_on = by_name(TransEncoder(cycles=2, continue_weights=True))
    sources = [going_on[name]["encoder_from"] for name in ("cross-1", "bi-1", "cross-2", "bi-2")]
    assert sources == ["bi", "cross-1", "bi-1", "cross-2"]


def test_a_start_is_a_stage_that_students_come_back_to() -> None:
    stages = by_name(TransEncoder(cycles=2, start="mirror", split="pool", start_train={"steps": 5}))
    start = stages["bi-0"]
    assert (start["student"], start["split"], start["sampler"]) == ("bi", "pool", {"type": "views"})
    assert start["losses"] == [{"type": "info-nce", "in_batch": True, "temperature": 0.04, "symmetric": True}]
    assert start["train"]["steps"] == 5 and "epochs" not in start["train"] and start["train"]["batch_size"] == 200
    assert [stages[name]["student"] for name in ("bi-1", "bi-2")] == ["bi-0", "bi-0"]
    assert stages["bi-0-scores"]["teacher"] == "bi-0"


def test_two_lines_learn_from_the_mean_of_both() -> None:
    method = TransEncoder(bi=["a", "b"], cross=["c", "d"], cycles=1, start=["none", "simcse"], evaluate={})
    stages = by_name(method)
    assert list(stages)[:4] == ["bi-0-2", "bi-0-scores-1", "bi-0-scores-2", "bi-0-scores"]
    assert [stages[f"bi-0-scores-{line}"]["teacher"] for line in (1, 2)] == ["a", "bi-0-2"]
    assert stages["bi-0-scores"] == {
        "name": "bi-0-scores", "type": "ensemble", "of": ["bi-0-scores-1", "bi-0-scores-2"],
    }  # fmt: skip
    assert [(stages[f"cross-1-{line}"]["student"], stages[f"cross-1-{line}"]["teachers"]) for line in (1, 2)] == [
        ("c", ["bi-0-scores"]), ("d", ["bi-0-scores"]),
    ]  # fmt: skip
    assert [stages[f"bi-1-{line}"]["student"] for line in (1, 2)] == ["a", "bi-0-2"]
    assert stages["bi-1-2"]["teachers"] == ["cross-1-scores"]
    assert stages["best-cross-2"]["of"] == ["cross-1-2"]
    assert stages["ensemble-bi"]["of"] == ["best-bi-1-test", "best-bi-2-test"]
    assert stages["test"]["against"] == ["ensemble-bi", "ensemble-cross"] and stages["test"]["baseline"] == "a"


def test_without_a_dev_split_nothing_is_chosen() -> None:
    stages = by_name(TransEncoder(dev=None, evaluate={"models": ["bi-3"]}))
    assert not any(stage["type"] == "select" or "dev" in stage for stage in stages.values())
    assert stages["test"]["models"] == ["bi-3"] and "baseline" not in stages["test"]
    binary = by_name(TransEncoder(dev_measure="auc", cycles=1))
    assert binary["bi-1"]["dev_measure"] == "auc" and binary["best-bi"]["measure"] == "auc"


@pytest.mark.parametrize(
    ("options", "models", "message"),
    [
        ({"bi": ["a", "b"]}, {}, "one of each a line"),
        ({"start": ["simcse", "none"]}, {}, "2 starts for 1 lines"),
        ({}, {"bi": {"type": "cross-encoder"}}, "bi: 'bi' is a cross-encoder"),
        ({}, {"cross": {"type": "bi-encoder"}}, "cross: 'cross' is a bi-encoder"),
        ({}, {"bi": {"type": "bi-encoder", "scale": 20}}, "scores of 'bi' are no cosines"),
        ({}, {"bi": {"type": "bi-encoder", "similarity": "dot"}}, "scores of 'bi' are no cosines"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], models: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransEncoder(**options).expand({"models": models})


# ---------------------------------------------------------------- whole runs

RECIPE = """\
kdfw: 1
name: trans-encoder
seed: 7
precision: fp32
data: {{type: tsv-pairs, files: {{train: {root}/train.tsv, dev: {root}/dev.tsv, test: {root}/test.tsv}}}}
models:
  bi: {{type: bi-encoder, base: {root}/one, max_query_tokens: 16, max_passage_tokens: 16}}
  cross: {{type: cross-encoder, base: {root}/one, max_pair_tokens: 32}}
  second: {{type: bi-encoder, base: {root}/two, pooling: cls, max_query_tokens: 16, max_passage_tokens: 16}}
  second-cross: {{type: cross-encoder, base: {root}/two, max_pair_tokens: 32}}
train: {{precision: fp32}}
method:
  type: trans-encoder
  cycles: 2
  eval_every: 2
  start_train: {{steps: 3, batch_size: 8, lr: 1e-3}}
  cross_train: {{steps: 5, batch_size: 8, lr: 1e-3}}
  bi_train: {{steps: 4, batch_size: 8, lr: 1e-3}}
  evaluate: {{measures: [spearman]}}
"""
NUMBER = 18


def write_pairs(root: Path) -> None:
    rng = random.Random(1)
    for split, number in (("train", NUMBER), ("dev", 16), ("test", 12)):
        lines = []
        for _ in range(number):
            left = [rng.choice(WORDS) for _ in range(5)]
            same = rng.randrange(6)
            right = left[:same] + [rng.choice(WORDS) for _ in range(5 - same)]
            lines.append(f"{same}\t{' '.join(left)}\t{' '.join(right)}\n")
        (root / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trans-encoder")
    write_bert(root / "one", layers=1, seed=3)
    write_bert(root / "two", layers=2, seed=4)
    write_pairs(root)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root), encoding="utf-8")
    return root


def run(workspace: Path, name: str, *changes: str) -> Any:
    return kdfw.run(workspace / "recipe.yaml", changes, out=workspace / name, cache=workspace / f"{name}-cache")


@pytest.fixture(scope="module")
def one_line(workspace: Path) -> Any:
    return run(workspace, "one-line", "method.start=simcse")


def weights(result: Any, stage: str) -> dict[str, Tensor]:
    return load_file(result.stages[stage] / "model" / "model.safetensors")


def labels(result: Any, stage: str) -> dict[str, float]:
    found = Ranking.load(result.stages[stage])
    return dict(zip(found.query_ids, found.scores.tolist(), strict=True))


def test_labels_are_stored_once_for_every_pair_in_their_range(one_line: Any) -> None:
    for cycle in (0, 1):
        assert len(labels(one_line, f"bi-{cycle}-scores")) == NUMBER
        assert all(-1 <= value <= 1.000001 for value in labels(one_line, f"bi-{cycle}-scores").values())
        assert all(0 < value < 1 for value in labels(one_line, f"cross-{cycle + 1}-scores").values())


def test_the_cross_set_has_both_orders_and_the_bi_set_one(one_line: Any) -> None:
    assert one_line.summaries["cross-1"]["items"] == 2 * NUMBER and one_line.summaries["bi-1"]["items"] == NUMBER


def test_the_checkpoint_and_the_cycle_are_the_best_on_the_dev_split(one_line: Any) -> None:
    for kind in ("bi", "cross"):
        chosen = json.loads((one_line.stages[f"best-{kind}"] / "selection.json").read_text(encoding="utf-8"))
        for cycle in (1, 2):
            name = f"{kind}-{cycle}"
            lines = (one_line.stages[name] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            seen = [value["dev/spearman"] for value in map(json.loads, lines) if "dev/spearman" in value]
            assert len(seen) >= 2 and chosen["values"][name] == pytest.approx(max(seen), abs=1e-3)
        assert chosen["chosen"] == max(chosen["values"], key=chosen["values"].__getitem__)
        assert all(
            torch.equal(value, weights(one_line, chosen["chosen"])[key])
            for key, value in weights(one_line, f"best-{kind}").items()
        )


def test_the_start_is_contrastive_and_moves_the_bi_encoder(one_line: Any, workspace: Path) -> None:
    lines = [json.loads(line) for line in (one_line.stages["bi-0"] / "metrics.jsonl").read_text().splitlines()]
    assert any("info-nce" in line for line in lines)
    systems = json.loads((one_line.stages["test"] / "measures.json").read_text(encoding="utf-8"))["systems"]
    assert {"bi", "bi-0", "bi-1", "cross-2", "best-bi"} <= set(systems)
    assert any(
        not torch.equal(value, load_file(workspace / "one" / "model.safetensors")[f"bert.{key}"])
        for key, value in weights(one_line, "bi-0").items()
        if "encoder" in key
    )


def test_no_gold_score_of_the_training_split_enters(one_line: Any, workspace: Path, tmp_path: Path) -> None:
    lines = (workspace / "train.tsv").read_text(encoding="utf-8").splitlines()
    other = [f"{row}\t{line.split(chr(9), 1)[1]}" for row, line in enumerate(lines)]
    (tmp_path / "train.tsv").write_text("\n".join(other) + "\n", encoding="utf-8")
    changes = [f"data.files.train={tmp_path / 'train.tsv'}", "method.start=simcse"]
    again = run(workspace, "other-gold", *changes)
    for name in ("bi-0", "cross-1", "bi-1", "cross-2", "bi-2"):
        file = Path("model") / "model.safetensors"
        assert file_digest(again.stages[name] / file) == file_digest(one_line.stages[name] / file), name


def test_students_start_from_the_same_checkpoint_in_every_cycle(workspace: Path) -> None:
    changes = ["method.start=simcse", "method.cross_train.lr=0", "method.bi_train.lr=0"]
    result = run(workspace, "still", *changes)
    for first, second in (("cross-1", "cross-2"), ("bi-0", "bi-1"), ("bi-0", "bi-2")):
        own, other = weights(result, first), weights(result, second)
        assert own.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in own.items())
    base = load_file(workspace / "one" / "model.safetensors")
    body = {key: value for key, value in weights(result, "cross-1").items() if key.startswith("bert.encoder")}
    assert body and all(torch.equal(value, base[key]) for key, value in body.items())


def test_students_that_go_on_have_the_transformer_of_their_teacher(workspace: Path) -> None:
    changes = ["method.start=simcse", "method.continue_weights=true", "method.cross_train.lr=0", "method.cycles=1"]
    result = run(workspace, "going-on", *changes, "method.bi_train.lr=0")
    start = weights(result, "bi-0")
    for name, prefix in (("cross-1", "bert."), ("bi-1", "")):
        found = weights(result, name)
        shared = [key for key in start if not key.startswith("pooler.")]
        assert shared and all(torch.equal(start[key], found[f"{prefix}{key}"]) for key in shared), name


def test_two_lines_learn_from_mean_labels(workspace: Path) -> None:
    changes = ["method.bi=[bi, second]", "method.cross=[cross, second-cross]", "method.start=[none, mirror]"]
    result = run(workspace, "mutual", *changes, "method.cycles=1")
    models = []
    for base, options in (("one", {}), (result.stages["bi-0-2"] / "model", {"pooling": "cls"})):
        model = BiEncoder(base=str(workspace / base), max_query_tokens=16, max_passage_tokens=16, **options)
        model.load()
        models.append(model.eval())
    lines = (workspace / "train.tsv").read_text(encoding="utf-8").splitlines()
    texts = [line.split("\t")[1:] for line in lines]
    batch = ranking_batch(
        [str(row) for row in range(NUMBER)],
        [Text(source=None, made=left) for left, _ in texts],
        [[Text(source=None, made=right)] for _, right in texts],
        [[str(row)] for row in range(NUMBER)],
    )
    need = frozenset({"query_embeddings", "passage_embeddings"})
    found = [signals_of(model, batch, need) for model in models]
    assert batch.candidates is not None
    right = torch.stack([one["passage_embeddings"][batch.candidates[:, 0]] for one in found])
    expected = labels_from_bi(torch.stack([one["query_embeddings"] for one in found]), right)
    assert list(labels(result, "bi-0-scores").values()) == pytest.approx(expected.tolist(), abs=1e-5)
    both = [labels(result, f"cross-1-scores-{line}") for line in (1, 2)]
    assert labels(result, "cross-1-scores") == pytest.approx(
        {pair: (both[0][pair] + both[1][pair]) / 2 for pair in both[0]}, abs=1e-6
    )
    assert both[0] != both[1]
    systems = json.loads((result.stages["test"] / "measures.json").read_text(encoding="utf-8"))["systems"]
    assert Counter(system.get("setting") for system in systems.values())["stored scores"] == 2


def test_a_finished_run_has_nothing_to_do(one_line: Any, workspace: Path) -> None:
    again = run(workspace, "one-line", "method.start=simcse")
    assert again is not None and again.nothing_to_do

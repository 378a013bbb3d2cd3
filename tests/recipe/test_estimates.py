"""`kdfw plan` says how much work each stage is: exact where it can be counted, and honest where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_beir, write_bert

from kdfw.amounts import Amount
from kdfw.cli import main
from kdfw.models import checkpoint

RECIPE = """\
kdfw: 1
name: small
data: {{type: beir, folder: {folder}/data}}
models:
  student: {{type: bi-encoder, base: {folder}/bert, layers: 1, max_passage_tokens: 64}}
  ranker: {{type: cross-encoder, base: {folder}/bert, max_pair_tokens: 48}}
stages:
  - {{name: mined, type: mine, retriever: bm25, depth: 10}}
  - {{name: near, type: mine, retriever: {{type: dense, model: student}}, depth: 5, include_positives: true}}
  - {{name: few, type: filter, of: near, ranks: [1, 3]}}
  - {{name: scores, type: score, teacher: ranker, of: [mined, few], depth: 4}}
  - name: distill
    type: train
    student: student
    teachers: [scores, ranker]
    sampler: {{type: mined, of: [mined], negatives: 3}}
    losses: [{{type: kl}}]
    train: {{epochs: 2, batch_size: 8}}
  - {{name: vectors, type: encode, model: distill}}
  - {{name: test, type: evaluate, models: [distill, ranker], against: [bm25], rerank_depth: 7}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimates")
    write_beir(folder / "data")  # 60 passages; 12 queries of train, 6 of dev, 6 of test, one positive each
    write_bert(folder / "bert", layers=2, width=32)
    (folder / "small.yaml").write_text(RECIPE.format(folder=folder))
    return folder / "small.yaml"


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["plan", *arguments, "--json"]) == 0
    return {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}


def test_before_anything_is_read(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = planned(capsys, str(recipe), "--cache", str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    assert {name: stage["work"] for name, stage in stages.items()} == {
        "mined": "up to 12 queries, 60 passages, up to 120 candidates",
        "near": "up to 12 queries, 60 passages, up to 72 candidates, up to 72 texts encoded, up to 9.22 kB of vectors; "
        "tokens, FLOP: unknown until the data is read",
        "few": "up to 12 queries, up to 72 candidates",
        "scores": "up to 12 queries, up to 108 candidates, up to 108 pairs read, up to 5,184 tokens, about 170 MFLOP",
        "distill": "up to 4 steps, up to 24 examples, up to 120 texts encoded, up to 96 pairs read; "
        "tokens, FLOP: unknown until the data is read",
        "vectors": "60 texts encoded, 7.68 kB of vectors; tokens, FLOP: unknown until the data is read",
        "test": "3 systems, up to 6 queries, up to 66 texts encoded, up to 8.45 kB of vectors, up to 42 pairs read; "
        "tokens, FLOP: unknown until the data is read",
    }
    assert stages["mined"]["amounts"]["candidates"] == {"value": 120, "sure": "up to"}


def test_once_the_first_stages_are_there_their_lists_are_counted(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipe.read_text()
    short = tmp_path / "small.yaml"
    short.write_text(text[: text.index("  - {name: few")])
    cache = ["--cache", str(tmp_path / "cache")]
    assert main(["run", str(short), "--out", str(tmp_path / "run"), *cache]) == 0
    ended = json.loads((tmp_path / "run" / "manifest.json").read_text())
    stages = planned(capsys, str(recipe), *cache)
    assert [stages[name]["cached"] for name in ("mined", "near", "few")] == [True, True, False]
    for name in ("mined", "near"):
        found = {stage["name"]: stage["summary"] for stage in ended["stages"]}[name]
        candidates = stages[name]["amounts"]["candidates"]
        assert candidates["sure"] == "exactly" and candidates["value"] == round(found["mean_length"] * 12)
    assert stages["few"]["amounts"]["candidates"]["value"] == stages["near"]["amounts"]["candidates"]["value"]
    assert stages["vectors"]["amounts"]["texts encoded"] == {"value": 60, "sure": "exactly"}
    assert stages["vectors"]["amounts"]["bytes of vectors"] == {"value": 60 * 32 * 4, "sure": "exactly"}
    tokens = stages["vectors"]["amounts"]["tokens"]
    assert tokens["sure"] == "about" and 60 * 4 < tokens["value"] < 60 * 40
    # one layer of width 32 with 64 inside: 2 * (4 * 32**2 + 2 * 32 * 64) operations a token
    assert stages["vectors"]["amounts"]["FLOP"]["value"] == pytest.approx(tokens["value"] * 16_384, rel=0.01)
    assert stages["distill"]["amounts"]["steps"] == {"value": 4, "sure": "up to"}


def test_the_table_is_aligned(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "--cache", str(tmp_path / "cache")]) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title == "small: 7 stages"
    for name, column in (("stage", "mined"), ("type", "mine"), ("state", "to do"), ("work", "up to 12 queries")):
        assert rows[0].index(column, head.index(name)) == head.index(name)


def test_steps_and_patience(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["stages.distill.train.epochs=null", "stages.distill.train.steps=9"]
    stages = planned(capsys, str(recipe), *settings, "--cache", str(tmp_path))
    assert stages["distill"]["amounts"]["steps"] == {"value": 9, "sure": "exactly"}
    assert stages["distill"]["amounts"]["examples"] == {"value": 72, "sure": "up to"}


def test_candidates_made_on_the_fly_are_encoded_and_scored_too(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipe.read_text().replace("teachers: [scores, ranker]", "teachers: [scores]")
    made = tmp_path / "made.yaml"
    augment = "augment: [{type: adam-dark-examples, reinforced: 1, noisy: 1}]"
    made.write_text(text.replace("    losses: [{type: kl}]\n", f"    losses: [{{type: kl}}]\n    {augment}\n"))
    stages = planned(capsys, str(made), "--cache", str(tmp_path / "cache"))
    # 24 examples of a query, 4 candidates that are drawn, and 2 that are made and nobody has scored yet
    assert stages["distill"]["amounts"]["texts encoded"] == {"value": 24 * (1 + 4 + 2), "sure": "up to"}
    assert stages["distill"]["amounts"]["pairs read"] == {"value": 24 * 2, "sure": "up to"}


MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 30_522}


@pytest.mark.parametrize(
    ("config", "layers", "vocabulary", "flop"),
    [
        (MINILM, None, False, 2 * 6 * (4 * 384**2 + 2 * 384 * 1536)),
        (MINILM, [0, 5], False, 2 * 2 * (4 * 384**2 + 2 * 384 * 1536)),
        (MINILM, None, True, 2 * (6 * (4 * 384**2 + 2 * 384 * 1536) + 384**2 + 384 * 30_522)),
        ({"dim": 8, "hidden_dim": 16, "n_layers": 1}, None, False, 2 * (4 * 64 + 2 * 8 * 16)),  # DistilBERT
        ({**MINILM, "model_type": "modernbert"}, None, False, 2 * 6 * (4 * 384**2 + 3 * 384 * 1536)),
    ],
)
def test_cost_of_a_token(config: dict[str, Any], layers: Any, vocabulary: bool, flop: int) -> None:
    found, width = checkpoint.cost(config, layers=layers, vocabulary=vocabulary)
    assert found == Amount(flop, "about")
    assert width == Amount(config.get("hidden_size", 8))


def test_the_cost_of_a_model_that_is_not_here_is_not_made_up() -> None:
    found, width = checkpoint.cost(None, layers=None, vocabulary=False)
    assert found.value is width.value is None and found.until == "the model has been downloaded"
    assert checkpoint.cost({"strange": 1}, layers=None, vocabulary=False)[0].value is None


def test_requests_and_money_of_an_endpoint_are_said(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = "{type: openai, base_url: 'http://localhost:1/v1', model: judge, price_per_1k_input: 1, budget: 0.5}"
    written = tmp_path / "judged.yaml"
    written.write_text(
        f"data: {{type: beir, folder: {recipe.parent}/data}}\nmodels: {{judge: {judge}}}\n"
        "stages:\n  - {name: mined, type: mine, retriever: bm25, depth: 10}\n"
        "  - {name: scores, type: score, teacher: judge, of: mined, include_positives: false}\n"
    )
    work = planned(capsys, str(written), "--cache", str(tmp_path / "cache"))["scores"]["work"]
    assert work.startswith("up to 12 queries, up to 120 candidates; judge: about 120 requests, ")
    assert "USD (budget 0.50, spent so far 0.00; scoring will stop before it is done)" in work


def test_sentence_pairs(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.tsv").write_text("".join(f"{n / 10}\twater stone\triver bridge\n" for n in range(10)))
    written = tmp_path / "pairs.yaml"
    written.write_text(
        f"data: {{type: tsv-pairs, files: {{train: {tmp_path}/train.tsv}}}}\n"
        f"models: {{ranker: {{type: cross-encoder, base: {recipe.parent}/bert, max_pair_tokens: 48}}}}\n"
        "stages:\n"
        "  - {name: one, type: score, teacher: ranker}\n"
        "  - {name: both, type: ensemble, of: [one, one]}\n"
        "  - name: fit\n    type: train\n    student: ranker\n    teachers: [both]\n    losses: [mse]\n"
        "    sampler: {type: pairs, symmetric: true}\n    train: {batch_size: 8}\n"
    )
    stages = planned(capsys, str(written), "--cache", str(tmp_path / "cache"))
    later = "tokens, FLOP: unknown until the data is read"
    assert stages["one"]["work"] == f"10 pairs; {later}"
    assert stages["both"]["work"] == "10 pairs"
    assert stages["fit"]["work"] == f"3 steps, 20 examples; {later}"

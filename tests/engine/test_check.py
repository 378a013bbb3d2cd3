"""`kdfw check`: one batch through every stage of a recipe that has never run, nothing written but shared indexes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_bert
from whole_runs import STAGES

import kdfw
from kdfw.cli import main
from kdfw.errors import TrainingError


def test_every_stage_gets_a_batch_without_training(workspace: Path, tmp_path: Path):
    reports = kdfw.check(workspace / "recipe.yaml", out=tmp_path / "run", cache=tmp_path / "cache")
    by_name = {report["name"]: report for report in reports}
    assert [report["state"] for report in reports] == ["ready"] * len(STAGES)
    assert by_name["distill"]["batch"] == [4, 4]  # four queries; one positive and three negatives
    assert by_name["distill"]["rows"]["query"] == 4
    assert by_name["distill"]["loss"]["loss"] > 0
    assert by_name["scores"]["candidates"] > 0 and by_name["scores"]["missing"] == 0
    assert by_name["test"]["distill"]["logits"][0] == by_name["test"]["items"]
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "artifacts").exists()


def test_warnings_name_the_queries_and_set_the_exit_code(workspace: Path, tmp_path: Path, capsys):
    lines = [f"q{number}\tp{passage}\t1.0\n" for number in range(24) for passage in range(40)]
    (tmp_path / "flat.tsv").write_text("".join(lines), encoding="utf-8")
    text = (workspace / "recipe.yaml").read_text(encoding="utf-8")
    begin, end = text.index("  teacher:"), text.index("  student:")
    recipe = tmp_path / "flat.yaml"
    recipe.write_text(text[:begin] + f"  teacher: {{type: score-file, path: {tmp_path}/flat.tsv}}\n" + text[end:])
    code = main(["check", str(recipe), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")])
    assert code == 2
    shown = capsys.readouterr().out
    assert "all scores equal for 'q0', 'q1'" in shown


def test_a_split_whose_labels_are_missing_is_refused_before_a_step(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "pairs").mkdir()
    rows = "".join(f'{{"left": "water {number}", "right": "stone"}}\n' for number in range(4))
    (tmp_path / "pairs" / "train.jsonl").write_text(rows, encoding="utf-8")
    write_bert(tmp_path / "bert")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {{type: huggingface, path: {tmp_path}/pairs, task: pairs, splits: {{train: train}}}}\n"
        f"models: {{s: {{type: bi-encoder, base: {tmp_path}/bert, max_query_tokens: 32, max_passage_tokens: 32}}}}\n"
        "stages: [{type: train, student: s, losses: [{type: mse, target: labels}], train: {steps: 1}}]\n",
        encoding="utf-8",
    )
    with pytest.raises(TrainingError, match="the loss 'mse' needs labels, and the split 'train' .* has none"):
        kdfw.check(recipe, out=tmp_path / "run", cache=tmp_path / "cache")

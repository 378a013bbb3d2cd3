"""`kdfw check`: one batch through every stage of a recipe that has never run, nothing written but shared indexes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_beir, write_bert
from whole_runs import STAGES, run

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
    assert all(report["memory_mb"] > 0 for report in reports)
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


def test_a_plan_that_is_partly_done_has_scores_for_whatever_is_drawn(workspace: Path, tmp_path: Path):
    text = (workspace / "recipe.yaml").read_text(encoding="utf-8")
    mined = tmp_path / "mined.yaml"
    mined.write_text(text[: text.index("  - {name: scores")], encoding="utf-8")
    run(mined, tmp_path / "run")
    reports = kdfw.check(workspace / "recipe.yaml", out=tmp_path / "other", cache=tmp_path / "cache")
    assert [report["state"] for report in reports] == ["cached"] + ["ready"] * (len(STAGES) - 1)
    assert not any(report.get("warnings") for report in reports)


def test_a_loss_that_is_not_finite_is_a_warning(workspace: Path, tmp_path: Path, capsys):
    huge = "stages.2.losses.0.temperature=1e-45"  # a divisor, but no score over it is finite
    code = main(["check", str(workspace / "recipe.yaml"), huge, "--out", str(tmp_path / "run"),
                 "--cache", str(tmp_path / "cache")])  # fmt: skip
    assert code == 2
    assert "warnings: not finite: loss, kl" in capsys.readouterr().out


def test_folders_may_be_given_as_texts(workspace: Path, tmp_path: Path):
    only = str(tmp_path / "mined.yaml")
    text = (workspace / "recipe.yaml").read_text(encoding="utf-8")
    Path(only).write_text(text[: text.index("  - {name: scores")], encoding="utf-8")
    folders = {"out": str(tmp_path / "run"), "cache": str(tmp_path / "cache")}
    result = kdfw.run(only, **folders)
    assert result is not None and result.folder == tmp_path / "run"
    assert [report["state"] for report in kdfw.check(only, **folders)] == ["cached"]
    swept = kdfw.sweep(only, seeds=1, out=str(tmp_path / "sweep"), cache=str(tmp_path / "cache"))
    assert swept.folder == tmp_path / "sweep"
    assert kdfw.diagnose(only, **folders)["stages"] == []


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


def test_lines_left_out_are_said_by_check_manifest_and_report(tmp_path: Path, capsys):
    write_beir(tmp_path / "beir")
    with (tmp_path / "beir" / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("rubbish\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {{type: beir, folder: {tmp_path}/beir, on_error: skip}}\n"
        "stages: [{name: one, type: mine, retriever: bm25}, {name: two, type: mine, retriever: bm25, depth: 3}]\n",
        encoding="utf-8",
    )
    places = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    for _ in range(2):  # the second time the data comes from the cache
        assert main(["check", str(recipe), *places]) == 2
        assert capsys.readouterr().out.count("corpus.jsonl: skipped 1 lines that cannot be read: line 61: not") == 1
    kdfw.run(recipe, out=tmp_path / "run", cache=tmp_path / "cache")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    (entry,) = manifest["skipped lines"]["data"]
    assert entry["count"] == 1 and entry["first"][0].startswith("line 61: not valid JSON")
    assert "line 61: not valid JSON" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

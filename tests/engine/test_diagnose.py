"""`kdfw diagnose` on runs and recipes of each task: what it reads, what it runs, what it says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr
from tiny import WORDS, write_bert
from whole_runs import run, write_workspace

import kdfw
from kdfw.cli import main
from kdfw.engine.probe import FILE as PROBE
from kdfw.engine.probe import load_probe
from kdfw.errors import ConfigError, DataError
from kdfw.evaluation.diagnosis_text import diagnosis_text

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
  - {{name: scores, type: score, teacher: teacher, of: mined}}
  - name: distill
    type: train
    student: student
    teachers: [scores]
    sampler: {{type: mined, of: mined, negatives: 3}}
    losses: [{{type: kl}}, {{type: info-nce, weight: 0.1}}]
    train: {{epochs: 2, batch_size: 4, lr: 1e-3, precision: fp32}}
  - {{name: hard, type: mine, split: train, retriever: {{type: dense, model: distill}}, depth: 30}}
  - {{name: test, type: evaluate, split: test, models: [student, distill], against: [bm25, teacher], measures: [RR@10]}}
"""


def stage_of(found: dict[str, Any], name: str = "distill") -> dict[str, Any]:
    (stage,) = [stage for stage in found["stages"] if stage["stage"] == name]
    return stage


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_workspace(tmp_path_factory.mktemp("diagnose"), RECIPE)
    run(root / "recipe.yaml", root / "out")
    return root


# ---------------------------------------------------------------- a run


def test_a_run_is_read_without_any_model(ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("kdfw.engine.runtime.Runtime.load_model", refuse)
    found = kdfw.diagnose(ranked / "out", cache=ranked / "cache")
    assert found["source"] == "run" and found["worked"] == []
    assert found == json.loads((ranked / "out/diagnosis.json").read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_stored_scores(ranked: Path) -> None:
    from kdfw.data.ranking import Ranking

    stage = stage_of(kdfw.diagnose(ranked / "out", cache=ranked / "cache"))
    (teacher,) = stage["teachers"]
    scored = Ranking.load(ranked / "out/stages/02-scores")
    checks = json.loads((ranked / "out/stages/02-scores/checks.json").read_text())
    assert teacher["name"] == "teacher (scores)" and teacher["lists"] == teacher["lists_in_all"] == 12
    assert teacher["distribution"]["scores"] == len(scored.scores) == checks["pairs"]
    assert teacher["distribution"]["mean"] == pytest.approx(checks["mean"], abs=1e-6)
    assert teacher["spread"]["range"]["mean"] == pytest.approx(checks["mean_spread"], abs=1e-6)
    assert teacher["judgements"]["positive_not_on_top"] == pytest.approx(checks["positive_not_on_top"])
    doubted = teacher["suspected_false_negatives"]
    assert doubted["items_with_any"] == round(checks["positive_not_on_top"] * 12)
    queries = [json.loads(line) for line in (ranked / "beir/queries.jsonl").read_text().splitlines()]
    texts = {row["_id"]: row["text"] for row in queries}
    for row in doubted["examples"]:
        assert row["text"] == texts[row["item"]] and row["score"] > row["positive_score"]
        assert row["alternative_text"] and row["alternative"] != row["positive"]


def test_the_student_is_compared_on_training_examples_and_on_test_queries(ranked: Path) -> None:
    stage = stage_of(kdfw.diagnose(ranked / "out", cache=ranked / "cache"))
    sample, test = stage["student"]
    probe = load_probe(ranked / "out/stages/03-distill")
    assert probe is not None and probe.before is not None and probe.after is not None
    scores, _ = probe.teachers["scores"]
    for when, student in (("before", probe.before), ("after", probe.after)):
        taus = [kendalltau(scores[item], student[item]).statistic for item in range(12)]
        assert sample[when]["kendall_tau"] == pytest.approx(np.mean(taus))
        assert sample[when]["same_best"] == pytest.approx(np.mean(scores.argmax(1) == student.argmax(1)))
        assert sample[when]["overlap@10"] is None  # there are four candidates
    tops = {}
    for name in ("teacher", "student", "distill"):
        for line in (ranked / f"out/stages/05-test/run.{name}.trec").read_text().splitlines():
            query, _, passage, rank, *_ = line.split()
            if int(rank) <= 10:
                tops.setdefault(name, {}).setdefault(query, set()).add(passage)
    for when, name in (("before", "student"), ("after", "distill")):
        shares = [len(ids & tops[name][query]) / len(ids) for query, ids in tops["teacher"].items()]
        assert test[when]["overlap@10"] == pytest.approx(np.mean(shares))
    assert test["basis"] == "6 queries of test (test)"


def test_entropy_is_that_of_the_loss_at_its_temperature(ranked: Path) -> None:
    stage = stage_of(kdfw.diagnose(ranked / "out", cache=ranked / "cache"))
    (target,) = stage["targets"]
    assert target["loss"] == "kl" and target["temperatures"] == [1.0]  # info-nce has no teacher
    probe = load_probe(ranked / "out/stages/03-distill")
    assert probe is not None
    weights = np.exp(probe.teachers["scores"][0].astype(np.float64))
    weights /= weights.sum(1, keepdims=True)
    expected = -(weights * np.log(weights)).sum(1) / np.log(4)
    assert target["at"][0]["entropy"]["mean"] == pytest.approx(expected.mean())
    (warning,) = [row for row in stage["warnings"] if row["rule"] == "nearly-uniform"]
    assert warning["value"] == pytest.approx(expected.mean()) and warning["value"] > warning["limit"]
    assert f"{target['suggested_temperature']:.3g}" in warning["text"]


# ---------------------------------------------------------------- a recipe


def test_a_recipe_runs_just_what_its_teachers_need(ranked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = {"out": ranked / "new", "cache": ranked / "empty"}
    found = kdfw.diagnose(ranked / "recipe.yaml", **where)
    assert found["worked"] == [{"name": "mined", "state": "run"}, {"name": "scores", "state": "run"}]
    assert not (ranked / "new").exists()  # a diagnosis leaves no run folder
    kinds = {path.name.split("-")[0] for path in (ranked / "empty/artifacts").iterdir()}
    assert kinds == {"mine", "score"}
    stage, of_run = stage_of(found), stage_of(kdfw.diagnose(ranked / "out", cache=ranked / "cache"))
    assert stage["teachers"] == of_run["teachers"] and stage["targets"] == of_run["targets"]
    assert stage["student"][0]["before"] == of_run["student"][0]["before"]
    assert "after" not in stage["student"][0]
    again = ["diagnose", str(ranked / "recipe.yaml"), "--out", str(where["out"]), "--cache", str(where["cache"])]
    assert main(again) == 0
    text = capsys.readouterr().out
    assert "stages taken from the cache: mined, scores" in text and "run for this" not in text
    assert "! distill: kl: at temperature 1 " in text and "before training" in text and "after training" not in text
    assert main([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["worked"] == [
        {"name": "mined", "state": "cached"}, {"name": "scores", "state": "cached"}
    ]  # fmt: skip


def test_what_needs_a_trained_student_waits_unless_it_is_asked_for(ranked: Path) -> None:
    more = (
        "  - {name: rescored, type: score, teacher: teacher, of: hard}\n"
        "  - {name: second, type: train, student: distill, teachers: [rescored], sampler: {type: mined, of: hard, "
        "negatives: 3}, losses: [{type: kl}], train: {steps: 1, batch_size: 4, precision: fp32}}\n"
    )
    recipe = ranked / "two.yaml"
    recipe.write_text(RECIPE.format(root=ranked) + more, encoding="utf-8")
    found = kdfw.diagnose(recipe, out=ranked / "new", cache=ranked / "empty")
    assert stage_of(found)["teachers"]
    waiting = stage_of(found, "second")
    assert "teachers" not in waiting and "it needs distill to be trained first" in waiting["notes"][0]
    assert "distill to be trained" in diagnosis_text(found)
    asked = kdfw.diagnose(recipe, out=ranked / "new", cache=ranked / "empty", stage="second")
    assert {"name": "distill", "state": "run"} in asked["worked"]
    assert stage_of(asked, "second")["teachers"][0]["name"] == "teacher (rescored)"


# ---------------------------------------------------------------- other tasks


def write_classes(folder: Path, number: int = 40) -> Path:
    rng = random.Random(3)
    for split in ("train", "test"):
        rows = []
        for item in range(number):
            label = ("stone", "light", "cache")[item % 3]
            words = [label, *rng.sample(WORDS, 3)]
            rows.append({"id": f"{split}{item}", "text": " ".join(words), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_classes_are_diagnosed_from_the_sample(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_bert(tmp_path / "bert", layers=1)
    data = f"{{type: text-classification, files: {{train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl}}}}"
    recipe = tmp_path / "classes.yaml"
    recipe.write_text(
        f"kdfw: 1\nname: classes\nseed: 2\nprecision: fp32\ndata: {data}\nmodels:\n"
        f"  big: {{type: text-classifier, base: {tmp_path}/bert}}\n"
        f"  small: {{type: text-classifier, base: {tmp_path}/bert}}\nstages:\n"
        "  - {name: teach, type: train, student: big, losses: [{type: cross-entropy}], "
        "train: {steps: 8, batch_size: 8, lr: 1e-3, precision: fp32}}\n"
        "  - {name: distill, type: train, student: small, teachers: [teach, big], losses: [{type: kl, temperature: "
        "{type: linear, start: 4.0, end: 2.0}}], train: {steps: 8, batch_size: 8, lr: 1e-3, precision: fp32, "
        "log_every: 1}}\n"
    )
    before = kdfw.diagnose(recipe, out=tmp_path / "out", cache=tmp_path / "cache")
    assert [row["name"] for row in before["worked"]] == ["teach"]
    run(recipe, tmp_path / "out")
    found = kdfw.diagnose(tmp_path / "out", cache=tmp_path / "cache")
    stage = stage_of(found)
    assert stage["task"] == "classification" and stage["teachers"] == stage_of(before)["teachers"]
    teach, big = stage["teachers"]
    probe = load_probe(tmp_path / "out/stages/02-distill")
    assert probe is not None and probe.after is not None and len(probe.ids) == 40
    scores = probe.teachers["teach"][0]
    wrong = float((scores.argmax(1) != probe.labels).mean())
    assert teach["judgements"] == {**teach["judgements"], "items": 40, "positive_not_on_top": pytest.approx(wrong)}
    for row in teach["suspected_false_negatives"]["examples"]:
        assert row["positive_text"] in row["text"]  # the label is a word of the text
    assert [target["temperatures"] for target in stage["targets"]] == [[4.0, pytest.approx(2.25)]] * 2
    (between,) = stage["between_teachers"]
    taus = [kendalltau(left, right).statistic for left, right in zip(scores, probe.teachers["big"][0], strict=True)]
    assert between["teachers"] == ["teach", "big"] and between["kendall_tau"] == pytest.approx(np.mean(taus))
    assert stage["student"][0]["after"]["same_best"] == pytest.approx(
        float((scores.argmax(1) == probe.after.argmax(1)).mean())
    )
    assert "overlap" not in diagnosis_text(found)


def test_sentence_pairs_have_correlations_and_no_temperature(tmp_path: Path) -> None:
    rng = random.Random(4)
    rows = [(rng.randint(0, 5), rng.sample(WORDS, 3), rng.sample(WORDS, 3)) for _ in range(20)]
    lines = [f"{gold}\t{' '.join(left)}\t{' '.join(right)}\n" for gold, left, right in rows]
    (tmp_path / "pairs.tsv").write_text("".join(lines))
    write_bert(tmp_path / "bert", layers=1)
    recipe = tmp_path / "pairs.yaml"
    recipe.write_text(
        f"kdfw: 1\nname: pairs\nseed: 2\nprecision: fp32\n"
        f"data: {{type: tsv-pairs, files: {{train: {tmp_path}/pairs.tsv}}}}\nmodels:\n"
        f"  big: {{type: cross-encoder, base: {tmp_path}/bert, max_pair_tokens: 48}}\n"
        f"  small: {{type: bi-encoder, base: {tmp_path}/bert, max_query_tokens: 16, max_passage_tokens: 32}}\nstages:\n"
        "  - {name: distill, type: train, student: small, teachers: [big], losses: [{type: mse}], "
        "train: {steps: 4, batch_size: 8, lr: 1e-3, precision: fp32}}\n"
    )
    run(recipe, tmp_path / "out")
    stage = stage_of(kdfw.diagnose(tmp_path / "out", cache=tmp_path / "cache"))
    probe = load_probe(tmp_path / "out/stages/01-distill")
    assert probe is not None and probe.after is not None
    scores = probe.teachers["big"][0][:, 0]
    expected = spearmanr(scores, probe.labels[:, 0]).statistic
    assert stage["teachers"][0]["judgements"] == {"items": 20, "spearman": pytest.approx(expected)}
    after = spearmanr(scores, probe.after[:, 0]).statistic
    assert stage["student"][0]["after"] == {"items": 20, "spearman": pytest.approx(after)}
    assert stage["targets"] == [] and any("no temperature" in note for note in stage["notes"])


# ---------------------------------------------------------------- what is not there


def test_an_older_run_says_what_is_missing(ranked: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ranked / "out", tmp_path / "old")
    (tmp_path / "old/stages/03-distill" / PROBE).unlink()
    (tmp_path / "old/stages/05-test/agreement.json").unlink()
    stage = stage_of(kdfw.diagnose(tmp_path / "old", cache=ranked / "cache"))
    assert stage["teachers"] and stage["student"] == [] and stage["targets"] == []
    assert any("an older kdfw ran it" in note for note in stage["notes"])
    assert any("add the teacher to its `against`" in note for note in stage["notes"])


def test_what_cannot_be_diagnosed_is_refused_with_a_reason(ranked: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        kdfw.diagnose(tmp_path)
    with pytest.raises(ConfigError, match="give its recipe instead"):
        kdfw.diagnose(ranked / "out", ["seed=1"])
    with pytest.raises(ConfigError, match="no stage with a teacher named 'mined'.*distill"):
        kdfw.diagnose(ranked / "out", stage="mined", cache=ranked / "cache")
    corpus = ranked / "beir/corpus.jsonl"
    whole = corpus.read_text()
    corpus.write_text(whole + json.dumps({"_id": "new", "title": "", "text": "one more"}) + "\n")
    try:
        with pytest.raises(DataError, match="no longer what the run used"):
            kdfw.diagnose(ranked / "out", cache=ranked / "cache")
    finally:
        corpus.write_text(whole)


def test_a_diagnosis_that_fails_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no numbers today")

    monkeypatch.setattr("kdfw.engine.diagnosis.diagnosed", broken)
    root = write_workspace(tmp_path)
    assert run(root / "recipe.yaml", root / "out").report is not None
    assert "could not be diagnosed: RuntimeError: no numbers today" in caplog.text


def test_a_recipe_without_a_teacher_says_so(tmp_path: Path) -> None:
    root = write_workspace(tmp_path, RECIPE)
    recipe = RECIPE.format(root=root).replace("teachers: [scores]", "teachers: []").replace("{type: kl}, ", "")
    recipe = recipe.replace("  - {name: scores, type: score, teacher: teacher, of: mined}\n", "")
    (root / "recipe.yaml").write_text(recipe)
    found = kdfw.diagnose(root / "recipe.yaml", out=root / "out", cache=root / "cache")
    assert found["stages"] == [] and "nothing to diagnose" in diagnosis_text(found)


def test_teachers_that_are_averaged_are_compared_with_each_other(ranked: Path) -> None:
    stages = (
        "  - {name: theirs, type: score, teacher: student, of: mined}\n"
        "  - {name: both, type: ensemble, of: [scores, theirs], normalise: z-score}\n"
    )
    recipe = ranked / "both.yaml"
    recipe.write_text(RECIPE.format(root=ranked).split("  - name: distill")[0] + stages, encoding="utf-8")
    found = kdfw.diagnose(recipe, out=ranked / "new", cache=ranked / "cache")
    stage = stage_of(found, "both")  # the only one: it reads the others
    assert [teacher["name"] for teacher in stage["teachers"]] == ["both", "teacher (scores)", "student (theirs)"]
    assert [row["teachers"] for row in stage["between_teachers"]][2] == ["teacher (scores)", "student (theirs)"]
    assert [row["rule"] for row in stage["warnings"]]
    assert stage["between_teachers"][0]["kendall_tau"] > stage["between_teachers"][2]["kendall_tau"]

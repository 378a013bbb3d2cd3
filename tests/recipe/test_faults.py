"""What is written where it has no effect, or cannot work, is refused once, at the place it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdfw.cli import main
from kdfw.engine.train_stage import Train
from kdfw.errors import ConfigError
from kdfw.plugins import registry
from kdfw.recipe.plan import Plan, _Planner, make_plan
from kdfw.recipe.recipe import build
from kdfw.recipe.source import override, parse

SHORT = """\
data: {type: pydocs}
student: {type: bi-encoder, base: org/words}
teacher: {type: cross-encoder, base: org/words}
loss: {type: kl, temperature: 2}
candidates: {depth: 50}
"""
FULL = """\
data: {type: pydocs}
models:
  small: {type: bi-encoder, base: org/words}
  ranker: {type: cross-encoder, base: org/words}
train: {lr: 1e-5, epochs: 2}
stages:
  - {name: mined, type: mine, retriever: bm25}
  - repeat: 2
    stages:
      - {name: scores, type: score, teacher: ranker, of: mined}
      - name: distill
        type: train
        student: distill | small
        teachers: scores
        sampler: {type: mined, of: mined}
        losses:
          - {type: kl, temperature: {type: linear, start: 1, end: 4, begin: 10, until: 15, unit: step}}
          - {type: info-nce, in_batch: true}
        train: {steps: 10, lr: 2e-5}
"""
METHOD = """\
data: {type: sts, folder: nowhere}
models:
  bi: {type: bi-encoder, base: org/words}
  cross: {type: cross-encoder, base: org/words}
method:
  type: trans-encoder
  cycles: 1
  dev: null
  bi_train: {lr: 7e-5}
"""


def plan(text: str, *settings: str) -> Plan:
    return make_plan(build(override(parse(text, "r.yaml"), settings), registry()))


def problems(text: str, *settings: str) -> list[str]:
    try:
        plan(text, *settings)
    except ConfigError as error:
        # org/words is nowhere to be found, nor are the data of METHOD: that is not looked at here
        return [line for line in map(str, error.problems) if "org/words" not in line and "nowhere" not in line]
    return []


def lengths(text: str, *settings: str) -> list[Any]:
    recipe = build(override(parse(text, "r.yaml"), settings), registry())
    assert list(recipe.problems) == []
    found = []
    for entry in recipe.stages:
        stage = entry.spec.build()
        if isinstance(stage, Train):
            found.append((stage.settings_.lr, stage.settings_.epochs, stage.settings_.steps))
    return found


def test_the_command_line_speaks_for_every_training_stage():
    assert lengths(FULL) == [(2e-5, None, 10)] * 2
    assert lengths(FULL, "train.lr=3e-4", "train.epochs=7") == [(3e-4, 7, None)] * 2
    # what it says of one stage is stronger still
    assert lengths(FULL, "train.lr=3e-4", "stages.distill.train.lr=5e-5") == [(5e-5, None, 10)] * 2
    assert [lr for lr, *_ in lengths(METHOD)] == [2e-5, 7e-5]
    assert lengths(METHOD, "train.lr=3e-4", "train.steps=9") == [(3e-4, None, 9)] * 2
    assert lengths(METHOD, "train.lr=3e-4", "method.bi_train.lr=1e-6") == [(3e-4, 1, None), (1e-6, 10, None)]


def test_part_of_the_settings_of_another_model_may_be_given():
    text = FULL.replace("epochs: 2}", "models: {small: {lr: 1, warmup: 3}}}")
    recipe = build(override(parse(text, "r.yaml"), ["train.models.small.lr=2"]), registry())
    for entry in recipe.stages[2::2]:
        own = entry.spec.options["train"].models["small"]
        assert (own.lr, own.warmup) == (2, 3)
    # what the run folder keeps says the same without the command line
    kept = recipe.resolved["stages"][1]["stages"][1]["train"]
    assert kept["models"] == {"small": {"lr": 2, "warmup": 3}}


def test_a_fault_in_the_defaults_is_one_fault_in_its_own_place():
    assert [line.split(";")[0] for line in problems(FULL, "train.lr=abc")] == [
        "command line (train.lr=abc): train.lr: found 'abc'"
    ]
    text = FULL.replace("lr: 1e-5", "clip: abc")
    assert [line.split(";")[0] for line in problems(text)] == ["r.yaml:5: train.clip: found 'abc'"]
    found = problems(FULL, "train.models.small.lrr=1", "train.epoch=3")
    assert len(found) == 2
    assert "train.models.small.lrr: unknown key 'lrr'; did you mean 'lr'? known keys: lr, optimizer" in found[0]
    assert "train.epoch: unknown key 'epoch'; did you mean 'epochs'? known keys: lr, optimizer" in found[1]


@pytest.mark.parametrize("key", ["student", "teacher", "loss", "losses", "sampler", "candidates", "evaluate"])
def test_the_short_form_beside_stages_or_a_method_is_refused(key: str):
    for text, beside in ((FULL, "stages"), (METHOD, "method")):
        found = problems(text, f"{key}=x")
        assert len(found) == 1 and found[0].startswith(f"command line ({key}=x): {key}: `{key}` beside `{beside}`")


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("train=3", "train: found 3"),
        ("train=[1]", "train: found [1]"),
        ("models=3", "models: found 3"),
        ("candidates=bm25", "candidates: found 'bm25'"),
        ("evaluate=3", "evaluate: found 3"),
        ("evaluate=[1]", "evaluate: found [1]"),
        ("loss.temprature=2", "loss.temprature: unknown key 'temprature'"),
        ("candidates.depht=2", "candidates.depht: unknown key 'depht'"),
        ("evaluate.splt=x", "evaluate.splt: unknown key 'splt'"),
        ("evaluate.split=tst", "evaluate.split: no split 'tst'"),
        ("student.bse=x", "student.bse: unknown key 'bse'"),
        ("teacher.bse=x", "teacher.bse: unknown key 'bse'"),
        ("sampler=mind", "sampler.type: no sampler 'mind'"),
    ],
)
def test_faults_of_the_short_form_have_the_place_they_were_written_at(setting: str, found: str):
    lines = problems(SHORT, setting)
    assert [line.split(";")[0] for line in lines] == [f"command line ({setting}): {found}"]


def test_two_ways_to_say_one_thing_are_refused():
    text = SHORT + "losses: [mse]\nteachers: [{type: cross-encoder, base: org/words}]\n"
    assert [line.split(";")[0] for line in problems(text)] == [
        "r.yaml:3: teacher: both `teacher` and `teachers`",
        "r.yaml:4: loss: both `loss` and `losses`",
    ]


def test_faults_of_a_method_have_the_place_of_its_option_or_name_the_stage():
    where = "command line (method.bi=[bx]): method.bi[0]"
    assert [line.split(" at this point")[0] for line in problems(METHOD, "method.bi=[bx]")] == [
        f"{where}: no model, teacher or score stage 'bx'"
    ]
    # a name that only the method knows, in several stages; what follows from it is no fault of its own
    found = problems(METHOD.replace("  cross: {", "  other: {"))
    assert [line.split(" at this point")[0] for line in found] == [
        "r.yaml:5: method (stage cross-1: student): no model 'cross'"
    ]
    found = problems(METHOD, "method.evaluate.measurs=[a]")
    assert [line.split(";")[0] for line in found] == [
        "command line (method.evaluate.measurs=[a]): method.evaluate.measurs: unknown key 'measurs'"
    ]


def test_constructors_are_asked_all_at_once_and_the_command_line_is_named():
    text = FULL.replace("until: 15", "until: 5").replace("retriever: bm25", "retriever: {type: fusion, retrievers: []}")
    found = problems(text, "stages.distill.losses.1.in_batch=false", "stages.distill.losses.1.symmetric=true")
    assert found[0].startswith("r.yaml:7: stages[0].retriever: ")
    assert found[1].startswith("r.yaml:17: stages[1].stages[1].losses[0].temperature: schedule linear: begin")
    assert (
        found[2].startswith("command line (stages.distill.losses.1.") and "losses[1]: info-nce: symmetric" in found[2]
    )
    assert len(found) == 3


def test_every_alternative_of_a_reference_must_exist():
    found = problems(FULL.replace("distill | small", "distil | small"))
    assert len(found) == 1
    assert found[0].startswith("r.yaml:13: stages[1].stages[1].student: nothing is called 'distil'; did you mean 'dis")
    found = problems(FULL.replace("distill | small", "distil | smal"))
    assert [line.split(";")[0].split(": ")[-1] for line in found] == [
        "nothing is called 'distil'",
        "nothing is called 'smal'",
    ]


def test_an_ensemble_of_itself_and_of_stand_ins():
    text = SHORT.replace(
        "teacher:", "models: {a: {type: ensemble, of: [b]}, b: {type: ensemble, of: [a, f]}, "
    ).replace("{type: cross-encoder, base: org/words}\n", "f: frozen-student}\nteacher: a\n")
    found = problems(text)
    assert [line.split(";")[0] for line in found] == [
        "r.yaml:3: models.a: 'a' is made of itself",
        "r.yaml:3: models.b: 'b' is made of itself",
        "r.yaml:3: models.b.of[1]: 'f' stands for the student of a training stage, and has no scores here",
    ]


def test_an_ensemble_changes_with_its_members_wherever_they_stand():
    text = SHORT.replace(
        "teacher: {", "models: {e: {type: ensemble, of: [m]}, m: {type: score-file, path: SETUP.tsv}}\nteacher: e\n# {"
    )
    prints = []
    for options in ("path: pyproject.toml", "path: README.md"):
        recipe = text.replace("path: SETUP.tsv", options).replace(
            "type: bi-encoder, base: org/words", "type: bi-encoder"
        )
        planner = _Planner(build(parse(recipe, "r.yaml"), registry()), None)
        planner._build_data_and_models()
        prints.append(planner.model_fingerprints["e"])
    assert prints[0] != prints[1]


def test_a_file_inside_an_ensemble_knows_no_made_texts():
    text = FULL.replace(
        "  ranker: {", "  e: {type: ensemble, of: [file]}\n  file: {type: score-file, path: README.md}\n  ranker: {"
    )
    text = text.replace("teachers: scores", "teachers: e").replace(
        "losses:", "augment: {type: distort, crop: 0.5}\n        losses:"
    )
    found = problems(text)
    assert any("teachers" in line and "stored scores ('e')" in line for line in found), found


def test_a_model_may_not_be_called_as_the_data_set():
    found = problems(FULL.replace("  small: {", "  data: {type: frozen-student}\n  small: {"))
    assert len(found) == 1 and found[0].startswith("r.yaml:3: models.data: name 'data' is taken")


@pytest.mark.parametrize(
    ("old", "new", "where", "found"),
    [
        ("retriever: bm25", "retriever: {type: dense, model: ranker}", "stages[0].retriever.model", "re-rank what"),
        (
            "retriever: bm25",
            "retriever: {type: sparse, model: small}",
            "stages[0].retriever.model",
            "use {type: dense,",
        ),
        ("of: mined}\n      -", "of: mined, split: dev}\n      -", "stages[1].stages[0].of", "the split 'train'"),
        ("sampler: {", "split: dev\n        sampler: {", "stages[1].stages[1].sampler.of", "the split 'train'"),
        (
            "of: mined}\n        l",
            "of: mined, ranks: [201, 300]}\n        l",
            "stages[1].stages[1].sampler.ranks",
            "(200)",
        ),
    ],
)
def test_what_cannot_work_together_is_refused(old: str, new: str, where: str, found: str):
    assert old in FULL
    lines = problems(FULL.replace(old, new))
    assert len(lines) == 1 and f": {where}: " in lines[0] and found in lines[0], lines


def test_an_evaluation_needs_systems_and_measures():
    stage = "  - {name: test, type: evaluate, models: [], measures: []}\n"
    assert [line.split(";")[0] for line in problems(FULL + stage)] == [
        "r.yaml:20: stages[2].models: nothing to measure",
        "r.yaml:20: stages[2].measures: no measures",
    ]


def test_contrast_needs_something_to_find():
    text = METHOD.split("method:")[0] + "stages: [{name: fit, type: train, student: bi, losses: [{type: info-nce, "
    found = problems(text + "in_batch: true}]}]\n")
    assert len(found) == 1 and "stages[0].losses[0]: a loss that finds what belongs together" in found[0]


def test_a_setting_without_a_value_says_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "quickstart", "--out", str(tmp_path / "run"), "seed"]) == 2
    assert "'seed': not a setting; write key.path=value" in capsys.readouterr().err


def test_a_missing_reference_hides_no_other_fault_of_its_stage():
    text = FULL.replace("teachers: scores", "teachers: [scores, rankr]").replace("student: distill", "student: distil")
    text = text.replace("of: mined}\n        l", "of: minned}\n        split: tran\n        l")
    text = text.replace("{type: info-nce, in_batch: true}", "{type: kl, model: other}\n          - {type: hidden-mse}")
    text += (
        "  - {name: test, type: evaluate, models: [smal], against: [bm26], baseline: nothing, measures: [nDGC@10]}\n"
    )
    found = [line.split(": ", 1)[1] for line in problems(text)]
    expected = [
        ("stages[1].stages[1].student", "nothing is called 'distil'"),
        ("stages[1].stages[1].teachers[1]", "no model, teacher or score stage 'rankr'"),
        ("stages[1].stages[1].sampler.of", "no stage with candidates 'minned'"),
        ("stages[1].stages[1].split", "no split 'tran'; did you mean 'train'?"),
        ("stages[1].stages[1].losses[1].model", "no trained model 'other'"),
        ("stages[1].stages[1].losses[2]", "a loss that needs hidden of the model"),
        ("stages[1].stages[1].losses[2]", "a loss that needs hidden of the teacher 'scores'"),
        ("stages[2].models[0]", "'smal'"),
        ("stages[2].against[0]", "no system 'bm26' at this point; did you mean 'bm25'?"),
        ("stages[2].baseline", "'nothing' is not measured here"),
        ("stages[2].measures", "nDGC@10"),
    ]
    for place, what in expected:
        assert any(line.startswith(f"{place}: ") and what in line for line in found), (place, found)
    assert len(found) == len(expected), found

"""What a plan says of a training stage whose options do not go together, or do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdfw
from kdfw.errors import ConfigError


def problems(workspace: Path, *settings: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        kdfw.plan(workspace / "recipe.yaml", [f"stages.2.{text}" for text in settings])
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["dev=null", "dev_measure=RR"], "dev_measure: no `dev` split"),
        (["dev=null", "dev_every=3"], "dev_every: no `dev` split"),
        (["dev=null", "dev_pool=3"], "dev_pool: no `dev` split"),
        (["dev=null", "dev_candidates=mined"], "dev_candidates: no `dev` split"),
        (["dev=null", "patience=3"], "patience: no `dev` split"),
        (["also_train={ranker: teacher}"], "also_train.ranker: a model 'ranker' that no loss trains"),
        (["producers=[student]"], "producers: no model 'student' that trains beside the student"),
        (["losses=[{type: kl, name: a}, {type: mse, name: a}]"], "losses[1].name: a second loss named 'a'"),
        (["losses=[{type: kl}, {type: kl}, {type: mse, name: kl-1}]"], "losses[2].name: a second loss named 'kl-1'"),
        (["losses=[{type: kl, name: loss}]"], "losses[0].name: the name 'loss'"),
        (["losses=[{type: kl, name: a/b}]"], "losses[0].name: found 'a/b'"),
        (["losses=[{type: kl, name: a b}]"], "losses[0].name: found 'a b'"),
        (["losses.0.temperature=-1"], "losses[0].temperature: the value -1; must be > 0"),
        (["train.freeze=['']"], "at least 1 character"),
        (["train.momentum=0.5"], "`momentum` is for `optimizer: sgd`"),
    ],
)
def test_an_option_that_would_do_nothing_is_a_fault(workspace: Path, settings: list[str], words: str):
    found = problems(workspace, *settings)
    assert len(found) == 1 and words in found[0]


def test_a_transformer_is_taken_from_a_model_that_has_one(workspace: Path):
    base = workspace / "student"
    two = f"models.two={{type: bi-encoder, base: {base}, towers: two}}"
    with pytest.raises(ConfigError) as caught:
        kdfw.plan(workspace / "recipe.yaml", [two, "stages.2.encoder_from=two"])
    assert ["encoder_from: a model of 2 transformers ('two')" in str(each) for each in caught.value.problems] == [True]
    assert kdfw.plan(workspace / "recipe.yaml", ["stages.2.encoder_from=teacher"])


def test_stored_scores_know_nothing_of_what_a_model_makes(workspace: Path):
    losses = "losses=[{type: kl, name: a}, {type: kl, name: b, model: maker}]"
    found = problems(workspace, "also_train={maker: teacher}", "producers=[maker]", losses)
    assert any("teachers[0]: a teacher that is no model ('scores') for inputs that 'maker' makes" in it for it in found)
    assert any("producers: a model that makes no inputs ('maker')" in it for it in found)


@pytest.mark.parametrize(
    "loss", ["kl", "margin-mse", "ranknet", "pairwise-hinge", "listnet", "lambda-loss", "info-nce"]
)
@pytest.mark.parametrize("sampler", ["{type: in-batch}", "{type: mined, of: mined, negatives: 0}"])
def test_a_loss_over_lists_of_one_candidate_is_a_fault(workspace: Path, loss: str, sampler: str):
    found = problems(workspace, f"sampler={sampler}", f"losses=[{{type: {loss}}}]")
    assert len(found) == 1 and "of which the sampler draws 1: it would not change" in found[0]


@pytest.mark.parametrize(
    "losses", ["[{type: mse}]", "[{type: info-nce, in_batch: true}]", "[{type: kl, signal: batch_logits}]"]
)
def test_one_candidate_is_enough_for_a_loss_that_needs_no_list(workspace: Path, losses: str):
    plan = ["stages.2.sampler={type: in-batch}", f"stages.2.losses={losses}", "stages.2.teachers=[teacher-bi]",
            "models.teacher-bi={type: bi-encoder, base: %s}" % (workspace / "student")]  # fmt: skip
    assert kdfw.plan(workspace / "recipe.yaml", plan)


def test_augmenters_add_to_what_the_sampler_draws(workspace: Path):
    settings = [
        "sampler={type: in-batch}",
        "losses=[{type: kl}]",
        "teachers=[teacher]",
        "augment=[{type: adam-dark-examples}]",
    ]
    assert kdfw.plan(workspace / "recipe.yaml", [f"stages.2.{text}" for text in settings])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.freeze=[nothing_here]"], "train.freeze: no parameter's name contains 'nothing_here'"),
        (["train.groups={encodr: 3}"], "train.groups: no parameter's name contains 'encodr'"),
    ],
)
def test_what_only_the_model_and_the_data_tell_is_a_fault_before_training(
    workspace: Path, tmp_path: Path, settings: list[str], words: str
):
    with pytest.raises(ConfigError, match=words):
        kdfw.check(
            workspace / "recipe.yaml", [f"stages.2.{text}" for text in settings], cache=tmp_path / "cache",
            out=tmp_path / "run",
        )  # fmt: skip


def test_a_warm_up_longer_than_the_training_is_a_warning(workspace: Path, tmp_path: Path):
    reports = kdfw.check(
        workspace / "recipe.yaml", ["stages.2.train.warmup=1000"], cache=tmp_path / "cache", out=tmp_path / "run"
    )
    (warned,) = [report for report in reports if report.get("warnings")]
    assert warned["type"] == "train" and "a `warmup` of 1000 steps is longer than the training" in warned["warnings"][0]

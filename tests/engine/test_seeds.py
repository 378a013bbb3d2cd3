"""What is random in training follows the seed of its stage, and nothing is drawn while a plan is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from whole_runs import RECIPE, results, run, write_workspace

import kdfw

LEARNED = "{{type: ctkd-instance-kl, temperature: {{type: ctkd-instance, alternatives: 4}}}}"
"""A loss with weights of its own, drawn at random."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = RECIPE.replace("losses: [{{type: kl}},", f"losses: [{LEARNED},").split("  - {{name: hard")[0]
    test = "  - {{name: test, type: evaluate, split: test, models: [distill], measures: [nDCG@10]}}\n"
    return write_workspace(tmp_path_factory.mktemp("seeds"), text + test) / "recipe.yaml"


def trained(recipe: Path, folder: Path, *settings: str) -> dict[str, str]:
    """Digests of the training stage's files, from a run with a cache of its own."""
    run(recipe, folder / "run", *settings, cache=folder / "cache")
    return {name: digest for name, digest in results(folder / "run").items() if "distill" in name}


def test_a_plan_draws_nothing(recipe: Path) -> None:
    before = torch.get_rng_state()
    kdfw.plan(recipe)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_parts_of_losses_that_are_drawn_repeat_with_the_seed(recipe: Path, tmp_path: Path) -> None:
    first = trained(recipe, tmp_path / "first")
    torch.manual_seed(99)  # whatever the caller did to the global generator
    assert trained(recipe, tmp_path / "second") == first
    weights = next(name for name in first if name.endswith("model.safetensors"))
    assert trained(recipe, tmp_path / "third", "stages.distill.seed_offset=1")[weights] != first[weights]

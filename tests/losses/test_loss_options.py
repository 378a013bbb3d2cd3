"""Losses, schedules and samplers as recipes write them: options are found, checked and built."""

from __future__ import annotations

from typing import Any

import pytest

from kdfw.components import Component, DistillationLoss
from kdfw.errors import Problem
from kdfw.losses import LOSSES, WEIGHTINGS
from kdfw.options import check, options_of
from kdfw.samplers import SAMPLERS
from kdfw.schedules import SCHEDULES, Linear


class Registry:
    """The components of this part, without plugins."""

    components: dict[str, dict[str, Any]] = {
        "loss": {**LOSSES}, "weighting": {**WEIGHTINGS}, "schedule": {**SCHEDULES}, "sampler": {**SAMPLERS},
    }  # fmt: skip

    def names(self, kind: str) -> list[str]:
        return sorted(self.components[kind])

    def get(self, kind: str, name: str) -> type[Component]:
        found: type[Component] = self.components[kind][name]
        return found


def built(kind: str, raw: Any) -> tuple[Any, list[Problem]]:
    problems: list[Problem] = []
    spec = check(kind, raw, (), Registry(), lambda path: ".".join(map(str, path)), problems)
    return (None if spec is None else spec.build()), problems


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_built_from_its_name_alone_and_documents_itself(name: str) -> None:
    loss, problems = built("loss", name)
    assert not problems and isinstance(loss, LOSSES[name])
    assert loss.needs.student and LOSSES[name].__doc__ and LOSSES[name].paper
    for option in options_of(LOSSES[name]).values():
        assert option.description, f"{name}.{option.name} has no description"
        assert option.form in ("plain", "component")
    if isinstance(loss, DistillationLoss):
        assert options_of(LOSSES[name])["weighting"].form == "component"


def test_nested_schedules_and_weightings() -> None:
    loss, problems = built(
        "loss",
        {
            "type": "kl",
            "weight": {"type": "linear", "start": 0, "end": 1},
            "temperature": 4,
            "student_temperature": {"type": "cosine", "start": 4, "end": 1},
            "weighting": {"type": "fixed", "weights": [2, 1]},
        },
    )
    assert not problems
    assert isinstance(loss.settings.weight, Linear)
    assert loss.temperature.value == 4.0 and loss.weighting.shares == pytest.approx([2 / 3, 1 / 3])
    assert loss.needs.teachers == (2, 2)


@pytest.mark.parametrize(
    ("kind", "raw", "words"),
    [
        ("loss", {"type": "kl", "direction": "sideways"}, "forward"),
        ("loss", {"type": "kl", "temprature": 2}, "did you mean 'temperature'"),
        ("loss", {"type": "pairwise-hinge", "margin": -1}, "greater than or equal to 0"),
        ("loss", {"type": "lambda-loss", "cutoff": 0}, "greater than 0"),
        ("loss", {"type": "cross-entropy", "label_smoothing": 1.0}, "less than 1"),
        ("loss", {"type": "kl", "temperature": -1}, "temperature: the value -1; must be > 0"),
        ("loss", {"type": "kl", "temperature": 0}, "must be > 0"),
        ("loss", {"type": "info-nce", "temperature": 0}, "must be > 0"),
        ("loss", {"type": "kl", "temperature": float("nan")}, "finite number"),
        ("loss", {"type": "kl", "weight": float("inf")}, "finite number"),
        ("loss", {"type": "kl", "weight": -1}, "weight: the value -1; must be >= 0"),
        ("loss", {"type": "kl", "temperature": {"type": "linear", "start": 1, "end": -1}}, "values from -1 to 1"),
        ("loss", {"type": "kl", "student_temperature": {"type": "cosine", "start": 2, "end": 0}}, "must be > 0"),
        ("loss", {"type": "flops", "query_weight": {"type": "steps", "start": -1, "milestones": [1]}}, "must be >= 0"),
        ("schedule", {"type": "cycle", "period": 0, "duty": 1}, "greater than 0"),
        ("sampler", {"type": "mined", "of": "bm25", "negatives": -1}, "greater than or equal to 0"),
        ("sampler", {"type": "mined", "of": "bm25", "ranks": [0, 5]}, "greater than or equal to 1"),
    ],
)
def test_mistakes_are_explained(kind: str, raw: Any, words: str) -> None:
    thing, problems = built(kind, raw)
    assert thing is None and len(problems) == 1
    assert words in str(problems[0])


def test_samplers_from_recipes() -> None:
    sampler, problems = built("sampler", {"type": "mined", "of": ["bm25", "dense"], "negatives": 4, "ranks": [1, 100]})
    assert not problems and sampler.of == ["bm25", "dense"] and tuple(sampler.options.ranks) == (1, 100)
    assert built("sampler", {"type": "scored", "of": "scores"})[0].of == "scores"
    assert {name for name in SAMPLERS if not built("sampler", name)[1]} == set(SAMPLERS) - {"mined", "scored"}


def test_losses_that_would_always_be_zero_on_sentence_pairs_are_not_offered_there() -> None:
    fit = {name for name in LOSSES if "pairs" in built("loss", name)[0].needs.tasks}
    assert fit == {"bce", "mse", "embedding-mse", "hidden-mse"}
    assert "pairs" in built("loss", {"type": "kl", "signal": "batch_logits"})[0].needs.tasks
    assert "pairs" in built("loss", {"type": "info-nce", "in_batch": True})[0].needs.tasks
    everywhere = {name for name in LOSSES if "translation" in built("loss", name)[0].needs.tasks}
    assert everywhere == {"kl", "mse", "bce", "cross-entropy"}


def test_layers_are_a_word_or_pairs() -> None:
    assert built("loss", {"type": "hidden-mse", "layers": "last"})[0].layers == "last"
    assert built("loss", {"type": "hidden-mse", "layers": [[0, 1], [1, 3]]})[0].layers == [(0, 1), (1, 3)]
    assert built("loss", {"type": "hidden-mse", "layers": "first"})[0] is None

"""A model that makes what the others read, and learns from what they say of it: distillation without data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import test_recipes
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kdfw
from kdfw import plugins
from kdfw.components import Loss, Model
from kdfw.errors import ConfigError
from kdfw.hookspecs import hookimpl
from kdfw.losses.kl import kl_divergence
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals

SIDE = 28


class Painter(Model):
    """Images out of noise that depends on the clock and on the items' ids."""

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    provides: ClassVar[frozenset[str]] = frozenset()

    def load(self, weights: Path | None = None) -> None:
        self.first, self.norm, self.last = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, SIDE * SIDE)
        if weights is not None:
            self.load_state_dict(load_file(weights / "model.safetensors"))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")
        (folder / "kdfw.json").write_text("{}")

    def base_fingerprint(self) -> str:
        return "painter"

    def produce(self, batch: Batch, clock: Clock) -> Batch:
        seeds = [hashlib.sha256(f"{clock.seed} {clock.step} {id}".encode()).digest() for id in batch.ids]
        draws = [torch.Generator().manual_seed(int.from_bytes(seed[:7], "big")) for seed in seeds]
        noise = torch.stack([torch.randn(8, generator=draw) for draw in draws]).to(self.last.weight.dtype)
        images = torch.tanh(self.last(torch.relu(self.norm(self.first(noise)))))
        return dataclasses.replace(batch, inputs={"image": images.view(-1, 1, SIDE, SIDE)})


class Disagreement(Loss):
    """Minus the divergence of the student from its teacher."""

    @property
    def needs(self) -> Needs:
        one = frozenset({"logits"})
        return Needs(student=one, teacher=one, teachers=(1, 1), tasks=frozenset({"classification"}))

    def forward(self, student: Signals, teachers: Any, batch: Batch, clock: Clock) -> LossTerms:
        logits = student["logits"]
        each = kl_divergence(logits, teachers[0]["logits"], torch.ones_like(logits, dtype=torch.bool))
        return LossTerms(total=-each.sum() / batch.num_items, parts={})


class Painting:
    @hookimpl
    def kdfw_students(self) -> Mapping[str, type[Model]]:
        return {"painter": Painter}

    @hookimpl
    def kdfw_losses(self) -> Mapping[str, type[Loss]]:
        return {"disagreement": Disagreement}


@pytest.fixture
def painting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = plugins.installed_plugins()
    monkeypatch.setattr(plugins, "installed_plugins", lambda: [*known, ("painting", Painting(), "painting", "1")])
    plugins.registry.cache_clear()
    yield
    plugins.registry.cache_clear()


RECIPE = """\
kdfw: 1
name: without-data
seed: 13
data: {{type: images, path: {data}, test_share: 0.2}}
models:
  teacher: {{type: image-classifier, net: resnet8}}
  student: {{type: image-classifier, net: resnet8}}
  painter: {{type: painter}}
stages:
  - {{name: teach, type: train, student: teacher, losses: [{{type: cross-entropy}}], train: {{steps: 4, lr: 5e-3}}}}
  - name: distill
    type: train
    student: student
    also_train: {{painter: painter}}
    producers: [painter]
    teachers: [teach]
    losses:
      - {{type: kl, weight: {{type: cycle, period: 3, duty: 2}}}}
      - {{type: disagreement, model: painter, weight: {painter_weight}}}
    train: {{steps: 6, batch_size: 16, lr: 5e-3, log_every: 1, checkpoint_every: 1}}
"""
ALTERNATING = "{type: cycle, period: 3, duty: 2, on: 0.0, off: 1.0}"


@pytest.fixture
def recipe(tmp_path: Path, painting: None) -> Path:
    test_recipes.write_digits(tmp_path / "digits")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(data=tmp_path / "digits", painter_weight=ALTERNATING), encoding="utf-8")
    return path


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def steps_of(run: Path) -> Path:
    (found,) = [path for path in (run / "stages").iterdir() if path.name.endswith("distill")]
    return found


def test_the_maker_and_the_learner_take_turns_and_each_leaves_the_other_as_it_is(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from kdfw.engine.training import Trainer

    seen: list[tuple[int, dict[str, dict[str, Tensor]]]] = []
    step = Trainer.step

    def noting(self: Trainer, batch: Batch, clock: Clock) -> dict[str, float]:
        values = step(self, batch, clock)
        if "painter" in self.models:
            assert not any(parameter.requires_grad for parameter in self.slots[0].model.parameters())  # type: ignore
            copies = {
                name: {key: value.clone() for key, value in model.state_dict().items()}
                for name, model in [*self.models.items(), ("teacher", self.slots[0].model)]
            }
            seen.append((clock.step, copies))
        return values

    monkeypatch.setattr(Trainer, "step", noting)
    kdfw.run(recipe, out=tmp_path / "run", cache=tmp_path / "cache")
    assert [number for number, _ in seen] == list(range(6))
    for (_, before), (number, after) in zip(seen, seen[1:], strict=False):
        moved = {name: changed(before[name], after[name]) for name in before}
        learner, maker = moved["student"], moved["painter"]
        assert moved["teacher"] == set()
        if number % 3 < 2:  # the student's turn
            assert {"output.weight", "body.stem.weight"} <= learner and maker == set()
        else:
            assert learner == set() and {"first.weight", "last.bias", "norm.running_mean"} <= maker
    lines = [json.loads(line) for line in (steps_of(tmp_path / "run") / "metrics.jsonl").read_text().splitlines()]
    turns = ["kl", "kl", "disagreement"] * 2
    assert [{"kl", "disagreement"} & set(line) for line in lines] == [{turn} for turn in turns]
    assert all(line["loss"] == line[turn] for line, turn in zip(lines, turns, strict=True))


def test_both_in_one_step_are_two_turns(recipe: Path, tmp_path: Path):
    recipe.write_text(recipe.read_text().replace(ALTERNATING, "0.5"), encoding="utf-8")
    kdfw.run(recipe, ["stages.1.losses.0.weight=1.0"], out=tmp_path / "run", cache=tmp_path / "cache")
    for line in (steps_of(tmp_path / "run") / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert values["loss"] == pytest.approx(values["kl"] + 0.5 * values["disagreement"])


def test_the_gradient_of_the_maker_is_that_of_its_loss(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against the chain written out by hand: noise, images, student and teacher in evaluation mode, loss."""
    from kdfw.engine.training import Trainer

    compared = []
    step = Trainer.step

    def comparing(self: Any, batch: Batch, clock: Clock) -> dict[str, float]:
        if "painter" in self.models and clock.step == 2:
            painter, student, teacher = self.models["painter"], self.models["student"], self.slots[0].model
            student.eval()
            images = painter.produce(batch, clock).inputs["image"]
            said = [model.head(model.body(images)) for model in (student, teacher)]
            targets = said[1].log_softmax(-1)
            loss = -(targets.exp() * (targets - said[0].log_softmax(-1))).sum() / len(batch)
            expected = torch.autograd.grad(loss, list(painter.parameters()))
            student.train()
            self.backward(batch, clock)
            for parameter, wanted in zip(painter.parameters(), expected, strict=True):
                compared.append((parameter.grad.clone(), wanted))
        return step(self, batch, clock)

    monkeypatch.setattr(Trainer, "step", comparing)
    kdfw.run(recipe, ["precision=fp32"], out=tmp_path / "run", cache=tmp_path / "cache")
    assert len(compared) == 6
    largest = max(float(wanted.abs().max()) for _, wanted in compared)
    assert largest > 0
    for found, wanted in compared:
        assert float((found - wanted).abs().max()) < 1e-4 * largest


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stages.1.producers=[student]", "no model 'student' that trains beside the student"),
        ("stages.1.producers=[paintr]", "no model 'paintr' that trains beside the student"),
        ("stages.1.also_train.painter=teacher", "a model that makes no inputs ('painter')"),
        ("stages.1.losses.1.model=student", "a model 'painter' that no loss trains"),
    ],
)
def test_faults(recipe: Path, setting: str, words: str):
    with pytest.raises(ConfigError) as caught:
        kdfw.plan(recipe, [setting])
    assert any(words in str(problem) for problem in caught.value.problems)

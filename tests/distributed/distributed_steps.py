"""One training step of every loss, weighting and schedule with every kind of student, through the engine's own loop.

Run by one process and by several; what must agree is the loss and the gradient of everything that trains.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from distributed_models import ManyHeads, ManySignals
from tiny import WORDS

from kdfw.components import Model, Sampler
from kdfw.context import Workers
from kdfw.engine.settings import TrainSettings
from kdfw.engine.train_stage import Train
from kdfw.engine.training import Trainer
from kdfw.errors import ConfigError, Problem
from kdfw.models import STUDENTS
from kdfw.options import check
from kdfw.plugins import registry
from kdfw.types import Candidate, Clock, Example, Text

CLOCK = Clock(step=7, total_steps=20, epoch=2, total_epochs=6, steps_per_epoch=3, seed=5)
"""Past the epochs in which some losses are still off."""

TASK = {
    "bi-encoder": "ranking",
    "two-towers": "ranking",
    "cross-encoder": "ranking",
    "late-interaction": "ranking",
    "sparse": "ranking",
    "image-text-encoder": "ranking",
    "many-signals": "ranking",
    "text-classifier": "classification",
    "image-classifier": "classification",
    "many-heads": "classification",
    "seq2seq": "translation",
}
"""Kinds of student, and the task each is tried on."""

SHORT = ("bi-encoder", "text-classifier", "seq2seq")
"""Students that schedules are tried with."""

WITH_IMAGES = ("image-classifier", "image-text-encoder")

OWN = {"many-signals": ManySignals, "many-heads": ManyHeads}

LOSS_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "led-ablation": [{"method": method} for method in ("kl", "ranknet", "listnet", "margin-mse")],
    "info-nce": [{}, {"in_batch": True, "symmetric": True, "temperature": 0.5}],
    "adam": [{"rule": "topk"}],
    "dcd": [{"num_negatives": 1}],
    "lead-layers": [{"num_layers": 2}],
    "kl": [{}, {"signal": "batch_logits", "temperature": 2.0}],
}
"""Options of losses that cannot do without, or have more than one way to look at a step."""

SCHEDULE_OPTIONS: dict[str, dict[str, Any]] = {
    "capstone-part": {},
    "constant": {"value": 1.5},
    "cosine": {"start": 1.0, "end": 3.0},
    "ctkd": {},
    "ctkd-instance": {"alternatives": 80},
    "cudfkd-adversarial-weight": {"start": 1.0},
    "cycle": {"period": 4, "duty": 2, "on": 2.0, "off": 1.0},
    "e5-temperature": {"warmup_steps": 10},
    "exponential": {"start": 1.0, "end": 3.0},
    "ka-nmt-rate": {"peak": 100.0, "warmup_steps": 4},
    "linear": {"start": 1.0, "end": 3.0},
    "piecewise": {"values": [1.0, 2.0], "milestones": [1]},
    "steps": {"start": 3.0, "milestones": [1]},
    "warmup": {"peak": 2.0},
    "warmup-constant": {"peak": 2.0},
    "warmup-cosine": {"peak": 2.0},
    "warmup-linear": {"peak": 2.0},
    "warmup-rsqrt": {"peak": 2.0, "warmup": 0.1},
}
"""A positive value from every schedule; a schedule that is not here fails the test that counts them."""

WEIGHTING_OPTIONS: dict[str, dict[str, Any]] = {
    "ca-mkd": {},
    "fixed": {"weights": [1.0, 3.0]},
    "self-paced": {"rule": "topk", "start": 0.5, "end": 0.6},
    "uniform": {},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step."""

    student: str
    losses: tuple[Mapping[str, Any], ...]
    num_teachers: int
    cached: bool = False
    few: bool = False
    """Fewer rows than processes in at least one group."""
    teacher_trains: bool = False

    @property
    def name(self) -> str:
        what = "+".join(_label(loss) for loss in self.losses)
        flags = [flag for flag in ("cached", "few", "teacher_trains") if getattr(self, flag)]
        return " ".join([self.student, what, *flags])


def _label(raw: Any) -> str:
    if not isinstance(raw, Mapping):
        return str(raw)
    options = ",".join(f"{key}={_label(value)}" for key, value in raw.items() if key != "type")
    return f"{raw['type']}({options})" if options else str(raw["type"])


def cases() -> list[Case]:
    """Every registered loss with every student that gives what it needs; every weighting; every schedule."""
    known = registry()
    found: list[Case] = []
    for name in known.names("loss"):
        for options in LOSS_OPTIONS.get(name, [{}]):
            found += _with_every_student({"type": name, **options})
    for name in known.names("weighting"):
        found += _with_every_student({"type": "kl", "weighting": {"type": name, **WEIGHTING_OPTIONS[name]}})
    for name in known.names("schedule"):
        loss = {"type": "kl", "temperature": {"type": name, **SCHEDULE_OPTIONS[name]}}
        if not name.startswith("warmup"):  # which begins at 0, as no temperature may
            found += [case for case in _with_every_student(loss, cached=False) if case.student in SHORT]
        learned = {"type": "kl", "weight": {"type": name, **SCHEDULE_OPTIONS[name]}}
        if name != "ctkd-instance":  # a weight is one number
            found += [case for case in _with_every_student(learned, cached=False) if case.student == "bi-encoder"]
    translated: dict[str, Any] = {"type": "kl", "temperature": {"type": "ctkd"}}
    for student in TASK:
        found.append(Case(student=student, losses=({"type": "kl"},), num_teachers=1, few=True))
    found.append(Case(student="seq2seq", losses=(translated, {"type": "cross-entropy"}), num_teachers=1))
    mutual = ({"type": "lead-response"}, {"type": "lead-layers", "num_layers": 2, "model": "ranker"})
    for cached in (False, True):
        found.append(Case(student="bi-encoder", losses=mutual, num_teachers=1, cached=cached, teacher_trains=True))
    return found


def _with_every_student(loss: Mapping[str, Any], cached: bool = True) -> Iterator[Case]:
    for student, task in TASK.items():
        model, built = _class_of(student), build("loss", loss)
        needs = built.needs
        if task not in needs.tasks or not (needs.student | needs.teacher) <= model.provides:
            continue
        if needs.whole_batch and model.local_signals:
            continue
        if loss["type"] == "ca-mkd-features" and student != "image-classifier":
            continue  # feature maps, and a head over them
        least, most = needs.teachers
        count = max(least, 2) if most is None and least else least
        for again in (False, True) if cached and not model.local_signals else (False,):
            yield Case(student=student, losses=(loss,), num_teachers=count, cached=again)


def _class_of(student: str) -> type[Model]:
    if student in OWN:
        return OWN[student]
    return STUDENTS["bi-encoder" if student == "two-towers" else student]


def build(kind: str, raw: Mapping[str, Any]) -> Any:
    """A component as a recipe builds it."""
    problems: list[Problem] = []
    spec = check(kind, raw, (), registry(), str, problems)
    if spec is None or problems:
        raise ConfigError(problems)
    return spec.build()


# ---------------------------------------------------------------- models and data


class Labelled:
    classes = ("a", "b", "c")
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        self.splits: dict[str, Any] = {}


class Images:
    """Images that depend on their number alone."""

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __len__(self) -> int:
        return 40

    def text(self, row: int) -> str:
        return f"image {row}"

    def image(self, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)


IMAGES: Any = Images()


class Column:
    def __len__(self) -> int:
        return 40

    def text(self, row: int) -> str:
        return " ".join(random.Random(row).choices(WORDS, k=6))


class Parallel:
    def __init__(self) -> None:
        self.splits = {"train": SimpleNamespace(source=Column(), target=Column())}


class Models:
    """Each student loaded once a process; the same weights on every process."""

    def __init__(self, bases: Path) -> None:
        self.bases = bases
        self._loaded: dict[tuple[str, int], Model] = {}

    def get(self, student: str, seed: int) -> Model:
        """A fresh copy, so that nothing goes from one case to the next."""
        if (student, seed) not in self._loaded:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self._loaded[student, seed] = self._load(student, seed)
        return copy.deepcopy(self._loaded[student, seed])

    def _load(self, student: str, seed: int) -> Model:
        base = str(self.bases / f"bert-{seed % 2}")
        short: dict[str, Any] = {"max_query_tokens": 16, "max_passage_tokens": 24}
        model: Any
        if student in OWN:
            model = OWN[student]()
        elif student == "image-classifier":
            model = STUDENTS[student](net="resnet8")
            model.fit_data(Labelled())
        elif student == "text-classifier":
            model = STUDENTS[student](base=base, max_tokens=32)
            model.fit_data(Labelled())
        elif student == "seq2seq":
            from kdfw.models.seq2seq import Scratch

            size = Scratch(layers=1, width=16, heads=2, vocabulary=80)
            model = STUDENTS[student](scratch=size, max_source_tokens=24, max_target_tokens=20)
            model.fit_data(Parallel())
        elif student == "image-text-encoder":
            model = STUDENTS[student](net="resnet8", text_base=base, projection=8)
            model.fit_data(SimpleNamespace(queries={"train": IMAGES}))
        elif student == "two-towers":
            model = STUDENTS["bi-encoder"](base=base, towers="two", projection=8, similarity="dot", **short)
        elif student == "late-interaction":
            model = STUDENTS[student](base=base, projection=8, **short)
        elif student == "cross-encoder":
            model = STUDENTS[student](base=base, max_pair_tokens=48)
        else:
            model = STUDENTS[student](base=base, **short)
        model.load()
        return model.double()  # so that what differs is not rounding


def examples(task: str, image: bool, few: bool) -> list[Example]:
    """Seven items of very different lengths (or one): shares are uneven, and passages and queries are repeated.

    Args:
        image: queries, or what has a class, are images.
    """
    rng = random.Random(3)

    def text(words: int) -> Text:
        return Text(source=None, made=" ".join(rng.choices(WORDS, k=words)))

    lengths = [3] if few else [2, 9, 3, 14, 1, 5, 4]
    draw = torch.Generator().manual_seed(4)
    if task == "ranking":
        pool = [text(words) for words in (4, 20, 7, 1, 12, 9, 3, 15, 6)]
        found = []
        for number, words in enumerate(lengths):
            rows = [number % 3, *[(number * 2 + k) % len(pool) for k in range(1, 3 + number % 2)]]
            rows = list(dict.fromkeys(rows))
            candidates = tuple(
                Candidate(
                    id=f"p{row}", text=pool[row], label=float(place == 0), kind="negative" if place else "positive"
                )
                for place, row in enumerate(rows)
            )
            query = Text(source=IMAGES, row=number) if image else text(words)
            found.append(Example(id=f"q{number}", text=query, candidates=candidates))
        if not few:
            found[-1] = Example(id="q6", text=found[0].text, candidates=found[1].candidates)
        return found
    if task == "translation":
        return [Example(id=f"t{n}", text=text(words), target=text(words + 1)) for n, words in enumerate(lengths)]
    if image:
        return [
            Example(id=f"i{n}", label=n % 3, image=torch.randn(3, 8, 8, generator=draw).double())
            for n in range(len(lengths) + 1)
        ]
    return [Example(id=f"c{n}", text=text(words), label=n % 3) for n, words in enumerate(lengths)]


class Given(Sampler):
    """Draws just these examples."""

    tasks = frozenset({"ranking", "classification", "translation"})

    def __init__(self, given: Sequence[Example]) -> None:
        self.given = given

    def bind(self, data: Any, split: str, context: Any) -> None:
        pass

    def items(self) -> Sequence[str]:
        return [example.id for example in self.given]

    def draw(self, item: int, clock: Clock, rng: Any) -> Example:
        return self.given[item]


@dataclass
class Context:
    """What a trainer asks of the engine before its first step."""

    workers: Workers
    models: dict[str, Model]
    task: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 5
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("kdfw"))

    def data(self, name: str | None) -> Any:
        return SimpleNamespace(task=self.task, qrels={})

    def model(self, name: str) -> Model:
        return self.models[name]

    def teacher(self, name: str) -> Model:
        return self.models[name]

    def holds_scores(self, name: str) -> bool:
        return False


def not_narrower(value: torch.Tensor) -> torch.Tensor:
    """In place of `Tensor.float`, which widens half precision and pixels in the models and would narrow doubles."""
    return value.to(torch.float64 if value.dtype in (torch.float64, torch.uint8) else torch.float32)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step gave."""

    loss: float
    gradients: dict[str, torch.Tensor]


def run_case(case: Case, models: Models, workers: Workers) -> Outcome:
    """One step of the engine with a learning rate of 0: the loss, and every gradient as the optimizer saw it."""
    task = TASK[case.student]
    names = [f"teacher-{number}" for number in range(case.num_teachers)]
    loaded = {"student": models.get(case.student, 0)}
    loaded |= {name: models.get(case.student, number + 1) for number, name in enumerate(names)}
    torch.manual_seed(1)  # some schedules draw the weights of a network as they are built
    losses = [build("loss", raw) for raw in case.losses]
    given = examples(task, case.student in WITH_IMAGES, case.few)
    stage = Train(
        student="student",
        losses=losses,
        teachers=names,
        also_train={"ranker": names[0]} if case.teacher_trains else {},
        sampler=Given(given),
        train=TrainSettings(
            batch_size=len(given),
            steps=20,
            lr=0.0,
            weight_decay=0.0,
            optimizer="sgd",
            clip=None,
            dropout=case.student in WITH_IMAGES,  # training mode: batch statistics must be those of one process
            precision="fp32",
            token_budget=48,
            gradient_cache="always" if case.cached else "never",
        ),
    )
    trainer = Trainer(stage, Context(workers, loaded, task))  # type: ignore[arg-type]
    trainer.losses.double()
    with mock.patch.object(torch.Tensor, "float", not_narrower):
        values = trainer.step(trainer.feed.batch(0), CLOCK)
    gradients = {}
    for model_name, optimizer in trainer.optimizers.items():
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        every = [*trainer.models[model_name].named_parameters(), *trainer.losses.named_parameters()]
        for name, parameter in every:
            if id(parameter) in trained and parameter.grad is not None:
                gradients[f"{model_name}.{name}"] = parameter.grad.clone()
    return Outcome(loss=values["loss"], gradients=gradients)

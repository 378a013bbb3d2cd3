"""The base class of each kind of component: what a plugin author implements.

Every class here is built from recipe options alone (keyword-only constructor, cheap, no files, no models), so that a
plan can be checked in full before anything loads. Whatever costs something happens in `load`, `bind`, `open` or `run`.
Inherit one level; compose the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from kdfw.amounts import Amount, Shape, Sizes, Workload
from kdfw.errors import PluginError
from kdfw.types import Batch, Clock, Example, LossTerms, Needs, Signals

if TYPE_CHECKING:
    from pathlib import Path

    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import Data, RankingData, SkippedLines
    from kdfw.errors import Problem
    from kdfw.models.rows import Graph, MicroBatch, RowGroup
    from kdfw.types import TextSource


class Component:
    """Anything a recipe can name by `type`."""

    version: ClassVar[int] = 1
    """Part of every fingerprint: raise it when the component gives other results for the same options."""
    paper: ClassVar[str] = ""
    """arXiv id or citation, printed by `kdfw explain`."""
    common: ClassVar[type | None] = None
    """Class whose constructor options every component of this kind also takes; built into `self.settings`."""
    settings: Any
    recipe_name: str = ""
    """The name it has in recipes; set when it is built from one."""

    def check(self, plan: Any) -> Iterator[Problem]:
        """Faults that need more than one option to see: signals a teacher cannot give, a split that is not there.

        Called of a stage and of everything in it. `plan` is a `kdfw.recipe.view.PlanView`, whose `problem` takes a key
        of this component; nothing may be loaded. Asking it about a reference that is a fault itself ends the check.
        """
        return iter(())


# ---------------------------------------------------------------- numbers


class Schedule(Component):
    """A number that changes in training: a pure function of the clock, the same on every process and after a resume."""

    needs: Needs = Needs()

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and greatest value it comes to, which options with a range are checked by; None: it does not tell.

        A learnable schedule, or one that cannot leave its range, need not tell.
        """
        return None

    def setup(self, student: Model, teachers: Sequence[Model | Teacher]) -> None:
        """Of a learnable schedule: build what is drawn at random. Called as `Loss.setup`, after the loss's own."""

    def __call__(self, clock: Clock) -> float:
        raise NotImplementedError

    def at(self, clock: Clock, student: Signals | None = None, teachers: Sequence[Signals] = ()) -> float | Tensor:
        """The value, for losses: a number, or for a learnable schedule a scalar or (Q,) tensor with a graph.

        A learnable schedule is an `nn.Module` too; its parameters train with the stage's first optimizer.
        """
        return self(clock)


class Constant(Schedule):
    """The same value throughout; a plain number in a recipe means this."""

    def __init__(self, *, value: float) -> None:
        self.value = float(value)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.value, self.value

    def __call__(self, clock: Clock) -> float:
        return self.value


def as_schedule(value: Schedule | float) -> Schedule:
    """Numbers become constants, so that components can write `temperature: Schedule | float = 1.0`.

    A range in the option's `Field` (`gt=0`) holds for every value of a schedule that tells its `bounds`.
    """
    return value if isinstance(value, Schedule) else Constant(value=value)


# ---------------------------------------------------------------- losses


class LossSettings:
    """Options that every loss has."""

    def __init__(
        self,
        *,
        weight: Annotated[
            Schedule | float, Field(ge=0, description="multiplies the term; a number or a schedule")
        ] = 1.0,
        name: Annotated[
            str | None, Field(pattern=r"^[^\s/]+$", description="name in logs and reports; default: the type")
        ] = None,
        model: Annotated[
            str | None, Field(description="which trained model of the stage it trains; default: the student")
        ] = None,
        teachers: Annotated[
            list[int] | None, Field(description="which of the stage's teachers it uses, by position; default: all")
        ] = None,
    ) -> None:
        self.weight = as_schedule(weight)
        self.name = name
        self.model = model
        self.teachers = teachers


class Loss(Component, nn.Module):
    """A loss term over signals.

    Means over items divide by `batch.num_items`, never by a local count: a step may be computed in shares.
    Signals always hold the whole step (all processes) unless the task says otherwise (`Needs.whole_batch`).
    """

    common = LossSettings
    settings: LossSettings

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.settings = LossSettings()

    @property
    def needs(self) -> Needs:
        """What the loss reads; may depend on its options. Asked before anything loads."""
        raise NotImplementedError

    def setup(self, student: Model, teachers: Sequence[Model | Teacher]) -> None:
        """Build trainable parts whose size depends on the models, or that are drawn at random (projections).

        Called once, before training, with torch's generator seeded by the stage; never while a plan is made.
        """

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        raise NotImplementedError


class Weighting(Component, nn.Module):
    """Weights of teachers and items inside a distillation loss."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    @property
    def needs(self) -> Needs:
        return Needs()

    def setup(self, student: Model, teachers: Sequence[Model | Teacher]) -> None:
        """Build trainable parts. Called as `Loss.setup`, after the loss's own."""

    def weights(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> Tensor:
        """(K, Q): the loss is the sum of `weights * per_item`. The uniform weighting is 1 / (K * batch.num_items)."""
        raise NotImplementedError


class DistillationLoss(Loss):
    """A loss that compares the student with each teacher, item by item.

    A subclass gives the value for one item and one teacher (`per_item`) and thereby gets, from the recipe, any
    temperature (a schedule, or a learned one), a separate student temperature, any weighting of teachers and items,
    and the choice of the signal it reads (`logits`, `batch_logits`, a granularity or a head).
    """

    compares: ClassVar[Literal["distributions", "scores", "order"]] = "distributions"
    """What of teacher and student: softmax distributions over an item's alternatives, scores on one scale, or their
    order. `kdfw diagnose` judges the temperature of the first and the scale of the second."""

    def __init__(
        self,
        *,
        temperature: Annotated[Schedule | float, Field(gt=0, description="divides teacher and student scores")] = 1.0,
        student_temperature: Annotated[
            Schedule | None, Field(gt=0, description="divides the student's scores instead of `temperature`")
        ] = None,
        weighting: Annotated[
            Weighting | None, Field(description="weights of teachers and items; default: equal")
        ] = None,
        signal: Annotated[str, Field(description="the signal of both sides that is compared")] = "logits",
    ) -> None:
        super().__init__()
        self.temperature = as_schedule(temperature)
        self.student_temperature = None if student_temperature is None else as_schedule(student_temperature)
        self.weighting = weighting
        self.signal = signal

    @property
    def needs(self) -> Needs:
        own = Needs(
            student=frozenset({self.signal}),
            teacher=frozenset({self.signal}),
            teachers=(1, None),
            # a distribution over one alternative is always 1, and one alternative has no order
            alternatives=1 if self.compares == "scores" or self.signal != "logits" else 2,
            whole_batch=self.signal == "batch_logits",
        )
        parts = [self.temperature.needs]
        if self.student_temperature is not None:
            parts.append(self.student_temperature.needs)
        if self.weighting is not None:
            parts.append(self.weighting.needs)
        for part in parts:
            own = own | part
        return own

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        """(Q,) values, without reduction. Temperatures are numbers or tensors of shape () or (Q,), with gradient."""
        raise NotImplementedError

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        temperature = self.temperature.at(clock, student, teachers)
        cooled = temperature
        if self.student_temperature is not None:
            cooled = self.student_temperature.at(clock, student, teachers)
        values = torch.stack([self.per_item(student, teacher, batch, temperature, cooled) for teacher in teachers])
        parts: dict[str, Tensor] = {}
        if self.weighting is None:
            total = values.sum() / (len(teachers) * batch.num_items)
        else:
            weights = self.weighting.weights(student, teachers, batch, clock)
            total = (weights * values).sum()
            parts["weight"] = weights.detach().sum(1)  # of each teacher; uniform: 1 / K
        share = values.shape[1] / batch.num_items  # of the step: what is logged of its shares is added up
        if isinstance(temperature, Tensor):
            parts["temperature"] = share * temperature.detach().mean()
        elif not isinstance(self.temperature, Constant):
            parts["temperature"] = torch.tensor(share * temperature)
        return LossTerms(total=total, parts=parts)


# ---------------------------------------------------------------- models


class Model(Component, nn.Module):
    """A model that turns a batch into signals. May be trained (a student) or frozen (a teacher).

    The work is split so that one road serves training, scoring and encoding, with or without gradient caching, on any
    number of processes (`kdfw/models/forward.py`):

        rows(batch)      which token rows (or images) have to be computed, each distinct one once
        encode(micro)    representations of one micro-batch of rows: the only expensive call, and the only one
                         that runs in shares, by token budget and by process
        signals(reps)    cheap: from the representations of all rows of the step to `Signals`
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits"})
    """Names of the signals it can give."""
    tasks: ClassVar[frozenset[str]] = frozenset({"ranking"})
    reads: ClassVar[frozenset[str]] = frozenset({"text", "image"})
    """What its inputs may be."""
    local_signals: ClassVar[bool] = False
    """True: signals are too large to gather (a vocabulary per token), so each share is turned into signals and losses
    on its own; losses with `Needs.whole_batch` are refused."""
    search: ClassVar[str] = ""
    """How a corpus is searched with it: `dense`, `sparse`, `maxsim`, or empty when it cannot be."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    token_cache: Path | None = None
    """Where tokenised texts are kept; set by the engine after `load`. None: in memory."""
    allow_remote_code: bool = False
    """Set by the engine when the command line allows code from a model folder to run; never by a recipe."""

    def fit_data(self, data: Data) -> None:
        """Take what the model must know of the data (classes, image size) before `load`. Nothing by default."""

    def num_items(self, batch: Batch) -> float:
        """What means over items divide by; a translator counts target tokens."""
        return float(len(batch))

    def load(self, weights: Path | None = None) -> None:
        """Load from a folder written by `save`, or from the base model named in the options."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the model so that transformers (and sentence-transformers, where it has the type) load it unchanged."""
        raise NotImplementedError

    def base_fingerprint(self) -> str:
        """Hash of what `load()` without a folder would read, without reading it into memory (a plan asks this)."""
        raise NotImplementedError

    def check_base(self, where: Callable[[str], str]) -> Iterator[Problem]:
        """Faults that options show together with the base's configuration, where that is on this machine already.

        Args:
            where: `file:line: key` of an option, for the faults.
        """
        return iter(())

    def shape(self) -> Shape | None:
        """What the model costs, from its configuration, without loading it; None when it does not tell."""
        return None

    def num_transformers(self) -> int | None:
        """How many transformers it is made of, as its options say; None when they do not tell."""
        return None

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        raise NotImplementedError

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        """Representations of a micro-batch: tensors whose first dimension is the micro-batch's rows."""
        raise NotImplementedError

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        """From representations by group and name (rows in the order of `rows`) to signals."""
        raise NotImplementedError

    def graphs(self) -> Sequence[Graph]:
        """What an ONNX copy of the loaded model computes; nothing for a model that cannot be exported."""
        return ()

    def usage(self) -> str:
        """Python lines that run the graphs and end in scores, for the README beside them.

        They may use `run(name, *texts, max_tokens)` (outputs of a graph as arrays, in order) and `numpy` as `np`.
        """
        return ""

    def left_out(self) -> Mapping[str, str]:
        """Options that other libraries cannot follow when they open a saved folder: by option, what has to be done
        instead. Known from the options alone."""
        return {}

    def width(self, signal: str) -> int:
        """Channels or width of a signal (`features`, `hidden`, ...), which a loss with a projection asks for.

        Known once loaded. Raises: PluginError when the model does not tell.
        """
        raise PluginError(
            f"{type(self).__module__}.{type(self).__qualname__} does not tell the width of {signal!r}, which a loss "
            f"with a projection asks for; give it a method `width(signal) -> int`, or turn the projection off"
        )

    def head(self, features: Tensor) -> Tensor:
        """(Q, D) what the model's last layer makes of `features`, its own or another's: the differentiable end of it.

        Args:
            features: maps (Q, C, height, width), averaged over places, or vectors (Q, C).
        """
        raise PluginError(f"{type(self).__module__}.{type(self).__qualname__} has no classifier over features (`head`)")

    def produce(self, batch: Batch, clock: Clock) -> Batch:
        """A generator's turn (`producers` of a training stage): the batch with inputs of its own making.

        What it draws depends on the clock and on `batch.ids` alone. When its own losses count in a step it is in
        training mode and they reach its parameters through what it returns; for the models that learn from it, it
        is in evaluation mode. Raises: PluginError in a model that makes nothing.
        """
        raise PluginError(f"{type(self).__module__}.{type(self).__qualname__} makes no inputs (`produce`)")


class Teacher(Component):
    """A source of teacher scores that is not a trainable model."""

    provides: ClassVar[frozenset[str]] = frozenset({"logits"})
    cacheable: ClassVar[bool] = True
    """Whether scores may be stored by content. False for a teacher that changes while the student trains."""
    made_texts: ClassVar[bool] = True
    """Whether it can score texts made on the fly; a score file cannot."""
    keeps_own_scores: ClassVar[bool] = False
    """True when a score stage must not store its scores pair by pair: they depend on the whole list, cost nothing to
    look up, or are stored by the teacher itself."""
    copies_student: ClassVar[bool] = False
    """True for a stand-in that the trainer replaces by a frozen copy of the student as the stage starts."""

    def expected(self, queries: int, pairs: int) -> str:
        """What scoring that much will cost, in words, or an empty string; said before a score stage starts."""
        return ""

    def report(self) -> Mapping[str, Any]:
        """Numbers on the scoring done so far (calls, repaired answers, money), for the stage's summary."""
        return {}

    def fingerprint(self) -> str:
        """Hash of everything its scores depend on (weights, template, lengths, endpoint and model name)."""
        raise NotImplementedError

    def load(self, context: StageContext) -> None:
        """Get ready: open files, load weights, read the API key from the environment."""

    def score(
        self, query: Sequence[str], passages: Sequence[Sequence[str]], ids: Sequence[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        """Scores of each query's passages: one float32 array a query, NaN where it has none.

        Args:
            query: Q query texts.
            passages: for each query its candidate texts.
            ids: for each query its id and those of the candidates (empty strings for made-up texts).
        """
        raise NotImplementedError


# ---------------------------------------------------------------- data


class Dataset(Component):
    """Data of one task in some layout. `open` ingests it once into memory-mapped columns in the cache."""

    task: ClassVar[str] = "ranking"
    holds: ClassVar[frozenset[str]] = frozenset({"text"})
    """Of `text` and `image`: what a model must read to serve it."""
    trains: bool = True
    """False for a test set: models are made for the data they are trained on, and the test set is `fitted` to that."""
    without_labels: frozenset[str] = frozenset()
    """Splits that have no labels, as far as the options say so."""

    @property
    def downloads(self) -> bool:
        """Whether `open` may need a network. Such data are opened before the first stage, so that a failure comes
        early."""
        return False

    def fingerprint(self) -> str:
        """Hash of the options and of the bytes of every file read; raises DataError naming a missing file."""
        raise NotImplementedError

    def splits(self) -> Sequence[str]:
        """Names of the splits, without reading the data; used to check recipes."""
        raise NotImplementedError

    def triples(self) -> Sequence[str] | None:
        """Splits that come with triples of query, positive and negative, without reading the data; None: unknown."""
        return None

    def sizes(self, cache: Path) -> Sizes:
        """How much there is, as far as that can be said without reading the data; `kdfw plan` asks."""
        return Sizes()

    def open(self, cache: Path) -> Data:
        """The data, ingested under `cache` if that has not happened yet."""
        raise NotImplementedError

    def skipped(self, cache: Path) -> Sequence[SkippedLines]:
        """Lines left out under `on_error: skip` when the data was ingested; none while it has not been."""
        return ()

    def fitted(self, data: Data, own: Data) -> Data:
        """Of a test set: its data in the terms of the recipe's own (order of classes, normalisation of images).

        Raises: DataError when models made for `own` cannot be measured on it.
        """
        return data


class Sampler(Component):
    """Draws training examples. What is drawn depends only on (seed, epoch, item)."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ranking"})
    num_candidates: int | None = None
    """Candidates of each example, when fixed by the options; used by checks and estimates."""
    labels_of_data: ClassVar[bool] = False
    """Whether an example has the label of a row of the data, which may have none."""

    draws_positives: ClassVar[bool] = True
    """False where an example has no candidate that is to be found, as in pairs with a score."""

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        """Open what the draws need: the split's items, candidate lists by `context.candidates(name)`."""
        raise NotImplementedError

    def items(self) -> Sequence[str]:
        """Ids of the items of an epoch, in stored order (the trainer shuffles). Items without a usable example are
        left out here, and counted in `skipped`."""
        raise NotImplementedError

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        """How many `items()` there will be, before anything is opened."""
        return sizes.of(sizes.items, split).at_most()

    skipped: Mapping[str, int] = {}
    """Why items were left out, and how many: shown in `kdfw check` and in the log."""

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        """The example of item number `item` of `items()`; draw only from `rng`."""
        raise NotImplementedError


class Augmenter(Component):
    """Changes a drawn example: adds made-up candidates, rewrites passages, corrupts copies."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ranking"})
    makes_texts: ClassVar[bool] = True
    """True when candidates may be texts that are not in the corpus; then a teacher that only knows stored scores is
    refused."""

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        """Open what is needed: a tokenizer, pseudo-queries."""

    def counts(self, candidates: int) -> tuple[int, int]:
        """Of an example of so many candidates: (how many it has afterwards, how many of them this made), at most."""
        return candidates, candidates if self.makes_texts else 0

    def apply(self, example: Example, clock: Clock, rng: np.random.Generator) -> Example:
        raise NotImplementedError


class Retriever(Component):
    """First-stage search."""

    reads: frozenset[str] = frozenset({"text", "image"})
    """Of `text` and `image`: what queries and passages may be."""

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """What results depend on beside options, models and data (library version), for the fingerprint."""
        return {}

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """The best `depth` passages of every query, score descending, ties by id descending."""
        raise NotImplementedError

    def estimate(self, plan: Any, split: str, depth: int) -> Workload:
        """What models have to do for the search of a split's queries, as `Stage.estimate`."""
        return Workload()


# ---------------------------------------------------------------- stages and methods


@dataclass(frozen=True, kw_only=True)
class WrittenOut:
    """What one entry in a recipe's list of stages stands for."""

    stages: Sequence[tuple[Mapping[str, Any], tuple[str | int, ...]]]
    """In the language of recipes, with names; and where inside the entry each is written, for faults."""
    data: Mapping[str, tuple[Mapping[str, Any], tuple[str | int, ...]]] = field(default_factory=dict)
    """Data sets the stages refer to, by name, and where inside the entry each is written."""


class Stage(Component):
    """One step of a plan: reads artifacts, writes one artifact (a folder)."""

    produces: ClassVar[frozenset[str]] = frozenset()
    """Of `model`, `candidates`, `scores`, `data`, `measures`: what later stages may refer to it as."""
    seeded: ClassVar[bool] = False
    """True when the recipe's seed changes the result."""
    seed_offset: int = 0
    """Added to the recipe's seed in this stage."""

    @classmethod
    def write_out(cls, entry: Mapping[str, Any], recipe: Mapping[str, Any]) -> WrittenOut | None:
        """The stages that an entry of this type stands for; None, as usual, when it is one stage.

        Args:
            entry: as it is written, unchecked, with `name` and `type`.
            recipe: the whole recipe, read-only.
        """
        return None

    def estimate(self, plan: Any) -> Workload:
        """How much there is to do, as far as `plan` (a `kdfw.recipe.view.PlanView`) can tell. Nothing may be loaded.

        A stage that writes lists of candidates counts them as `queries` and `candidates`: later stages go by that.
        """
        return Workload()

    def run(self, context: StageContext) -> None:
        """Do the work and write the artifact into `context.folder`.

        May be killed at any moment and started again in the same folder: whatever it finds there was written by an
        earlier try of the very same stage (same fingerprint).
        """
        raise NotImplementedError

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        """One batch through the stage, without training: numbers for `kdfw check`.

        Leaves a stand-in for the artifact in `context.folder` (a few lists, the model as it starts), which later stages
        of the check read; nothing of it is kept. `warnings` among the numbers are shown as such.
        """
        return {}


class Method(Component):
    """A published method as a list of plain stages."""

    def expand(self, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Stages in the language of recipes.

        Args:
            recipe: the recipe's other keys (`models`, `data`, `train`, ...), read-only.
        """
        raise NotImplementedError


KINDS: dict[str, type[Component]] = {
    "student": Model,
    "teacher": Teacher,
    "sampler": Sampler,
    "augmenter": Augmenter,
    "loss": Loss,
    "weighting": Weighting,
    "schedule": Schedule,
    "dataset": Dataset,
    "retriever": Retriever,
    "stage": Stage,
    "method": Method,
}
"""Every kind of component; the hook that collects a kind is `kdfw_<kind>s`."""

"""The stage kind `train`: its options, what is wrong with them, and how much work it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from kdfw.amounts import Amount, Workload
from kdfw.components import Augmenter, Loss, Model, Sampler, Stage
from kdfw.engine.dev import check_dev
from kdfw.engine.settings import TrainSettings
from kdfw.errors import ConfigError, Problem, one_of
from kdfw.references import CandidatesRef, DataRef, ModelRef, TeacherRef

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.recipe.view import PlanView

Every = Annotated[int, Field(ge=1)] | Literal["epoch"]
STUDENT = "student"
"""Name of a stage's main model among those it trains."""
WITHOUT_DEV = {"dev_measure": None, "dev_candidates": None, "dev_pool": 5000, "dev_every": "epoch", "patience": None}
"""Options that say how the dev split is used, as they are where there is none."""
LOGGED = frozenset({"step", "epoch", "loss", "lr", "gradient_norm", "dev"})
"""What lines of `metrics.jsonl` hold beside the losses by name."""
DEFAULT_SETTINGS = TrainSettings()
DEFAULT_SAMPLER = {"pairs": "pairs", "classification": "labelled", "translation": "parallel"}


class Train(Stage):
    """Train a student, and if asked other models beside it, on weighted losses against any number of teachers."""

    produces = frozenset({"model"})
    seeded = True

    def __init__(
        self,
        *,
        student: Annotated[
            ModelRef, Field(description="the model to train: as defined, or as an earlier stage left it")
        ],
        losses: Annotated[list[Loss], Field(description="loss terms; weighted and added")],
        teachers: Annotated[
            list[TeacherRef],
            Field(
                description="score stages (whose teacher scores what is made on the fly), models, or sources of "
                "scores; losses see them in order"
            ),
        ] = [],  # noqa: B006
        sampler: Annotated[Sampler | None, Field(description="what training sees; needed for ranking")] = None,
        augment: Annotated[list[Augmenter], Field(description="changes to drawn examples, in order")] = [],  # noqa: B006
        also_train: Annotated[
            dict[str, ModelRef], Field(description="other models that train in this stage, by name")
        ] = {},  # noqa: B006
        producers: Annotated[
            list[str],
            Field(
                description="trained models that make what the others read (generators), by name; their losses see "
                "what the student and the teachers say of it"
            ),
        ] = [],  # noqa: B006
        data: Annotated[DataRef | None, Field(description="data set; default: the first")] = None,
        split: Annotated[str, Field(description="split to train on")] = "train",
        train: Annotated[
            TrainSettings, Field(description="length, portions, arithmetic, optimizer")
        ] = DEFAULT_SETTINGS,
        dev: Annotated[
            str | None, Field(description="split for choosing the best checkpoint; null: keep the last")
        ] = None,
        dev_measure: Annotated[str | None, Field(description="what is best by; default: the task's measure")] = None,
        dev_candidates: Annotated[
            CandidatesRef | None,
            Field(description="lists to re-rank on the dev split; default: search a pool of passages"),
        ] = None,
        dev_pool: Annotated[int, Field(ge=1, description="passages in that pool, besides the relevant ones")] = 5000,
        dev_every: Annotated[
            Every | list[Every], Field(description="steps between evaluations, or `epoch`; a list: both")
        ] = "epoch",
        patience: Annotated[
            int | None, Field(ge=1, description="stop after this many evaluations without improvement")
        ] = None,
        encoder_from: Annotated[
            ModelRef | None,
            Field(
                description="a model whose transformer the student starts with, without its head: bi- or cross-encoder"
            ),
        ] = None,
        seed_offset: Annotated[
            int, Field(ge=0, lt=2**32, description="added to the recipe's seed: members of an ensemble differ by it")
        ] = 0,
    ) -> None:
        self.student = student
        self.losses = losses
        self.teachers = list(teachers)
        self.sampler = sampler
        self.augment = list(augment)
        self.also_train = dict(also_train)
        self.producers = list(producers)
        self.data = data
        self.split = split
        self.settings_ = train
        self.dev = dev
        self.dev_measure = dev_measure
        self.dev_candidates = dev_candidates
        self.dev_pool = dev_pool
        self.dev_every = dev_every
        self.patience = patience
        self.encoder_from = encoder_from
        self.seed_offset = seed_offset

    def trained_models(self) -> dict[str, str]:
        """Name in this stage -> reference, the student first."""
        return {STUDENT: self.student, **self.also_train}

    def judged(self, loss: Loss) -> str:
        """Name of the model whose signals a loss sees: the one it trains; of one that makes inputs, the student."""
        name = loss.settings.model or STUDENT
        return STUDENT if name in self.producers else name

    @property
    def loss_names(self) -> list[str]:
        """Name of each loss in logs: as given, or its type, numbered where a type comes twice."""
        types = [loss.recipe_name or type(loss).__name__ for loss in self.losses]
        numbered = [name if types.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(types)]
        return [loss.settings.name or name for loss, name in zip(self.losses, numbered, strict=True)]

    def sampler_of(self, task: str) -> Sampler:
        """The sampler of the recipe, or the task's own."""
        if self.sampler is not None:
            return self.sampler
        from kdfw.plugins import registry

        sampler = registry().get("sampler", DEFAULT_SAMPLER[task])()
        assert isinstance(sampler, Sampler)
        return sampler

    # ------------------------------------------------------------ checks

    def check(self, plan: PlanView) -> Iterator[Problem]:
        parts = [self._check_options(plan), self._check_models(plan), self._check_start(plan), self._check_names(plan)]
        parts += [self._check_loss(plan, number, loss) for number, loss in enumerate(self.losses)]
        parts += [self._check_teacher(plan, number, reference) for number, reference in enumerate(self.teachers)]
        for part in parts:
            yield from plan.as_far_as_known(part)
        if self.dev is not None:
            measure = ("dev_measure", self.dev_measure)
            yield from check_dev(plan, "dev", self.dev, measure, self.dev_candidates, self.student)

    def _check_options(self, plan: PlanView) -> Iterator[Problem]:
        if not self.losses:
            yield plan.problem("losses", found="no losses", fix="add at least one")
        if plan.splits and self.split not in plan.splits:
            yield plan.problem("split", found=f"no split {self.split!r}", fix=one_of(self.split, plan.splits))
        if self.dev == self.split:
            yield plan.problem("dev", found="the training split", fix="choose by data the model does not train on")
        if self.dev is None:
            for option, default in WITHOUT_DEV.items():
                if getattr(self, option) != default:
                    yield plan.problem(option, found="no `dev` split", fix="name one, or leave this out")
        if plan.task == "ranking" and self.sampler is None:
            yield plan.problem(found="no `sampler`", fix="say what training sees, e.g. {type: mined, of: [STAGE]}")
        if self.sampler is not None and plan.task not in self.sampler.tasks:
            fix = f"it serves: {', '.join(sorted(self.sampler.tasks))}"
            yield plan.problem("sampler", found=f"a sampler that does not serve the task {plan.task}", fix=fix)
        for number, augmenter in enumerate(self.augment):
            if plan.task not in augmenter.tasks:
                fix = f"it serves: {', '.join(sorted(augmenter.tasks))}"
                found = f"an augmenter that does not serve the task {plan.task}"
                yield plan.problem("augment", number, found=found, fix=fix)
        trained = self.trained_models()
        for name in self.settings_.models:
            if name not in trained:
                fix = one_of(name, trained)
                yield plan.problem("train", "models", name, found=f"no trained model {name!r}", fix=fix)

    def _check_models(self, plan: PlanView) -> Iterator[Problem]:
        for name in self.also_train:
            if name in (STUDENT, "losses") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
                fix = f"letters, digits, '_' and '-', not {STUDENT!r} or 'losses': it names files"
                yield plan.problem("also_train", name, found=f"a model named {name!r}", fix=fix)
        learning = {loss.settings.model or STUDENT for loss in self.losses}
        for name, reference in self.also_train.items():
            if name not in learning and reference not in self.teachers:
                fix = f"give a loss `model: {name}`, or leave it out"
                yield plan.problem("also_train", name, found=f"a model {name!r} that no loss trains", fix=fix)
        for name in self.producers:
            model = plan.model(self.also_train[name]) if name in self.also_train else None
            if name not in self.also_train:
                fix = one_of(name, self.also_train) if self.also_train else "add it to `also_train`"
                yield plan.problem("producers", found=f"no model {name!r} that trains beside the student", fix=fix)
            elif isinstance(model, Model) and type(model).produce is Model.produce:
                fix = "its class needs a method `produce`"
                yield plan.problem("producers", found=f"a model that makes no inputs ({name!r})", fix=fix)
        for name, reference in self.trained_models().items():
            unfit = plan.unfit(plan.model(reference))
            if unfit is not None:
                key = ("student",) if name == STUDENT else ("also_train", name)
                yield plan.problem(*key, found=f"a model that {unfit[0]}", fix=unfit[1])

    def _check_start(self, plan: PlanView) -> Iterator[Problem]:
        if self.encoder_from is None:
            return
        source, student = plan.model(self.encoder_from), plan.model(self.student)
        count = source.num_transformers() if isinstance(source, Model) else None
        if count is not None and count != 1:
            found = f"a model of {count} transformers ({self.encoder_from!r})"
            yield plan.problem("encoder_from", found=found, fix="name a model that has just one")
        if isinstance(student, Model) and student.num_transformers() == 0:
            yield plan.problem("encoder_from", found="a student without a transformer", fix="leave this out")

    def _check_names(self, plan: PlanView) -> Iterator[Problem]:
        names = self.loss_names
        for number, name in enumerate(names):
            if name in LOGGED:
                yield plan.problem("losses", number, "name", found=f"the name {name!r}", fix="the log has it already")
            elif name in names[:number]:
                fix = "the log needs a name for each"
                yield plan.problem("losses", number, "name", found=f"a second loss named {name!r}", fix=fix)

    def _check_loss(self, plan: PlanView, number: int, loss: Loss) -> Iterator[Problem]:
        trained = self.trained_models()
        name = loss.settings.model or STUDENT
        if name not in trained:
            fix = one_of(name, trained)
            yield plan.problem("losses", number, "model", found=f"no trained model {name!r}", fix=fix)
            return
        judged = trained[self.judged(loss)]
        model = plan.model(judged)
        try:
            needs = loss.needs
        except ConfigError as error:
            yield plan.problem("losses", number, found=str(error))
            return
        if plan.task not in needs.tasks:
            fix = f"it serves: {', '.join(sorted(needs.tasks))}"
            yield plan.problem("losses", number, found=f"a loss that does not serve the task {plan.task}", fix=fix)
        known = self.sampler is not None or plan.task in DEFAULT_SAMPLER
        candidates = self._counts(plan)[0] if known and self.sampler_of(plan.task).num_candidates else 0
        if 0 < candidates < needs.alternatives and plan.task in needs.tasks:
            found = f"a loss over an item's candidates, of which the sampler draws {candidates}: it would not change"
            fix = "draw negatives, or compare the passages of a step (`signal: batch_logits`, `in_batch: true`)"
            yield plan.problem("losses", number, found=found, fix=fix)
        if needs.labels and self.split in plan.without_labels and self.sampler_of(plan.task).labels_of_data:
            found, fix = f"a loss that needs labels, of which the split {self.split!r} has none", "learn from a teacher"
            yield plan.problem("losses", number, found=found, fix=f"{fix}, or train on a split with labels")
        if isinstance(model, Model):
            missing = sorted(needs.student - model.provides)
            if missing:
                fix = f"the model gives: {', '.join(sorted(model.provides))}"
                found = f"a loss that needs {', '.join(missing)} of the model {judged!r}"
                yield plan.problem("losses", number, found=found, fix=fix)
            if needs.whole_batch and model.local_signals:
                found = "a loss that compares the items of a step, with a model whose signals are computed in shares"
                yield plan.problem("losses", number, found=found, fix="use a loss that works item by item")
        chosen = loss.settings.teachers
        if chosen is not None:
            for position in chosen:
                if not 0 <= position < len(self.teachers):
                    fix = f"the stage has {len(self.teachers)}, counted from 0"
                    yield plan.problem("losses", number, "teachers", found=f"no teacher {position}", fix=fix)
                    return
        uses = self.teachers if chosen is None else [self.teachers[position] for position in chosen]
        least, most = needs.teachers
        if len(uses) < least or (most is not None and len(uses) > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            found = f"a loss that needs {wanted} teacher{'' if least == most == 1 else 's'}, and has {len(uses)}"
            yield plan.problem("losses", number, found=found, fix="set the stage's `teachers`, or the loss's")
            return
        if not needs.teacher:
            return
        for teacher in uses:
            missing = sorted(needs.teacher - plan.provides(teacher))
            if missing:
                gives = ", ".join(sorted(plan.provides(teacher)))
                found = f"a loss that needs {', '.join(missing)} of the teacher {teacher!r}"
                yield plan.problem("losses", number, found=found, fix=f"that teacher gives: {gives}")

    def _check_teacher(self, plan: PlanView, number: int, reference: str) -> Iterator[Problem]:
        making = [augmenter for augmenter in self.augment if augmenter.makes_texts]
        model = plan.model(reference)
        stored = model is None
        live = plan.scorer(reference) if stored else model
        if making and not plan.scores_made_texts(live):
            found = f"stored scores ({reference!r}) for examples that are made on the fly"
            fix = "name a model, or a score stage of one (`activation: none`), so that it scores them while training"
            yield plan.problem("teachers", number, found=found, fix=fix)
        maker = next((name for name in self.producers if name in self.also_train), None)
        if maker and not (isinstance(model, Model) or getattr(model, "copies_student", False)):
            found = f"a teacher that is no model ({reference!r}) for inputs that {maker!r} makes"
            yield plan.problem("teachers", number, found=found, fix="name a model, which passes on gradients")
        elif stored and plan.task not in ("ranking", "pairs"):
            found = f"stored scores for the task {plan.task}"
            yield plan.problem("teachers", number, found=found, fix="name the teacher model itself")
        split = getattr(plan.stage_of(reference), "split", self.split)
        if stored and plan.task == "pairs" and split != self.split:
            found = f"scores of the split {split!r} ({reference!r})"
            yield plan.problem("teachers", number, found=found, fix=f"this stage trains on {self.split!r}")
        unfit = plan.unfit(model)
        if unfit is not None:
            yield plan.problem("teachers", number, found=f"a teacher that {unfit[0]}", fix=unfit[1])

    def estimate(self, plan: PlanView) -> Workload:
        """Steps, examples, and what the student, and teachers that are asked while it trains, have to read."""
        settings, sizes = self.settings_, plan.sizes
        items = self.sampler_of(plan.task).expected_items(sizes, self.split)
        steps = items.in_portions_of(settings.batch_size) * (settings.epochs or 1)
        examples = items * (settings.epochs or 1)
        if settings.steps is not None:
            steps = Amount(settings.steps)
            examples = Amount(settings.steps * settings.batch_size).at_most()
        if self.patience is not None:
            steps, examples = steps.at_most(), examples.at_most()
        work = Workload(amounts={"steps": steps, "examples": examples})
        trained = self.trained_models().values()
        candidates, made = self._counts(plan)
        for reference in trained:
            work = work + self._reading(plan, reference, examples, candidates).with_backward()
        for reference in self.teachers:
            model = plan.model(reference)
            if isinstance(model, Model) and reference not in trained:
                work = work + self._reading(plan, reference, examples, candidates)
            elif model is None and made:
                work = work + self._reading(plan, reference, examples, made)
        return work

    def _counts(self, plan: PlanView) -> tuple[int, int]:
        """(candidates of an example, how many of them are made on the fly), at most; 0 where nobody can say."""
        candidates, made = self.sampler_of(plan.task).num_candidates or 0, 0
        for augmenter in self.augment:
            candidates, more = augmenter.counts(candidates)
            made = min(candidates, made + more)
        return candidates, made

    def _reading(self, plan: PlanView, reference: str, examples: Amount, candidates: int) -> Workload:
        """One forward pass of a model, or of the model that gave stored scores, over so many candidates an example."""
        if plan.task != "ranking":
            return plan.reading(reference, items=examples, split=self.split)
        if not candidates:
            return Workload()
        model = plan.reader(reference)
        if isinstance(model, Model) and model.search:
            return plan.encoding(reference, queries=examples, passages=examples * candidates, split=self.split)
        return plan.scoring(reference, queries=examples, pairs=examples * candidates, split=self.split)

    # ------------------------------------------------------------ work

    def run(self, context: StageContext) -> None:
        from kdfw.engine.training import Trainer

        Trainer(self, context).train()

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        from kdfw.engine.training import Trainer

        return Trainer(self, context).preflight()

"""The training loop: batch -> signals of each model -> losses -> backward -> optimizers.

One step, over all processes: every process holds the same batch, encodes its share of the rows, receives the
representations of all of them, and computes the same losses on the whole step. Gradients of encoder weights are those
of own rows and are summed over processes; so N processes give the gradient of one, for every loss there is.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kdfw.components import Constant, Loss, Model, Schedule, Teacher, Weighting
from kdfw.context import Workers
from kdfw.data.sets import has_labels, scored_texts
from kdfw.engine import checkpoint
from kdfw.engine.dev import DevEvaluation
from kdfw.engine.feed import Feed
from kdfw.engine.optim import check_patterns, make_optimizer, set_rate
from kdfw.engine.probe import FILE as PROBE
from kdfw.engine.probe import load_probe, probe_before, save_probe, student_scores, why_not
from kdfw.engine.settings import activations_to_keep
from kdfw.engine.train_stage import STUDENT, Train
from kdfw.errors import TrainingError
from kdfw.files import write_json
from kdfw.memory import Upkeep
from kdfw.models.dropout import recomputing
from kdfw.models.encoders import take_encoder
from kdfw.models.forward import (
    Budget,
    Cached,
    backward_cached,
    evaluating,
    is_out_of_memory,
    represent,
    represent_cached,
    shares,
    signals_of,
)
from kdfw.models.precision import autocast_dtype, numerics, resolve
from kdfw.processes import any_process, from_main, mean_gradients, share_weights, sum_values
from kdfw.samplers.collate import StoredScores, made_candidates, only
from kdfw.types import Batch, Clock, Signals

if TYPE_CHECKING:
    from kdfw.context import StageContext

CHECKPOINTS = "checkpoints"
ALONG = ("metrics.jsonl", PROBE)
"""Files of a stage's folder that a checkpoint keeps as they were: they grow, or are made once at the start."""
MAX_PIECES = 1024
"""Into how many pieces a micro-batch is cut at most before memory that runs out is an error."""
Found = TypeVar("Found")


@dataclass
class _Slot:
    """A teacher as the loop sees it."""

    kind: Literal["stored", "frozen", "source", "trained"]
    reference: str
    model: Model | None = None
    stored: StoredScores | None = None
    source: Teacher | None = None
    trained: str = ""


class _MemoryRanOut(RuntimeError):
    """Memory ran out on some process, and every process knows."""


class Trainer:
    """Everything one training stage holds while it runs."""

    def __init__(self, stage: Train, context: StageContext) -> None:
        self.stage = stage
        self.context = context
        self.settings = stage.settings_
        self.device = context.device
        self.workers = context.workers
        self.data = context.data(stage.data)
        self.precision = resolve(self.settings.precision, self.device)
        self.autocast = autocast_dtype(self.precision)
        self.budget = Budget(
            tokens=self.settings.token_budget,
            max_rows=self.settings.max_rows,
            activations=activations_to_keep(self.settings, self.device),
        )
        self.models: dict[str, Model] = {
            name: context.model(reference) for name, reference in stage.trained_models().items()
        }
        if stage.encoder_from is not None:
            take_encoder(self.models[STUDENT], context.model(stage.encoder_from), stage.encoder_from)
        for model in self.models.values():
            model.train(self.settings.dropout)
            if self.settings.activation_checkpointing:
                _checkpoint_activations(model)
        self.slots = [self._slot(reference) for reference in stage.teachers]
        self.losses = nn.ModuleList(stage.losses)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)  # projections draw their weights
            for loss in stage.losses:
                self._set_up(loss)
        self.losses.to(self.device)
        for module in self._modules.values():
            share_weights(module, self.workers)
        self.needs = [loss.needs for loss in stage.losses]
        self.student_needs, self.teacher_needs = self._needed()
        self.feed = self._feed()
        self._check_settings()
        self.optimizers = {
            name: make_optimizer(self.settings.optimizer_of(name), model, self._loss_parameters(name), self.device)
            for name, model in self.models.items()
        }
        if self.settings.compile:
            for model in self.models.values():
                model.encode = torch.compile(model.encode, dynamic=True)  # type: ignore[method-assign]
        self.dev = self._dev() if stage.dev else None
        self.skipped_steps = 0
        self._said: set[tuple[str, str]] = set()
        self._broken: list[str] = []
        """Of this step: models asked as teachers whose scores are not finite, and for which items."""
        self._stop = False

    def _check_settings(self) -> None:
        """Raises ConfigError for settings that have no effect on the models that this stage has."""
        chosen = {name: self.settings.optimizer_of(name) for name in self.models}
        for settings in chosen.values():
            # settings may be those of several models, of which one has the parameter
            models = [name for name, its in chosen.items() if its is settings]
            found = [name for model in models for name, _ in self.models[model].named_parameters()]
            found += [name for model in models for name, _ in self._loss_parameters(model)]
            check_patterns(settings, found)

    def _doubts_of_settings(self) -> list[str]:
        chosen = [self.settings.optimizer_of(name) for name in self.models]
        return list(dict.fromkeys(filter(None, (settings.doubt(self.feed.total_steps) for settings in chosen))))

    def _dev(self) -> DevEvaluation:
        stage = self.stage
        assert stage.dev is not None
        return DevEvaluation(
            self.context, self.data, split=stage.dev, measure=stage.dev_measure, candidates=stage.dev_candidates,
            pool=stage.dev_pool,
        )  # fmt: skip

    def _feed(self) -> Feed:
        stage, context = self.stage, self.context
        sampler = stage.sampler_of(self.data.task)
        sampler.bind(self.data, stage.split, context)
        for augmenter in stage.augment:
            augmenter.bind(self.data, stage.split, context)
        wanting = [name for name, needs in zip(stage.loss_names, self.needs, strict=True) if needs.labels]
        if wanting and sampler.labels_of_data and not has_labels(self.data, stage.split):
            raise TrainingError(
                f"the loss {wanting[0]!r} needs labels, and the split {stage.split!r} of data {self.data.name!r} has "
                "none; learn from a teacher, or train on a split with labels"
            )
        feed = Feed(sampler, stage.augment, self.data, self.settings, context.seed)
        if not feed.ids:
            reasons = "; ".join(f"{count} {why}" for why, count in sampler.skipped.items()) or "the split is empty"
            raise TrainingError(f"nothing to train on in split {stage.split!r}: {reasons}")
        for why, count in sampler.skipped.items():
            context.log.warning("%d items left out: %s", count, why)
        return feed

    def _slot(self, reference: str) -> _Slot:
        context = self.context
        for name, trained in self.stage.also_train.items():
            if trained == reference:
                return _Slot(kind="trained", reference=reference, trained=name)
        if context.holds_scores(reference):
            stored = StoredScores(context.scores(reference), scored_texts(self.data, self.stage.split))
            slot = _Slot(kind="stored", reference=reference, stored=stored)
            if any(augmenter.makes_texts for augmenter in self.stage.augment):
                live = context.scorer(reference)
                slot.model, slot.source = (_freeze(live), None) if isinstance(live, Model) else (None, live)
            return slot
        teacher = context.teacher(reference)
        if isinstance(teacher, Model):
            frozen = copy.deepcopy(teacher) if any(teacher is model for model in self.models.values()) else teacher
            return _Slot(kind="frozen", reference=reference, model=_freeze(frozen))
        if teacher.copies_student:
            return _Slot(kind="frozen", reference=reference, model=_freeze(copy.deepcopy(self.models[STUDENT])))
        return _Slot(kind="source", reference=reference, source=teacher)

    def _objects(self) -> list[Model | Teacher | None]:
        return [
            self.models[slot.trained] if slot.kind == "trained" else slot.model or slot.source for slot in self.slots
        ]

    def _teachers_of(self, loss: Loss, per_slot: Sequence[Any]) -> list[Any]:
        chosen = loss.settings.teachers
        return list(per_slot) if chosen is None else [per_slot[position] for position in chosen]

    def _set_up(self, loss: Loss) -> None:
        """The loss's trainable parts, then those of the learnable schedules and weightings inside it."""
        models = self.models[self.stage.judged(loss)], self._teachers_of(loss, self._objects())
        loss.setup(*models)
        for part in list(loss.modules()):
            if isinstance(part, (Schedule, Weighting)):
                part.setup(*models)

    def _needed(self) -> tuple[dict[str, frozenset[str]], list[frozenset[str]]]:
        students = {name: frozenset({"logits"}) for name in self.models}
        teachers = [frozenset[str]() for _ in self.slots]
        for loss, needs in zip(self.stage.losses, self.needs, strict=True):
            students[self.stage.judged(loss)] |= needs.student
            positions = range(len(self.slots)) if loss.settings.teachers is None else loss.settings.teachers
            for position in positions:
                teachers[position] |= needs.teacher
        for position, slot in enumerate(self.slots):
            if slot.kind == "trained":
                students[slot.trained] |= teachers[position]
        return students, teachers

    def _loss_parameters(self, model: str) -> list[tuple[str, nn.Parameter]]:
        """Trainable parts of the losses that train this model (projections, learned temperatures)."""
        return [
            (f"losses.{number}.{name}", parameter)
            for number, loss in enumerate(self.stage.losses)
            if (loss.settings.model or STUDENT) == model
            for name, parameter in loss.named_parameters()
        ]

    # ------------------------------------------------------------ the loop

    def train(self) -> None:
        """From the last checkpoint (or the start) to the end; writes the model into the stage's folder."""
        context = self.context
        state = self._resume()
        start, best, waited = state["step"], state.get("best"), state.get("waited", 0)
        best_step: int | None = state.get("best_step")
        saved_at = began = time.monotonic()
        for doubt in self._doubts_of_settings():
            context.log.warning("%s", doubt)
        finished = bool(state.get("stopped_early"))
        done = start
        if start == 0 and not why_not(self.stage, self.models[STUDENT]):
            self._probe_before()
        with (
            numerics(self.settings.precision, self.device) as arithmetic,
            self._clean_stop(),
            contextlib.closing(context.trackers(self.settings.model_dump())) as trackers,
            context.progress(self.feed.total_steps, "train", "step", start) as progress,
        ):
            if not finished:
                upkeep = Upkeep()
                for step, batch in self.feed.ahead(start):
                    clock = self.feed.clock(step)
                    values = self.step(batch, clock)
                    upkeep.check()
                    done = step + 1
                    progress.update(1, **{name: values[name] for name in list(values)[:3]})
                    if done % self.settings.log_every == 0 or done == self.feed.total_steps:
                        context.record(step=done, epoch=clock.epoch, **values)
                        trackers.log(done, values)
                    if self._evaluate_now(done):
                        assert self.dev is not None
                        measured = self.dev.measure(self.models[STUDENT], self.budget, self.autocast)
                        measured = from_main(measured, self.workers)  # all decide alike, whatever rounding does
                        context.record(step=done, epoch=clock.epoch, **{f"dev/{self.dev.name}": measured})
                        trackers.log(done, {f"dev/{self.dev.name}": measured})
                        waited += 1
                        if best is None or measured > best or math.isnan(best) > math.isnan(measured):
                            best, best_step, waited = measured, done, 0
                        if self.stage.patience is not None and waited >= self.stage.patience:
                            finished = True
                    interrupted = any_process(self._stop, self.workers)
                    if finished or interrupted or best_step == done or self._checkpoint_now(done, saved_at):
                        saved_at = time.monotonic()
                        standing = {"best": best, "best_step": best_step, "waited": waited, "stopped_early": finished}
                        self._save(done, standing)
                    if interrupted:
                        raise KeyboardInterrupt
                    if finished:
                        context.log.info("no improvement on %s for %d evaluations: stopped", self.stage.dev, waited)
                        break
        self._write_models(best_step)
        self._probe_after()
        seconds = time.monotonic() - began
        context.summary(
            {
                "steps": done,
                **({"steps without early stopping": self.feed.total_steps} if finished else {}),
                "items": len(self.feed.ids),
                "precision": arithmetic,
                "parameters": sum(parameter.numel() for parameter in self.models[STUDENT].parameters()),
                **({f"best dev {self.dev.name}": best} if self.dev is not None and best is not None else {}),
                **({"skipped steps (loss not finite)": self.skipped_steps} if self.skipped_steps else {}),
                **({"gradient parts after out of memory": self.budget.pieces} if self.budget.pieces > 1 else {}),
            }
        )
        context.log.info("trained %d steps in %.1f s", done - start, seconds)

    def step(self, batch: Batch, clock: Clock) -> dict[str, float]:
        """One optimizer step; returns the values of loss terms, rates and schedules for the log."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self._broken = []
        active = {name for name, weight in self._active(clock)}
        values = self._gradients(batch, clock)
        if not math.isfinite(values["loss"]):
            return self._not_finite(batch, clock, values)
        values |= self._changing_weights(clock)
        for name in self.models:
            if name not in active:
                continue
            settings, optimizer = self.settings.optimizer_of(name), self.optimizers[name]
            everything = [p for group in optimizer.param_groups for p in group["params"]]
            mean_gradients(everything, self.workers)
            trainable = [p for p in everything if p.grad is not None]
            if settings.clip is not None and trainable:
                norm = nn.utils.clip_grad_norm_(trainable, settings.clip)
                key = "gradient_norm" if name == STUDENT else f"gradient_norm/{name}"
                values[key] = float(norm)
            values["lr" if name == STUDENT else f"lr/{name}"] = set_rate(optimizer, settings, clock)
            optimizer.step()
        return values

    def _gradients(self, batch: Batch, clock: Clock) -> dict[str, float]:
        """Gradients of a whole step; again with smaller micro-batches, as often as memory runs out on any process."""
        parts = self._split(batch) if self.settings.accumulate > 1 else [batch]
        while True:
            values: dict[str, float] = {}
            try:
                for number, part in enumerate(parts):
                    share = len(part) / len(batch)
                    for name, value in self.backward(part, clock, scale=share, part=number).items():
                        values[name] = values.get(name, 0.0) + value * share
                return values
            except (RuntimeError, MemoryError) as error:
                # what runs out before the processes have agreed on it would leave the others waiting
                agreed = isinstance(error, _MemoryRanOut) or self.workers.world_size == 1
                if not agreed or not is_out_of_memory(error) or self.budget.pieces >= MAX_PIECES:
                    raise
            # outside the handler: the exception would keep the tensors of the failed try alive
            said = any_process(self.budget.pieces > 1, self.workers)
            self.budget.shrink(say=self.workers.main and not said)
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)

    def _agreed(self, work: Callable[[], Found]) -> Found:
        """`work()`, in which processes do not wait for each other; memory that runs out on one is known to all.

        Raises: _MemoryRanOut on every process.
        """
        found, enough = None, True
        try:
            found = work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.workers.world_size == 1:
                raise
            enough = False
        if any_process(not enough, self.workers):
            raise _MemoryRanOut("out of memory on a process of the run")
        assert found is not None
        return found

    def _active(self, clock: Clock) -> Iterator[tuple[str, float]]:
        """(model, weight) of the losses that count in this step; a model without any is left alone."""
        for loss in self.stage.losses:
            weight = loss.settings.weight.at(clock)
            if not isinstance(weight, Tensor) and weight == 0.0:
                continue
            yield loss.settings.model or STUDENT, _number(weight)

    def _changing_weights(self, clock: Clock) -> dict[str, float]:
        """Weights of loss terms that follow a schedule, for the log; here, since a step may be computed in shares."""
        return {
            f"{self._loss_name(number)}/weight": _number(loss.settings.weight.at(clock))
            for number, loss in enumerate(self.stage.losses)
            if not isinstance(loss.settings.weight, Constant)
        }

    def backward(self, batch: Batch, clock: Clock, scale: float = 1.0, part: int = 0) -> dict[str, float]:
        """Put the gradient of the batch's weighted losses into the parameters; returns the loss terms."""
        active = {name for name, _ in self._active(clock)}
        taught: dict[str, float] = {}
        for name in self.stage.producers:
            if name in active:
                found = self._agreed(functools.partial(self._backward_of_producer, name, batch, clock, scale))
                taught |= {**found, "loss": taught.get("loss", 0.0) + found["loss"]}
            with torch.no_grad(), evaluating(self.models[name]):
                batch = self.models[name].produce(batch, clock)
        if taught and active <= set(self.stage.producers):
            return taught
        values = self._backward_of_learners(batch, clock, scale, part)
        return {**values, **taught, "loss": values["loss"] + taught.get("loss", 0.0)}

    def _backward_of_producer(self, name: str, batch: Batch, clock: Clock, scale: float) -> dict[str, float]:
        """For a model that makes inputs: through the student and the teachers, which stay as they are, into what it
        makes. Every process computes the whole batch, since statistics of a batch may be what counts."""
        made = self.models[name].produce(batch, clock)
        made = replace(made, num_items=self.models[STUDENT].num_items(made))
        others = [model for other, model in self.models.items() if other != name]
        alone: dict[str, Any] = {"device": self.device, "budget": self.budget, "autocast": self.autocast, "graph": True}
        with _fixed(others):
            signals = {name: signals_of(self.models[STUDENT], made, self.student_needs[STUDENT], **alone)}
            teachers = [
                signals_of(slot.model or self.models[slot.trained], made, need, **alone) if need else Signals()
                for slot, need in zip(self.slots, self.teacher_needs, strict=True)
            ]
            total, values = self._losses(signals, teachers, made, clock)
            if torch.isfinite(total) and total.requires_grad:
                (total * scale).backward()  # type: ignore[no-untyped-call]
        return values

    def _backward_of_learners(self, batch: Batch, clock: Clock, scale: float, part: int) -> dict[str, float]:
        """For models that learn from the batch as it is."""
        batch = replace(batch, num_items=self.models[STUDENT].num_items(batch))
        if self.models[STUDENT].local_signals:
            return sum_values(self._agreed(lambda: self._backward_in_shares(batch, clock, scale, part)), self.workers)
        active = {name for name, _ in self._active(clock)}
        feeding = {slot.trained for slot in self.slots if slot.kind == "trained"}
        cached: dict[str, Cached] = {}
        signals: dict[str, Signals] = {}
        self.budget.kept = 0.0
        for number, (name, model) in enumerate(self.models.items()):
            if name not in active | feeding or name in self.stage.producers:
                continue
            need = self.student_needs[name]
            groups = model.rows(batch, need)
            key = (clock.seed, clock.step, part, number)
            workers = Workers() if _whole_everywhere(model) else self.workers
            road: dict[str, Any] = {
                "device": self.device, "budget": self.budget, "workers": workers,
                "rng_key": key, "autocast": self.autocast,
            }  # fmt: skip
            if name in active:
                cached[name] = represent_cached(model, groups, need, **road)
                signals[name] = model.signals(cached[name].reps, batch, need)
            else:
                with torch.no_grad():
                    signals[name] = model.signals(represent(model, groups, need, **road), batch, need)
        teachers = [self._teacher_signals(number, batch, signals) for number in range(len(self.slots))]
        self._say_doubts(teachers, batch)

        def work() -> dict[str, float]:
            total, values = self._losses(signals, teachers, batch, clock)
            if self._broken:  # losses leave out what has no score, and would learn nothing without a word
                return {**values, "loss": math.nan}
            if torch.isfinite(total) and total.requires_grad:  # false where every weight is 0 in this step
                (total * scale).backward()  # type: ignore[no-untyped-call]
                for kept in cached.values():
                    _scale_gradients(kept)
                    backward_cached(kept)
            return values

        return self._agreed(work)

    def _backward_in_shares(self, batch: Batch, clock: Clock, scale: float, part: int) -> dict[str, float]:
        """For signals too large to hold for a whole step: this process's share, one micro-batch of items at a time."""
        model = self.models[STUDENT]
        values: dict[str, float] = {}
        for number, share in enumerate(shares(model, batch, self.student_needs[STUDENT], self.budget, self.workers)):
            alone = Budget(tokens=1 << 40)
            need = self.student_needs[STUDENT]
            reps = represent(
                model, model.rows(share, need), need, device=self.device, budget=alone,
                rng_key=(clock.seed, clock.step, part, self.workers.rank, number), autocast=self.autocast,
            )  # fmt: skip
            signals = {STUDENT: model.signals(reps, share, need)}
            teachers = [self._teacher_signals(slot, share, signals, alone=True) for slot in range(len(self.slots))]
            total, found = self._losses(signals, teachers, share, clock)
            for name, value in found.items():
                values[name] = values.get(name, 0.0) + value
            if not torch.isfinite(total):
                break
            # this share's part of a sum, where gradients are averaged over processes
            (total * scale * self.workers.world_size).backward()  # type: ignore[no-untyped-call]
        return values

    def _losses(
        self, signals: Mapping[str, Signals], teachers: Sequence[Signals], batch: Batch, clock: Clock
    ) -> tuple[Tensor, dict[str, float]]:
        total = torch.zeros((), device=self.device)
        values: dict[str, float] = {"loss": 0.0}
        for number, loss in enumerate(self.stage.losses):
            student = signals.get(loss.settings.model or STUDENT)
            chosen = self._teachers_of(loss, teachers)
            weight = loss.settings.weight.at(clock, student, chosen)
            if student is None or (not isinstance(weight, Tensor) and weight == 0.0):
                continue
            terms = loss(student, chosen, batch, clock)
            total = total + weight * terms.total
            name = self._loss_name(number)
            values[name] = float(terms.total.detach())
            names = self._teachers_of(loss, self.stage.teachers)
            for part, value in terms.parts.items():
                if value.dim() == 0:
                    values[f"{name}/{part}"] = float(value)
                else:
                    each = zip(names, value.tolist(), strict=True)
                    values |= {f"{name}/{part}/{teacher}": number for teacher, number in each}
        values["loss"] = float(total.detach())
        return total, values

    def _loss_name(self, number: int) -> str:
        return self.stage.loss_names[number]

    def _teacher_signals(
        self, number: int, batch: Batch, signals: Mapping[str, Signals], alone: bool = False
    ) -> Signals:
        slot, need = self.slots[number], self.teacher_needs[number]
        if slot.kind == "trained":
            return signals[slot.trained]
        if not need:
            return Signals()
        if slot.stored is not None:
            return self._stored_signals(slot, slot.stored, batch)
        return self._live_signals(slot, batch, need, alone)

    def _stored_signals(self, slot: _Slot, stored: StoredScores, batch: Batch) -> Signals:
        """Scores of an earlier stage; candidates made on the fly are scored by that stage's teacher."""
        logits, mask = (part.to(self.device) for part in stored.logits(batch))
        made = made_candidates(batch) if slot.model or slot.source else None
        if made is not None and made.any():
            part, items, columns = only(batch, made)
            fresh = self._live_signals(slot, part, frozenset({"logits"}))
            assert part.mask is not None
            places = items[:, None].expand_as(columns)[part.mask], columns[part.mask]
            logits[places] = fresh["logits"][part.mask].to(logits.dtype)
            mask[places] = True if fresh.mask is None else fresh.mask[part.mask]
        return Signals(logits=logits, mask=mask)

    def _live_signals(self, slot: _Slot, batch: Batch, need: frozenset[str], alone: bool = False) -> Signals:
        if slot.model is None:
            assert slot.source is not None
            return self._ask(slot.source, batch)
        workers = None if alone else self.workers
        found = signals_of(
            slot.model, batch, need, device=self.device, budget=self.budget, workers=workers, autocast=self.autocast
        )
        return found.detached()

    def _ask(self, source: Teacher, batch: Batch) -> Signals:
        """Scores of a source that works on texts, one call for the whole batch; asked on the main process only."""
        from kdfw.samplers.collate import texts_of_batch

        queries, passages, ids = texts_of_batch(batch)
        found = source.score(queries, passages, ids) if self.workers.main else []
        lists = from_main([scores.tolist() for scores in found], self.workers)
        assert batch.mask is not None
        logits = torch.full(batch.mask.shape, math.nan)
        for row, scores in enumerate(lists):
            logits[row, : len(scores)] = torch.as_tensor(scores, dtype=torch.float32)
        mask = batch.mask & torch.isfinite(logits)
        return Signals(logits=torch.where(mask, logits, torch.zeros(())).to(self.device), mask=mask.to(self.device))

    def _say_doubts(self, teachers: Sequence[Signals], batch: Batch) -> None:
        """Warn of rows that a live teacher gives no usable scores for: the first time of each teacher and fault."""
        for slot, signals in zip(self.slots, teachers, strict=True):
            if slot.kind not in ("frozen", "source"):  # those of a score stage were examined there
                continue
            for fault, named in _doubts(signals, batch).items():
                if fault == "not finite":
                    self._broken.append(f"teacher {slot.reference!r}: {named}")
                if (slot.reference, fault) not in self._said and self.workers.main:
                    self.context.log.warning("teacher %r: %s", slot.reference, named)
                self._said.add((slot.reference, fault))

    def _split(self, batch: Batch) -> list[Batch]:
        from kdfw.samplers.collate import take

        size = -(-len(batch) // self.settings.accumulate)
        return [take(batch, range(begin, min(begin + size, len(batch)))) for begin in range(0, len(batch), size)]

    def _not_finite(self, batch: Batch, clock: Clock, values: Mapping[str, float]) -> dict[str, float]:
        """A loss that is NaN or infinite: save what caused it, then stop or go on without this step."""
        self.skipped_steps += 1
        named = {name: value for name, value in values.items() if not math.isfinite(value)}
        if self.workers.main:
            record = {
                "step": clock.step,
                "ids": list(batch.ids),
                "passages": list(batch.passage_ids),
                "terms": {name: str(value) for name, value in values.items()},
            }
            write_json(self.context.folder / f"not-finite-step-{clock.step:08d}.json", record)
        shown = ", ".join(batch.ids[:10]) + (" ..." if len(batch.ids) > 10 else "")
        message = f"step {clock.step}: {', '.join(named)} not finite; items: {shown}"
        message += "".join(f"; {teacher}" for teacher in self._broken)
        if self.settings.on_nan == "stop":
            where = self.context.folder / f"not-finite-step-{clock.step:08d}.json"
            raise TrainingError(f"{message}; saved to {where}. A lower `lr`, or `on_nan: skip`, may help")
        self.context.log.warning("%s; step skipped", message)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return {name: value for name, value in values.items() if math.isfinite(value)}

    # ------------------------------------------------------------ state

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {**self.models, "losses": self.losses}

    def _resume(self) -> dict[str, Any]:
        """The newest whole checkpoint, chosen by the main process for all, put back; its state."""
        folder = self.context.folder
        found = checkpoint.latest(folder / CHECKPOINTS) if self.workers.main else None
        if self.workers.main:
            checkpoint.bring_back(found, folder, ALONG)
        step = from_main(None if found is None else checkpoint.step_of(found), self.workers)
        if step is None:
            return {"step": 0}
        state = checkpoint.restore(checkpoint.place(folder / CHECKPOINTS, step), self._modules, self.optimizers)
        self.skipped_steps, self.budget.pieces = state["skipped"], state["pieces"]
        self.context.log.info("goes on after step %d", step)
        return state

    def _save(self, step: int, state: Mapping[str, Any]) -> None:
        if self.workers.main:
            checkpoint.save(
                self.context.folder / CHECKPOINTS, step, self._modules, self.optimizers,
                {**state, "skipped": self.skipped_steps, "pieces": self.budget.pieces},
                refers=state["best_step"], along=[self.context.folder / name for name in ALONG],
            )  # fmt: skip
        self.workers.barrier()

    def _checkpoint_now(self, done: int, saved_at: float) -> bool:
        if done == self.feed.total_steps:
            return False
        if self.settings.checkpoint_every is not None:
            return done % self.settings.checkpoint_every == 0
        return any_process(time.monotonic() - saved_at > self.settings.checkpoint_seconds, self.workers)

    def _evaluate_now(self, done: int) -> bool:
        if self.dev is None:
            return False
        given = self.stage.dev_every if isinstance(self.stage.dev_every, list) else [self.stage.dev_every]
        steps = [self.feed.steps_per_epoch if every == "epoch" else every for every in given]
        return any(done % every == 0 for every in steps) or done == self.feed.total_steps

    def _write_models(self, best_step: int | None = None) -> None:
        """The student into `model/`, others into `models/<name>/`; as they were at the step that a dev split chose."""
        if best_step is not None:
            best = checkpoint.place(self.context.folder / CHECKPOINTS, best_step)
            checkpoint.require_whole(best)
            checkpoint.restore(best, self._modules, {})
        if self.workers.main:
            for name, model in self.models.items():
                model.eval()
                target = self.context.folder / ("model" if name == STUDENT else f"models/{name}")
                target.mkdir(parents=True, exist_ok=True)
                model.save(target)
        self.workers.barrier()

    def _probe_before(self) -> None:
        """Keep what the losses will see of a few items (`kdfw/engine/probe.py`)."""
        with numerics(self.settings.precision, self.device):
            probe = probe_before(self)
        if self.workers.main:
            save_probe(probe, self.context.folder)
        self.workers.barrier()

    def _probe_after(self) -> None:
        """The same items with the model as it is kept."""
        folder = self.context.folder
        if not from_main((folder / PROBE).exists(), self.workers):
            return
        with numerics(self.settings.precision, self.device):
            after = student_scores(self)
        probe = load_probe(folder) if self.workers.main else None
        if probe is not None:
            save_probe(replace(probe, after=after), folder)

    @contextlib.contextmanager
    def _clean_stop(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM finish the step, write a checkpoint and stop."""

        def ask(number: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            self.context.log.warning("stopping after this step, with a checkpoint; once more stops at once")

        before: dict[int, Any] = {}
        try:
            for wanted in (signal.SIGINT, signal.SIGTERM):
                before[wanted] = signal.signal(wanted, ask)
        except ValueError:  # not in the main thread: the caller's handlers stay
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------ checks

    def preflight(self) -> Mapping[str, Any]:
        """One batch through everything, without an optimizer step; the stand-in is the model as it starts."""
        batch = self.feed.batch(0)
        clock = self.feed.clock(0)
        model = self.models[STUDENT]
        groups = model.rows(batch, self.student_needs[STUDENT])
        with numerics(self.settings.precision, self.device):
            values = self.backward(batch, clock)
        shape = list(batch.mask.shape) if batch.mask is not None else [len(batch)]
        report: dict[str, Any] = {
            "items": len(self.feed.ids),
            "steps": self.feed.total_steps,
            "batch": shape,
            "rows": {group.name: len(group) for group in groups},
            "truncated": {group.name: f"{group.truncated / max(1, len(group)):.1%}" for group in groups},
            "tokens": int(sum(int(group.lengths().sum()) for group in groups)),
            "loss": json.loads(json.dumps(values)),
            "left out": dict(self.feed.sampler.skipped),
        }
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        warnings = [f"not finite: {', '.join(lost)}; training would stop at its first step"] if lost else []
        warnings += self._doubts_of_settings()
        for number, slot in enumerate(self.slots):
            if slot.kind != "trained" and not model.local_signals:
                named = _doubts(self._teacher_signals(number, batch, {}), batch).values()
                warnings += [f"teacher {slot.reference!r}: {fault}" for fault in named]
        if warnings:
            report["warnings"] = warnings
        self._write_models()
        return report


def _doubts(signals: Signals, batch: Batch) -> dict[str, str]:
    """What is wrong with a teacher's scores of a batch, naming the items: by kind of fault."""
    logits = signals.logits
    if logits is None or logits.dim() != 2 or logits.shape[1] < 2:
        return {}
    real = torch.ones_like(logits, dtype=torch.bool) if signals.mask is None else signals.mask
    found = {}
    broken = (~torch.isfinite(logits) & real).any(1)
    highest = logits.masked_fill(~real, -math.inf).amax(1)
    flat = (highest <= logits.masked_fill(~real, math.inf).amin(1)) & (real.sum(1) > 1)
    absent = 0
    if batch.mask is not None and batch.mask.shape == real.shape:
        absent = int((batch.mask.to(real.device) & ~real).sum())
    if broken.any():
        found["not finite"] = f"NaN or infinite scores for {_items(broken, batch)}"
    if flat.any():
        found["flat"] = f"all scores equal for {_items(flat, batch)}"
    if absent:
        found["absent"] = f"{absent} candidates without a score"
    return found


def _items(rows: Tensor, batch: Batch) -> str:
    return ", ".join([batch.ids[row] for row in rows.nonzero().flatten().tolist()][:10])


def _freeze(model: Model) -> Model:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@contextlib.contextmanager
def _fixed(models: Sequence[Model]) -> Iterator[None]:
    """Gradients pass through the models and stay in none of their parameters."""
    learning = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _number(weight: float | Tensor) -> float:
    return float(weight.detach() if isinstance(weight, Tensor) else weight)


def _whole_everywhere(model: Model) -> bool:
    """Whether every process must compute all rows of a step: batch statistics of a share are not those of the whole."""
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) and module.training for module in model.modules())


def _scale_gradients(cached: Cached) -> None:
    """The gradient of representations times the number of processes.

    Gradients are averaged over processes: right for parameters that every process uses on the whole step (in
    `Model.signals`, in losses). Encoder weights get the gradient of a process's own rows, which must add up.
    """
    processes = cached.run.workers.world_size
    for named in cached.reps.values() if processes > 1 else ():
        for value in named.values():
            if value.grad is not None:
                value.grad *= processes


def _checkpoint_activations(model: Model) -> None:
    for module in model.modules():  # one of several towers, or a part of one, for which that is done twice
        old = getattr(module, "gradient_checkpointing_enable", None)
        enable = getattr(module, "activation_checkpointing_enable", old)
        if enable is not None and getattr(module, "supports_gradient_checkpointing", True):
            enable({"use_reentrant": False, "context_fn": recomputing})

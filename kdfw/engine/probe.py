"""A sample of what a training stage's losses see: scores of the teachers, and of the student before and after.

The first items of the first epoch, drawn as training draws them, go through the models once before the first step and
once after the last. Nothing is drawn at random and no model is left in another state, so training is not changed.
`kdfw diagnose` and the report read the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdfw.components import Model
from kdfw.files import write_atomic
from kdfw.models.forward import signals_of
from kdfw.types import Batch, Signals

if TYPE_CHECKING:
    from kdfw.engine.train_stage import Train
    from kdfw.engine.training import Trainer

FILE = "probe.safetensors"
ITEMS = 128
"""Items of the sample."""
ALTERNATIVES = 4096
"""Fewer items are taken where they have more alternatives in all than this."""
LOGITS = frozenset({"logits"})


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The sample of one training stage."""

    ids: Sequence[str]
    """Q item ids."""
    alternatives: Sequence[Sequence[str]]
    """Q x D passage ids; empty where the alternatives are classes, or the one score of a pair."""
    labels: np.ndarray
    """(Q, D) relevance for ranking and pairs (NaN: none); (Q,) class numbers for classification."""
    mask: np.ndarray
    """(Q, D) bool, True where the alternative is real."""
    teachers: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Reference -> (Q, D) scores and (Q, D) bool, True where there is a score."""
    skipped: Mapping[str, str]
    """Teachers that were not asked, and why."""
    before: np.ndarray | None
    """(Q, D) scores of the student at the start."""
    after: np.ndarray | None
    """(Q, D) scores of the student as the stage leaves it; None before it has trained."""


def why_not(stage: Train, student: object) -> str:
    """Why a stage cannot be probed; empty when it can.

    Args:
        student: the model that it trains; need not be loaded.
    """
    if not stage.teachers:
        return "it has no teacher"
    if not isinstance(student, Model) or "logits" not in student.provides:
        return "its student gives no scores"
    if student.local_signals:
        return "its alternatives are a vocabulary at every position of a translation, too many to keep"
    if stage.producers:
        return "its inputs are made by a model that trains with it"
    return ""


def probe_before(trainer: Trainer) -> Probe:
    """The teachers, and the student as it starts."""
    batches = _batches(trainer)
    width = max(_mask(batch, trainer).shape[1] for batch in batches)
    chosen, skipped = {}, {}
    for slot in trainer.slots:
        if slot.kind == "trained":
            skipped[slot.reference] = "it trains in this stage, so its scores move"
        elif slot.kind == "source":
            skipped[slot.reference] = "it is asked while training; name a score stage as teacher to have it diagnosed"
        elif slot.model is not None and "logits" not in slot.model.provides:
            skipped[slot.reference] = "it gives no scores"
        else:
            parts = [_of_teacher(trainer, slot, batch) for batch in batches]
            chosen[slot.reference] = (_stack([p[0] for p in parts], width), _stack([p[1] for p in parts], width, False))
    labels = [np.zeros(0) if batch.labels is None else batch.labels.numpy() for batch in batches]
    return Probe(
        ids=[id for batch in batches for id in batch.ids],
        alternatives=[row for batch in batches for row in _alternatives(batch)],
        labels=np.concatenate(labels) if labels[0].ndim == 1 else _stack(labels, width, 0.0),
        mask=_stack([_mask(batch, trainer).numpy() for batch in batches], width, False),
        teachers=chosen,
        skipped=skipped,
        before=student_scores(trainer),
        after=None,
    )


def student_scores(trainer: Trainer) -> np.ndarray:
    """(Q, D) scores of the student as it is now, for the same items; every process calls it and gets them."""
    batches = _batches(trainer)
    width = max(_mask(batch, trainer).shape[1] for batch in batches)
    return _stack([_array(_signals(trainer, trainer.models["student"], batch)) for batch in batches], width)


# ---------------------------------------------------------------- files


def save_probe(probe: Probe, folder: Path) -> None:
    """Write `probe.safetensors`; the same probe gives the same bytes. Raises: ArtifactError when that is impossible."""
    from safetensors.numpy import save

    tensors = {"labels": probe.labels, "mask": probe.mask}
    for number, (scores, known) in enumerate(probe.teachers.values()):
        tensors |= {f"teacher.{number}": scores, f"known.{number}": known}
    tensors |= {name: value for name in ("before", "after") if (value := getattr(probe, name)) is not None}
    facts = {
        "ids": list(probe.ids), "alternatives": [list(row) for row in probe.alternatives],
        "teachers": list(probe.teachers), "skipped": dict(probe.skipped),
    }  # fmt: skip
    held = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_atomic(folder / FILE, save(held, {"probe": json.dumps(facts, sort_keys=True)}))


def load_probe(folder: Path) -> Probe | None:
    """The probe of a training stage's folder; None when it has none, or one that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / FILE, "numpy") as file:
            facts = json.loads((file.metadata() or {})["probe"])
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Probe(
            ids=facts["ids"],
            alternatives=facts["alternatives"],
            labels=held["labels"],
            mask=held["mask"],
            teachers={
                name: (held[f"teacher.{number}"], held[f"known.{number}"])
                for number, name in enumerate(facts["teachers"])
            },
            skipped=facts["skipped"],
            before=held.get("before"),
            after=held.get("after"),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------- the sample


def _batches(trainer: Trainer) -> list[Batch]:
    """The first batches of the first epoch, cut to the size of the sample."""
    from kdfw.samplers.collate import take

    found: list[Batch] = []
    items = alternatives = 0
    for step in range(trainer.feed.steps_per_epoch):
        batch = trainer.feed.batch(step)
        width = _mask(batch, trainer).shape[1]
        room = min(ITEMS - items, (ALTERNATIVES - alternatives) // width)
        if room < 1 and found:
            break
        kept = min(len(batch), max(1, room))
        found.append(take(batch, range(kept)) if kept < len(batch) else batch)
        items, alternatives = items + kept, alternatives + kept * width
        if kept < len(batch):
            break
    return found


def _mask(batch: Batch, trainer: Trainer) -> Tensor:
    """(Q, D): for classes every alternative is real."""
    if batch.mask is not None:
        return batch.mask
    classes = len(getattr(trainer.data, "classes", ())) or 1
    return torch.ones(len(batch), classes, dtype=torch.bool)


def _alternatives(batch: Batch) -> list[list[str]]:
    if batch.candidates is None or batch.mask is None or batch.task != "ranking":
        return []
    return [
        [batch.passage_ids[place] for place, real in zip(row, keep, strict=True) if real]
        for row, keep in zip(batch.candidates.tolist(), batch.mask.tolist(), strict=True)
    ]


def _of_teacher(trainer: Trainer, slot: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    if slot.stored is not None:
        logits, known = slot.stored.logits(batch)
        return logits.numpy(), known.numpy()
    logits = _array(_signals(trainer, slot.model, batch))
    return logits, np.isfinite(logits)


def _signals(trainer: Trainer, model: Any, batch: Batch) -> Signals:
    return signals_of(
        model, batch, LOGITS, device=trainer.device, budget=trainer.budget, workers=trainer.workers,
        autocast=trainer.autocast,
    )  # fmt: skip


def _array(signals: Signals) -> np.ndarray:
    found: np.ndarray = signals["logits"].detach().float().cpu().numpy()
    return found


def _stack(parts: Sequence[np.ndarray], width: int, fill: float | bool = float("nan")) -> np.ndarray:
    """(Q, width): parts one below the other, each filled up to the width."""
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts])

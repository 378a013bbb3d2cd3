"""A step made up by hand for the tests of losses: a batch, and what student and teacher say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdfw.components import Loss
from kdfw.samplers.collate import take
from kdfw.types import Batch, Clock, LossTerms, Signals, Text

CLOCK = Clock(step=3, total_steps=10, epoch=0, total_epochs=1, steps_per_epoch=10, seed=1)
H, V, LAYERS = 6, 9, 4


@dataclass
class Step:
    """Signals by name (`logits` among them), so that a test can change one and hand over the rest."""

    batch: Batch
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    student_mask: Tensor | None
    teacher_mask: Tensor | None

    def signals(self, values: Mapping[str, Tensor], mask: Tensor | None) -> Signals:
        extra = {name: value for name, value in values.items() if name != "logits"}
        return Signals(logits=values["logits"], mask=mask, labels=self.batch.labels, extra=extra)

    def run(self, loss: Loss) -> LossTerms:
        student = self.signals(self.student, self.student_mask)
        terms: LossTerms = loss(student, [self.signals(self.teacher, self.teacher_mask)], self.batch, CLOCK)
        return terms

    def leaves(self) -> Step:
        """The same step with gradients asked of everything, teacher included."""
        return replace(
            self,
            student={name: value.detach().clone().requires_grad_() for name, value in self.student.items()},
            teacher={name: value.detach().clone().requires_grad_() for name, value in self.teacher.items()},
        )

    def to(self, dtype: torch.dtype) -> Step:
        return replace(
            self,
            student={name: value.to(dtype) for name, value in self.student.items()},
            teacher={name: value.to(dtype) for name, value in self.teacher.items()},
        )


def ranking_step(seed: int = 0, dtype: torch.dtype = torch.float64) -> Step:
    """Six queries, up to five candidates; passages shared between queries; query 1 has two positives, query 4 none of
    its negatives is real but one, and query 2 knows a positive that was drawn for query 0."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [5, 5, 4, 5, 2, 3]
    size, width = len(lengths), max(lengths)
    total = 17
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    candidates = torch.stack([torch.randperm(total, generator=draw)[:width] for _ in lengths])
    candidates = torch.where(mask, candidates, candidates[:, :1])
    labels = torch.zeros(size, width)
    labels[:, 0] = 1.0
    labels[1, 2] = 2.0
    labels[~mask] = 0.0
    known = torch.zeros(size, total, dtype=torch.bool)
    known[torch.arange(size), candidates[:, 0]] = True
    known[1, candidates[1, 2]] = True
    known[2, candidates[0, 0]] = True
    batch = Batch(
        task="ranking",
        ids=tuple(f"q{number}" for number in range(size)),
        inputs={
            "query": [Text(source=None, made=f"query {number}") for number in range(size)],
            "passage": [Text(source=None, made=f"passage {number}") for number in range(total)],
        },
        num_items=float(size),
        candidates=candidates,
        mask=mask,
        labels=labels,
        passage_ids=tuple(f"p{number}" for number in range(total)),
        known_positives=known,
    )

    def says() -> dict[str, Tensor]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

        whole = 2 * normal(size, total)
        return {
            "logits": whole.gather(1, candidates),
            "batch_logits": whole,
            "query_embeddings": normal(size, H),
            "passage_embeddings": normal(total, H),
            "hidden": normal(size + total, LAYERS, H),
            "query_sparse": normal(size, V).relu(),
            "passage_sparse": normal(total, V).relu(),
        }

    return Step(batch=batch, student=says(), teacher=says(), student_mask=mask, teacher_mask=mask)


def class_step(seed: int = 0, dtype: torch.dtype = torch.float64, task: str = "classification") -> Step:
    """Seven items over five classes; the label of item 3 is unknown."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (7,), generator=draw)
    labels[3] = -100 if task == "translation" else -1
    batch = Batch(
        task=task,
        ids=tuple(f"t{number}" for number in range(7)),
        inputs={"text": [Text(source=None, made=f"text {number}") for number in range(7)]},
        num_items=7.0,
        labels=labels,
    )

    def says() -> dict[str, Tensor]:
        return {"logits": 2 * torch.randn(7, 5, generator=draw, dtype=torch.float64).to(dtype)}

    return Step(batch=batch, student=says(), teacher=says(), student_mask=None, teacher_mask=None)


PER_ITEM = ("logits", "batch_logits", "query_embeddings", "query_sparse")
PER_PASSAGE = ("passage_embeddings", "passage_sparse")


def part_of(step: Step, rows: Sequence[int]) -> Step:
    """Some items of a step, with the whole step's `num_items`: what a share of a step looks like."""
    batch = replace(take(step.batch, rows), num_items=step.batch.num_items)
    index = torch.tensor(list(rows))
    places = torch.tensor([int(name[1:]) for name in batch.passage_ids], dtype=torch.long)

    def cut(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: values[name][index] for name in PER_ITEM if name in values}
        found |= {name: values[name][places] for name in PER_PASSAGE if name in values}
        if "batch_logits" in found:
            found["batch_logits"] = found["batch_logits"][:, places]
        return found

    def cut_mask(mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask[index]

    return Step(
        batch=batch,
        student=cut(step.student),
        teacher=cut(step.teacher),
        student_mask=cut_mask(step.student_mask),
        teacher_mask=cut_mask(step.teacher_mask),
    )


def by_columns(step: Step, order: Tensor) -> Step:
    """The same step with every query's candidates in another order; `order` (Q, D)."""

    def turn(value: Tensor) -> Tensor:
        return value.gather(1, order)

    batch = step.batch
    assert batch.candidates is not None and batch.mask is not None and batch.labels is not None
    return Step(
        batch=replace(batch, candidates=turn(batch.candidates), mask=turn(batch.mask), labels=turn(batch.labels)),
        student={**step.student, "logits": turn(step.student["logits"])},
        teacher={**step.teacher, "logits": turn(step.teacher["logits"])},
        student_mask=None if step.student_mask is None else turn(step.student_mask),
        teacher_mask=None if step.teacher_mask is None else turn(step.teacher_mask),
    )


def padded(step: Step, columns: int, filling: float) -> Step:
    """The same step with more padding: masked columns that hold `filling` on both sides."""
    batch = step.batch
    assert batch.candidates is not None and batch.mask is not None and batch.labels is not None
    size = len(batch)

    def wider(value: Tensor, fill: float | bool) -> Tensor:
        return torch.cat([value, torch.full((size, columns), fill, dtype=value.dtype)], dim=1)

    mask = wider(batch.mask, False)
    return Step(
        batch=replace(
            batch,
            candidates=torch.cat([batch.candidates, batch.candidates[:, :1].expand(-1, columns)], dim=1),
            mask=mask,
            labels=wider(batch.labels, 0.0),
        ),
        student={**step.student, "logits": wider(step.student["logits"], filling)},
        teacher={**step.teacher, "logits": wider(step.teacher["logits"], filling)},
        student_mask=mask,
        teacher_mask=mask,
    )


class Wide:
    """A stand-in for a model that tells its widths."""

    def width(self, signal: str) -> int:
        return H

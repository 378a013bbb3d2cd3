"""Listwise KL over plain and dark candidates, on the instances the teacher is confident about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import DistillationLoss, Schedule, Weighting
from kdfw.losses.kl import kl_divergence
from kdfw.losses.masking import compared, divide, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals
from kdfw_plugins.adam.examples import KIND
from kdfw_plugins.adam.selection import End, Rule, Start, columns_of, plain_columns, real_columns, selection

Unselected = Literal["skip", "plain"]


def distilled(plain: Tensor, mask: Tensor, chosen: Tensor, unselected: Unselected) -> Tensor:
    """(Q, D) bool: the candidates each item is distilled on.

    A chosen item keeps its full list. Another keeps its plain list (`plain`) or nothing (`skip`).

    Args:
        plain: (Q, D) bool, real and not dark.
        mask: (Q, D) bool, real.
        chosen: (Q,) bool.
    """
    rest = plain if unselected == "plain" else torch.zeros_like(plain)
    return torch.where(chosen[:, None], mask, rest)


def divisor(chosen: Tensor, unselected: Unselected) -> Tensor:
    """() what the sum over items is divided by: the number of chosen ones (at least 1) for `skip`, Q for `plain`."""
    return chosen.sum().clamp_min(1) if unselected == "skip" else torch.tensor(len(chosen), device=chosen.device)


class OnPlainList(Weighting):
    """Another weighting, shown the plain list alone: a dark example near the positive is no fault of a teacher's."""

    def __init__(self, *, inner: Weighting) -> None:
        super().__init__()
        self.inner = inner

    @property
    def needs(self) -> Needs:
        return self.inner.needs

    def weights(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> Tensor:
        known = replace(student, mask=plain_columns(batch, real_columns(student)))
        return self.inner.weights(known, teachers, batch, clock)


def mean_scores(teachers: Sequence[Signals], batch: Batch, mask: Tensor) -> dict[str, Tensor]:
    """Mean teacher score of the candidates of each kind that the batch holds: dark ones should lie between the others.

    Args:
        mask: (Q, D) bool, real candidates.
    Returns: by `teacher/<kind>`, scalars.
    """
    scores = torch.stack([wide(teacher["logits"]) for teacher in teachers]).mean(0).detach()
    columns = {kind: columns_of(batch, kind, mask) for kind in ("positive", "negative", KIND)}
    return {f"teacher/{kind}": scores[own].mean() for kind, own in columns.items() if own.any()}


class DarkDistillation(DistillationLoss):
    """KL over the list with dark examples, where the teacher is confident on the plain list.

    It logs the share of instances that are selected, the mean confidence, and the teachers' mean score of positives,
    negatives and dark examples.

    Args:
        unselected: `skip` leaves the other instances out; `plain` distils them on their plain list.
        scale_by_temperature: multiply by the student's temperature squared.
    """

    paper = "arXiv:2212.10192 (formulas reconstructed)"

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
        unselected: Unselected = "skip",
        rule: Rule = "threshold",
        start: Start = None,
        end: End = None,
        scale_by_temperature: bool = False,
    ) -> None:
        known = None if weighting is None else OnPlainList(inner=weighting)
        super().__init__(temperature=temperature, student_temperature=student_temperature, weighting=known)
        self.unselected = unselected
        self.select = selection(rule, start, end)
        self.scale_by_temperature = scale_by_temperature

    @property
    def needs(self) -> Needs:
        return super().needs | Needs(tasks=frozenset({"ranking"}), whole_batch=True)

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        value = kl_divergence(divide(ours, student_temperature), divide(theirs, teacher_temperature), mask)
        return value * student_temperature**2 if self.scale_by_temperature else value

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        mask = real_columns(student)
        plain = plain_columns(batch, mask)
        sure = self.select.confidence(teachers, plain)
        chosen = self.select.chosen(sure, clock)
        kept = replace(student, mask=distilled(plain, mask, chosen, self.unselected))
        # the base class divides by the number of items; a kept list of none is a divergence of 0
        terms = super().forward(kept, teachers, batch, clock)
        share = batch.num_items / divisor(chosen, self.unselected)
        found = {"selected": chosen.to(sure.dtype).mean(), "confidence": sure.mean()}
        return LossTerms(
            total=terms.total * share, parts={**terms.parts, **found, **mean_scores(teachers, batch, mask)}
        )

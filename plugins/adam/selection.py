"""Which instances are distilled: those on which the teacher is confident, fewer of them early in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Weighting
from kdfw.losses.masking import masked_log_softmax, wide
from kdfw.types import Batch, Clock, Needs, Signals
from kdfw_plugins.adam.examples import KIND


def confidence(teacher: Tensor, plain: Tensor) -> Tensor:
    """Softmax over each query's plain list at its first column, the positive. Temperature 1.

    Args:
        teacher: (Q, D) scores, constant.
        plain: (Q, D) bool, True at the candidates that are real and not dark; the first column must be.
    Returns: (Q,) in (0, 1).
    """
    return masked_log_softmax(teacher.detach(), plain)[:, 0].exp()


def threshold_at(step: int, total_steps: int, start: float, end: float) -> float:
    """A straight line from `start` at step 0 to `end` at `total_steps`, constant afterwards."""
    done = min(max(step / total_steps, 0.0), 1.0) if total_steps else 1.0
    return start + (end - start) * done


def most_confident(values: Tensor, share: float) -> Tensor:
    """(Q,) bool: the ceil(share * Q) largest, at least one; of equal ones the earlier."""
    number = min(len(values), max(1, math.ceil(share * len(values))))
    order = torch.sort(values, descending=True, stable=True).indices[:number]
    return torch.zeros_like(values, dtype=torch.bool).index_fill(0, order, True)


def columns_of(batch: Batch, kind: str, mask: Tensor) -> Tensor:
    """(Q, D) bool: real candidates of a kind. `mask` (Q, D) bool says which are real."""
    found = torch.zeros(mask.shape, dtype=torch.bool)
    for row, kinds in enumerate(batch.kinds):
        for column, own in enumerate(kinds):
            found[row, column] = own == kind
    return mask & found.to(mask.device)


def plain_columns(batch: Batch, mask: Tensor) -> Tensor:
    """(Q, D) bool: real candidates that are not dark examples."""
    return mask & ~columns_of(batch, KIND, mask)


def real_columns(student: Signals) -> Tensor:
    """(Q, D) bool: the candidates that are no padding."""
    logits = student["logits"]
    return torch.ones_like(logits, dtype=torch.bool) if student.mask is None else student.mask


class Selection:
    """The rule shared by the weighting and the loss: v_i from the teacher's confidence c_i.

    Args:
        rule: `threshold` keeps confidences of at least the threshold; `topk` keeps a share of the batch.
        start, end: the threshold, or the share, at the first and after the last step.
    """

    def __init__(self, *, rule: str, start: float, end: float) -> None:
        self.rule = rule
        self.start = start
        self.end = end

    def confidence(self, teachers: Sequence[Signals], plain: Tensor) -> Tensor:
        """(Q,) in (0, 1). Several teachers: their mean."""
        return torch.stack([confidence(wide(teacher["logits"]), plain) for teacher in teachers]).mean(0)

    def chosen(self, sure: Tensor, clock: Clock) -> Tensor:
        """(Q,) bool, from the confidence (Q,)."""
        level = threshold_at(clock.step, clock.total_steps, self.start, self.end)
        return sure >= level if self.rule == "threshold" else most_confident(sure, level)


Rule = Annotated[
    Literal["threshold", "topk"], Field(description="keep what is confident enough, or the most confident share")
]
Start = Annotated[float | None, Field(description="level at the first step; default: 0.6, or 0.5 for topk")]
End = Annotated[float | None, Field(description="level at the last step; default: 0.2, or 1.0 for topk")]


def selection(rule: Literal["threshold", "topk"], start: float | None, end: float | None) -> Selection:
    """With the defaults of the rule."""
    first, last = (0.6, 0.2) if rule == "threshold" else (0.5, 1.0)
    return Selection(rule=rule, start=first if start is None else start, end=last if end is None else end)


class SelfPaced(Weighting):
    """Only the instances on which the teacher is confident count, for any distillation loss.

    The unselected ones weigh nothing (the mode `skip`); the loss `adam` also knows `plain`.

    Args:
        teachers: how the teachers of an instance share its weight; default: equally.
    """

    paper = "arXiv:2212.10192 (confidence and curriculum reconstructed)"

    def __init__(
        self,
        *,
        rule: Rule = "threshold",
        start: Start = None,
        end: End = None,
        teachers: Weighting | None = None,
    ) -> None:
        super().__init__()
        self.select = selection(rule, start, end)
        self.teachers = teachers

    @property
    def needs(self) -> Needs:
        own = Needs(teacher=frozenset({"logits"}), teachers=(1, None), tasks=frozenset({"ranking"}), whole_batch=True)
        return own if self.teachers is None else own | self.teachers.needs

    def weights(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> Tensor:
        """(K, Q), without gradient; all 0 when nothing is selected."""
        plain = plain_columns(batch, real_columns(student))
        sure = self.select.confidence(teachers, plain)
        chosen = self.select.chosen(sure, clock).to(sure.dtype)
        if self.teachers is None:
            shares = torch.full((len(teachers), len(chosen)), 1 / len(teachers)).to(chosen)
        else:
            known = replace(student, mask=plain)  # how good a teacher is shows on the plain list, as its confidence
            shares = self.teachers.weights(known, teachers, batch, clock) * batch.num_items
        return shares * chosen / chosen.sum().clamp_min(1.0)

"""Squared difference between the margins of teacher and student (arXiv:2010.02666)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import DistillationLoss
from kdfw.losses.masking import compared, divide, scaled, signal_positives
from kdfw.losses.options import Scale, Signal, StudentTemperature, Teachers, Temperature
from kdfw.types import Batch, Needs, Signals


def positive_pairs(positives: Tensor, mask: Tensor) -> Tensor:
    """(Q, D, D) bool, True at [q, a, b] where a is a real positive of q and b a real candidate that is none."""
    return (positives & mask)[:, :, None] & (~positives & mask)[:, None, :]


def all_pairs(mask: Tensor) -> Tensor:
    """(Q, D, D) bool, True at [q, a, b] for each pair a < b of real candidates."""
    size = mask.shape[-1]
    above = torch.ones(size, size, dtype=torch.bool, device=mask.device).triu(1)
    return mask[:, :, None] & mask[:, None, :] & above


def differences(scores: Tensor) -> Tensor:
    """(Q, D, D) of (Q, D): score of a minus score of b at [q, a, b]."""
    return scores[:, :, None] - scores[:, None, :]


def pair_mean(values: Tensor, pairs: Tensor) -> Tensor:
    """(Q,) mean of (Q, D, D) values over the chosen pairs; 0 for an item without any."""
    return values.masked_fill(~pairs, 0.0).sum((-2, -1)) / pairs.sum((-2, -1)).clamp(min=1)


def margin_mse(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """Mean over pairs of ((student_a - student_b) - (teacher_a - teacher_b))**2.

    Args:
        student: (Q, D) scores; gradients flow here.
        teacher: (Q, D) scores.
        pairs: (Q, D, D) bool, the pairs (a, b) compared.
    Returns: (Q,), in squared score units; 0 for an item without a pair.
    """
    # the error of a margin is the margin of the errors: one (Q, D, D) tensor instead of two
    return pair_mean(differences(student - teacher) ** 2, pairs)


class MarginMSE(DistillationLoss):
    """Mean squared error of score margins: the student keeps the teacher's distances, not its offset.

    `pairs: positive` compares each labelled positive with each other candidate (with one positive this is the
    published loss; several positives are each a pole, and are not compared with one another); `pairs: all` compares
    every two candidates and needs no labels. An item's value is the mean over its pairs.
    Cosine students cannot reach the margins of a cross-encoder's logits: divide those by a `temperature` (with
    `student_temperature: 1`), or bring both to one scale per item.
    """

    paper = "arXiv:2010.02666"
    compares = "scores"

    def __init__(
        self,
        *,
        temperature: Temperature = 1.0,
        student_temperature: StudentTemperature = None,
        weighting: Teachers = None,
        signal: Signal = "logits",
        pairs: Annotated[
            Literal["positive", "all"], Field(description="positive against each negative, or every two candidates")
        ] = "positive",
        teacher_scale: Scale = "none",
        student_scale: Scale = "none",
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.pairs = pairs
        self.teacher_scale = teacher_scale
        self.student_scale = student_scale

    @property
    def needs(self) -> Needs:
        # a sentence pair has one score and so no margin; the pairs of a vocabulary are too many
        tasks = frozenset({"ranking", "classification"})
        alternatives = 2 if self.signal == "logits" else 1
        return super().needs | Needs(labels=self.pairs == "positive", tasks=tasks, alternatives=alternatives)

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        if self.pairs == "positive":
            chosen = positive_pairs(signal_positives(student, batch, self.signal), mask)
        else:
            chosen = all_pairs(mask)
        ours = divide(scaled(ours, mask, self.student_scale), student_temperature)
        theirs = divide(scaled(theirs, mask, self.teacher_scale), teacher_temperature)
        return margin_mse(ours, theirs, chosen)

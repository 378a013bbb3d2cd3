"""Losses over ordered pairs of candidates: RankNet and the pairwise hinge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from kdfw.components import DistillationLoss
from kdfw.losses.margin_mse import all_pairs, differences, pair_mean, positive_pairs
from kdfw.losses.masking import compared, divide, signal_positives
from kdfw.losses.options import OwnTemperature, Signal, StudentTemperature, TargetOption, Teachers, Temperature
from kdfw.losses.targets import labels_as_teacher, target_needs
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def ordered_pairs(target: Tensor, mask: Tensor, min_gap: float = 0.0) -> Tensor:
    """(Q, D, D) bool, True at [q, a, b] where both are real and the target of a exceeds that of b, by `min_gap` at
    least. Ties are no pairs."""
    gap = differences(target)
    return (gap > 0) & (gap >= min_gap) & mask[:, :, None] & mask[:, None, :]


def ranknet(student: Tensor, pairs: Tensor) -> Tensor:
    """Mean over pairs (a, b), a before b, of log(1 + exp(-(s_a - s_b))).

    Args:
        student: (Q, D) scores; gradients flow here.
        pairs: (Q, D, D) bool.
    Returns: (Q,) in nats; log 2 at equal scores, 0 for an item without a pair.
    Source: Burges et al. 2005, with target probability 1.
    """
    return pair_mean(softplus(-differences(student)), pairs)


def soft_ranknet(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over all pairs of the cross-entropy between sigmoid(t_a - t_b) and sigmoid(s_a - s_b), in nats.

    Args:
        student: (Q, D) scores; gradients flow here.
        target: (Q, D) scores.
        mask: (Q, D) bool.
    Source: Burges et al. 2005, eq. 3, with the target probability from the teacher's score difference.
    """
    ahead = differences(student)
    return pair_mean(softplus(ahead) - differences(target).sigmoid() * ahead, all_pairs(mask))


def pairwise_hinge(student: Tensor, margin: float = 0.0) -> Tensor:
    """(Q, D, D) values max(0, s_b - s_a + margin) of every ordered pair [q, a, b]; student (Q, D)."""
    return (margin - differences(student)).clamp(min=0.0)


class RankNet(DistillationLoss):
    """Logistic loss on every pair that the teacher (or the labels) puts in order.

    `soft: true` takes how far apart the teacher has them, through sigmoid(t_a - t_b), instead of the bare order; its
    least value is then the teacher's own entropy, reached when the student has the teacher's margins.
    """

    paper = "Burges et al., Learning to Rank using Gradient Descent, ICML 2005"
    compares = "order"

    def __init__(
        self,
        *,
        temperature: Temperature = 1.0,
        student_temperature: StudentTemperature = None,
        weighting: Teachers = None,
        signal: Signal = "logits",
        target: TargetOption = "teacher",
        soft: Annotated[bool, Field(description="use the size of the target's margins, not only their sign")] = False,
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.target = target
        self.soft = soft

    @property
    def needs(self) -> Needs:
        return target_needs(super().needs, self.target) | Needs(tasks=frozenset({"ranking"}))

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        ours = divide(ours, student_temperature)
        if self.soft:
            return soft_ranknet(ours, divide(theirs, teacher_temperature), mask)
        return ranknet(ours, ordered_pairs(theirs, mask))

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        if self.target == "labels":
            teachers = [labels_as_teacher(student, batch, self.signal)]
        return super().forward(student, teachers, batch, clock)


class PairwiseHinge(DistillationLoss):
    """Hinge on pairs: the student must put a before b by `margin`.

    `pairs: ordered` takes every pair in the order of the teacher (or of the labels), which asks for the teacher's
    order and nothing else (arXiv:2208.13661); `pairs: positive` takes each labelled positive against each other
    candidate, and needs no teacher.

    `mean: item` averages an item's pairs, then the items. `mean: pairs` averages over all pairs of the step at once,
    as published for LED: items with more pairs then weigh more, and a `weighting` multiplies those shares.

    `margin` is in units of the student's scores over their temperature, `min_gap` in those of the target.
    """

    paper = "arXiv:2208.13661"
    compares = "order"

    def __init__(
        self,
        *,
        temperature: OwnTemperature = 1.0,
        student_temperature: StudentTemperature = None,
        weighting: Teachers = None,
        signal: Signal = "logits",
        target: TargetOption = "teacher",
        pairs: Annotated[
            Literal["ordered", "positive"], Field(description="pairs ordered by the target, or positive and negative")
        ] = "ordered",
        margin: Annotated[float, Field(ge=0, description="how far ahead the better one must be")] = 0.0,
        min_gap: Annotated[float, Field(ge=0, description="pairs whose targets are nearer are left out")] = 0.0,
        with_positives: Annotated[
            bool, Field(description="ordered pairs may hold labelled positives; false: negatives only")
        ] = True,
        mean: Annotated[Literal["item", "pairs"], Field(description="what a mean is taken over first")] = "item",
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.target = target
        self.pairs = pairs
        self.margin = margin
        self.min_gap = min_gap
        self.with_positives = with_positives
        self.mean = mean

    @property
    def needs(self) -> Needs:
        own = target_needs(super().needs, "labels" if self.pairs == "positive" else self.target)
        labels = own.labels or not self.with_positives
        return replace(own, labels=labels, whole_batch=own.whole_batch or self.mean == "pairs") | Needs(
            tasks=frozenset({"ranking"})
        )

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
            if not self.with_positives:
                mask = mask & ~signal_positives(student, batch, self.signal)
            chosen = ordered_pairs(theirs, mask, self.min_gap)
        values = pairwise_hinge(divide(ours, student_temperature), self.margin)
        if self.mean == "item":
            return pair_mean(values, chosen)
        sums = values.masked_fill(~chosen, 0.0).sum((-2, -1))
        # the base class divides by num_items: undo it, so that the term is sum / pairs of the step
        return sums * (batch.num_items / chosen.sum().clamp(min=1).to(sums.dtype))

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        if self.pairs == "positive" or self.target == "labels":
            teachers = [labels_as_teacher(student, batch, self.signal)]
        return super().forward(student, teachers, batch, clock)

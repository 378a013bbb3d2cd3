"""Losses over whole lists: ListNet and the LambdaLoss family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from kdfw.components import DistillationLoss
from kdfw.losses.margin_mse import differences
from kdfw.losses.masking import compared, divide, masked_log_softmax
from kdfw.losses.options import Cutoff, OwnTemperature, Signal, StudentTemperature, TargetOption, Teachers, Temperature
from kdfw.losses.pairwise import ordered_pairs
from kdfw.losses.targets import labels_as_teacher, target_needs
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals

Gain = Literal["auto", "exponential", "linear", "reciprocal-rank"]
Scheme = Literal["lambdarank", "ndcg-loss2", "ndcg-loss2++"]


def listnet(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of softmax(student) under softmax(target): top-one probabilities.

    Args:
        student: (Q, D) scores; gradients flow here.
        target: (Q, D) scores or grades.
        mask: (Q, D) bool.
    Returns: (Q,) in nats; the entropy of the target is its least value.
    Source: Cao et al., ICML 2007.
    """
    log_s = masked_log_softmax(student, mask)
    return -(masked_log_softmax(target, mask).exp() * log_s).masked_fill(~mask, 0.0).sum(-1)


def ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """(Q, D) 1-based rank of each alternative by score descending; masked ones come last, ties in column order."""
    order = scores.detach().masked_fill(~mask, -float("inf")).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def gains(target: Tensor, mask: Tensor, gain: Gain) -> Tensor:
    """(Q, D) gain of each alternative, 0 where masked: 2**grade - 1, the grade, or 1 / rank by the target.

    Negative grades count as 0.
    """
    if gain == "reciprocal-rank":
        values = 1.0 / ranks(target, mask).to(target.dtype)
    elif gain == "linear":
        values = target.clamp(min=0.0)
    else:
        values = torch.exp2(target.clamp(min=0.0)) - 1.0
    return values.masked_fill(~mask, 0.0)


def lambda_weights(
    student: Tensor, gain: Tensor, mask: Tensor, scheme: Scheme, mu: float = 10.0, cutoff: int | None = None
) -> Tensor:
    """(Q, D, D) constants: how much swapping two candidates would change nDCG.

    With G the gain over the ideal DCG, D(r) = log2(1 + r) and r the student's present ranks:
    `lambdarank`: |G_a - G_b| * |1/D(r_a) - 1/D(r_b)|;
    `ndcg-loss2`: |G_a - G_b| * |1/D(|r_a - r_b|) - 1/D(|r_a - r_b| + 1)|, a tighter bound;
    `ndcg-loss2++`: `lambdarank` + mu * `ndcg-loss2`.
    With a cutoff, pairs with neither candidate in the student's first `cutoff` weigh nothing, and the ideal DCG is
    cut there too.

    Source: Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018, eqs. 11, 16, 18.
    """
    place = ranks(student, mask)
    size = gain.shape[-1]
    discounts = torch.log2(1.0 + torch.arange(1, size + 2, device=gain.device, dtype=gain.dtype))
    best = gain.sort(dim=-1, descending=True).values / discounts[:size]
    ideal = best[:, :cutoff].sum(-1, keepdim=True)
    share = gain / ideal.clamp(min=1e-10)
    apart = differences(share).abs()
    weights = torch.zeros_like(apart)
    if scheme in ("lambdarank", "ndcg-loss2++"):
        weights = weights + differences(1.0 / discounts[place - 1]).abs()
    if scheme in ("ndcg-loss2", "ndcg-loss2++"):
        steps = (place[:, :, None] - place[:, None, :]).abs().clamp(min=1)
        bound = (1.0 / discounts[steps - 1] - 1.0 / discounts[steps]).abs()
        weights = weights + (mu if scheme == "ndcg-loss2++" else 1.0) * bound
    weights = weights * apart
    if cutoff is not None:
        seen = place <= cutoff
        weights = weights * (seen[:, :, None] | seen[:, None, :])
    return weights


def lambda_loss(student: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
    """(Q,) sum over pairs (a, b), a better than b, of weight * log2(1 + exp(-(s_a - s_b))).

    Args:
        student: (Q, D) scores; gradients flow here.
        pairs: (Q, D, D) bool.
        weights: (Q, D, D) constants.
    """
    bits = softplus(-differences(student)) / torch.log(torch.tensor(2.0, device=student.device, dtype=student.dtype))
    return (weights * bits).masked_fill(~pairs, 0.0).sum((-2, -1))


class ListNet(DistillationLoss):
    """Cross-entropy between top-one probabilities of the target and of the student.

    With a teacher it has the gradient of `kl` without the factor tau**2 and differs in value by the teacher's
    entropy; its own use is `target: labels`, where softmax(grades) is the target.
    """

    paper = "Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007"

    def __init__(
        self,
        *,
        temperature: Temperature = 1.0,
        student_temperature: StudentTemperature = None,
        weighting: Teachers = None,
        signal: Signal = "logits",
        target: TargetOption = "teacher",
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.target = target

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
        return listnet(divide(ours, student_temperature), divide(theirs, teacher_temperature), mask)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        if self.target == "labels":
            teachers = [labels_as_teacher(student, batch, self.signal)]
        return super().forward(student, teachers, batch, clock)


class LambdaLoss(DistillationLoss):
    """Pairwise logistic loss, each pair weighted by what swapping it would change in nDCG.

    Grades come from the labels or from the teacher. `gain: auto` takes 2**grade - 1 of labels; a teacher's scores are
    no grades (any real numbers), so it takes 1 / (rank by the teacher). The sum over pairs is divided by the number of
    items, not of pairs: the weights of a list already add up to its nDCG.
    """

    paper = "Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018"
    compares = "order"

    def __init__(
        self,
        *,
        temperature: OwnTemperature = 1.0,
        student_temperature: StudentTemperature = None,
        weighting: Teachers = None,
        signal: Signal = "logits",
        target: TargetOption = "labels",
        scheme: Annotated[Scheme, Field(description="how the weight of a pair is computed")] = "ndcg-loss2++",
        gain: Annotated[Gain, Field(description="what a grade is worth")] = "auto",
        mu: Annotated[float, Field(ge=0, description="share of ndcg-loss2 in ndcg-loss2++")] = 10.0,
        cutoff: Cutoff = None,
    ) -> None:
        super().__init__(
            temperature=temperature, student_temperature=student_temperature, weighting=weighting, signal=signal
        )
        self.target = target
        self.scheme = scheme
        self.mu = mu
        self.cutoff = cutoff
        self.gain: Gain = gain
        if gain == "auto":
            self.gain = "exponential" if target == "labels" else "reciprocal-rank"

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
        gain = gains(theirs, mask, self.gain)
        weights = lambda_weights(ours.detach(), gain, mask, self.scheme, self.mu, self.cutoff)
        return lambda_loss(ours, ordered_pairs(theirs, mask), weights)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        if self.target == "labels":
            teachers = [labels_as_teacher(student, batch, self.signal)]
        return super().forward(student, teachers, batch, clock)

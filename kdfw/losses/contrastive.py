"""Contrastive losses: InfoNCE over own or in-batch candidates, and the localized form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss, Schedule, as_schedule
from kdfw.errors import ConfigError, TrainingError
from kdfw.losses.masking import (
    contrasted,
    divide,
    labels_of,
    masked_mean,
    own_columns,
    signal_mask,
    signal_positives,
    wide,
)
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals

if TYPE_CHECKING:
    from kdfw.components import Sampler
    from kdfw.errors import Problem

Positives = Literal["each", "first", "sum"]
DivisorOption = Annotated[Schedule | float, Field(gt=0, description="divides the scores (0.01 to 0.05 for cosines)")]
PositivesOption = Annotated[
    Positives,
    Field(description="several positives: mean of one loss for each, the first alone, or their joint probability"),
]


def contrastive(scores: Tensor, targets: Tensor, others: Tensor, positives: Positives = "each") -> Tensor:
    """Negative log-probability of an item's positives among its negatives.

    Args:
        scores: (Q, D), already divided by the temperature; gradients flow here.
        targets: (Q, D) bool, positives that are to be found.
        others: (Q, D) bool, negatives. What is in neither takes no part.
        positives: `each`: the mean over positives p of -log(e^p / (e^p + sum of negatives)), so that positives do not
            push one another away; `sum`: -log(sum of positives / sum of positives and negatives); `first`: as
            `each`, with the first positive column only.
    Returns: (Q,) in nats; 0 for an item without a positive.
    """
    if positives == "first":
        targets = targets & (targets.cumsum(-1) == 1)
    low = torch.finfo(scores.dtype).min / 2
    if positives == "sum":
        joint = scores.masked_fill(~targets, low).logsumexp(-1)
        everything = scores.masked_fill(~(targets | others), low).logsumexp(-1)
        return (everything - joint).masked_fill(~targets.any(-1), 0.0)
    against = scores.masked_fill(~others, low).logsumexp(-1, keepdim=True)
    return masked_mean(torch.logaddexp(scores, against.expand_as(scores)) - scores, targets)


def likely_positive(scores: Tensor, targets: Tensor, margin: float) -> Tensor:
    """(Q, D) bool: alternatives whose score exceeds that of the item's best positive minus `margin`.

    Such a negative is more likely an unlabelled positive (arXiv:2010.08191, arXiv:2407.15831). Nothing is marked for
    an item without a positive.
    """
    best = scores.masked_fill(~targets, -float("inf")).amax(-1, keepdim=True)
    return (scores > best - margin) & targets.any(-1, keepdim=True)


class InfoNCE(Loss):
    """Contrastive cross-entropy: find the positive among the item's own candidates, or among all passages of the step.

    With `in_batch: true` every passage of the step, over all processes, is a candidate of every query: the gradient
    is that of one process with the whole batch, nothing has to be rescaled. A passage known to be relevant to a query
    (its own positives and all labelled ones, `Batch.known_positives`) is never its negative, unless
    `mask_known_positives: false`. `symmetric: true` adds the direction from each positive passage to its query among
    the queries of the step, half each.

    Texts without labels: with the sampler `views` a text is found by another view of itself (arXiv:2104.08821).

    `false_negative_margin: m` also leaves out negatives scored above (positive - m) by the first teacher (or, with
    `false_negatives_by: student`, by the student itself); a teacher judges the item's own candidates only.
    """

    paper = "arXiv:1807.03748"

    def __init__(
        self,
        *,
        temperature: DivisorOption = 1.0,
        in_batch: Annotated[bool, Field(description="all passages of the step are candidates of every query")] = False,
        positives: PositivesOption = "each",
        symmetric: Annotated[bool, Field(description="also find the query of each positive passage")] = False,
        mask_known_positives: Annotated[
            bool, Field(description="a passage labelled relevant to the query is never its negative")
        ] = True,
        false_negative_margin: Annotated[
            float | None, Field(description="negatives scored above the positive minus this are left out")
        ] = None,
        false_negatives_by: Annotated[
            Literal["teacher", "student"], Field(description="whose scores decide on likely false negatives")
        ] = "teacher",
    ) -> None:
        super().__init__()
        if symmetric and not in_batch:
            raise ConfigError("info-nce: symmetric: true needs in_batch: true; a query's own list has no other queries")
        self.temperature = as_schedule(temperature)
        self.in_batch = in_batch
        self.positives: Positives = positives
        self.symmetric = symmetric
        self.mask_known_positives = mask_known_positives
        self.false_negative_margin = false_negative_margin
        self.false_negatives_by = false_negatives_by

    @property
    def needs(self) -> Needs:
        by_teacher = self.false_negative_margin is not None and self.false_negatives_by == "teacher"
        return self.temperature.needs | Needs(
            student=frozenset({"batch_logits" if self.in_batch else "logits"}),
            teacher=frozenset({"logits"}) if by_teacher else frozenset(),
            teachers=(1 if by_teacher else 0, None),
            labels=True,
            # of a text's own list of one, a view of itself, the loss would always be 0
            tasks=frozenset({"ranking", "pairs"} if self.in_batch else {"ranking"}),
            alternatives=1 if self.in_batch else 2,
            whole_batch=self.in_batch,
        )

    def check(self, plan: Any) -> Iterator[Problem]:
        """Scored pairs have no positives."""
        sampler: Sampler = plan.stage.sampler_of(plan.task)
        if not sampler.draws_positives:
            found = "a loss that finds what belongs together, with a sampler that draws pairs with a score"
            yield plan.problem(found=found, fix="use the sampler `views`, or a loss on scores (mse, bce)")

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        if batch.task == "pairs" and not any("positive" in kinds for kinds in batch.kinds):
            raise TrainingError(
                "info-nce finds what belongs together, and the sampler draws pairs with a score: use the sampler "
                "`views`, or a loss on scores (mse, bce)"
            )
        name = "batch_logits" if self.in_batch else "logits"
        scores = wide(student[name])
        mask = signal_mask(student, name)
        real = contrasted(batch, scores, self.in_batch)
        if mask is not None:
            real = real & mask.to(scores.device)
        labels = labels_of(student, batch).to(scores.device)
        own = labels > 0
        if batch.mask is not None:
            own = own & batch.mask.to(scores.device)
        # the positive to find is one that was drawn for the item; other known ones only cease to be negatives
        if self.positives == "first":
            own = own & (own.cumsum(-1) == 1)
        targets = (own_columns(own, batch, scores) if self.in_batch else own) & real
        known = signal_positives(student, batch, name) if self.mask_known_positives else targets
        suspects = self.suspects(student, teachers, batch, scores, targets)
        others = real & ~known & ~targets & ~suspects
        temperature = self.temperature.at(clock, student, teachers)
        cooled = divide(scores.masked_fill(~real, 0.0), temperature)
        values = contrastive(cooled, targets, others, self.positives)
        if self.symmetric:
            # column p is a candidate list of queries: q is its positive, queries it is relevant to take no part
            log_p = (
                torch.logaddexp(
                    cooled,
                    cooled.masked_fill(~others, torch.finfo(cooled.dtype).min / 2).logsumexp(0).expand_as(cooled),
                )
                - cooled
            )
            values = (values + masked_mean(log_p, targets)) / 2
        parts = {"false_negatives": suspects.sum().to(values.dtype)} if self.false_negative_margin is not None else {}
        return LossTerms(total=values.sum() / batch.num_items, parts=parts)

    def suspects(
        self, student: Signals, teachers: Sequence[Signals], batch: Batch, scores: Tensor, targets: Tensor
    ) -> Tensor:
        """(Q, D) or (Q, P) bool: negatives that are likely unlabelled positives."""
        if self.false_negative_margin is None:
            return torch.zeros_like(targets)
        if self.false_negatives_by == "student":
            return likely_positive(scores.detach(), targets, self.false_negative_margin) & ~targets
        theirs = wide(teachers[0]["logits"]).detach().to(scores.device)
        own = (labels_of(student, batch).to(scores.device) > 0) & theirs.isfinite()
        real = theirs.isfinite()
        if batch.mask is not None:
            real = real & batch.mask.to(scores.device)
        found = likely_positive(theirs.masked_fill(~real, -float("inf")), own & real, self.false_negative_margin) & ~own
        return (own_columns(found, batch, scores) if self.in_batch else found) & ~targets


class LocalizedContrastive(Loss):
    """Localized contrastive estimation: find the positive in the query's own list of hard negatives.

    The plain loss of cross-encoder rerankers. The same as `info-nce` without in-batch candidates and without its
    options.
    """

    paper = "arXiv:2101.08751"

    def __init__(self, *, temperature: DivisorOption = 1.0, positives: PositivesOption = "each") -> None:
        super().__init__()
        self.temperature = as_schedule(temperature)
        self.positives: Positives = positives

    @property
    def needs(self) -> Needs:
        return self.temperature.needs | Needs(
            student=frozenset({"logits"}), labels=True, tasks=frozenset({"ranking"}), alternatives=2
        )

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        scores = wide(student["logits"])
        real = contrasted(batch, scores)
        if student.mask is not None:
            real = real & student.mask.to(scores.device)
        targets = (labels_of(student, batch) > 0) & real
        cooled = divide(scores.masked_fill(~real, 0.0), self.temperature.at(clock, student, teachers))
        values = contrastive(cooled, targets, real & ~targets, self.positives)
        return LossTerms(total=values.sum() / batch.num_items)

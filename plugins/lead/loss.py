"""The two distillation terms of LEAD. The ranking losses of student and teacher are core `info-nce` terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss
from kdfw.errors import ConfigError
from kdfw.losses.masking import labels_of, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals
from kdfw_plugins.lead.layers import (
    Choice,
    choose_layers,
    dot_scores,
    layer_values,
    layer_weights,
    ranking_losses,
    towards,
)

_HIDDEN = frozenset({"query_hidden", "passage_hidden"})


class LayerDistillation(Loss):
    """KL from some of the teacher's layers to as many of the student's, over all passages of the step.

    A layer's scores are inner products of its first-token states. Layers are drawn from (seed, step), the same on
    every process. A teacher that trains in the same stage gets gradient through this term, as in the released code.

    Args:
        num_layers: pairs drawn.
        redraw_every: optimizer steps between draws.
        reweight: weigh pairs by the teacher layer's own ranking loss; else each pair weighs `coefficient`.
    """

    paper = "arXiv:2212.05225"

    def __init__(
        self,
        *,
        num_layers: Annotated[int, Field(ge=1)] = 5,
        choice: Annotated[Choice, Field(description="which layers: drawn at random, the last, or every second")] = (
            "random"
        ),
        redraw_every: Annotated[int, Field(ge=1)] = 10,
        reweight: bool = True,
        coefficient: Annotated[float, Field(ge=0, description="weight of each pair without reweighting")] = 1.0,
        layer_temperature: Annotated[float, Field(gt=0, description="smooths the weights of pairs")] = 10.0,
        temperature: Annotated[float, Field(gt=0, description="divides the target's scores only")] = 1.0,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.choice: Choice = choice
        self.redraw_every = redraw_every
        self.reweight = reweight
        self.coefficient = coefficient
        self.layer_temperature = layer_temperature
        self.temperature = temperature

    @property
    def needs(self) -> Needs:
        return Needs(
            student=_HIDDEN,
            teacher=_HIDDEN,
            labels=True,
            teachers=(1, 1),
            tasks=frozenset({"ranking"}),
            whole_batch=True,
        )

    def layers(self, clock: Clock, student: int, teacher: int) -> tuple[list[int], list[int]]:
        """Layers of both in use at this step, given how many they have."""
        fewest = 1 + 2 * (self.num_layers - 1) if self.choice == "skip" else self.num_layers
        if student < self.num_layers or teacher < fewest:
            raise ConfigError(
                f"loss lead-layers: num_layers {self.num_layers} with choice {self.choice}: the student has {student} "
                f"layers and the teacher {teacher}; lower num_layers"
            )
        rng = np.random.default_rng([clock.seed, clock.step // self.redraw_every])
        return choose_layers(self.choice, student, teacher, self.num_layers, rng)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        teacher = teachers[0]
        assert batch.candidates is not None
        own, other = wide(student["query_hidden"]), wide(teacher["query_hidden"])
        first, second = self.layers(clock, own.shape[1], other.shape[1])
        ours = dot_scores(own[:, first], wide(student["passage_hidden"])[:, first])
        theirs = dot_scores(other[:, second], wide(teacher["passage_hidden"])[:, second])
        everything = torch.ones_like(ours[0], dtype=torch.bool)
        values = layer_values(ours, theirs, everything, self.temperature).sum(-1) / batch.num_items
        weights = torch.full_like(values, self.coefficient)
        if self.reweight:
            target = positives(student, batch).to(theirs.device)
            losses = ranking_losses(theirs, target).sum(-1) / batch.num_items
            weights = layer_weights(losses, self.layer_temperature)
        return LossTerms(total=(weights * values).sum())


class ResponseDistillation(Loss):
    """KL between the final scores, in both directions when the teacher trains. The temperature is the target's."""

    paper = "arXiv:2212.05225"

    def __init__(
        self,
        *,
        mutual: Annotated[bool, Field(description="also from the student to a teacher that trains")] = True,
        temperature: Annotated[float, Field(gt=0, description="divides the target's scores only")] = 1.0,
        in_batch: Annotated[bool, Field(description="over all passages of the step; false: the query's own")] = True,
    ) -> None:
        super().__init__()
        self.mutual = mutual
        self.temperature = temperature
        self.in_batch = in_batch

    @property
    def needs(self) -> Needs:
        name = frozenset({"batch_logits" if self.in_batch else "logits"})
        return Needs(
            student=name, teacher=name, teachers=(1, 1), tasks=frozenset({"ranking"}), whole_batch=self.in_batch
        )

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        name = "batch_logits" if self.in_batch else "logits"
        ours, theirs = wide(student[name]), wide(teachers[0][name])
        mask = torch.ones_like(ours, dtype=torch.bool)
        if not self.in_batch and student.mask is not None:
            mask = student.mask
        values = towards(ours, theirs, mask, self.temperature)
        if self.mutual:
            values = values + towards(theirs, ours, mask, self.temperature)
        return LossTerms(total=values.sum() / batch.num_items)


def positives(student: Signals, batch: Batch) -> Tensor:
    """(Q,) long: the passage of the step that is each query's first positive."""
    assert batch.candidates is not None
    labels = labels_of(student, batch)
    return batch.candidates.to(labels.device).gather(1, labels.argmax(-1, keepdim=True))[:, 0]

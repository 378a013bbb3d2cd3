"""Weights of teachers that do not depend on what the models say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Weighting
from kdfw.errors import ConfigError
from kdfw.types import Batch, Clock, Needs, Signals


def spread(shares: list[float], student: Signals, teachers: Sequence[Signals], batch: Batch) -> Tensor:
    """(K, Q) weights from one share for each teacher: the same for every item, over the items of the step."""
    logits = next((s.logits for s in (student, *teachers) if s.logits is not None), None)
    # a translation has more items (target tokens) than sentences: the signals know how many
    count = len(batch) if logits is None else logits.shape[0]
    device = None if logits is None else logits.device
    return (torch.tensor(shares, device=device) / batch.num_items)[:, None].expand(-1, count)


class Uniform(Weighting):
    """Every teacher and every item alike: what a loss does without a weighting."""

    def weights(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> Tensor:
        return spread([1.0 / len(teachers)] * len(teachers), student, teachers, batch)


class Fixed(Weighting):
    """One given weight for each teacher, in the order of the stage's teachers."""

    def __init__(
        self,
        *,
        weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1, description="one per teacher")],
        normalise: Annotated[bool, Field(description="divide by their sum, so that they are shares")] = True,
    ) -> None:
        super().__init__()
        if normalise and not sum(weights) > 0:
            raise ConfigError("fixed weighting: all weights are 0; at least one must be greater")
        total = sum(weights) if normalise else 1.0
        self.shares = [float(weight) / total for weight in weights]

    @property
    def needs(self) -> Needs:
        return Needs(teachers=(len(self.shares), len(self.shares)))

    def weights(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> Tensor:
        if len(teachers) != len(self.shares):
            raise ConfigError(
                f"fixed weighting: {len(self.shares)} weights for {len(teachers)} teachers; write one for each"
            )
        return spread(self.shares, student, teachers, batch)

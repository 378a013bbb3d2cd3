"""Fewer negatives, other ones in every epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from kdfw.components import Augmenter
from kdfw.types import Clock, Example
from pydantic import Field


class KeepNegatives(Augmenter):
    """Keeps a random few of an example's negatives; the rest of the example and its order stay."""

    makes_texts = False

    def __init__(self, *, count: Annotated[int, Field(ge=1, description="negatives that stay")]) -> None:
        self.count = count

    def apply(self, example: Example, clock: Clock, rng: np.random.Generator) -> Example:
        negatives = [place for place, candidate in enumerate(example.candidates) if candidate.label <= 0]
        if len(negatives) <= self.count:
            return example
        drawn = {negatives[index] for index in rng.permutation(len(negatives))[: self.count]}
        kept = tuple(
            candidate for place, candidate in enumerate(example.candidates) if candidate.label > 0 or place in drawn
        )
        return replace(example, candidates=kept)

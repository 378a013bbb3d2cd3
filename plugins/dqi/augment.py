"""Training views: the training query in front of each of its candidates, negatives too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kdfw.components import Augmenter
from kdfw.types import Candidate, Clock, Example, Text


class QueryPrefixed(Augmenter):
    """Puts the query before every candidate, so that a hard negative cannot be told by the missing query.

    Args:
        separator: written between query and passage; it should read as the tokenizer's separator token.
    """

    paper = "arXiv:2208.04232, sec. 3"
    makes_texts = True

    def __init__(self, *, separator: str = " [SEP] ") -> None:
        self.separator = separator

    def apply(self, example: Example, clock: Clock, rng: np.random.Generator) -> Example:
        query = str(example.text)

        def view(candidate: Candidate) -> Candidate:
            return replace(candidate, text=Text(source=None, made=f"{query}{self.separator}{candidate.text}"))

        return replace(example, candidates=tuple(view(candidate) for candidate in example.candidates))

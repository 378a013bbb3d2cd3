"""Which part of the ranked pseudo-queries is in use at a step, and which ranks that part holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kdfw.components import Schedule
from kdfw.types import Clock

Mode = Literal["gradual", "gradual-gold"]


def part_at(step: int, total_steps: int, num_parts: int, mode: Mode = "gradual") -> int:
    """Part `num_parts` (least similar) first, part 1 (most similar) last; 0 with `gradual-gold` is the gold query."""
    least, pieces = (1, num_parts) if mode == "gradual" else (0, num_parts + 1)
    length = max(1, total_steps // pieces)
    return max(num_parts - step // length, least)


def part_ranks(part: int, num_parts: int, count: int, left: int) -> list[int]:
    """0-based ranks that a draw from a part can reach, most similar first.

    Args:
        count: pseudo-queries before filtering; the boundaries are those of the released float arithmetic.
        left: pseudo-queries after filtering; ranks beyond are clipped to the last one.
    """
    begin, end = int((count / num_parts) * (part - 1)), int((count / num_parts) * part)
    ranks = range(begin + 1, end + 1) if end > begin else (end + 1,)
    return sorted({min(rank, left) - 1 for rank in ranks})


def kept_candidates(scores: Sequence[float], threshold: float = 1.0) -> list[int]:
    """Indices of pseudo-queries by similarity to the query, descending, those above the threshold left out.

    If all are above it, the least similar one stays.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    kept = [index for index in order if scores[index] <= threshold]
    return kept or order[-1:]


def selectable(scores: Sequence[float], selector: str, threshold: float = 1.0) -> list[int]:
    """Indices that a selector can choose: `random`, `top-K`, `bottom-K`, or `K-th`."""
    kept = kept_candidates(scores, threshold)
    if selector == "random":
        return sorted(kept)
    kind, _, number = selector.partition("-")
    if kind in ("top", "bottom"):
        size = int(number)
        return sorted(kept[:size] if kind == "top" else kept[-size:])
    return [kept[min(int(kind), len(kept)) - 1]]


def draw(scores: Sequence[float], part: int, num_parts: int, rng: np.random.Generator, threshold: float = 1.0) -> int:
    """Index of the pseudo-query drawn, uniformly from the part."""
    kept = kept_candidates(scores, threshold)
    ranks = part_ranks(part, num_parts, len(scores), len(kept))
    return kept[ranks[int(rng.integers(len(ranks)))]]


class Part(Schedule):
    """The part in use, as a number: from `parts` down to 1 (or 0, the gold query, with `gradual-gold`)."""

    paper = "arXiv:2212.09114"

    def __init__(
        self,
        *,
        parts: Annotated[int, Field(ge=1, description="parts the generated queries are divided into")] = 3,
        mode: Annotated[Mode, Field(description="gradual-gold ends with the gold query, as part 0")] = "gradual",
    ) -> None:
        self.parts = parts
        self.mode: Mode = mode

    def __call__(self, clock: Clock) -> float:
        return float(part_at(clock.step, clock.total_steps, self.parts, self.mode))

"""Making a passage of moderate relevance out of tokens: masking a positive, or pasting a piece of it into a negative.

The conventions here (ratios, contiguous spans, overwriting) are this framework's reconstruction; see README.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Token = TypeVar("Token")


def count_of(share: float, total: int) -> int:
    """max(1, round(share * total)) tokens."""
    return max(1, round(share * total))


def mask_tokens(tokens: Sequence[Token], mask: Token, share: float, rng: np.random.Generator) -> list[Token]:
    """A copy with `count_of(share, n)` distinct positions, chosen uniformly, replaced by `mask`.

    Never all of them: at least one token stays where there are two or more.
    """
    result = list(tokens)
    if len(result) < 2:
        return result
    number = min(count_of(share, len(result)), len(result) - 1)
    for position in rng.choice(len(result), size=number, replace=False):
        result[int(position)] = mask
    return result


def mix_tokens(
    positive: Sequence[Token],
    negative: Sequence[Token],
    share: float,
    rng: np.random.Generator,
    *,
    insert: bool = False,
) -> list[Token]:
    """The negative, with one contiguous span of the positive in it: written over a span of it, or put between.

    The span has `count_of(share, min(len(positive), len(negative)))` tokens, at a random place in each; the length
    stays that of the negative, whose end makes room with `insert`. An empty side leaves the negative as it is.
    """
    result = list(negative)
    shorter = min(len(positive), len(result))
    if shorter == 0:
        return result
    length = min(count_of(share, shorter), shorter)
    start = int(rng.integers(len(positive) - length + 1))
    place = int(rng.integers(len(result) - length + 1))
    end = place if insert else place + length
    result[place:end] = positive[start : start + length]
    return result[: len(negative)]

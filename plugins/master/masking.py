"""Which words are masked: rare ones more often, and two copies that complete each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdfw.models.bottleneck import mask_words, word_groups

Draw = Callable[[Sequence[int], Sequence[float]], Sequence[int]]
"""(words not covered yet, their weights) -> words to cover, in order, possibly repeated."""


def keyword_weights(tokens: Sequence[str], frequency: Mapping[str, int]) -> tuple[list[list[int]], list[float]]:
    """Positions of each word, and 1 / frequency of the word with its `##` marks; 1 for an unknown one."""
    groups = word_groups(tokens)
    words = ["".join(tokens[position] for position in group) for group in groups]
    return groups, [1 / frequency[word] if word in frequency else 1 for word in words]


def draw_by_weight(rng: np.random.Generator, number: int = 10) -> Draw:
    """`number` words with replacement, by weight."""

    def draw(words: Sequence[int], weights: Sequence[float]) -> Sequence[int]:
        shares = np.asarray(weights, dtype=np.float64)
        return [words[int(place)] for place in rng.choice(len(words), size=number, p=shares / shares.sum())]

    return draw


def mask_keywords(tokens: Sequence[str], frequency: Mapping[str, int], share: float, draw: Draw) -> list[int]:
    """(L,) 0/1: words by weight until max(1, round(share * ordinary tokens)) tokens are reached or exceeded."""
    groups, weights = keyword_weights(tokens, frequency)
    budget = max(1, round(share * sum(len(group) for group in groups)))
    covered: list[int] = []
    while sum(len(groups[word]) for word in covered) < budget and len(covered) < len(groups):
        left = [word for word in range(len(groups)) if word not in covered]
        for word in draw(left, [weights[word] for word in left]):
            if word not in covered:
                covered.append(word)
                if sum(len(groups[one]) for one in covered) >= budget:
                    break
    masked = [0] * len(tokens)
    for word in covered:
        for position in groups[word]:
            masked[position] = 1
    return masked


def complementary(tokens: Sequence[str], order: Sequence[int], share: float = 0.5) -> tuple[list[int], list[int]]:
    """Masks of encoder and decoder: whole words in an order for one, everything else for the other."""
    first = mask_words(len(tokens), word_groups(tokens), order, share)
    return first, [1 - masked for masked in first]

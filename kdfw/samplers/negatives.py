"""Drawing negatives from ranked lists: plain functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Draw = Literal["random", "top", "score-weighted", "rank-weighted", "rotate"]
Mix = Literal["pool", "equal-share", "proportions"]


def window(rows: np.ndarray, scores: np.ndarray, without: np.ndarray, ranks: tuple[int, int] | None) -> np.ndarray:
    """Places in a ranked list that may be negatives: not in `without`, then those of a window of ranks.

    Args:
        rows: (n,) passages, best first.
        scores: (n,) their scores; a passage whose score is NaN is left out.
        without: passages that are no negatives (labelled positives).
        ranks: first and last rank, 1-based, both included, counted after the removal; None for all.
    Returns: (m,) places in `rows`, in order.
    """
    places = np.flatnonzero(~np.isin(rows, without) & ~np.isnan(scores))
    return places if ranks is None else places[ranks[0] - 1 : ranks[1]]


def draw(
    count: int,
    num: int,
    how: Draw,
    rng: np.random.Generator,
    *,
    scores: np.ndarray | None = None,
    temperature: float = 1.0,
    turn: int = 0,
    repeat: bool = True,
) -> np.ndarray:
    """Choose `num` of `count` places of a list, without replacement.

    A list with no more than `num` places is taken whole, in order, and if `repeat` cycled until there are `num`.

    Args:
        how: `random`: all alike; `top`: the first; `score-weighted`: with probability proportional to
            exp(score / temperature) at each draw; `rank-weighted`: to rank ** (-1 / temperature); `rotate`: the
            window that follows last turn's, (turn * num + j) mod count (no randomness).
        scores: (count,), for `score-weighted`.
    Returns: (num,) places, or fewer when the list is short and `repeat` is False, or empty.
    """
    if count <= num and not (how == "rotate" and count == num):
        return np.arange(num if repeat and count else count) % max(count, 1)
    if how == "top":
        return np.arange(num)
    if how == "rotate":
        return (turn * num + np.arange(num)) % count
    if how == "random":
        return rng.permutation(count)[:num]
    if how == "score-weighted":
        assert scores is not None
        log_weights = np.asarray(scores, dtype=np.float64) / temperature
    else:
        log_weights = -np.log(np.arange(1, count + 1)) / temperature
    # the largest of log-weight plus Gumbel noise are a draw without replacement (arXiv:1903.06059)
    keys = log_weights + rng.gumbel(size=count)
    return np.argsort(-keys, kind="stable")[:num]


def shares(num: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `num`, in proportion to the weights; the largest remainders are rounded up."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * num
    counts = np.floor(exact).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: num - int(counts.sum())]] += 1
    return [int(count) for count in counts]


def draw_from_lists(
    lists: Sequence[tuple[np.ndarray, np.ndarray]],
    num: int,
    how: Draw,
    rng: np.random.Generator,
    *,
    mix: Mix = "pool",
    weights: Sequence[float] | None = None,
    unique: bool = False,
    temperature: float = 1.0,
    turn: int = 0,
    repeat: bool = True,
) -> np.ndarray:
    """Draw negatives from several ranked lists.

    `pool` joins the lists, duplicates kept (so a passage that several retrievers name is more likely), or named once
    with `unique`; `equal-share` takes num / lists from each; `proportions` takes shares in proportion to `weights`.
    A list that is empty leaves its share to the pool of the others. `top` and `rank-weighted` of a pool go by the
    order of the joined lists, the first list first; `unique` makes a later list skip what an earlier one gave.

    Args:
        lists: (passages, scores) of each source, already cut to what may be drawn.
    Returns: (num,) passages, or fewer when there are too few and `repeat` is False, or none at all.
    """
    if mix == "pool":
        rows = np.concatenate([rows for rows, _ in lists])
        scores = np.concatenate([scores for _, scores in lists])
        if unique:
            first = np.sort(np.unique(rows, return_index=True)[1])
            rows, scores = rows[first], scores[first]
        places = draw(len(rows), num, how, rng, scores=scores, temperature=temperature, turn=turn, repeat=repeat)
        chosen: np.ndarray = rows[places]
        return chosen
    counts = shares(num, [1.0] * len(lists) if weights is None or mix == "equal-share" else weights)
    drawn: list[np.ndarray] = []
    for (rows, scores), count in zip(lists, counts, strict=True):
        if unique and drawn:
            fresh = ~np.isin(rows, np.concatenate(drawn))
            rows, scores = rows[fresh], scores[fresh]
        places = draw(len(rows), count, how, rng, scores=scores, temperature=temperature, turn=turn, repeat=repeat)
        drawn.append(rows[places])
    found = np.concatenate(drawn)
    if len(found) < num and repeat and any(len(rows) for rows, _ in lists):
        rest = draw_from_lists(
            lists, num - len(found), how, rng, mix="pool", unique=unique, temperature=temperature, turn=turn
        )
        found = np.concatenate([found, rest])
    return found

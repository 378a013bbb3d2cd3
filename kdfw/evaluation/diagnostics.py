"""What a teacher's scores look like, in numbers; docs/diagnose.md defines each of them.

A list is one item's alternatives: candidate passages of a query, or classes of a text or image. Everything here works
on plain arrays; where they come from is the business of `kdfw/engine/diagnosis.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdfw.evaluation.agreement import CUTOFF, kendall_tau, mean_of, overlap, tau_summary

BINS = 30
"""Bins of the histogram of scores."""
QUANTILES = (1, 5, 25, 50, 75, 95, 99)
HALF = 0.5
"""Share of the greatest possible entropy that the suggested temperature gives to the median item."""
TEMPERATURES = (1e-4, 1e4)
"""Where the suggested temperature is looked for, as multiples of the median spread."""


@dataclass(frozen=True, kw_only=True)
class ScoredList:
    """One item's alternatives with a teacher's scores."""

    item: str
    scores: np.ndarray
    """(D,) float; finite: alternatives without a score are left out."""
    positive: np.ndarray
    """(D,) bool: labelled relevant, or the labelled class."""
    negative: np.ndarray
    """(D,) bool: judged, and not relevant. What is neither is unjudged."""
    alternatives: Sequence[str]
    """(D,) ids of passages, or names of classes."""


# ---------------------------------------------------------------- scores


def distribution(lists: Sequence[ScoredList]) -> dict[str, Any]:
    """All scores together: number, mean, standard deviation, quantiles, histogram (positives apart)."""
    scores = _flat(lists, "scores")
    if not len(scores):
        return {"scores": 0}
    positive = _flat(lists, "positive").astype(bool)
    shown = scores.astype(np.float32).astype(np.float64)  # scores closer than that have no bins between them
    edges = np.histogram_bin_edges(shown, bins=BINS)
    counts = [np.histogram(part, bins=edges)[0].tolist() for part in (shown, shown[positive])]
    return {
        "scores": len(scores),
        "mean": float(scores.mean()),
        "standard_deviation": float(scores.std()),
        "lowest": float(scores.min()),
        "highest": float(scores.max()),
        "quantiles": {
            str(q): float(value) for q, value in zip(QUANTILES, np.percentile(scores, QUANTILES), strict=True)
        },
        "histogram": {"edges": edges.tolist(), "counts": counts[0], "positives": counts[1]},
    }


def spread(lists: Sequence[ScoredList]) -> dict[str, Any]:
    """Per item: highest minus lowest score, and standard deviation; constant lists are counted."""
    several = [each.scores for each in lists if len(each.scores) > 1]
    ranges = np.array([float(np.ptp(scores)) for scores in several])
    deviations = np.array([float(scores.std()) for scores in several])
    if not len(ranges):
        return {"items": 0}
    return {
        "items": len(ranges),
        "range": _summary(ranges),
        "standard_deviation": _summary(deviations),
        "constant_items": int((ranges == 0).sum()),
        "constant_share": float((ranges == 0).mean()),
    }


def labels(lists: Sequence[ScoredList]) -> dict[str, Any]:
    """Agreement with the judgements: where the teacher puts the best positive of each item that has one.

    `positive_not_on_top`: share of these items where something else is scored above every positive.
    `reciprocal_rank`: mean of 1 / rank of the best positive; ties count as half above.
    """
    judged = above = 0
    reciprocal = []
    for each in lists:
        if not each.positive.any() or each.positive.all():
            continue
        best, others = each.scores[each.positive].max(), each.scores[~each.positive]
        judged += 1
        above += bool(others.max() > best)
        reciprocal.append(1.0 / (1.0 + float((others > best).sum()) + 0.5 * float((others == best).sum())))
    if not judged:
        return {"items": 0}
    return {"items": judged, "positive_not_on_top": above / judged, "reciprocal_rank": float(np.mean(reciprocal))}


def false_negatives(lists: Sequence[ScoredList], examples: int) -> dict[str, Any]:
    """Unjudged alternatives that the teacher scores above every labelled positive of their item.

    `surplus` is the score above that of the best positive, in standard deviations of all scores: lists of different
    queries are compared by it. Returns: counts, and the `examples` with the greatest surplus, one an item.
    """
    scores = _flat(lists, "scores")
    unit = float(scores.std()) if len(scores) else 0.0
    found: list[dict[str, Any]] = []
    items = suspected = unjudged = 0
    for each in lists:
        if not each.positive.any():
            continue
        open_ = ~each.positive & ~each.negative
        items, unjudged = items + 1, unjudged + int(open_.sum())
        place = int(np.where(each.positive, each.scores, -np.inf).argmax())
        above = open_ & (each.scores > each.scores[place])
        if not above.any():
            continue
        suspected += int(above.sum())
        best = int(np.where(above, each.scores, -np.inf).argmax())
        found.append(
            {
                "item": each.item,
                "alternative": each.alternatives[best],
                "score": float(each.scores[best]),
                "positive": each.alternatives[place],
                "positive_score": float(each.scores[place]),
                "surplus": float(each.scores[best] - each.scores[place]) / unit if unit else 0.0,
            }
        )
    found.sort(key=lambda row: (-row["surplus"], row["item"]))
    return {
        "items": items,
        "items_with_any": len(found),
        "suspected": suspected,
        "share_of_unjudged": suspected / unjudged if unjudged else 0.0,
        "examples": found[:examples],
    }


# ---------------------------------------------------------------- temperature


def entropies(lists: Sequence[np.ndarray], temperature: float) -> np.ndarray:
    """(items,) entropy of softmax(scores / temperature) over the greatest possible, ln D: 0 one-hot, 1 uniform.

    Args:
        lists: score vectors, each with at least two entries.
    """
    found = []
    for scores in lists:
        cooled = (scores - scores.max()) / temperature
        weights = np.exp(cooled)
        total = float(weights.sum())
        # H = ln Z - sum(p * x), with x the shifted logits
        entropy = math.log(total) - float((weights * cooled).sum()) / total
        found.append(max(0.0, entropy) / math.log(len(scores)))
    return np.array(found)


def suggested_temperature(lists: Sequence[np.ndarray]) -> float | None:
    """The temperature at which the median item has half of the greatest possible entropy.

    Entropy grows with the temperature, so there is one; it is found by bisection to 1 part in 10,000. None when more
    than half of the lists are constant (their entropy is greatest at any temperature), or tie on top so widely that
    no temperature is low enough.
    """
    if not lists:
        return None
    scale = float(np.median([np.ptp(scores) for scores in lists]))
    if scale <= 0:
        return None

    def middle(temperature: float) -> float:
        return float(np.median(entropies(lists, temperature)))

    low, high = (scale * factor for factor in TEMPERATURES)
    if middle(low) >= HALF or middle(high) <= HALF:
        return None
    while high / low > 1.0001:
        half = math.sqrt(low * high)
        low, high = (half, high) if middle(half) < HALF else (low, half)
    return math.sqrt(low * high)


def softness(lists: Sequence[np.ndarray], temperature: float) -> dict[str, Any]:
    """The distributions softmax(scores / temperature): entropy, weight of the best, effective number of alternatives.

    The effective number is exp(entropy): how many equally likely alternatives have that entropy.
    """
    several = [np.asarray(scores, dtype=np.float64) for scores in lists if len(scores) > 1]
    if not several:
        return {"items": 0}
    shares = entropies(several, temperature)
    top = [float(1.0 / np.exp((scores - scores.max()) / temperature).sum()) for scores in several]
    effective = [len(scores) ** share for scores, share in zip(several, shares, strict=True)]
    counts, _ = np.histogram(shares, bins=20, range=(0.0, 1.0))
    return {
        "items": len(several),
        "alternatives": float(np.mean([len(scores) for scores in several])),
        "entropy": _summary(shares),
        "entropy_histogram": counts.tolist(),
        "top_weight": float(np.mean(top)),
        "effective_alternatives": float(np.mean(effective)),
    }


# ---------------------------------------------------------------- agreement


def agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Two score vectors of the same alternatives, item by item: tau-b, overlap@10, same best, ratio of spreads.

    The overlap is of items with more than 10 alternatives only: of fewer, all are always shared. `spread_ratio` is
    the median of the right one's standard deviation over the left one's.
    """
    taus = [kendall_tau(left, right) for left, right in pairs]
    shares = [
        overlap(np.argsort(-left, kind="stable").tolist(), np.argsort(-right, kind="stable").tolist())
        for left, right in pairs
        if len(left) > CUTOFF
    ]
    same = [float(left.argmax() == right.argmax()) for left, right in pairs if len(left) > 1]
    ratios = [float(right.std() / left.std()) for left, right in pairs if len(left) > 1 and left.std() > 0]
    mean, count = mean_of(shares)
    return {
        "items": len(pairs),
        **tau_summary(taus),
        f"overlap@{CUTOFF}": mean,
        "overlap_items": count,
        "same_best": mean_of(same)[0],
        "spread_ratio": float(np.median(ratios)) if ratios else None,
    }


def correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    """Spearman's rank correlation of two (N,) columns; None when one is constant or there are fewer than two rows."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


# ---------------------------------------------------------------- warnings


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a number is worth a warning."""

    fires: Callable[[float, float], bool]
    limit: float
    text: str
    """With `{value}`, `{limit}` and the names given to `warn`."""


def _above(value: float, limit: float) -> bool:
    return value > limit


def _below(value: float, limit: float) -> bool:
    return value < limit


RULES = {
    "missing-scores": Rule(fires=_above, limit=0.0, text="{teacher} has no score for {value:.1%} of the candidates"),
    "constant-lists": Rule(
        fires=_above, limit=0.01,
        text="{teacher} gives all candidates the same score in {value:.1%} of the items (more than {limit:.0%}): "
        "nothing can be learned from them",
    ),
    "positive-not-on-top": Rule(
        fires=_above, limit=0.5,
        text="{teacher} puts something else above every labelled positive in {value:.1%} of the items (more than "
        "{limit:.0%}): the judgements are sparse, or the teacher is weak, or its scores are the wrong way round",
    ),
    "nearly-one-hot": Rule(
        fires=_below, limit=0.05,
        text="{loss}: at temperature {temperature:.3g} the targets of {teacher} have {value:.1%} of the greatest "
        "entropy (less than {limit:.0%}): they are nearly one-hot, and say little beyond the best candidate. "
        "{suggestion}",
    ),
    "nearly-uniform": Rule(
        fires=_above, limit=0.95,
        text="{loss}: at temperature {temperature:.3g} the targets of {teacher} have {value:.1%} of the greatest "
        "entropy (more than {limit:.0%}): they are nearly uniform, and teach next to nothing. {suggestion}",
    ),
    "teachers-disagree": Rule(
        fires=_below, limit=0.2,
        text="{teacher} and {other} order the same candidates with a Kendall tau of {value:.2f} (less than {limit}): "
        "losses that average them pull in different directions",
    ),
    "teachers-alike": Rule(
        fires=_above, limit=0.95,
        text="{teacher} and {other} order the same candidates with a Kendall tau of {value:.2f} (more than {limit}): "
        "the second adds cost and little else",
    ),
    "no-closer": Rule(
        fires=_below, limit=0.0,
        text="after training the student's order is further from {teacher}'s than before ({basis}): Kendall tau "
        "changed by {value:+.3f}",
    ),
    "scale": Rule(
        fires=_below, limit=1 / 3,
        text="{loss} compares scores, and after training the student's spread is {value:.2f} of {teacher}'s (less "
        "than {limit:.2f}): the student may be unable to reach that scale (a cosine cannot leave [-1, 1]); divide the "
        "teacher's scores by a temperature or bring both to one scale",
    ),
}  # fmt: skip
"""By the name given in `warnings`."""


def warn(rule: str, value: float | None, **names: Any) -> list[dict[str, Any]]:
    """A warning with the number that triggered it and the limit, or nothing."""
    one = RULES[rule]
    if value is None or not math.isfinite(value) or not one.fires(value, one.limit):
        return []
    text = one.text.format(value=value, limit=one.limit, **names).strip()
    return [{"rule": rule, "value": value, "limit": one.limit, "text": text}]


# ---------------------------------------------------------------- arithmetic


def _flat(lists: Sequence[ScoredList], name: str) -> np.ndarray:
    if not lists:
        return np.zeros(0)
    return np.concatenate([getattr(each, name) for each in lists]).astype(np.float64)


def _summary(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return {"mean": float(values.mean()), "median": float(middle), "p5": float(low), "p95": float(high)}

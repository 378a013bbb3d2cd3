"""Measures of a whole test set that are no mean over its items: correlations, F1, BLEU.

Each is a function of a table with one row an item, which the evaluate stage writes beside the per-item values. So such
a measure can be computed again on any selection of items, which is what a bootstrap and a randomisation test do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdfw.evaluation.tasks import (
    auc,
    average_ranks,
    bleu_of_counts,
    chrf_of_counts,
    macro_f1,
    micro_f1,
    pearson,
    relation_f1,
    spearman,
)

Rows = np.ndarray
"""(Q, S): what one system said about Q items."""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A measure as a function of rows."""

    columns: tuple[str, ...]
    """Per-item values, or lists of them, that make up a row."""
    of: Callable[[Rows], float]
    alike: Callable[[Rows], Rows] = np.asarray
    """Rows on a scale on which those of two systems can be exchanged; the measure of any of them stays what it is."""


def _ranked(rows: Rows) -> Rows:
    return np.column_stack([average_ranks(rows[:, 0]), average_ranks(rows[:, 1])])


def _ranked_by_group(rows: Rows) -> Rows:
    ranks: Rows = rows.copy()
    for inside in _groups(rows):
        ranks[inside, :2] = _ranked(rows[inside])
    return ranks


def _groups(rows: Rows) -> list[np.ndarray]:
    """Which rows each group has."""
    groups = rows[:, 2].astype(np.int64)
    narrow = groups.astype(np.int16) if groups.max(initial=0) < 1 << 15 else groups  # sorted by counting
    order = np.argsort(narrow, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _macro_spearman(rows: Rows) -> float:
    columns = rows.T[:2].copy()
    return float(np.mean([spearman(*columns[:, inside]) for inside in _groups(rows)]))


def _standardised(rows: Rows) -> Rows:
    scores = rows[:, 0]
    return np.column_stack([(scores - scores.mean()) / (scores.std() or 1.0), rows[:, 1]])


def _classes(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    found: np.ndarray = rows.astype(np.int64)
    return found[:, 0], found[:, 1]


def _macro_f1(rows: Rows) -> float:
    predicted, labels = _classes(rows)
    return macro_f1(predicted, labels, int(max(predicted.max(), labels.max())) + 1)


_SCORES, _LABELS = ("score", "gold"), ("predicted", "label")
_STATISTICS: Mapping[str, Statistic] = {
    "spearman": Statistic(columns=_SCORES, of=lambda rows: spearman(rows[:, 0], rows[:, 1]), alike=_ranked),
    "pearson": Statistic(columns=_SCORES, of=lambda rows: pearson(rows[:, 0], rows[:, 1]), alike=_standardised),
    "auc": Statistic(columns=_SCORES, of=lambda rows: auc(rows[:, 0], rows[:, 1]), alike=_ranked),
    "macro-spearman": Statistic(columns=(*_SCORES, "group"), of=_macro_spearman, alike=_ranked_by_group),
    "macro-f1": Statistic(columns=_LABELS, of=_macro_f1),
    "micro-f1": Statistic(columns=_LABELS, of=lambda rows: micro_f1(*_classes(rows))),
    "bleu": Statistic(columns=("bleu counts",), of=lambda rows: bleu_of_counts(rows.sum(axis=0))),
    "chrf": Statistic(columns=("chrf counts",), of=lambda rows: chrf_of_counts(rows.sum(axis=0))),
}
INPUTS = frozenset(column for statistic in _STATISTICS.values() for column in statistic.columns)
"""Per-item values that are no measures themselves."""


def statistic_of(measure: str, classes: Sequence[str] = ()) -> Statistic | None:
    """The statistic behind a measure; None for one that is the mean of its per-item values.

    Args:
        classes: names of the classes by number, which `relation-f1` needs.
    """
    if measure == "relation-f1":
        return Statistic(columns=_LABELS, of=lambda rows: relation_f1(*_classes(rows), classes))
    return _STATISTICS.get(measure)

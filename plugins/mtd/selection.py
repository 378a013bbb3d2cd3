"""Which unlabelled samples get which kind of label, and how relation extraction is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def consensus(teacher_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples on whose class all teachers agree, that class, and the other samples; indices in pool order.

    Args:
        teacher_logits: (M, N, C).
    """
    labels = teacher_logits.argmax(-1)
    agreed = (labels == labels[:1]).all(0)
    chosen = np.flatnonzero(agreed)
    return chosen, labels[0, chosen], np.flatnonzero(~agreed)


def most_confident(confidences: Sequence[float], count: int) -> np.ndarray:
    """(min(count, N),) places of the most confident samples, in pool order; of equal ones the earlier."""
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")[:count]
    return np.sort(order)


def micro_scores(gold: Sequence[int], predicted: Sequence[int], no_relation: int = 0) -> tuple[float, float, float]:
    """Precision, recall and F1 over all classes but `no_relation`. Nothing guessed: precision 1; nothing to find:
    recall 0."""
    pairs = list(zip(gold, predicted, strict=True))
    right = sum(one == other != no_relation for one, other in pairs)
    guessed = sum(other != no_relation for _, other in pairs)
    wanted = sum(one != no_relation for one, _ in pairs)
    precision = right / guessed if guessed else 1.0
    recall = right / wanted if wanted else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0

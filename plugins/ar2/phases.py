"""Whose turn it is, and how negatives near the positive are preferred (SimANS)."""

from __future__ import annotations

from itertools import groupby

import numpy as np


def phase_at(step: int, iteration_steps: int, ranker_steps: int) -> str:
    """`ranker` for the first `ranker_steps + 1` steps of each iteration, then `retriever`; as released."""
    return "ranker" if step % iteration_steps <= ranker_steps else "retriever"


def phase_runs(total_steps: int, iteration_steps: int, ranker_steps: int) -> list[tuple[str, int]]:
    """(phase, steps) in order: the stages that a plan holds."""
    phases = (phase_at(step, iteration_steps, ranker_steps) for step in range(total_steps))
    return [(phase, sum(1 for _ in steps)) for phase, steps in groupby(phases)]


def quadratic_weights(negatives: np.ndarray, positive: float, a: float = 0.5, b: float = 0.0) -> np.ndarray:
    """exp(-a * (s_negative - s_positive + b)^2) (arXiv:2210.11773). `negatives` (D,) scores."""
    weights: np.ndarray = np.exp(-a * (negatives - positive + b) ** 2)
    return weights


def laplace_weights(negatives: np.ndarray, positive: float, tau: float = 3.0) -> np.ndarray:
    """exp(-tau * |s_negative - s_positive|), the released form for MS MARCO passages. `negatives` (D,) scores."""
    weights: np.ndarray = np.exp(-tau * np.abs(negatives - positive))
    return weights


def probabilities(weights: np.ndarray) -> np.ndarray:
    """Weights as shares of one; equal shares where all weights are 0."""
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))

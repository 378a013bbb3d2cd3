"""How many optimizer steps a stage has, and its learning rate at each."""

from __future__ import annotations

import math


def stage_steps(num_pairs: int, batch_size: int, epochs: int, *, cross: bool) -> tuple[int, int]:
    """(total steps, warm-up steps). The cross-encoder sees each pair in both orders and warms up over a tenth."""
    rows = 2 * num_pairs if cross else num_pairs
    total = math.ceil(rows / batch_size) * epochs
    return total, math.ceil(0.1 * total) if cross else 0


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear from 0 to `peak` over the warm-up, then linearly to 0; `step` counts updates done."""
    if step < warmup:
        return peak * step / max(1, warmup)
    return peak * max(0.0, (total - step) / max(1, total - warmup))

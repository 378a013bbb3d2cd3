"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any


def as_number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def short(value: float) -> str:
    """Four significant digits or so: `0.5123`, `12.3`, `1,234`, `2e-05`."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.3g}"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.4f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 14 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float) -> str:
    """`950`, `22.7M`, `1.2B`: parameters, rows."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:,.0f}"


def p_value(value: float) -> str:
    """`0.032`, or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


HUNDREDS = ("spearman", "pearson", "macro-spearman", "auc", "bleu", "chrf")
"""Measures from 0 (or -100) to 100."""


def measure(name: str, value: float) -> str:
    """A value with the digits its measure is usually given with."""
    return f"{value:.2f}" if name.lower() in HUNDREDS else f"{value:.4f}"


def difference(name: str, value: float) -> str:
    """A difference of two values of a measure."""
    return f"{'+' if value >= 0 else ''}{measure(name, value)}"

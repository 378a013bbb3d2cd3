"""Measures, benchmarks, run files, significance; the `evaluate` stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdfw.evaluation.stage import Evaluate

if TYPE_CHECKING:
    from kdfw.components import Stage

STAGES: Mapping[str, type[Stage]] = {"evaluate": Evaluate}

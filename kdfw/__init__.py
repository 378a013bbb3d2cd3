"""kdfw: knowledge distillation from strong, slow models to small, fast ones.

One recipe drives the whole road: retrieve, score with teachers, train, refresh, evaluate, report.
Importing this package is cheap; torch and transformers are loaded by the parts that need them.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "run": "kdfw.engine.api",
    "plan": "kdfw.engine.api",
    "check": "kdfw.engine.api",
    "diagnose": "kdfw.engine.diagnose",
    "evaluate": "kdfw.evaluation.api",
    "sweep": "kdfw.engine.sweep",
    "hookimpl": "kdfw.hookspecs",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'kdfw' has no attribute {name!r}")

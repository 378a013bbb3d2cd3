"""DCD: hard negatives chosen by the teacher, and a balance of task and imitation by its certainty (image-text)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.dcd.loss import DynamicDistillation


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"dcd": DynamicDistillation}

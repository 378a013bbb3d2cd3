"""LEAD: the student learns from the teacher's layers, paired at random and weighted by their ranking (2212.05225)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.lead.loss import LayerDistillation, ResponseDistillation


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"lead-layers": LayerDistillation, "lead-response": ResponseDistillation}

"""E5: pairs with prefixes, a consistency filter, contrastive pre-training, then distillation (arXiv:2212.03533)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss, Schedule
from kdfw.hookspecs import hookimpl
from kdfw_plugins.e5.contrastive import FullContrastive
from kdfw_plugins.e5.temperature import WarmTemperature


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"e5-contrastive": FullContrastive}


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"e5-temperature": WarmTemperature}

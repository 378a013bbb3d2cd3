"""CTKD: a distillation temperature that trains against the student (arXiv:2211.16231)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss, Schedule
from kdfw.hookspecs import hookimpl
from kdfw_plugins.ctkd.loss import InstanceTemperatureKL
from kdfw_plugins.ctkd.temperature import GlobalTemperature, InstanceTemperature


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"ctkd": GlobalTemperature, "ctkd-instance": InstanceTemperature}


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"ctkd-instance-kl": InstanceTemperatureKL}

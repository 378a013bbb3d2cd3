"""CuDFKD: distillation without data, from a generator that trains beside the student, easy images first."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss, Schedule
from kdfw.hookspecs import hookimpl
from kdfw_plugins.cudfkd.schedules import AdversarialWeight
from kdfw_plugins.cudfkd.student import SelfPacedDistillation


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"cudfkd-student": SelfPacedDistillation}


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"cudfkd-adversarial-weight": AdversarialWeight}

"""What this plugin offers to kdfw: hook implementations only."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Augmenter, Loss, Schedule
from kdfw.hookspecs import hookimpl

from kdfw_focal.keep_negatives import KeepNegatives
from kdfw_focal.loss import FocalKL
from kdfw_focal.triangle import Triangle


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"focal-kl": FocalKL}


@hookimpl
def kdfw_augmenters() -> Mapping[str, type[Augmenter]]:
    return {"keep-negatives": KeepNegatives}


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"triangle": Triangle}

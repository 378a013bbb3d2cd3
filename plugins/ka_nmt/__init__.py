"""KA-NMT: teachers come one after another; each token is learned only from a teacher that knows better."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss, Schedule
from kdfw.hookspecs import hookimpl
from kdfw_plugins.ka_nmt.losses import Filtration, SmoothedCrossEntropy
from kdfw_plugins.ka_nmt.rate import WarmupInverseSquareRoot


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"ka-nmt-filtration": Filtration, "ka-nmt-cross-entropy": SmoothedCrossEntropy}


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"ka-nmt-rate": WarmupInverseSquareRoot}

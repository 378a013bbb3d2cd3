"""MTD: hard labels where several teachers agree, their distributions where they do not (relation extraction)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.mtd.losses import MeanTeacherKL


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"mtd-mean-teacher": MeanTeacherKL}

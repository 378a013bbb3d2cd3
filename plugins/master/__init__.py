"""MASTER: one encoder, five decoders with tasks of their own, one vector between them (arXiv:2212.07841)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.master.finetune import RankerDistillation


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"master-distil": RankerDistillation}

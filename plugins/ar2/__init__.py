"""AR2: retriever and ranker train against each other, in turns (arXiv:2110.03611)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.ar2.loss import RetrieverLoss


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"ar2-retriever": RetrieverLoss}

"""FGD: one encoding of a long document, distilled at several granularities (arXiv:2212.10423)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.fgd.loss import Granular


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"fgd": Granular}

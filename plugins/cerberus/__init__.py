"""CERBERUS: one body, several heads, and for each head a teacher of its own (answer sentence selection)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.cerberus.loss import HeadDistillation


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"cerberus": HeadDistillation}

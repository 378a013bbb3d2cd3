"""Trans-Encoder: bi-encoder and cross-encoder teach each other without labels (arXiv:2109.13059)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Method
from kdfw.hookspecs import hookimpl
from kdfw_plugins.trans_encoder.method import TransEncoder


@hookimpl
def kdfw_methods() -> Mapping[str, type[Method]]:
    return {"trans-encoder": TransEncoder}

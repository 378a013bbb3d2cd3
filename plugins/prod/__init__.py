"""PROD: stronger and stronger teachers, then less and less data, for one student (arXiv:2209.13335)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Method
from kdfw.hookspecs import hookimpl
from kdfw_plugins.prod.method import Prod


@hookimpl
def kdfw_methods() -> Mapping[str, type[Method]]:
    return {"prod": Prod}

"""PROD: stronger and stronger teachers, then less and less data, for one student (arXiv:2209.13335)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Stage
from kdfw.hookspecs import hookimpl
from kdfw_plugins.prod.stage import SelectQueries


@hookimpl
def kdfw_stages() -> Mapping[str, type[Stage]]:
    return {"prod-select": SelectQueries}

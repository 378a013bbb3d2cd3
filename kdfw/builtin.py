"""The engine's own components, offered through the same hooks as any plugin's."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Constant, Schedule
from kdfw.hookspecs import hookimpl


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"constant": Constant}

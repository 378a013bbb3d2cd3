"""CAPSTONE: pseudo-queries behind the passage, from dissimilar to similar ones as training goes on (2212.09114)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Schedule
from kdfw.hookspecs import hookimpl
from kdfw_plugins.capstone.curriculum import Part


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"capstone-part": Part}

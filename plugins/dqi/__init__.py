"""DQI: several views of each document, one for each pseudo-query put before it (arXiv:2208.04232)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Augmenter
from kdfw.hookspecs import hookimpl
from kdfw_plugins.dqi.augment import QueryPrefixed


@hookimpl
def kdfw_augmenters() -> Mapping[str, type[Augmenter]]:
    return {"dqi-query-prefix": QueryPrefixed}

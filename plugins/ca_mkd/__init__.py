"""CA-MKD: each teacher counts, item by item, as much as it agrees with the label (arXiv:2201.00007)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss, Weighting
from kdfw.hookspecs import hookimpl
from kdfw_plugins.ca_mkd.features import ConfidenceFeatures
from kdfw_plugins.ca_mkd.weights import ConfidenceWeighting


@hookimpl
def kdfw_weightings() -> Mapping[str, type[Weighting]]:
    return {"ca-mkd": ConfidenceWeighting}


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"ca-mkd-features": ConfidenceFeatures}

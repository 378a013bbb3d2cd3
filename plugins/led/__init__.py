"""LED: a lexicon-aware teacher puts the dense student's own candidates in order (arXiv:2208.13661)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl
from kdfw_plugins.led.losses import Ablation, RankerKL


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"led-ranker-kl": RankerKL, "led-ablation": Ablation}

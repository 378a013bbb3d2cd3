"""ADAM: dark examples made in token space, and distillation on the instances the teacher is sure of (2212.10192)."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Augmenter, Loss, Weighting
from kdfw.hookspecs import hookimpl
from kdfw_plugins.adam.examples import DarkExamples
from kdfw_plugins.adam.loss import DarkDistillation
from kdfw_plugins.adam.selection import SelfPaced


@hookimpl
def kdfw_augmenters() -> Mapping[str, type[Augmenter]]:
    return {"adam-dark-examples": DarkExamples}


@hookimpl
def kdfw_weightings() -> Mapping[str, type[Weighting]]:
    return {"self-paced": SelfPaced}


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"adam": DarkDistillation}

"""Every hook of kdfw and its contract. Read this file first.

A plugin is a module (or any object) registered under the entry-point group `kdfw`. It answers the hooks below with
the components it offers, as a mapping from the name used in recipes to the class:

    from kdfw.hookspecs import hookimpl

    @hookimpl
    def kdfw_losses():
        return {"my-loss": MyLoss}

All hooks are called once, when plugins are loaded, on every process; the answers of all plugins are merged. A name that
two plugins offer for one kind is refused, naming both. Answers are classes, not objects: kdfw builds an object for
each use in a recipe, from the options in the recipe, checked against the class's keyword-only constructor
(types, ranges, unknown keys) before anything loads. Names are lower-case words joined by hyphens.

The base classes, with what each must implement, are in `kdfw/components.py`; what they exchange is in `kdfw/types.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdfw.components import (
        Augmenter,
        Dataset,
        Loss,
        Method,
        Model,
        Retriever,
        Sampler,
        Schedule,
        Stage,
        Teacher,
        Weighting,
    )

PROJECT = "kdfw"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def kdfw_students() -> Mapping[str, type[Model]]:
    """Trainable model types: how texts or images become `Signals`.

    Any of them can also be a teacher (frozen, or trained beside the student). Used under `models:` in recipes.
    """
    raise NotImplementedError


@hookspec
def kdfw_teachers() -> Mapping[str, type[Teacher]]:
    """Sources of teacher signals that are not trainable models: score files, ensembles, LLM rerankers.

    Share one namespace with students, because a recipe names both under `models:`.
    """
    raise NotImplementedError


@hookspec
def kdfw_samplers() -> Mapping[str, type[Sampler]]:
    """What training sees: which items, with which candidates, in each epoch.

    A draw may depend only on (seed, epoch, item), never on the process, the number of processes or earlier draws.
    """
    raise NotImplementedError


@hookspec
def kdfw_augmenters() -> Mapping[str, type[Augmenter]]:
    """Changes to drawn examples before batching: made-up candidates, rewritten passages, corrupted copies.

    Applied in the order of the recipe, to every example, with a random generator seeded by (seed, epoch, item).
    """
    raise NotImplementedError


@hookspec
def kdfw_losses() -> Mapping[str, type[Loss]]:
    """Loss terms over `Signals`. A stage's losses are weighted and added."""
    raise NotImplementedError


@hookspec
def kdfw_weightings() -> Mapping[str, type[Weighting]]:
    """Weights of teachers and items inside a distillation loss: by confidence, by curriculum, by agreement."""
    raise NotImplementedError


@hookspec
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    """Numbers that change in training: weights, temperatures, learning rates, thresholds.

    A pure function of the `Clock`; a learnable one (a trained temperature) may also read signals.
    """
    raise NotImplementedError


@hookspec
def kdfw_datasets() -> Mapping[str, type[Dataset]]:
    """Data in the layouts people have, and the task it belongs to. Used under `data:` in recipes."""
    raise NotImplementedError


@hookspec
def kdfw_retrievers() -> Mapping[str, type[Retriever]]:
    """First-stage search over a corpus: lexical, dense, sparse, late interaction."""
    raise NotImplementedError


@hookspec
def kdfw_stages() -> Mapping[str, type[Stage]]:
    """Stage kinds: a stage reads artifacts and writes one artifact."""
    raise NotImplementedError


@hookspec
def kdfw_methods() -> Mapping[str, type[Method]]:
    """Published methods that expand into plain stages, written in the language of recipes.

    Called while a recipe is planned, before anything loads; `kdfw plan` prints the result, so nothing is hidden.
    """
    raise NotImplementedError

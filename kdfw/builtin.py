"""The engine's own components, offered through the same hooks as any plugin's."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import (
    Augmenter,
    Constant,
    Dataset,
    Loss,
    Model,
    Retriever,
    Sampler,
    Schedule,
    Stage,
    Teacher,
    Weighting,
)
from kdfw.data.datasets import DATASETS
from kdfw.engine.select import Select
from kdfw.engine.train_stage import Train
from kdfw.evaluation.benchmark_data import BenchmarkData
from kdfw.evaluation.stage import STAGES as EVALUATION_STAGES
from kdfw.hookspecs import hookimpl
from kdfw.losses import LOSSES, WEIGHTINGS
from kdfw.models import STUDENTS
from kdfw.retrieval import RETRIEVERS
from kdfw.retrieval import STAGES as RETRIEVAL_STAGES
from kdfw.samplers import AUGMENTERS, SAMPLERS
from kdfw.schedules import SCHEDULES
from kdfw.teachers import STAGES as TEACHER_STAGES
from kdfw.teachers import TEACHERS


@hookimpl
def kdfw_students() -> Mapping[str, type[Model]]:
    return STUDENTS


@hookimpl
def kdfw_teachers() -> Mapping[str, type[Teacher]]:
    return TEACHERS


@hookimpl
def kdfw_samplers() -> Mapping[str, type[Sampler]]:
    return SAMPLERS


@hookimpl
def kdfw_augmenters() -> Mapping[str, type[Augmenter]]:
    return AUGMENTERS


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return LOSSES


@hookimpl
def kdfw_weightings() -> Mapping[str, type[Weighting]]:
    return WEIGHTINGS


@hookimpl
def kdfw_schedules() -> Mapping[str, type[Schedule]]:
    return {"constant": Constant, **SCHEDULES}


@hookimpl
def kdfw_datasets() -> Mapping[str, type[Dataset]]:
    return {**DATASETS, "benchmark": BenchmarkData}


@hookimpl
def kdfw_retrievers() -> Mapping[str, type[Retriever]]:
    return RETRIEVERS


@hookimpl
def kdfw_stages() -> Mapping[str, type[Stage]]:
    return {"train": Train, "select": Select, **RETRIEVAL_STAGES, **TEACHER_STAGES, **EVALUATION_STAGES}

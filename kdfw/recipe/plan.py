"""From a checked recipe to a plan: references resolved, combinations checked, every stage with its fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch

from kdfw.amounts import Sizes, Workload
from kdfw.components import Dataset, Model, Retriever, Stage, Teacher
from kdfw.errors import ConfigError, KdfwError, Problem, one_of
from kdfw.fingerprint import fingerprint
from kdfw.models.precision import resolve
from kdfw.options import Reference, Spec, iterate_specs, options_of
from kdfw.plugins import registry
from kdfw.recipe.recipe import Recipe, StageEntry
from kdfw.recipe.source import RecipePath
from kdfw.recipe.view import Kept, PlanView, counted_lists

ENGINE_VERSION = 2
"""Part of every fingerprint: raised when the engine itself computes something differently."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a reference points to."""

    kind: str
    """`model`, `stage`, `data`, or `retriever` (a type with its usual options)."""
    name: str
    """A model's or data set's name, or the unique name of an earlier stage."""
    part: str = ""
    """After a dot: one of several models that a stage trained, or a ranking that came with a data set."""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage ready to run."""

    number: int
    entry: StageEntry
    stage: Stage
    targets: Mapping[str, Target]
    """By the reference as written in the recipe."""
    data: str
    """Name of the data set the stage works on."""
    fingerprint: str
    inputs: tuple[str, ...]
    """Unique names of the earlier stages it reads."""
    work: Workload
    """How much there is to do; empty when the plan was not asked to estimate."""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def kind(self) -> str:
        return self.entry.spec.name

    @property
    def folder(self) -> str:
        """`03-distill`, the name in the run folder."""
        return f"{self.number:02d}-{self.entry.folder}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages in order, with everything they refer to."""

    recipe: Recipe
    precision: str
    """Arithmetic of encoding and scoring, resolved for this machine."""
    stages: tuple[PlannedStage, ...]
    datasets: Mapping[str, Dataset]
    models: Mapping[str, Model | Teacher]
    """Built from options only; nothing is loaded."""
    data_fingerprints: Mapping[str, str]
    model_fingerprints: Mapping[str, str]

    def stage(self, name: str) -> PlannedStage:
        """By unique name."""
        return next(stage for stage in self.stages if stage.name == name)

    def start_of(self, target: Target) -> str:
        """Name under `models:` of the model a target starts from, through any number of training stages."""
        while target.kind == "stage":
            planned = self.stage(target.name)
            trained: Mapping[str, str] = planned.stage.trained_models()  # type: ignore[attr-defined]
            target = planned.targets[trained[target.part] if target.part else next(iter(trained.values()))]
        return target.name


class _Planner:
    def __init__(self, recipe: Recipe, kept: Kept | None) -> None:
        self.recipe = recipe
        self.kept = kept
        self.problems: list[Problem] = list(recipe.problems)
        self.precision = resolve(recipe.precision, "cuda" if torch.cuda.is_available() else "cpu")
        self.datasets: dict[str, Dataset] = {}
        self.models: dict[str, Model | Teacher] = {}
        self.data_fingerprints: dict[str, str] = {}
        self.model_fingerprints: dict[str, str] = {}
        self.members: dict[str, list[str]] = {}
        """Models that each model is made of, by name."""
        self.built: dict[str, Stage] = {}
        self.entries: dict[str, StageEntry] = {}
        self.latest: dict[str, str] = {}
        self.fingerprints: dict[str, str] = {}
        self.stage_targets: dict[str, Mapping[str, Target]] = {}
        self.works: dict[str, Workload] = {}
        self.missing: set[tuple[RecipePath, str]] = set()
        """Places and names of references that have been reported."""
        self._sizes: dict[str, Sizes] = {}

    def plan(self) -> Plan:
        self._build_data_and_models()
        stages = []
        for number, entry in enumerate(self.recipe.stages, start=1):
            planned = self._plan_stage(number, entry)
            if planned is not None:
                stages.append(planned)
            self.entries[entry.name] = entry
            self.latest[entry.base] = entry.name
        if self.problems:
            # what several stages have of one place is one fault
            raise ConfigError(
                list({(problem.where, problem.found): problem for problem in self.problems[::-1]}.values())[::-1]
            )
        return Plan(
            recipe=self.recipe,
            precision=self.precision,
            stages=tuple(stages),
            datasets=self.datasets,
            models=self.models,
            data_fingerprints=self.data_fingerprints,
            model_fingerprints=self.model_fingerprints,
        )

    def _fault(self, path: RecipePath, found: str) -> None:
        """A fault of a component that its own constructor found."""
        self.problems.append(Problem(where=self.recipe.source.where_set(path), found=found))

    def _build_data_and_models(self) -> None:
        for name, spec in self.recipe.data.items():
            self.data_fingerprints[name] = ""
            dataset: Dataset | None = spec.build_parts(self._fault).get(spec.path)
            if dataset is None:
                continue
            self.datasets[name] = dataset
            try:
                self.data_fingerprints[name] = fingerprint([spec.canonical(), dataset.fingerprint()])
            except KdfwError as error:
                self._fault(spec.path, str(error))
        for name, spec in self.recipe.models.items():
            model: Model | Teacher | None = spec.build_parts(self._fault).get(spec.path)
            if model is not None:
                self.models[name] = model
        for name in self.models:
            targets = self._resolve(self.recipe.models[name].references, also_models=True)
            self.members[name] = [target.name for target in targets.values() if target.name in self.models]
        for name in list(self.models):
            self._check_members(name)
        for name in self.models:
            self._fingerprint_model(name)

    def _check_members(self, name: str) -> None:
        """What a teacher made of others cannot be made of: itself, and what only stands for another model."""
        where = self.recipe.source.where
        path = self.recipe.models[name].path
        if name in self._inside(name):
            fix = "name other models"
            self.problems.append(Problem(where=where(path), found=f"{name!r} is made of itself", fix=fix))
        for reference in self.recipe.models[name].references:
            if getattr(self.models.get(reference.name), "copies_student", False):
                found = f"{reference.name!r} stands for the student of a training stage, and has no scores here"
                fix = "name it among the stage's teachers itself"
                self.problems.append(Problem(where=where(reference.path), found=found, fix=fix))

    def _inside(self, name: str) -> set[str]:
        """Names of the models that one is made of, through any number of others."""
        found: set[str] = set()
        open_ = list(self.members.get(name, ()))
        while open_:
            member = open_.pop()
            if member not in found:
                found.add(member)
                open_ += self.members.get(member, ())
        return found

    def scores_made_texts(self, part: Model | Teacher) -> bool:
        """Whether a model or teacher, with all it is made of, can score texts made on the fly."""
        name = next((name for name, model in self.models.items() if model is part), "")
        parts = [part, *(self.models[member] for member in self._inside(name))]
        return all(not isinstance(each, Teacher) or each.made_texts for each in parts)

    def _fingerprint_model(self, name: str) -> str:
        if name in self.model_fingerprints:
            return self.model_fingerprints[name]
        self.model_fingerprints[name] = ""  # of itself, where it is made of itself
        spec, model = self.recipe.models[name], self.models[name]
        try:
            own = model.base_fingerprint() if isinstance(model, Model) else model.fingerprint()
            if isinstance(model, Model):
                self.problems.extend(model.check_base(partial(self._where_in, spec)))
        except KdfwError as error:
            self._fault(spec.path, str(error))
            own = ""
        inner = [self._fingerprint_model(member) for member in self.members[name]]
        self.model_fingerprints[name] = fingerprint([ENGINE_VERSION, spec.canonical(), own, inner])
        return self.model_fingerprints[name]

    def _where_in(self, spec: Spec, option: str) -> str:
        return self.recipe.source.where((*spec.path, option))

    def _plan_stage(self, number: int, entry: StageEntry) -> PlannedStage | None:
        targets = self._resolve(entry.spec.references)
        self.stage_targets[entry.name] = targets
        parts = entry.spec.build_parts(self._fault)
        stage: Stage | None = parts.get(entry.spec.path)
        if stage is None:
            return None
        self.built[entry.name] = stage
        data = self._data_of(stage, targets)
        if data not in self.datasets:
            return None
        view = PlanView(self, entry, targets, data)
        for path, part in parts.items():
            self.problems.extend(view.as_far_as_known(part.check(view.at(path))))
        missing = len(targets) < len({reference.name for reference in entry.spec.references})
        if missing or any(target.kind == "faulty" for target in targets.values()):
            return None
        inputs = [target.name for target in targets.values() if target.kind == "stage"]
        value = fingerprint(
            [
                ENGINE_VERSION,
                entry.spec.canonical(lambda reference: self._identity(targets[reference.name])),
                self.data_fingerprints[data],
                self.recipe.seed if stage.seeded else None,
                self.precision,
                self._library_parts(entry.spec),
            ]
        )
        self.fingerprints[entry.name] = value
        self.works[entry.name] = self._estimate(stage, view, entry.spec.name, value)
        return PlannedStage(
            number=number,
            entry=entry,
            stage=stage,
            targets=targets,
            data=data,
            fingerprint=value,
            inputs=tuple(dict.fromkeys(inputs)),
            work=self.works[entry.name],
        )

    def _estimate(self, stage: Stage, view: PlanView, kind: str, fingerprint: str) -> Workload:
        """The stage's own estimate; what an artifact that is there holds is counted."""
        if self.problems or self.kept is None:
            return Workload()
        work = stage.estimate(view)
        folder = self.kept.find(kind, fingerprint)
        if folder is None or not {"candidates", "scores"} & stage.produces:
            return work
        counted = counted_lists(folder)
        return replace(work, amounts={name: counted.get(name, amount) for name, amount in work.amounts.items()})

    def sizes_of(self, name: str) -> Sizes:
        """How much a data set holds."""
        assert self.kept is not None
        if name not in self._sizes:
            self._sizes[name] = self.datasets[name].sizes(self.kept.cache)
        return self._sizes[name]

    def _data_of(self, stage: Stage, targets: Mapping[str, Target]) -> str:
        named = getattr(stage, "data", None)
        if isinstance(named, str) and named in targets:
            return targets[named].name
        return next(iter(self.recipe.data), "data")

    def _library_parts(self, spec: Spec) -> list[Any]:
        """What results depend on beside options: library versions, the bytes of a given run."""
        parts = []
        for nested in iterate_specs(spec):
            if nested.kind != "retriever":
                continue
            try:
                parts.append(dict(nested.build().fingerprint_parts()))
            except KdfwError as error:
                self._fault(nested.path, str(error))
        return parts

    def _identity(self, target: Target) -> list[str]:
        if target.kind == "stage":
            return [self.fingerprints.get(target.name, ""), target.part]
        if target.kind == "data":
            return [self.data_fingerprints.get(target.name, ""), target.part]
        retriever = _plain_retriever(target.name) if target.kind == "retriever" else None
        if retriever is not None:
            return [target.name, fingerprint([retriever.version, dict(retriever().fingerprint_parts())])]
        return [self.model_fingerprints.get(target.name, ""), target.part]

    def model_behind(self, target: Target) -> Model | Teacher | None:
        """The model a target starts from, through any number of training stages."""
        seen = set()
        while target.kind == "stage" and target.name not in seen:
            seen.add(target.name)
            stage = self.built.get(target.name)
            trained: Mapping[str, str] = getattr(stage, "trained_models", lambda: {})()
            source = trained.get(target.part) if target.part else next(iter(trained.values()), None)
            if source is None:
                return None
            further = self.stage_targets[target.name].get(source)
            if further is None:
                return None  # that reference is a fault of the stage, and has been reported there
            target = further
        return self.models.get(target.name) if target.kind == "model" else None

    def _resolve(self, references: Iterable[Reference], also_models: bool = False) -> dict[str, Target]:
        found: dict[str, Target] = {}
        for reference in references:
            alternatives = [part.strip() for part in reference.name.split("|")]
            unknown = [name for name in alternatives if len(alternatives) > 1 and not self._exists(name)]
            where = self.recipe.source.where(reference.path)
            for name in unknown:
                fix = one_of(name.split(".")[0], self._all_names())
                self.problems.append(Problem(where=where, found=f"nothing is called {name!r}", fix=fix))
            targets = (self._lookup(name, reference.ref.to) for name in alternatives)
            target = next((target for target in targets if target is not None), None)
            if target is not None:
                found[reference.name] = target
                continue
            place = self.recipe.source.written(reference.path)[0]  # one for all the stages of a method
            if not unknown and (place, reference.name) not in self.missing:
                self.missing.add((place, reference.name))
                self.problems.append(self._missing(reference))
        return found

    def _all_names(self) -> set[str]:
        """What the recipe gives a name, at any point of the plan."""
        stages = {name for entry in self.recipe.stages for name in (entry.base, entry.name)}
        return stages | set(self.recipe.models) | set(self.recipe.data) | self.recipe.faulty

    def _exists(self, name: str) -> bool:
        return name.split(".")[0] in self._all_names() or _plain_retriever(name) is not None

    def _lookup(self, name: str, to: str) -> Target | None:
        base, _, part = name.partition(".")
        if base in self.recipe.faulty:
            return Target(kind="faulty", name=base)
        unique = base if base in self.entries else self.latest.get(base, "")
        if unique:
            stage = self.built.get(unique)
            if stage is None:
                return Target(kind="faulty", name=unique)  # it has a fault of its own
            offers = {
                "model": "model" in stage.produces,
                "teacher": bool({"model", "scores"} & stage.produces),
                "candidates": bool({"candidates", "scores"} & stage.produces),
                "scores": "scores" in stage.produces,
                "data": "data" in stage.produces,
                "stage": True,
                "system": bool({"model", "scores"} & stage.produces),
            }
            trained: Mapping[str, str] = getattr(stage, "trained_models", lambda: {})()
            if offers[to] and (not part or part in trained):
                target = Target(kind="stage", name=unique, part=part)
                # what it starts from has a fault of its own
                lost = "model" in stage.produces and trained and self.model_behind(target) is None
                return Target(kind="faulty", name=unique) if lost else target
        if to in ("model", "teacher", "system") and base in self.recipe.models and not part:
            built = self.models.get(base)
            if built is None or to != "model" or isinstance(built, Model):
                return Target(kind="model", name=base)
        if to == "system" and _plain_retriever(name) is not None:
            return Target(kind="retriever", name=name)
        if to == "data" and base in self.recipe.data:
            return Target(kind="data", name=base)
        if to == "candidates" and base in self.recipe.data and part:
            return Target(kind="data", name=base, part=part)
        return None

    def _missing(self, reference: Reference) -> Problem:
        to = reference.ref.to
        known = [base for base in self.latest if self._lookup(base, to)]
        others = [*self.recipe.models, *self.recipe.data, *registry().names("retriever")]
        known += [name for name in others if self._lookup(name, to)]
        names = [part.strip() for part in reference.name.split("|")]
        later = {entry.base for entry in self.recipe.stages} - set(self.latest)
        what = {"teacher": "model, teacher or score stage", "candidates": "stage with candidates"}.get(to, to)
        fix = one_of(names[0].split(".")[0], known)
        if any(name.split(".")[0] in later for name in names):
            fix = f"the stage of that name comes later; move it up, or write `{names[0]} | NAME` for a first cycle"
        return Problem(
            where=self.recipe.source.where(reference.path), found=f"no {what} {reference.name!r} at this point", fix=fix
        )


def _plain_retriever(name: str) -> type[Retriever] | None:
    """The retriever type of that name, when it needs no options."""
    known = registry()
    if name not in known.names("retriever"):
        return None
    cls = cast("type[Retriever]", known.get("retriever", name))
    return None if any(option.required for option in options_of(cls).values()) else cls


def make_plan(recipe: Recipe, kept: Kept | None = None) -> Plan:
    """Resolve and check. Raises ConfigError with every fault; loads no model and reads no data but file hashes.

    Args:
        kept: where earlier runs have left results; with it the plan says how much work each stage is.
    """
    return _Planner(recipe, kept).plan()

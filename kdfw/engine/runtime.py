"""What a run holds while its stages run: data, models, processes, device; and the context each stage sees."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdfw.components import Model, Teacher
from kdfw.context import Progress, Workers
from kdfw.data.ranking import Ranking
from kdfw.engine.artifacts import ArtifactStore
from kdfw.engine.progress import progress
from kdfw.errors import ArtifactError, ConfigError, DataError
from kdfw.tracking import Trackers

if TYPE_CHECKING:
    from kdfw.data.sets import Data
    from kdfw.recipe.plan import Plan, PlannedStage, Target

log = logging.getLogger("kdfw")


@dataclass(kw_only=True)
class Runtime:
    """One run on this process."""

    plan: Plan
    store: ArtifactStore
    workers: Workers
    device: torch.device
    precision: str
    out: Path
    """The run folder; only trackers write there while stages run."""
    offline: bool = False
    trust_remote_code: bool = False
    """Only the command line can set it: a recipe can not make model code run."""
    artifacts: dict[str, Path] = field(default_factory=dict)
    """Committed folders by unique stage name."""
    _data: dict[str, Data] = field(default_factory=dict)

    def data(self, name: str) -> Data:
        """A data set, ingested on first use."""
        if name not in self._data:
            dataset = self.plan.datasets[name]
            data, own = dataset.open(self.store.shared), self.fitting_data(name)
            self._data[name] = data if own == name else dataset.fitted(data, self.data(own))
        return self._data[name]

    def skipped_lines(self, name: str) -> list[dict[str, Any]]:
        """What was left out of a data set under `on_error: skip`, by file, as plain values."""
        found = self.plan.datasets[name].skipped(self.store.shared)
        return [{"file": str(each.file), "count": each.count, "first": each.listed()} for each in found]

    def fitting_data(self, name: str) -> str:
        """The data set that models are made for in a stage on a data set: itself, or for a test set the recipe's own
        of the same task."""
        dataset = self.plan.datasets[name]
        others = (other for other, each in self.plan.datasets.items() if each.trains and each.task == dataset.task)
        return name if dataset.trains else next(others, name)

    def model_spec(self, target: Target) -> Any:
        """The spec of the model a target starts from."""
        return self.plan.recipe.models[self.plan.start_of(target)]

    def weights(self, target: Target) -> Path | None:
        """The folder with a trained model's weights; None for a model as it comes."""
        if target.kind != "stage":
            return None
        folder = self.artifacts[target.name]
        return folder / "models" / target.part if target.part else folder / "model"

    def load_model(self, target: Target, data: str, seed: int) -> Model:
        """Build and load a model, on the device, in eval mode; what it has no weights for is drawn by `seed`."""
        model = self.model_spec(target).build()
        if not isinstance(model, Model):
            raise ConfigError(f"{target.name!r} is a teacher without a model of its own")
        weights = self.weights(target)
        model.allow_remote_code = self.trust_remote_code
        fitted = self.data(self.fitting_data(data))
        model.fit_data(fitted)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)  # new heads and nets without a base draw their weights
            model.load(weights)
        own, classes = list(getattr(model, "classes", ())), list(getattr(fitted, "classes", ()))
        if own and classes and own != classes:
            raise ConfigError(
                f"{target.name!r} has the classes {own[:9]}, the data {data!r} {classes[:9]}; give the data the same "
                "`classes`, in the same order"
            )
        model.token_cache = self.store.shared / "tokens"
        return model.to(self.device).eval()

    def fingerprint(self, target: Target) -> str:
        """What a model comes from."""
        if target.kind == "stage":
            return f"{self.plan.stage(target.name).fingerprint}{'.' + target.part if target.part else ''}"
        return self.plan.model_fingerprints[target.name]


class Context:
    """The `StageContext` of one running stage."""

    def __init__(self, runtime: Runtime, planned: PlannedStage, folder: Path) -> None:
        self.runtime = runtime
        self.planned = planned
        self.folder = folder
        self.cache = runtime.store.shared
        self.seed = (runtime.plan.recipe.seed + planned.stage.seed_offset) % 2**32
        self.workers = runtime.workers
        self.device = runtime.device
        self.precision = runtime.precision
        self.offline = runtime.offline
        self.log = log
        self.summary_values: dict[str, Any] = {}
        self._models: dict[str, Model | Teacher] = {}

    def target(self, name: str) -> Target:
        """What a reference of this stage points to."""
        try:
            return self.planned.targets[name]
        except KeyError:
            raise ConfigError(f"stage {self.planned.name!r} has no reference {name!r}") from None

    def data(self, name: str | None = None) -> Data:
        return self.runtime.data(self.planned.data if name is None else self.target(name).name)

    def model(self, name: str) -> Model:
        if name not in self._models:
            self._models[name] = self.runtime.load_model(self.target(name), self.planned.data, self.seed)
        model = self._models[name]
        if not isinstance(model, Model):
            raise ConfigError(f"{name!r} is a source of scores, not a model")
        return model

    def model_fingerprint(self, name: str) -> str:
        return self.runtime.fingerprint(self.target(name))

    def teacher(self, name: str) -> Model | Teacher:
        target = self.target(name)
        if target.kind == "model" and self.runtime.plan.recipe.models[target.name].kind == "teacher":
            if name not in self._models:
                teacher: Teacher = self.runtime.plan.recipe.models[target.name].build()
                teacher.load(_ModelContext(self, target.name))
                self._models[name] = teacher
            return self._models[name]
        return self.model(name)

    def scorer(self, name: str) -> Model | Teacher:
        written = self.runtime.plan.stage(self.target(name).name)
        teacher: str = getattr(written.stage, "teacher")  # noqa: B009
        return Context(self.runtime, written, self.folder).teacher(teacher)  # a name means what it means there

    def is_model(self, name: str) -> bool:
        """Whether a reference names a model, or a stage that trains one."""
        target = self.target(name)
        if target.kind == "stage":
            return "model" in self.runtime.plan.stage(target.name).stage.produces
        return target.kind == "model" and self.runtime.plan.recipe.models[target.name].kind == "student"

    def holds_scores(self, name: str) -> bool:
        """Whether a teacher reference names a stage with stored scores."""
        target = self.target(name)
        return target.kind == "stage" and "scores" in self.runtime.plan.stage(target.name).stage.produces

    def candidates(self, name: str) -> Ranking:
        target = self.target(name)
        if target.kind == "data":
            data = self.runtime.data(target.name)
            rankings: Mapping[str, Ranking] = getattr(data, "rankings", {})
            if target.part not in rankings:
                raise DataError(f"data {target.name!r} has no candidates {target.part!r}; it has: {sorted(rankings)}")
            return rankings[target.part]
        return Ranking.load(self.artifact(name))

    def scores(self, name: str) -> Ranking:
        return Ranking.load(self.artifact(name))

    def artifact(self, name: str) -> Path:
        target = self.target(name)
        if target.kind != "stage":
            raise ConfigError(f"{name!r} is not a stage")
        return self.runtime.artifacts[target.name]

    def progress(self, total: int, title: str, unit: str = "it", start: int = 0) -> Progress:
        return progress(total, f"{self.planned.folder} {title}", unit, main=self.workers.main, start=start)

    def trackers(self, config: Mapping[str, Any]) -> Trackers:
        """The recipe's trackers for this stage; none on processes other than the main one."""
        recipe = self.runtime.plan.recipe
        names = recipe.trackers if self.workers.main else ()
        folder = self.runtime.out / "trackers" / self.planned.folder
        return Trackers(names, recipe.name, self.planned.entry.folder, folder, config)

    def record(self, **values: Any) -> None:
        if self.workers.main:
            append_line(self.folder / "metrics.jsonl", values)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.summary_values |= dict(values)

    def release(self) -> None:
        """Forget loaded models, so that the next stage has the memory."""
        self._models.clear()


class _ModelContext(Context):
    """The context given to a teacher's `load`: its references are those of its own spec under `models:`."""

    def __init__(self, context: Context, model: str) -> None:
        self.__dict__.update(context.__dict__)
        self._model_name = model
        self._models = {}

    def target(self, name: str) -> Target:
        from kdfw.recipe.plan import Target

        if name in self.runtime.plan.models:
            return Target(kind="model", name=name)
        raise ConfigError(f"model {self._model_name!r} refers to {name!r}, which is not under `models:`")


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line."""
    line = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error

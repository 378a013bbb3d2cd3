"""From a YAML source to a typed recipe: every fault found at once, before anything loads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdfw.components import Dataset, Method, Stage
from kdfw.errors import KdfwError, Problem, did_you_mean, one_of
from kdfw.models.precision import PRECISIONS
from kdfw.options import Registry, Spec, check
from kdfw.recipe import simple
from kdfw.recipe.source import Place, RecipePath, Source, load, override
from kdfw.tracking import TRACKERS
from kdfw.types import TASKS

FORMAT = 1
"""Version of the recipe language: the value of the key `kdfw`."""

TOP_KEYS = {
    "kdfw": "version of the recipe language; 1",
    "name": "name of the run; names the run folder",
    "description": "a line for people",
    "license": "licence of the trained models, for their model cards",
    "seed": "seed of everything random; default 13",
    "precision": "arithmetic of encoding and scoring: auto (bf16 where the hardware has it), fp32, fp32-strict, bf16",
    "trackers": "where training is shown beside the log: tensorboard, wandb, mlflow, trackio",
    "data": "a data set {type: ...}, or several by name",
    "models": "models and teachers by name",
    "stages": "the stages, in order",
    "method": "a published method that expands into stages",
    "train": "defaults for the `train` settings of every training stage; from the command line, instead of theirs",
    "student": "short form: the model to train",
    "teacher": "short form: the model or teacher to learn from",
    "teachers": "short form: several teachers",
    "loss": "short form: one loss",
    "losses": "short form: several losses",
    "sampler": "short form: what training sees",
    "candidates": "short form: how candidates are mined, {retriever: bm25, depth: 100}",
    "evaluate": "short form: options of the closing evaluation",
}
MAX_CYCLES = 1000
MAX_STAGES = 10_000
"""Of a recipe once its blocks are repeated; planning takes milliseconds for each."""


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """One stage of the flat list, after methods, short forms and repeats have been expanded."""

    name: str
    """Unique: `distill`, or `distill#2` in the second cycle of a repeated block."""
    base: str
    """The name as written."""
    cycle: int
    """1-based; 0 outside repeated blocks."""
    spec: Spec
    path: RecipePath

    @property
    def folder(self) -> str:
        """The name as part of a path."""
        return self.name.replace("#", "-")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe."""

    name: str
    seed: int
    precision: str
    trackers: tuple[str, ...]
    data: Mapping[str, Spec]
    models: Mapping[str, Spec]
    stages: Sequence[StageEntry]
    source: Source
    resolved: Mapping[str, Any]
    """The recipe in full form (short forms, methods and overrides expanded): what the run folder keeps."""
    problems: Sequence[Problem] = ()
    """Faults found so far; the planner adds its own and reports them all together."""
    faulty: frozenset[str] = frozenset()
    """Names of models, data sets and stages that have a fault: a reference to one is not a second fault."""


def read(path: Path, registry: Registry, assignments: Sequence[str] = ()) -> Recipe:
    """Load and check a recipe file; faults are in `Recipe.problems`, except for a file that is no YAML mapping."""
    return build(override(load(path), assignments), registry)


def build(source: Source, registry: Registry) -> Recipe:
    """Check a source; faults are in `Recipe.problems`."""
    problems: list[Problem] = []
    source = replace(source, places={})
    raw = source.value
    for key in raw:
        if key not in TOP_KEYS:
            fix = f"{did_you_mean(key, TOP_KEYS)} known keys: {', '.join(TOP_KEYS)}".strip()
            problems.append(Problem(where=source.where((key,)), found=f"unknown key {key!r}", fix=fix))
    if raw.get("kdfw", FORMAT) != FORMAT:
        fix = f"this version of kdfw reads recipes of version {FORMAT}"
        problems.append(Problem(where=source.where(("kdfw",)), found=f"found {raw['kdfw']!r}", fix=fix))
    name = raw.get("name", Path(source.file).stem)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        fix = "letters, digits, '.', '_' and '-'; it names the run folder"
        problems.append(Problem(where=source.where(("name",)), found=f"found {name!r}", fix=fix))
        name = "run"
    seed = raw.get("seed", 13)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        problems.append(
            Problem(where=source.where(("seed",)), found=f"found {seed!r}", fix="a whole number from 0 to 2**32 - 1")
        )
        seed = 13
    precision = raw.get("precision", "auto")
    if precision not in PRECISIONS:
        fix = one_of(str(precision), PRECISIONS)
        problems.append(Problem(where=source.where(("precision",)), found=f"found {precision!r}", fix=fix))
        precision = "auto"
    license = raw.get("license", "")
    if not isinstance(license, str):
        problems.append(Problem(where=source.where(("license",)), found=f"found {license!r}", fix="a name, as `mit`"))
    trackers = raw.get("trackers") or []
    trackers = [trackers] if isinstance(trackers, str) else trackers
    if not isinstance(trackers, list) or any(name not in TRACKERS for name in trackers):
        fix = f"a list of: {', '.join(TRACKERS)}"
        problems.append(Problem(where=source.where(("trackers",)), found=f"found {trackers!r}", fix=fix))
        trackers = []
    data = _data(raw.get("data"), source, registry, problems)
    task = _task(data)
    if raw.get("train") is not None and not isinstance(raw["train"], Mapping):
        fix = "write settings by name, as {lr: 1e-5}"
        problems.append(Problem(where=source.where(("train",)), found=f"found {raw['train']!r}", fix=fix))
    full = dict(raw)
    places: list[RecipePath] | None = None
    asked = _Asked({key: value for key, value in raw.items() if key != "method"})
    if raw.get("method") is not None:
        if raw.get("stages") is not None:
            fix = "name the method among the stages: `- method: ...`"
            problems.append(Problem(where=source.where(("stages",)), found="both `method` and `stages`", fix=fix))
        full["stages"] = _method_stages(asked, raw["method"], ("method",), source, registry, problems)
        places = [("method", index) for index in range(len(full["stages"] or ()))]
    elif raw.get("stages") is not None:
        if isinstance(raw["stages"], list):
            full["stages"], places = _with_methods(raw["stages"], asked, source, registry, problems)
    else:
        full, written, notes = simple.expand(raw, task)
        source.places.update(written)
        problems.extend(Problem(where=source.where(note.path), found=note.found, fix=note.fix) for note in notes)
        places = [("stages", index) for index in range(len(full.get("stages") or ()))]
    for key in simple.KEYS:
        main = next((main for main in ("method", "stages") if raw.get(main) is not None), None)
        if main is not None and raw.get(key) is not None and key not in asked.keys_read:
            fix = "it belongs to the short form of a recipe, which has no stages of its own; leave it out"
            problems.append(Problem(where=source.where((key,)), found=f"`{key}` beside `{main}`", fix=fix))
    if isinstance(full.get("stages"), list) and isinstance(full.get("train"), Mapping):
        usual, given = _by_origin(full["train"], ("train",), source)
        if given:
            pairs = zip(full["stages"], places or (), strict=True)
            full["stages"] = [_with_given(item, path, usual, given, source) for item, path in pairs]
    models = _models(full.get("models"), source, registry, problems)
    own_data, several = set(data), _Several(recipe=full, data=data)
    entries = list(_stages(full, places or [], several, source, registry, problems))
    if not entries and not problems:
        problems.append(Problem(where=source.where(("stages",)), found="no stages", fix="add at least one"))
    for name in own_data & set(models):
        fix = "models, data sets and stages share one set of names; the only data set is called `data`"
        problems.append(Problem(where=source.where(("models", name)), found=f"name {name!r} is taken", fix=fix))
    taken = set(models) | own_data
    for entry in entries:
        if entry.base in taken:
            fix = "models, data sets and stages share one set of names"
            problems.append(Problem(where=source.where(entry.path), found=f"name {entry.base!r} is taken", fix=fix))
    return Recipe(
        name=name,
        seed=seed,
        precision=precision,
        trackers=tuple(trackers),
        data=data,
        models=models,
        stages=entries,
        source=source,
        resolved=_resolved(full, name, seed, precision),
        problems=problems,
        faulty=frozenset(
            (_written_names(full) - several.names | several.written)
            - {*models, *data, *(entry.base for entry in entries)}
        ),
    )


def _written_names(full: Mapping[str, Any]) -> set[str]:
    names = {str(name) for name in full["models"]} if isinstance(full.get("models"), Mapping) else set()
    data = full.get("data")
    if isinstance(data, Mapping) and "type" not in data:
        names |= {str(name) for name in data}
    stages = list(full["stages"]) if isinstance(full.get("stages"), list) else []
    for item in stages:
        if isinstance(item, Mapping):
            names |= (
                {str(item.get("name", item.get("type")))} if "repeat" not in item and "method" not in item else set()
            )
            inner = item.get("stages")
            stages += inner if isinstance(inner, list) else []
    return names


def _resolved(full: Mapping[str, Any], name: str, seed: int, precision: str) -> dict[str, Any]:
    order = ["data", "models", "stages", "train"]
    rest = {key: full[key] for key in order if full.get(key) is not None}
    head: dict[str, Any] = {"kdfw": FORMAT, "name": name, "seed": seed, "precision": precision}
    if full.get("description"):
        head["description"] = full["description"]
    if full.get("license"):
        head["license"] = full["license"]
    if full.get("trackers"):
        head["trackers"] = full["trackers"]
    return head | rest


def _data(raw: Any, source: Source, registry: Registry, problems: list[Problem]) -> dict[str, Spec]:
    if raw is None:
        names = ", ".join(registry.names("dataset"))
        fix = f"add `data: {{type: NAME, ...}}`; known types: {names}"
        problems.append(Problem(where=source.where(()), found="no `data`", fix=fix))
        return {}
    if isinstance(raw, str) or (isinstance(raw, Mapping) and "type" in raw):
        items: dict[str, tuple[Any, RecipePath]] = {"data": (raw, ("data",))}
    elif isinstance(raw, Mapping) and raw:
        items = {str(name): (item, ("data", name)) for name, item in raw.items()}
    else:
        problems.append(Problem(where=source.where(("data",)), found=f"found {raw!r}", fix="write {type: NAME, ...}"))
        return {}
    found = {}
    for name, (item, path) in items.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
            fix = "letters, digits, '_' and '-'"
            problems.append(Problem(where=source.where(path), found=f"name of data {name!r}", fix=fix))
        spec = check("dataset", item, path, registry, source.where, problems)
        if spec is not None:
            found[name] = spec
    return found


def _task(data: Mapping[str, Spec]) -> str:
    for spec in data.values():
        assert issubclass(spec.cls, Dataset)
        return str(spec.options.get("task", spec.cls.task))  # of `huggingface` an option decides
    return TASKS[0]


def _models(raw: Any, source: Source, registry: Registry, problems: list[Problem]) -> dict[str, Spec]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        problems.append(Problem(where=source.where(("models",)), found=f"found {raw!r}", fix="write models by name"))
        return {}
    found = {}
    students, teachers = registry.names("student"), registry.names("teacher")
    for name, item in raw.items():
        path = ("models", name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", str(name)):
            problems.append(
                Problem(where=source.where(path), found=f"model name {name!r}", fix="letters, digits, '_' and '-'")
            )
        type_of = item.get("type") if isinstance(item, Mapping) else item
        kind = "teacher" if type_of in teachers else "student"
        if isinstance(type_of, str) and type_of not in [*students, *teachers]:
            fix = one_of(type_of, [*students, *teachers])
            problems.append(Problem(where=source.where((*path, "type")), found=f"no model type {type_of!r}", fix=fix))
            continue
        spec = check(kind, item, path, registry, source.where, problems)
        if spec is not None:
            found[str(name)] = spec
    return found


class _Asked(dict[str, Any]):
    """A recipe that remembers which of its keys were read."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        super().__init__(recipe)
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().get(key, default)


def _with_methods(
    stages: Sequence[Any], recipe: Mapping[str, Any], source: Source, registry: Registry, problems: list[Problem]
) -> tuple[list[Any], list[RecipePath]]:
    """The list of stages with every `method` in it written out, and where each of them stands."""
    items: list[Any] = []
    places: list[RecipePath] = []
    for index, item in enumerate(stages):
        path: RecipePath = ("stages", index)
        if not isinstance(item, Mapping) or "method" not in item:
            items.append(item)
            places.append(path)
            continue
        for key in item:
            if key != "method":
                fix = "options of a method stand inside it: `- method: {type: NAME, ...}`"
                problems.append(Problem(where=source.where((*path, key)), found=f"unknown key {key!r}", fix=fix))
        path = (*path, "method")
        written = _method_stages(recipe, item["method"], path, source, registry, problems) or []
        items += written
        places += [(*path, number) for number in range(len(written))]
    return items, places


def _method_stages(
    recipe: Mapping[str, Any],
    raw: Any,
    path: RecipePath,
    source: Source,
    registry: Registry,
    problems: list[Problem],
) -> list[dict[str, Any]] | None:
    """The stages of a method; `source` learns where what is in them was written."""
    spec = check("method", raw, path, registry, source.where, problems)
    if spec is None:
        return None
    try:
        method = spec.build()
        assert isinstance(method, Method)
        stages = method.expand(recipe)
    except KdfwError as error:
        problems.append(Problem(where=source.where_set(path), found=str(error)))
        return None
    options = list(_leaves(raw, path, inner=True)) if isinstance(raw, Mapping) else []
    for index, stage in enumerate(stages):
        here = (*path, index)
        source.places[here] = Place(path=path, part=f"stage {stage.get('name', stage.get('type'))}")
        for at, value in _leaves(stage, here, inner=True):
            same = [place for place, option in options if option == value and type(option) is type(value)]
            keyed = [place for place in same if _last_key(place) == _last_key(at)]
            found = keyed or (same if isinstance(value, str) else [])
            if len(found) == 1 and found[0] != (*path, "type"):
                source.places[at] = Place(path=found[0])
    return stages


def _leaves(value: Any, path: RecipePath, *, inner: bool = False) -> Iterator[tuple[RecipePath, Any]]:
    """Every plain value with its path; with `inner` the mappings and lists in it, too."""
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else None
    )
    for key, item in items or ():
        if inner and isinstance(item, (Mapping, list, tuple)):
            yield (*path, key), item
        yield from _leaves(item, (*path, key), inner=inner)
    if items is None:
        yield path, value


def _last_key(path: RecipePath) -> str:
    return next(str(part) for part in reversed(path) if isinstance(part, str))


# ---------------------------------------------------------------- `train` for every stage


def _by_origin(settings: Mapping[str, Any], path: RecipePath, source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings as the file has them, and those that the command line gave."""
    usual: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            for part, found in zip(_by_origin(value, (*path, key), source), (usual, given), strict=True):
                if part:
                    found[key] = part
        else:
            (given if source.set_by_command((*path, key)) else usual)[key] = value
    return usual, given


def _over(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with stronger ones over them: a length given in epochs replaces one in steps, and the other way."""
    dropped = {
        other
        for length, other in (("steps", "epochs"), ("epochs", "steps"))
        if stronger.get(length) is not None and other not in stronger
    }
    joined = {key: value for key, value in weaker.items() if key not in dropped}
    for key, value in stronger.items():
        nested = isinstance(value, Mapping) and isinstance(joined.get(key), Mapping)
        joined[key] = _over(joined[key], value) if nested else value
    return joined


def _with_given(
    item: Any, path: RecipePath, defaults: Mapping[str, Any], given: Mapping[str, Any], source: Source
) -> Any:
    """A stage, or a block of them, whose `train` is what the command line says for all of them.

    What the command line says of the stage itself is stronger.
    """
    if not isinstance(item, Mapping):
        return item
    if "repeat" in item and isinstance(item.get("stages"), list):
        block = enumerate(item["stages"])
        inner = [_with_given(stage, (*path, "stages", index), defaults, given, source) for index, stage in block]
        return {**item, "stages": inner}
    own = item.get("train", {})
    if item.get("type") != "train" or not isinstance(own, Mapping):
        return item
    usual, own_given = _by_origin(own, (*path, "train"), source)
    if "train" not in item:
        source.places[path + ("train",)] = Place(path=("train",))
    stated = {at for at, _ in _leaves(own_given, ())}
    for at, _ in _leaves(given, ()):
        if at not in stated:
            source.places[path + ("train",) + at] = Place(path=("train", *at))
    # of a mapping (`models`, `groups`) the command line may give a part: the rest stays what it was
    rest = {key: defaults[key] for key, value in given.items() if isinstance(value, Mapping) and key in defaults}
    return {**item, "train": _over(_over({**rest, **usual}, given), own_given)}


@dataclass(kw_only=True)
class _Several:
    """Entries that stand for several stages (`Stage.write_out`), while they are written out."""

    recipe: Mapping[str, Any]
    data: dict[str, Spec]
    """The recipe's data sets; those that such entries bring are added."""
    names: set[str] = field(default_factory=set)
    """Of such entries: no stage has them."""
    written: set[str] = field(default_factory=set)
    """Names of the stages and data sets they stand for."""

    def write_out(
        self, item: Mapping[str, Any], path: RecipePath, source: Source, registry: Registry, problems: list[Problem]
    ) -> list[tuple[Mapping[str, Any], RecipePath]] | None:
        """The stages an entry stands for with their places, None when it is one; checks the data sets it brings."""
        kind = item.get("type")
        cls = registry.get("stage", kind) if isinstance(kind, str) and kind in registry.names("stage") else None
        written = cls.write_out(item, self.recipe) if cls is not None and issubclass(cls, Stage) else None
        if written is None:
            return None
        self.names.add(str(item.get("name", kind)))
        self.written |= {str(stage.get("name")) for stage, _ in written.stages} | set(written.data)
        for name, (options, place) in written.data.items():
            if name not in self.data:
                spec = check("dataset", options, (*path, *place), registry, source.where, problems)
                if spec is not None:
                    self.data[name] = spec
        return [(stage, (*path, *place)) for stage, place in written.stages]


def _stages(
    full: Mapping[str, Any],
    places: Sequence[RecipePath],
    several: _Several,
    source: Source,
    registry: Registry,
    problems: list[Problem],
) -> Iterator[StageEntry]:
    """Entries of the list of stages; `places` says where each item stands in the source."""
    raw = full.get("stages")
    if raw is None:
        return
    if not isinstance(raw, list):
        problems.append(Problem(where=source.where(("stages",)), found=f"found {raw!r}", fix="write a list of stages"))
        return
    defaults = full.get("train") if isinstance(full.get("train"), Mapping) else {}
    seen: dict[str, RecipePath] = {}
    for item, path in zip(raw, places, strict=True):
        yield from _entries(item, path, 0, defaults or {}, seen, several, source, registry, problems)


def _entries(
    item: Any,
    path: RecipePath,
    cycle: int,
    defaults: Mapping[str, Any],
    seen: dict[str, RecipePath],
    several: _Several,
    source: Source,
    registry: Registry,
    problems: list[Problem],
) -> Iterator[StageEntry]:
    if not isinstance(item, Mapping):
        problems.append(Problem(where=source.where(path), found=f"found {item!r}", fix="a stage is {name, type, ...}"))
        return
    if "method" in item:
        fix = "name the method in the list of stages itself"
        problems.append(Problem(where=source.where(path), found="a method in a repeated block", fix=fix))
        return
    if "repeat" in item:
        extra = [key for key in item if key not in ("repeat", "stages", "name")]
        for key in extra:
            fix = "a repeated block has `repeat` and `stages`"
            problems.append(Problem(where=source.where((*path, key)), found=f"unknown key {key!r}", fix=fix))
        count, block = item["repeat"], item.get("stages")
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_CYCLES:
            fix = f"a whole number from 1 to {MAX_CYCLES}"
            problems.append(Problem(where=source.where((*path, "repeat")), found=f"found {count!r}", fix=fix))
            return
        if not isinstance(block, list) or not block:
            problems.append(Problem(where=source.where((*path, "stages")), found=f"found {block!r}", fix="stages"))
            return
        if cycle:
            problems.append(Problem(where=source.where(path), found="a repeated block in a repeated block"))
            return
        if len(seen) + count * len(block) > MAX_STAGES:
            found = f"{count} cycles of {len(block)} stages"
            problems.append(Problem(where=source.where(path), found=found, fix=f"at most {MAX_STAGES} stages in all"))
            return
        for number in range(1, count + 1):
            fresh = problems if number == 1 else []  # the same faults in every cycle are one fault
            for index, inner in enumerate(block):
                place = (*path, "stages", index)
                yield from _entries(inner, place, number, defaults, seen, several, source, registry, fresh)
        return
    base = item.get("name", item.get("type"))
    if not isinstance(base, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", base):
        fix = "a stage has a `name` of letters, digits, '_' and '-'"
        problems.append(Problem(where=source.where((*path, "name")), found=f"found {base!r}", fix=fix))
        return
    stages = several.write_out(item, path, source, registry, problems)
    if stages is not None:
        for stage, place in stages:
            yield from _entries(stage, place, cycle, defaults, seen, several, source, registry, problems)
        return
    name = f"{base}#{cycle}" if cycle else base
    if name in seen:
        fix = f"first at {source.where(seen[name])}"
        problems.append(Problem(where=source.where(path), found=f"stage name {base!r} again", fix=fix))
        return
    seen[name] = path
    options = {key: value for key, value in item.items() if key != "name"}
    if options.get("type") == "train" and defaults and isinstance(options.get("train", {}), Mapping):
        own = options.get("train", {})
        for key in defaults:
            if key not in own:
                source.places[path + ("train", key)] = Place(path=("train", key))
        if "train" not in item:
            source.places[path + ("train",)] = Place(path=("train",))
        kept = {key: value for key, value in defaults.items() if key not in own}
        options["train"] = _over(kept, own)
    spec = check("stage", options, path, registry, source.where, problems)
    if spec is not None:
        yield StageEntry(name=name, base=base, cycle=cycle, spec=spec, path=path)

"""The short form of a recipe (student, teacher, loss) written out as models and stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdfw.recipe.source import Place, RecipePath

DEFAULT_LOSS = {
    "ranking": {"type": "kl"},
    "pairs": {"type": "mse"},
    "classification": {"type": "kl"},
    "translation": {"type": "kl"},
}


@dataclass(frozen=True, kw_only=True)
class Note:
    """A fault in a short form."""

    path: RecipePath
    found: str
    fix: str


KEYS = ("student", "teacher", "teachers", "loss", "losses", "sampler", "candidates", "evaluate")
"""The keys of the short form."""


def expand(raw: Mapping[str, Any], task: str) -> tuple[dict[str, Any], dict[RecipePath, Place], list[Note]]:
    """Write the short form out: for ranking, mine -> score -> train -> evaluate; for other tasks, train -> evaluate.

    Returns: the recipe with `models` and `stages`, where what is in it was written, and what is wrong.
    """
    if raw.get("student") is None:
        fix = "give `student` (short form), `stages` or `method`"
        return dict(raw), {}, [Note(path=(), found="no `student`, no `stages`, no `method`", fix=fix)]
    notes = list(_faults(raw, task))
    models = dict(raw["models"]) if isinstance(raw.get("models"), Mapping) else {}
    places: dict[RecipePath, Place] = {}

    def named(name: str, value: Any, path: RecipePath) -> str:
        """A model written in place gets a name; a name stays."""
        if isinstance(value, str) and value in models:
            return value
        models[name] = value
        places[("models", name)] = Place(path=path)
        return name

    student = named("student", raw["student"], ("student",))
    several = raw.get("teachers")
    given: list[tuple[Any, RecipePath]] = []
    if isinstance(several, list):
        given = [(item, ("teachers", index)) for index, item in enumerate(several)]
    elif several is not None:
        given = [(several, ("teachers",))]
    elif raw.get("teacher") is not None:
        given = [(raw["teacher"], ("teacher",))]
    teachers = [
        named("teacher" if len(given) == 1 else f"teacher-{number}", teacher, path)
        for number, (teacher, path) in enumerate(given, start=1)
    ]
    stages: list[dict[str, Any]] = []

    def add(stage: dict[str, Any], written: RecipePath | None, **keys: RecipePath) -> None:
        """`written`: the key whose keys are the stage's; `keys`: where single options are written."""
        path: RecipePath = ("stages", len(stages))
        here = Place(path=(), part=f"stage {stage['name']}") if written is None else Place(path=written)
        places[path] = here
        for key, place in keys.items():
            places[path + (key,)] = Place(path=place)
        stages.append(stage)

    train: dict[str, Any] = {"name": "distill", "type": "train", "student": student}
    evaluate: dict[str, Any] = {"name": "test", "type": "evaluate", "models": [student, "distill"]}
    train_keys: dict[str, RecipePath] = {"student": ("student",)}
    if raw.get("losses") is not None:
        train["losses"], train_keys["losses"] = raw["losses"], ("losses",)
    elif raw.get("loss") is not None:
        train["losses"] = [raw["loss"]]
        train_keys["losses"] = ("loss",)
    else:
        train["losses"] = [DEFAULT_LOSS[task] if teachers else _supervised(task)]
    if raw.get("sampler") is not None:
        train["sampler"], train_keys["sampler"] = raw["sampler"], ("sampler",)
    if task == "ranking":
        candidates = raw["candidates"] if isinstance(raw.get("candidates"), Mapping) else {}
        mine = {"name": "mined", "type": "mine", "retriever": "bm25", **candidates}
        add(mine, ("candidates",) if candidates else None)
        scored = []
        for teacher, (_, place) in zip(teachers, given, strict=True):
            name = "scores" if len(teachers) == 1 else f"scores-{teacher}"
            add({"name": name, "type": "score", "teacher": teacher, "of": "mined"}, None, teacher=place)
            scored.append(name)
        train["teachers"] = scored
        train.setdefault("sampler", {"type": "mined", "of": ["mined"]})
        evaluate["against"] = ["bm25", *teachers]
    else:
        train["teachers"] = teachers
        evaluate["models"] = [*teachers, student, "distill"]
    at: RecipePath = ("stages", len(stages))
    add(train, None, **train_keys)
    if train_keys.get("losses") == ("loss",):
        places[at + ("losses", 0)] = Place(path=("loss",))
    for index, (_, place) in enumerate(given):
        places[at + ("teachers", index)] = Place(path=place)
    options = raw["evaluate"] if isinstance(raw.get("evaluate"), Mapping) else {}
    add({**evaluate, **options}, ("evaluate",) if options else None)
    full = {key: value for key, value in raw.items() if key not in KEYS}
    return {**full, "models": models, "stages": stages}, places, notes


def _faults(raw: Mapping[str, Any], task: str) -> Iterator[Note]:
    """What can be read in two ways, or in none."""
    for one, several in (("teacher", "teachers"), ("loss", "losses")):
        if raw.get(one) is not None and raw.get(several) is not None:
            yield Note(path=(one,), found=f"both `{one}` and `{several}`", fix="write one of them")
    for key, example in (("candidates", "{retriever: bm25, depth: 100}"), ("evaluate", "{split: test}")):
        if raw.get(key) is not None and not isinstance(raw[key], Mapping):
            yield Note(path=(key,), found=f"found {raw[key]!r}", fix=f"write options by name, as {example}")
    if raw.get("models") is not None and not isinstance(raw["models"], Mapping):
        yield Note(path=("models",), found=f"found {raw['models']!r}", fix="write models by name")
    if raw.get("candidates") is not None and task != "ranking":
        yield Note(path=("candidates",), found=f"candidates for data of the task {task}", fix="leave it out")


def _supervised(task: str) -> dict[str, Any]:
    return {"type": {"ranking": "info-nce", "pairs": "mse"}.get(task, "cross-entropy")}

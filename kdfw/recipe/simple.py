"""The short form of a recipe (student, teacher, loss) written out as models and stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdfw.recipe.source import RecipePath

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


def expand(raw: Mapping[str, Any], task: str) -> tuple[dict[str, Any], list[Note]]:
    """Write the short form out: for ranking, mine -> score -> train -> evaluate; for other tasks, train -> evaluate.

    Returns: the recipe with `models` and `stages`, and what is missing.
    """
    notes: list[Note] = []
    if raw.get("student") is None:
        fix = "give `student` (short form), `stages` or `method`"
        return dict(raw), [Note(path=(), found="no `student`, no `stages`, no `method`", fix=fix)]
    models = dict(raw["models"]) if isinstance(raw.get("models"), Mapping) else {}
    student = _name("student", raw["student"], models)
    teachers = []
    given = raw.get("teachers", [] if raw.get("teacher") is None else [raw["teacher"]])
    if not isinstance(given, list):
        notes.append(Note(path=("teachers",), found=f"found {given!r}", fix="write a list of models"))
        given = []
    for number, teacher in enumerate(given, start=1):
        teachers.append(_name("teacher" if len(given) == 1 else f"teacher-{number}", teacher, models))
    losses = raw.get("losses", [raw["loss"]] if raw.get("loss") is not None else None)
    if losses is None:
        losses = [DEFAULT_LOSS[task] if teachers else _supervised(task)]
    train = {"name": "distill", "type": "train", "student": student, "losses": losses}
    evaluate: dict[str, Any] = {"name": "test", "type": "evaluate", "models": [student, "distill"]}
    stages: list[dict[str, Any]] = []
    if task == "ranking":
        candidates = raw.get("candidates") if isinstance(raw.get("candidates"), Mapping) else {}
        stages.append({"name": "mined", "type": "mine", "retriever": "bm25", **(candidates or {})})
        scored = []
        for teacher in teachers:
            stage = "scores" if len(teachers) == 1 else f"scores-{teacher}"
            stages.append({"name": stage, "type": "score", "teacher": teacher, "of": "mined"})
            scored.append(stage)
        train["teachers"] = scored
        train["sampler"] = raw.get("sampler", {"type": "mined", "of": ["mined"]})
        evaluate["against"] = ["bm25", *teachers]
    else:
        train["teachers"] = teachers
        if raw.get("sampler") is not None:
            train["sampler"] = raw["sampler"]
        evaluate["models"] = [*teachers, student, "distill"]
    stages += [train, {**evaluate, **(raw.get("evaluate") or {})}]
    short = ("student", "teacher", "teachers", "loss", "losses", "sampler", "candidates", "evaluate")
    full = {key: value for key, value in raw.items() if key not in short}
    return {**full, "models": models, "stages": stages}, notes


def _name(name: str, value: Any, models: dict[str, Any]) -> str:
    """A model written in place gets a name; a name stays."""
    if isinstance(value, str) and value in models:
        return value
    models[name] = value
    return name


def _supervised(task: str) -> dict[str, Any]:
    return {"type": {"ranking": "info-nce", "pairs": "mse"}.get(task, "cross-entropy")}

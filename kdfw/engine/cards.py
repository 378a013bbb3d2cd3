"""Model cards for the students of a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdfw.components import Loss
from kdfw.engine import licences
from kdfw.files import read_json
from kdfw.models.tokenize import FIRST_TOKENS
from kdfw.options import Spec
from kdfw.recipe.plan import Plan, PlannedStage, Target
from kdfw.report.card import write_card

LENGTHS = (
    "max_query_tokens", "max_passage_tokens", "max_pair_tokens", "max_tokens", "max_text_tokens", "max_source_tokens",
    "max_target_tokens",
)  # fmt: skip
"""Options that say after how many tokens a text is cut."""


def write_cards(out: Path, plan: Plan, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `README.md` into `model/` of every stage of a run folder that trained a model, or chose a trained one."""
    for planned in plan.stages:
        folder = out / "stages" / planned.folder / "model"
        if "model" not in planned.stage.produces or not folder.is_dir():
            continue
        trained = _trained_by(plan, planned, summaries)
        if trained is not None:
            facts = facts_of(out, plan, trained, summaries.get(trained.name, {}))
            write_card(folder, facts | {"name": f"{plan.recipe.name}/{planned.name}"} | _measures(out, plan, planned))


def _trained_by(plan: Plan, planned: PlannedStage, summaries: Mapping[str, Mapping[str, Any]]) -> PlannedStage | None:
    """The training stage that a stage's model comes from; None for a model that was chosen as it came."""
    while (chosen := summaries.get(planned.name, {}).get("chosen")) is not None:
        target = planned.targets[chosen]
        if target.kind != "stage":
            return None
        planned = plan.stage(target.name)
    return planned


def facts_of(out: Path, plan: Plan, planned: PlannedStage, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says about the student of one training stage."""
    stage: Any = planned.stage
    spec = plan.recipe.models[plan.start_of(planned.targets[stage.student])]
    options = dict(spec.options)
    facts: dict[str, Any] = {
        "name": f"{plan.recipe.name}/{planned.name}",
        "type": spec.name,
        "task": plan.datasets[planned.data].task,
        "teachers": [_teacher(plan, planned.targets[reference]) for reference in stage.teachers],
        "data": [f"{_data(plan, planned.data)}, split {stage.split}"],
        "losses": [_loss(name, loss) for name, loss in zip(stage.loss_names, stage.losses, strict=True)],
        "recipe": yaml.safe_dump(dict(plan.recipe.resolved), sort_keys=False, allow_unicode=True),
        "license": plan.recipe.resolved.get("license"),
        "licences": _licences(plan, planned, spec),
        "seed": plan.recipe.seed,
        **files_of(out / "stages" / planned.folder / "model"),
    }
    for name in ("base", "query_prefix", "passage_prefix"):
        if options.get(name) is not None:
            facts[name] = options[name]
    model: Any = plan.models[plan.start_of(planned.targets[stage.student])]  # knows what was left at its default
    facts |= {name: length for name in LENGTHS if (length := getattr(model, name, None)) is not None}
    facts |= {name: getattr(model, name, None) for name in ("truncation", "label")}
    facts |= {"left_out": model.left_out(), "first_tokens": FIRST_TOKENS}
    if "parameters" in summary:
        facts["parameters"] = summary["parameters"]
    return facts | _measures(out, plan, planned)


def files_of(folder: Path) -> dict[str, Any]:
    """What opens a model folder, by the files that are in it."""

    def read(name: str) -> Mapping[str, Any]:
        try:
            found = read_json(folder / name)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    return {
        "sentence_transformers": read("config_sentence_transformers.json").get("model_type", ""),
        "architecture": next(iter(read("config.json").get("architectures") or ()), ""),
        "image_processor": (folder / "preprocessor_config.json").is_file(),
    }


def _loss(name: str, loss: Loss) -> str:
    return name if name.startswith(loss.recipe_name) else f"{name} ({loss.recipe_name})"


def _data(plan: Plan, name: str) -> str:
    """A data set by its type and the last part of where it lies."""
    spec = plan.recipe.data[name]
    place = next((str(spec.options[key]) for key in ("name", "folder", "path") if spec.options.get(key)), "")
    return f"{spec.name}{f' {Path(place).name}' if place else ''}"


def _licences(plan: Plan, planned: PlannedStage, spec: Spec) -> list[str]:
    """`WHAT: LICENCE` of the base model, the teachers' base models and the data, of those that give one."""
    given = {f"base model {spec.options.get('base')}": licences.of_model(str(spec.options.get("base") or ""))}
    for reference in planned.stage.teachers:  # type: ignore[attr-defined]
        for behind in _models_behind(plan, planned.targets[reference]):
            base = plan.recipe.models[behind].options.get("base")
            given.setdefault(f"base model {base}", licences.of_model(str(base or "")))
    given[f"data {_data(plan, planned.data)}"] = licences.of_data(plan.recipe.data[planned.data].options)
    return [f"{what}: {licence}" for what, licence in given.items() if licence]


def _models_behind(plan: Plan, target: Target) -> list[str]:
    """Names under `models:` of what a teacher starts from; of combined scores, of each of them."""
    if target.kind == "stage" and "model" not in plan.stage(target.name).stage.produces:
        scored = plan.stage(target.name)
        teacher = getattr(scored.stage, "teacher", None)
        members = list(scored.targets.values()) if teacher is None else [scored.targets[teacher]]
        return [name for member in members for name in _models_behind(plan, member)]
    return [plan.start_of(target)]


def _teacher(plan: Plan, target: Target) -> str:
    if target.kind == "stage" and "model" not in plan.stage(target.name).stage.produces:
        scored = plan.stage(target.name)
        teacher = getattr(scored.stage, "teacher", None)
        if teacher is None:  # the mean of several stages' scores
            return f"the mean of: {', '.join(_teacher(plan, member) for member in scored.targets.values())}"
        target = scored.targets[teacher]
    through = f" trained by stage {target.name}" if target.kind == "stage" else ""
    spec = plan.recipe.models[plan.start_of(target)]
    base = spec.options.get("base") or spec.options.get("path") or spec.options.get("model")
    return f"{spec.name}{f' {base}' if base else ''}{through}"


def _measures(out: Path, plan: Plan, planned: PlannedStage) -> dict[str, Any]:
    """Measures of the first evaluation that names this stage."""
    for later in plan.stages[planned.number :]:
        if planned.name not in later.inputs or "measures" not in later.stage.produces:
            continue
        try:
            text = (out / "stages" / later.folder / "measures.json").read_text(encoding="utf-8")
            found = json.loads(text)
            order = {name: found["systems"][name] for name in found.get("order", found["systems"])}
            names = found.get("measures", ())
            systems = {
                name: {measure: values["measures"][measure] for measure in names if measure in values["measures"]}
                for name, values in order.items()
            }
        except (OSError, ValueError, KeyError):
            continue
        what = f"split {found.get('split')} of {plan.recipe.data[later.data].name}, {found.get('queries')} items"
        return {"measures": systems, "measured_on": what}
    return {}

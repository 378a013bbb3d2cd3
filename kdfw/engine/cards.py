"""Model cards for the students of a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdfw.recipe.plan import Plan, PlannedStage, Target
from kdfw.report.card import write_card


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
    spec = plan.recipe.models[start_of(plan, planned.targets[stage.student])]
    options = dict(spec.options)
    facts: dict[str, Any] = {
        "name": f"{plan.recipe.name}/{planned.name}",
        "type": spec.name,
        "task": plan.datasets[planned.data].task,
        "teachers": [_teacher(plan, planned.targets[reference]) for reference in stage.teachers],
        "data": [f"{plan.recipe.data[planned.data].name}, split {stage.split}"],
        "losses": [loss.recipe_name for loss in stage.losses],
        "recipe": yaml.safe_dump(dict(plan.recipe.resolved), sort_keys=False, allow_unicode=True),
        "sentence_transformers": (out / "stages" / planned.folder / "model" / "modules.json").is_file(),
        "seed": plan.recipe.seed,
    }
    for name in ("base", "query_prefix", "passage_prefix", "max_query_tokens", "max_passage_tokens", "similarity"):
        if options.get(name) is not None:
            facts[name] = options[name]
    if "parameters" in summary:
        facts["parameters"] = summary["parameters"]
    return facts | _measures(out, plan, planned)


def start_of(plan: Plan, target: Target) -> str:
    """Name under `models:` of the model a target starts from, through any number of training stages."""
    while target.kind == "stage":
        planned = plan.stage(target.name)
        trained: Mapping[str, str] = planned.stage.trained_models()  # type: ignore[attr-defined]
        target = planned.targets[trained[target.part] if target.part else next(iter(trained.values()))]
    return target.name


def _teacher(plan: Plan, target: Target) -> str:
    if target.kind == "stage" and "model" not in plan.stage(target.name).stage.produces:
        scored = plan.stage(target.name)
        teacher = getattr(scored.stage, "teacher", None)
        if teacher is None:  # the mean of several stages' scores
            return f"the mean of: {', '.join(_teacher(plan, member) for member in scored.targets.values())}"
        target = scored.targets[teacher]
    through = f" trained by stage {target.name}" if target.kind == "stage" else ""
    spec = plan.recipe.models[start_of(plan, target)]
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
            systems = {name: values["measures"] for name, values in found["systems"].items()}
        except (OSError, ValueError, KeyError):
            continue
        what = f"split {found.get('split')} of {plan.recipe.data[later.data].name}, {found.get('queries')} items"
        return {"measures": systems, "measured_on": what}
    return {}

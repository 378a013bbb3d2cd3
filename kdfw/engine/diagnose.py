"""`kdfw diagnose`: the teachers of a run folder, or of a recipe before anything has learned from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdfw.context import Workers
from kdfw.engine.api import find_recipe, plan
from kdfw.engine.artifacts import MANIFEST, ArtifactStore
from kdfw.engine.diagnosis import diagnosed, heading, result, subjects, writes_scores
from kdfw.engine.launch import start_processes
from kdfw.engine.run import default_cache, default_out, do_stage
from kdfw.engine.runtime import Runtime
from kdfw.engine.train_stage import Train
from kdfw.errors import ConfigError, DataError, Problem
from kdfw.files import read_json
from kdfw.models.checkpoint import go_offline
from kdfw.recipe.plan import Plan, PlannedStage


def diagnose(
    source: str | Path,
    settings: Sequence[str] = (),
    *,
    stage: str | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Diagnose the teachers of a run folder, or of a recipe.

    Of a run everything is read from its folder. Of a recipe the stages up to the teacher's scores are run, or taken
    from the cache, and a sample of training examples goes through teachers and student; nothing trains that learns
    from a teacher, unless `stage` asks for a later stage.

    Args:
        source: a run folder, a recipe file, or the name of a recipe that ships with kdfw.
        settings: `key.path=value` texts that replace values of a recipe.
        stage: name of one training stage; default: all of a run, and of a recipe all that can be had.
        out, cache: as of `kdfw.run`.
    Returns: what `kdfw diagnose --json` prints.
    Raises: ConfigError, DataError, ... (`kdfw.errors`).
    """
    if offline:
        go_offline()
    folder, cache = Path(source), Path(cache) if cache else None
    if folder.is_dir():
        if settings:
            raise ConfigError(Problem(where=settings[0], found="a setting for a run", fix="give its recipe instead"))
        return _of_run(folder, stage, cache, offline)
    planned = plan(find_recipe(source), settings)
    return _of_recipe(planned, stage, Path(out) if out else default_out(planned.recipe), cache, offline)


def _of_run(folder: Path, stage: str | None, cache: Path | None, offline: bool) -> dict[str, Any]:
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no run folder (manifest.json: {error}); `kdfw run` writes one") from error
    data = manifest.get("data") if isinstance(manifest, dict) else None
    if not isinstance(data, dict):
        raise DataError(f"{folder / 'manifest.json'}: damaged (no `data`); `kdfw run` of its recipe writes it anew")
    planned = plan(folder / "recipe.yaml")
    runtime = _runtime(planned, folder, cache, offline)
    for name, known in data.items():
        if planned.data_fingerprints.get(name) != known:
            raise DataError(f"{folder}: the data set {name!r} is no longer what the run used; diagnose its recipe anew")
    for one in planned.stages:
        place = folder / "stages" / one.folder
        if (place / MANIFEST).is_file():
            runtime.artifacts[one.name] = place
    found = [diagnosed(runtime, subject) for subject in subjects(planned, stage)]
    return result(planned, "run", [], found)


def _of_recipe(planned: Plan, stage: str | None, out: Path, cache: Path | None, offline: bool) -> dict[str, Any]:
    runtime = _runtime(planned, out, cache, offline)
    for one in planned.stages:
        cached = runtime.store.find(one.kind, one.fingerprint, verify=False)
        if cached is not None:
            runtime.artifacts[one.name] = cached.folder
    worked: list[dict[str, str]] = []
    found = []
    for subject in subjects(planned, stage):
        blocking = [] if stage else _students_before(runtime, subject)
        if blocking:
            why = f"it needs {', '.join(blocking)} to be trained first: `kdfw run`, then diagnose the run; or --stage"
            found.append({**heading(subject), "notes": [f"not diagnosed: {why}"], "warnings": []})
            continue
        for one in _needed(planned, subject):
            worked.append({"name": one.name, "state": "cached" if one.name in runtime.artifacts else "run"})
            artifact, _ = do_stage(runtime, one)
            runtime.artifacts[one.name] = artifact.folder
        found.append(diagnosed(runtime, subject, ask=True))
    return result(planned, "recipe", list({row["name"]: row for row in reversed(worked)}.values())[::-1], found)


def _runtime(planned: Plan, out: Path, cache: Path | None, offline: bool) -> Runtime:
    _, device = start_processes()
    return Runtime(
        plan=planned,
        store=ArtifactStore(cache or default_cache(out), fallback=out / "cache"),
        workers=Workers(),
        device=device,
        precision=planned.precision,
        out=out,
        offline=offline,
    )


def _needed(planned: Plan, subject: PlannedStage) -> list[PlannedStage]:
    """Earlier stages that the subject reads, directly or not, in order; a stage with scores is needed itself."""
    wanted = {subject.name} if writes_scores(subject) else set()
    todo = list(subject.inputs)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += planned.stage(name).inputs
    return [one for one in planned.stages if one.name in wanted]


def _students_before(runtime: Runtime, subject: PlannedStage) -> list[str]:
    """Stages that would have to train a student from a teacher before the subject's teacher has its scores."""
    needed = _needed(runtime.plan, subject)
    training = [one for one in needed if isinstance(one.stage, Train) and one.stage.teachers]
    return [one.name for one in training if one.name not in runtime.artifacts]

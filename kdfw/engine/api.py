"""`kdfw.run`, `kdfw.plan`, `kdfw.check`: what the command line does, for programs."""

from __future__ import annotations

import importlib.resources
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdfw.context import Workers
from kdfw.engine.artifacts import ArtifactStore
from kdfw.engine.launch import start_processes, stopping_together
from kdfw.engine.run import RunResult, default_cache, default_out, run_plan
from kdfw.engine.runtime import Context, Runtime
from kdfw.errors import ConfigError, Problem, one_of
from kdfw.memory import watch_memory
from kdfw.models.checkpoint import go_offline
from kdfw.plugins import registry
from kdfw.recipe.plan import Plan, make_plan
from kdfw.recipe.recipe import Recipe, read
from kdfw.recipe.view import Kept


def find_recipe(name: str | Path) -> Path:
    """A path as it is, or the file of a recipe that ships with kdfw. Raises ConfigError naming the nearest one."""
    path = Path(name)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    shipped = Path(str(importlib.resources.files("kdfw_recipes")))
    known = {file.stem: file for file in sorted(shipped.rglob("*.yaml"))}
    if str(name) not in known:
        raise ConfigError(Problem(where=str(name), found="no such file or recipe", fix=one_of(str(name), known)))
    return known[str(name)]


def plan(recipe: str | Path, settings: Sequence[str] = ()) -> Plan:
    """Check a recipe and expand it into stages. Raises ConfigError with every fault found."""
    return make_plan(_read(recipe, settings))


def _read(recipe: str | Path, settings: Sequence[str]) -> Recipe:
    return read(find_recipe(recipe), registry(), settings)


def run(
    recipe: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    fresh: bool = False,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> RunResult | None:
    """Run a recipe, or go on where it stopped; returns None on processes other than the main one.

    Args:
        settings: `key.path=value` texts that replace values of the recipe.
        out: run folder; default `runs/<name>`.
        cache: shared cache; default `KDFW_CACHE`, or `.kdfw-cache` beside the run folder.
    Raises: ConfigError, DataError, ... (`kdfw.errors`); KeyboardInterrupt after a clean stop.
    """
    workers, device = start_processes()
    if offline:
        go_offline()
    with stopping_together(workers):
        planned = plan(recipe, settings)
        result = run_plan(
            planned,
            Path(out) if out else default_out(planned.recipe),
            cache=Path(cache) if cache else None,
            workers=workers,
            fresh=fresh,
            offline=offline,
            trust_remote_code=trust_remote_code,
            device=device,
        )
    return result if workers.main else None


def result_text(result: RunResult) -> str:
    """What `kdfw run` prints at the end: the result table and where the report is."""
    from kdfw.evaluation.table import benchmarks_table, measures_table

    lines = []
    if result.nothing_to_do:
        lines.append(f"{result.folder} is finished and nothing has changed: nothing to do (--fresh starts anew)")
    for name, folder in result.stages.items():
        table = measures_table(folder)
        if table:
            lines += ["", f"{name}:", table]
    overview = benchmarks_table(list(result.stages.values()))
    if overview:
        lines += ["", "benchmarks:", overview]
    lines += ["", f"run folder: {result.folder}"]
    if result.report is not None:
        lines.append(f"report: {result.report}")
    return "\n".join(lines).strip("\n")


def plan_rows(planned: Plan, store: ArtifactStore | None) -> list[dict[str, Any]]:
    """Stages for display: number, name, type, what it reads, cached or not, work."""
    rows = []
    for stage in planned.stages:
        cached = _artifact(store, stage.kind, stage.fingerprint) is not None
        reads = [reference if target.kind != "stage" else target.name for reference, target in stage.targets.items()]
        rows.append(
            {
                "number": stage.number,
                "name": stage.name,
                "type": stage.kind,
                "reads": list(dict.fromkeys(reads)),
                "cached": cached,
                "work": str(stage.work),
                "amounts": stage.work.plain(),
                "fingerprint": stage.fingerprint,
            }
        )
    return rows


def _artifact(store: ArtifactStore | None, kind: str, fingerprint: str) -> Path | None:
    found = None if store is None else store.find(kind, fingerprint, verify=False)
    return None if found is None else found.folder


def plan_text(
    recipe: str | Path,
    settings: Sequence[str],
    out: Path | None,
    cache: Path | None,
    *,
    offline: bool = False,
    as_json: bool = False,
) -> str:
    """The plan as a table with the work of each stage, or as JSON."""
    if offline:
        go_offline()
    written = _read(recipe, settings)
    folder = cache or default_cache(out or default_out(written))
    store = ArtifactStore(folder, fallback=folder) if folder.exists() else None
    planned = make_plan(written, Kept(cache=folder, find=partial(_artifact, store)))
    rows = plan_rows(planned, store)
    if as_json:
        return json.dumps({"name": planned.recipe.name, "stages": rows}, indent=2, ensure_ascii=False)
    cells = [["", "stage", "type", "reads", "state", "work"]]
    for row in rows:
        state = "cached" if row["cached"] else "to do"
        cells.append([str(row["number"]), row["name"], row["type"], ", ".join(row["reads"]), state, row["work"]])
    return f"{planned.recipe.name}: {len(rows)} stages\n{columns(cells)}"


def columns(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def check(
    recipe: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
) -> list[dict[str, Any]]:
    """Check a recipe, then put one batch through every stage without training.

    A stage that has not run leaves a stand-in (random candidates, the untrained model) for those that read it.
    Returns: one mapping a stage.
    """
    import torch

    if offline:
        go_offline()
    planned = plan(recipe, settings)
    folder = Path(cache) if cache else default_cache(Path(out) if out else default_out(planned.recipe))
    store = ArtifactStore(folder, fallback=folder)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    runtime = Runtime(
        plan=planned,
        store=store,
        workers=Workers(),
        device=device,
        precision=planned.precision,
        out=folder,
        offline=offline,
    )
    reports: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kdfw-check-") as scratch:
        for stage in planned.stages:
            found = store.find(stage.kind, stage.fingerprint, verify=False)
            if found is not None:
                runtime.artifacts[stage.name] = found.folder
                reports.append({"name": stage.name, "type": stage.kind, "state": "cached"})
                continue
            folder = Path(scratch) / stage.folder
            folder.mkdir()
            context = Context(runtime, stage, folder)
            measured = watch_memory(device)
            try:
                seen = _plain(stage.stage.preflight(context))
            finally:
                context.release()
            runtime.artifacts[stage.name] = folder
            reports.append({"name": stage.name, "type": stage.kind, "state": "ready", **seen, **measured()})
    said: set[str] = set()
    for stage, report in zip(planned.stages, reports, strict=True):
        left_out = [] if stage.data in said else runtime.skipped_lines(stage.data)
        said.add(stage.data)
        if left_out:
            report.setdefault("warnings", [])
            report["warnings"] += [
                f"{each['file']}: skipped {each['count']} lines that cannot be read: {'; '.join(each['first'])}"
                for each in left_out
            ]
    return reports


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return result


def check_text(
    recipe: str | Path,
    settings: Sequence[str],
    out: Path | None,
    cache: Path | None,
    *,
    offline: bool = False,
    as_json: bool = False,
) -> tuple[str, bool]:
    """The checks as text (or JSON), and whether any of them warned."""
    reports = check(recipe, settings, out=out, cache=cache, offline=offline)
    warned = any(report.get("warnings") for report in reports)
    if as_json:
        return json.dumps(reports, indent=2, ensure_ascii=False), warned
    lines = []
    for report in reports:
        lines.append(f"{report['name']} ({report['type']}): {report['state']}")
        for key, value in report.items():
            if key in ("name", "type", "state"):
                continue
            shown = "; ".join(str(item) for item in value) if isinstance(value, list) and key == "warnings" else value
            lines.append(f"    {key}: {shown}")
    return "\n".join(lines), warned

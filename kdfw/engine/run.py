"""Run a plan: each stage once, from the cache where nothing it depends on has changed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from kdfw import __version__
from kdfw import fingerprint as fingerprints
from kdfw.context import Workers
from kdfw.engine.artifacts import MANIFEST, Artifact, ArtifactStore, read_artifact
from kdfw.engine.cards import write_cards
from kdfw.engine.diagnosis import FILE as DIAGNOSIS
from kdfw.engine.diagnosis import write_diagnosis
from kdfw.engine.runtime import Context, Runtime
from kdfw.errors import ArtifactError
from kdfw.files import clear_leftovers, files_below, link_or_copy, naming_full_disk, read_json, write_atomic, write_json
from kdfw.fingerprint import file_digest
from kdfw.memory import return_freed_memory
from kdfw.models.precision import numerics
from kdfw.plugins import registry
from kdfw.processes import barrier, from_main
from kdfw.recipe.plan import Plan, PlannedStage
from kdfw.recipe.recipe import Recipe
from kdfw.report import write_report

log = logging.getLogger("kdfw")
PATIENCE_SECONDS = 60.0
"""How long a process waits to see what the main process has written."""
RUN_MANIFEST = "manifest.json"
LOCK, HOLDER = ".lock", ".holder"
"""In a run folder: what the process that works in it has locked, and who that is."""
LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "faiss-cpu", "bm25s", "ranx", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run."""

    folder: Path
    stages: Mapping[str, Path]
    """Folder in the run folder of each stage, by unique name."""
    summaries: Mapping[str, Mapping[str, Any]]
    nothing_to_do: bool
    report: Path | None


def default_out(recipe: Recipe) -> Path:
    """`runs/<name>` below the working directory."""
    return Path("runs") / recipe.name


def default_cache(out: Path) -> Path:
    """`KDFW_CACHE`, or a folder beside the run."""
    named = os.environ.get("KDFW_CACHE")
    return Path(named).expanduser() if named else out.parent / ".kdfw-cache"


def run_plan(
    plan: Plan,
    out: Path,
    *,
    cache: Path | None = None,
    workers: Workers | None = None,
    fresh: bool = False,
    offline: bool = False,
    trust_remote_code: bool = False,
    device: Any = None,
) -> RunResult:
    """Run every stage that is not done yet, and write the run folder.

    Raises: KdfwError subclasses for what a person can mend; KeyboardInterrupt after a clean stop.
    """
    import torch

    workers = workers or Workers()
    if fresh:
        with _holding(out, workers):
            if workers.main:
                _set_aside(out)
    with _holding(out, workers):
        store = ArtifactStore(cache or default_cache(out), fallback=out / "cache")
        runtime = Runtime(
            plan=plan,
            precision=plan.precision,
            out=out,
            store=store,
            workers=workers,
            device=device or torch.device("cpu"),
            offline=offline,
            trust_remote_code=trust_remote_code,
        )
        if workers.main:
            for planned in plan.stages if fresh else ():
                store.set_aside(planned.kind, planned.fingerprint)
            clear_leftovers(out, below=False)
            clear_leftovers(out / "stages")
        return _run_stages(runtime)


def _run_stages(runtime: Runtime) -> RunResult:
    """Every stage of the plan, then the report. The run folder is ours."""
    plan, out, store, workers = runtime.plan, runtime.out, runtime.store, runtime.workers
    known = finished_manifest(out, plan)
    before = known is not None
    if workers.main:
        _write_recipe(out, plan)
    for name in _to_fetch(runtime):
        runtime.data(name)
    stages: dict[str, Path] = {}
    summaries: dict[str, Mapping[str, Any]] = {}
    records: list[dict[str, Any]] = []
    worked = False
    for planned in plan.stages:
        place = stages[planned.name] = out / "stages" / planned.folder
        with naming_full_disk(planned.folder, store.writable):
            artifact, cached = do_stage(runtime, planned)
        if workers.main:
            with naming_full_disk(planned.folder, out):
                _materialise(artifact, place)
        barrier(workers)
        # later stages read the run folder, which is nobody else's: what happens to a shared cache cannot touch them
        artifact = _appears(lambda place=place: read_artifact(place), planned, place)  # type: ignore[misc]
        worked |= not cached
        runtime.artifacts[planned.name] = place
        summaries[planned.name] = artifact.summary
        records.append(
            {
                "name": planned.name,
                "type": planned.kind,
                "fingerprint": planned.fingerprint,
                "cached": cached,
                "seconds": round(artifact.seconds, 1),
                "summary": dict(artifact.summary),
            }
        )
        if workers.main and (worked or not before):
            _write_manifest(out, runtime, records, finished=False)
    report = None
    if workers.main:
        with naming_full_disk("report", out):
            write_cards(out, plan, summaries)
            if worked or known is None:
                write_diagnosis(runtime)
                _write_manifest(out, runtime, records, finished=True)
            elif known.get("diagnosis") != _diagnosis_digest(out):
                write_diagnosis(runtime)
                write_json(out / RUN_MANIFEST, {**known, "diagnosis": _diagnosis_digest(out)})
            report = write_report(out)
    barrier(workers)
    return RunResult(folder=out, stages=stages, summaries=summaries, nothing_to_do=before and not worked, report=report)


def _to_fetch(runtime: Runtime) -> list[str]:
    """Data sets that may need a network and that a stage still to be done works on: what cannot be had is said before
    anything is computed."""
    plan, store = runtime.plan, runtime.store
    used = [
        planned.data
        for planned in plan.stages
        if plan.datasets[planned.data].downloads and store.find(planned.kind, planned.fingerprint, verify=False) is None
    ]
    names: list[str] = from_main(list(dict.fromkeys(used)), runtime.workers)
    return names


@contextlib.contextmanager
def _holding(out: Path, workers: Workers) -> Iterator[None]:
    """Work in a run folder, alone. It is made when it is not there.

    Raises: ArtifactError on every process when another run works in it, or when it cannot be written.
    """
    lock = FileLock(out / LOCK)
    refused = _refused(out, lock) if workers.main else None
    if refused := from_main(refused, workers):
        raise ArtifactError(refused)
    try:
        yield
    finally:
        if workers.main:
            (out / HOLDER).unlink(missing_ok=True)
            lock.release()


def _refused(out: Path, lock: FileLock) -> str | None:
    """Take the lock of a run folder; what to say when that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (out / HOLDER).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    except Timeout:
        try:
            who = (out / HOLDER).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):  # it ends, or begins, just now
            who = "another process"
        return f"{out}: {who} is running in this folder; wait until it is done, or choose another folder with --out"
    except OSError as error:
        lock.release()
        reason = error.strerror or error
        return f"{out}: cannot be written: {reason}; free some space, or choose another folder with --out"
    return None


def _set_aside(out: Path) -> None:
    """Move an earlier run out of the way, undeleted."""
    if not (out / "plan.json").exists():
        return
    aside = out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    os.replace(out, aside)
    for name in (LOCK, HOLDER):
        (aside / name).unlink(missing_ok=True)
    log.info("the earlier run is kept as %s", aside)


def do_stage(runtime: Runtime, planned: PlannedStage) -> tuple[Artifact, bool]:
    """The stage's artifact, and whether it was there already."""
    store, workers = runtime.store, runtime.workers
    found = _found(runtime, planned)
    if found is not None:
        log.info("%s: unchanged, taken from the cache", planned.folder)
        return found, True
    with store.locked(planned.kind, planned.fingerprint) if workers.main else contextlib.nullcontext():
        found = _found(runtime, planned)
        if found is not None:
            log.info("%s: made by another run meanwhile", planned.folder)
            return found, True
        return _work(runtime, planned), False


def _found(runtime: Runtime, planned: PlannedStage) -> Artifact | None:
    """The artifact if it is there: the main process looks, and verifies it, for all."""
    found = runtime.store.find(planned.kind, planned.fingerprint) if runtime.workers.main else None
    if not from_main(found is not None, runtime.workers):
        return None
    return found or _in_cache(runtime, planned)


def _work(runtime: Runtime, planned: PlannedStage) -> Artifact:
    store, workers = runtime.store, runtime.workers
    log.info("%s: %s", planned.folder, planned.kind)
    folder = store.work_folder(planned.kind, planned.fingerprint)
    if workers.main:
        clear_leftovers(folder)
    context = Context(runtime, planned, folder)
    began = time.monotonic()
    try:
        with naming_full_disk(planned.folder, folder), numerics(runtime.precision, runtime.device):
            planned.stage.run(context)
    finally:
        context.release()
        return_freed_memory()
    barrier(workers)
    artifact = None
    if workers.main:
        artifact = store.commit(planned.kind, planned.fingerprint, context.summary_values, time.monotonic() - began)
        log.info("%s: done in %.1f s", planned.folder, time.monotonic() - began)
    barrier(workers)
    return artifact or _in_cache(runtime, planned)


def _in_cache(runtime: Runtime, planned: PlannedStage) -> Artifact:
    store = runtime.store
    return _appears(lambda: store.find(planned.kind, planned.fingerprint, verify=False), planned, store.writable)


def _appears(look: Callable[[], Artifact | None], planned: PlannedStage, place: Path) -> Artifact:
    """What the main process has written; network file systems may show it to others a little later."""
    began = time.monotonic()
    while (found := look()) is None or found.fingerprint != planned.fingerprint:
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise ArtifactError(
                f"{planned.folder}: written by the main process, and not to be seen from this one in {place}; "
                "the cache and the run folder must be in folders that all machines of a run share"
            )
        time.sleep(0.1)
    return found


def _materialise(artifact: Artifact, target: Path) -> None:
    """Put the artifact's files into the run folder (hard links where possible), replacing an older result."""
    if _holds(target, artifact):
        return
    if target.exists():
        aside = target.parent / ".replaced" / f"{target.name}-{time.time_ns()}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(target, aside)
    building = target.with_name(f".{target.name}.making")
    shutil.rmtree(building, ignore_errors=True)  # of a run that was killed
    building.mkdir(parents=True)
    names = files_below(artifact.folder)
    link_or_copy(artifact.folder, building, names)
    os.replace(building, target)


def _holds(target: Path, artifact: Artifact) -> bool:
    """Whether a stage folder is the artifact's very files, or whole copies of them."""
    try:
        listed = read_json(artifact.folder / MANIFEST)["files"]
        if (target / MANIFEST).read_bytes() != (artifact.folder / MANIFEST).read_bytes():
            return False
        return all(
            os.path.samefile(target / name, artifact.folder / name) or file_digest(target / name) == digest
            for name, (_, digest) in listed.items()
        )
    except OSError:
        return False


def finished_manifest(out: Path, plan: Plan) -> dict[str, Any] | None:
    """The manifest of a run folder that holds a finished run of this very plan; None otherwise, and when damaged."""
    try:
        manifest: dict[str, Any] = read_json(out / RUN_MANIFEST)
        have = [stage["fingerprint"] for stage in manifest["stages"]]
        finished = manifest["finished"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if finished and have == [planned.fingerprint for planned in plan.stages] else None


def _diagnosis_digest(out: Path) -> str | None:
    """Of the diagnosis in a run folder; None when there is none, as of a run that could not be diagnosed."""
    return file_digest(out / DIAGNOSIS) if (out / DIAGNOSIS).is_file() else None


def _write_recipe(out: Path, plan: Plan) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(plan.recipe.resolved), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(out / "recipe.yaml", text)
    write_json(
        out / "plan.json",
        {
            "stages": [
                {
                    "name": planned.name,
                    "type": planned.kind,
                    "folder": planned.folder,
                    "fingerprint": planned.fingerprint,
                    "data": planned.data,
                    "inputs": list(planned.inputs),
                }
                for planned in plan.stages
            ]
        },
    )


def _write_manifest(out: Path, runtime: Runtime, records: Sequence[Mapping[str, Any]], finished: bool) -> None:
    write_json(
        out / RUN_MANIFEST,
        {
            "kdfw": __version__,
            "name": runtime.plan.recipe.name,
            "seed": runtime.plan.recipe.seed,
            "finished": finished,
            "processes": runtime.workers.world_size,
            "device": str(runtime.device),
            "precision": runtime.precision,
            "python": platform.python_version(),
            "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
            "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
            "plugins": {info.name: f"{info.distribution} {info.version}" for info in registry().plugins},
            "commit": _commit(),
            "data": dict(runtime.plan.data_fingerprints),
            "skipped lines": {name: lines for name in runtime.plan.datasets if (lines := runtime.skipped_lines(name))},
            "models": dict(runtime.plan.model_fingerprints),
            "recipe": fingerprints.fingerprint(json.loads(json.dumps(runtime.plan.recipe.resolved, default=str))),
            "stages": list(records),
            "diagnosis": _diagnosis_digest(out) if finished else None,
        },
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of the working directory, with a `+` when files differ from it."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
        if done.returncode:
            return None
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return done.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except (OSError, subprocess.TimeoutExpired):
        return None

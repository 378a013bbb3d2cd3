"""The content-addressed store of stage results.

An artifact is a folder named by the fingerprint of what it is made from. It is built in a working folder, which
survives a kill, and committed by one rename after every file has been flushed and its checksum written to
`artifact.json`. Reading verifies sizes and checksums; a damaged artifact is set aside and made again, never used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdfw.errors import ArtifactError
from kdfw.files import files_below, read_json, sync_file, sync_folder, write_json
from kdfw.fingerprint import file_digest
from kdfw.fingerprint import fingerprint as fingerprint_of

log = logging.getLogger("kdfw")
MANIFEST = "artifact.json"
SCRATCH = ("checkpoints", "scratch")
"""Folders of a working folder that are not part of the artifact."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A committed artifact."""

    folder: Path
    kind: str
    fingerprint: str
    summary: Mapping[str, Any]
    seconds: float = 0.0
    """What the last try at making it took."""


class ArtifactStore:
    """Artifacts below `root`; where `root` cannot be written, new ones go below `fallback`."""

    def __init__(self, root: Path, fallback: Path) -> None:
        self.root = root
        self.writable = root if _can_write(root) else fallback
        if self.writable != root:
            log.warning("cache %s cannot be written: reading from it, writing to %s", root, fallback)
        self._verified: set[Path] = set()

    @property
    def shared(self) -> Path:
        """Where what is kept by content (tokens, teacher scores, embeddings, indexes) is written."""
        return self.writable

    def find(self, kind: str, fingerprint: str, *, verify: bool = True) -> Artifact | None:
        """The artifact, verified once a process; None when there is none or it is damaged (it is set aside then)."""
        for root in dict.fromkeys((self.writable, self.root)):
            folder = root / "artifacts" / _name(kind, fingerprint)
            if not (folder / MANIFEST).is_file():
                continue
            fault = None if folder in self._verified or not verify else self._fault(folder, fingerprint)
            if fault is None:
                self._verified |= {folder} if verify else set()
                return read_artifact(folder)
            log.warning("%s: %s; it will be made again", folder, fault)
            if root == self.writable:
                _move(folder, root / "damaged")
        return None

    def set_aside(self, kind: str, fingerprint: str) -> None:
        """Move an artifact, or what an interrupted try at it has left, out of the way, undeleted: it is made anew."""
        with self.locked(kind, fingerprint):
            for place in ("artifacts", "work"):
                folder = self.writable / place / _name(kind, fingerprint)
                if folder.exists():
                    _move(folder, self.writable / "replaced")

    @contextlib.contextmanager
    def locked(self, kind: str, fingerprint: str) -> Iterator[None]:
        """Hold the lock of one artifact, so that two runs do not make it at the same time."""
        path = self.writable / "locks" / f"{_name(kind, fingerprint)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another run is making the same %s; waiting for it", kind)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def work_folder(self, kind: str, fingerprint: str) -> Path:
        """Where the artifact is being made; may hold what an earlier, killed try has left."""
        folder = self.writable / "work" / _name(kind, fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, kind: str, fingerprint: str, summary: Mapping[str, Any], seconds: float = 0.0) -> Artifact:
        """Turn the working folder into the artifact."""
        work = self.work_folder(kind, fingerprint)
        target = self.writable / "artifacts" / work.name
        try:
            for scratch in SCRATCH:
                shutil.rmtree(work / scratch, ignore_errors=True)
            files = {}
            for name in files_below(work):
                if name.name == MANIFEST:
                    continue
                sync_file(work / name)
                files[name.as_posix()] = [(work / name).stat().st_size, file_digest(work / name)]
            value: dict[str, Any] = {"kind": kind, "fingerprint": fingerprint, "files": files, "summary": dict(summary)}
            value["seconds"] = round(seconds, 3)
            # as it will be read back, so that its own checksum holds then
            value = json.loads(json.dumps(value))
            write_json(work / MANIFEST, {**value, "checksum": fingerprint_of(value)})
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # only a damaged one of another process's making can be here
                os.replace(target, target.with_name(f"{target.name}.old-{time.time_ns()}"))
            os.replace(work, target)
            sync_folder(target.parent)
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be written: {error.strerror}; free some space, run again") from error
        self._verified.add(target)
        return Artifact(folder=target, kind=kind, fingerprint=fingerprint, summary=dict(summary), seconds=seconds)

    def _fault(self, folder: Path, fingerprint: str) -> str | None:
        try:
            manifest = read_json(folder / MANIFEST)
            checksum = manifest.pop("checksum")
            files, found = manifest["files"], manifest["fingerprint"]
            known = fingerprint_of(manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{MANIFEST} cannot be read"
        if checksum != known:
            return f"{MANIFEST} has another checksum than when it was written"
        if found != fingerprint:
            return f"{MANIFEST} is of another artifact"
        for name, (size, digest) in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if file_digest(path) != digest:
                return f"{name} has another checksum than when it was written"
        return None


def read_artifact(folder: Path) -> Artifact | None:
    """What the manifest of a folder says, without looking at its files; None when there is no manifest."""
    try:
        found = read_json(folder / MANIFEST)
        return Artifact(
            folder=folder,
            kind=found["kind"],
            fingerprint=found["fingerprint"],
            summary=found["summary"],
            seconds=float(found["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _move(folder: Path, into: Path) -> None:
    """Keep a folder under another name."""
    into.mkdir(parents=True, exist_ok=True)
    os.replace(folder, into / f"{folder.name}-{time.time_ns()}")


def _name(kind: str, fingerprint: str) -> str:
    return f"{kind}-{fingerprint}"


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}-{time.time_ns()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True

"""Folders in the cache that appear whole or not at all, and hashes of files that are computed once."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdfw.errors import ArtifactError, DataError
from kdfw.files import read_json, replacing
from kdfw.fingerprint import file_digest, fingerprint

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_RACY_NS = 2_000_000_000
"""A file younger than this may still change without its time stamp changing, so its hash is not remembered."""


_remembered: dict[tuple[str, int, int, int], str] = {}


def remembered_digest(path: Path, cache: Path | None = None) -> str:
    """`file_digest`, remembered by (path, size, times) in this process and, given a cache, on disk.

    The times are those of the last write and of the last change of status: a program can set the first one back, but
    not the second, so a file of another content under the old size and date is noticed.

    Raises DataError when the file cannot be read.
    """
    try:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if key in _remembered:
            return _remembered[key]
        memo = None if cache is None else cache / "file-hashes" / f"{fingerprint(list(key))}.txt"
        if memo is not None:
            try:
                stored = memo.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):
                stored = ""
            if re.fullmatch(r"[0-9a-f]{64}", stored):
                _remembered[key] = stored
                return stored
        value = file_digest(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if abs(time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns)) > _RACY_NS:
        _remembered[key] = value
        if memo is not None:
            try:
                with replacing(memo) as stream:
                    stream.write(value.encode("ascii"))
            except OSError:
                log.debug("cannot remember the hash of %s in %s", path, memo.parent)
    return value


def sync_folder(folder: Path) -> None:
    """Flush every file of a folder, and the folder's own entries, to disk."""
    for place, _, names in os.walk(folder):
        for name in [*names, "."]:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `manifest.json`: `content` plus the size and digest of every file below the folder.

    Of a folder inside that has its own manifest only that manifest is listed: it vouches for the rest.
    """
    own = [path.parent for path in folder.rglob(MANIFEST) if path.parent != folder]
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "digest": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path != folder / MANIFEST
        and (path.name == MANIFEST or not any(place in path.parents for place in own))
    }
    value = {key: content[key] for key in content if key != "checksum"} | {"files": files}
    value = json.loads(json.dumps(value))  # as it will be read back, so that its digest holds then
    # keys keep their order: that of splits is shown
    text = json.dumps({**value, "checksum": fingerprint(value)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files all have the size it says.

    Raises ArtifactError naming the first file that is missing or has another size, and for a changed manifest.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest.pop("checksum") != fingerprint(manifest):
            raise ValueError("its checksum is another")
        sizes = {name: int(entry["size"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no {MANIFEST}: not a finished folder; delete it and run again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: damaged ({error}); delete the folder and run again") from error
    for name, size in sizes.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(
                f"{folder / MANIFEST}: damaged ({name!r} lies outside); delete the folder and run again"
            )
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ArtifactError(f"{path}: {state}; delete {folder} and run again")
        if path.name == MANIFEST:
            read_manifest(path.parent)
    assert isinstance(manifest, dict)
    return manifest


def verify_digests(folder: Path) -> None:
    """Read every file of a folder again; raises ArtifactError naming the first whose bytes have changed."""
    for name, entry in read_manifest(folder)["files"].items():
        if file_digest(folder / name) != entry["digest"]:
            raise ArtifactError(f"{folder / name}: the bytes differ from its checksum; delete {folder} and run again")
        if Path(name).name == MANIFEST:
            verify_digests((folder / name).parent)


def build_folder(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Make `folder` by calling `build` on a temporary one: once, whole, by one process at a time.

    A folder that is already there and whole is left alone; a damaged one (every byte is looked at, once a process) is
    built again. `build` returns what the manifest says beside the files. Raises ArtifactError when the place cannot
    be written.
    """
    from filelock import FileLock

    if is_whole(folder):
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if is_whole(folder):
                return folder
            shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed: we hold the lock
            temporary.mkdir()
            write_manifest(temporary, build(temporary))
            sync_folder(temporary)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{folder}: cannot be written: {reason}; free some space and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


_whole: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}
"""Folders whose bytes this process has verified, with the sizes and times of their files then."""


def is_whole(folder: Path) -> bool:
    """Whether a folder is there and every byte is what `build_folder` wrote (read once a process, while unchanged)."""
    if not folder.exists():
        return False
    try:
        state = _state(folder)
        if _whole.get(folder) == state:
            return True
        verify_digests(folder)
    except (ArtifactError, OSError) as damage:
        log.warning("%s; built again", str(damage).removesuffix("; delete the folder and run again"))
        return False
    _whole[folder] = state
    return True


def _state(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)


def missing_file(path: Path, what: str, layout: Iterable[str] = ()) -> DataError:
    """The error for a file that is not there: what is beside it, and what would do."""
    near = sorted(entry.name for entry in path.parent.iterdir())[:12] if path.parent.is_dir() else []
    there = f"{path.parent} has: {', '.join(near) or 'nothing'}" if path.parent.is_dir() else f"no folder {path.parent}"
    would_do = f"; what would do: {', '.join(layout)}" if layout else ""
    return DataError(f"{path}: no such {what}; {there}{would_do}")


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip archive for reading; raises DataError when it is none."""
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise missing_file(path, "zip archive") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable zip archive: {error}") from error

"""Writing files so that a kill, a full disk or a second process never leaves half of one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdfw.errors import ArtifactError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file under a temporary name, flush it to disk, then rename it into place."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}; free some space and run again") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON with sorted keys."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not every platform opens folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a finished file to disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, relative to it, sorted."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(found)


def link_or_copy(source: Path, target: Path, names: Iterable[Path]) -> None:
    """Put files of one folder into another: hard links where the file system allows them, copies elsewhere."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (target / name).exists():
            (target / name).unlink()
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copy2(source / name, target / name)


def inside(root: Path, name: str) -> Path:
    """`root / name`, refused when it would lie outside `root` (absolute, `..`, or through a link)."""
    candidate = (root / name).resolve()
    if not candidate.is_relative_to(root.resolve()):
        raise ArtifactError(f"{name!r} points outside {root}; only paths inside it are allowed")
    return candidate

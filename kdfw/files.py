"""Writing files so that a kill, a full disk or a second process never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kdfw.errors import ArtifactError, ConfigError, KdfwError

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream for a whole new file, which is flushed to disk and renamed into place when the block ends without error.

    Its folder is made when it is not there. Raises: OSError as it comes; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def clear_leftovers(folder: Path, *, below: bool = True) -> None:
    """Remove what `replacing` left in a folder (and below it) when it was killed, folders that were being made too.

    Nobody may be writing there.
    """
    for path in list(folder.rglob(".*.tmp") if below else folder.glob(".*.tmp")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file by `replacing`. Raises: ArtifactError when it cannot be written."""
    write_lines(path, [content], pack=False)


def write_lines(path: Path, lines: Iterable[str | bytes], pack: bool | None = None) -> None:
    """Write pieces of a file by `replacing`, gzipped when `pack`, or by default when its name ends in `.gz`.

    Raises: ArtifactError when it cannot be written.
    """
    pieces = (line.encode("utf-8") if isinstance(line, str) else line for line in lines)
    try:
        with replacing(path) as stream:
            if path.suffix == ".gz" if pack is None else pack:
                # no name, no time: the same lines give the same bytes
                with gzip.GzipFile(fileobj=stream, mode="wb", filename="", mtime=0) as packed:
                    packed.writelines(pieces)
            else:
                stream.writelines(pieces)
    except OSError as error:
        said = error.strerror or error
        raise ArtifactError(f"{path}: cannot be written: {said}; free some space and run again") from error


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON with sorted keys."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def existing_folder(name: str) -> Path | None:
    """The folder of a name, with its `~` filled in; None when there is none.

    Raises: ConfigError for what can be the name of none on this machine.
    """
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError) as error:  # too long, not to be looked at, the home of nobody
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{name[:100]!r} cannot be a folder: {said}") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises: OSError when it cannot be read, ValueError when it is no JSON or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def plain_yaml(text: str) -> Any:
    """The value of YAML text that nobody has checked, in plain types. Raises: ValueError when there is none."""
    import yaml

    try:
        return yaml.safe_load(text)
    except MemoryError:
        raise
    except Exception as error:  # of the values PyYAML cannot make (`!!bool x`) it raises whatever it comes across
        raise ValueError(f"not readable as YAML: {type(error).__name__}") from None


@contextlib.contextmanager
def naming_full_disk(what: str, folder: Path) -> Iterator[None]:
    """Turns the many faces of a disk that is full or read-only into one ArtifactError that says what to do.

    numpy gives an OSError without a number, safetensors an error of its own with the text of the system.
    """
    try:
        yield
    except KdfwError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        short_write = isinstance(error, OSError) and number is None and "requested and" in str(error)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or short_write
        if not full and number != errno.EROFS and "Read-only file system" not in str(error):
            raise
        reason = "the disk is full" if full else "the disk is read-only"
        place = error.filename if isinstance(error, OSError) and error.filename else folder
        raise ArtifactError(
            f"{what}: cannot write {place}: {reason}; what was done is kept: free some space (or set KDFW_CACHE to "
            "another disk) and run again"
        ) from error


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


def load_array(path: Path, *, mapped: bool = True) -> np.ndarray:
    """A `.npy` file, memory-mapped unless told otherwise.

    Raises: OSError when it cannot be read, ValueError when it is damaged or holds objects.
    """
    import tokenize

    import numpy as np

    try:
        found: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (SyntaxError, tokenize.TokenError, EOFError, OverflowError, MemoryError) as error:
        # numpy parses the header as Python text and lets what that raises through
        raise ValueError(f"{path}: not a readable array: {type(error).__name__}") from error
    return found

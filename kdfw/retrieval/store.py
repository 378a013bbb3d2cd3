"""Indexes kept in the cache by content: built once, committed in one rename, every byte verified when opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from kdfw.data.store import build_folder
from kdfw.errors import ArtifactError

T = TypeVar("T")


class Opened(Generic[T]):
    """What a retriever has open: one thing at a time, so that searching block by block verifies it once."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: T | None = None

    def get(self, key: object, make: Callable[[], T]) -> T:
        """What was opened for `key`, or what `make` opens now. All processes call this alike."""
        if self._value is None or key != self._key:
            self._value, self._key = make(), key
        return self._value


def kept(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built by `build` if it is not there yet; verified, and built again if a byte of it has changed.

    Raises: ArtifactError when the folder cannot be written, or is damaged and cannot be replaced.
    """

    def make(temporary: Path) -> dict[str, str]:
        build(temporary)
        return {}

    return build_folder(folder, make)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a full disk or a read-only cache into an ArtifactError that names the folder."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{folder}: cannot be written: {error.strerror or error}; free space there or choose another cache "
            "folder with KDFW_CACHE"
        ) from error

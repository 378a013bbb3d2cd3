"""Representations of a corpus or of queries, kept in the cache by content.

Texts are encoded in windows of consecutive rows. A window is sorted by length inside, computed by one process, written,
flushed and only then marked as done with its checksum: a killed run goes on at the first window that is not marked,
and what a window holds does not depend on how many processes there are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdfw.errors import ArtifactError, ConfigError, DataError
from kdfw.files import load_array, read_json, replacing
from kdfw.fingerprint import fingerprint
from kdfw.retrieval.store import writing

if TYPE_CHECKING:
    from kdfw.components import Model
    from kdfw.context import StageContext, Workers
    from kdfw.types import TextSource

PASSAGE_WINDOW = 16_384
QUERY_WINDOW = 1_024
VERSION = 1

Kind = Literal["dense", "sparse", "maxsim"]
DType = Literal["float32", "float16"]
Columns = dict[str, np.ndarray]
"""What a window holds: `counts` (rows,), and by entry `values` (entries,) or (entries, H), `terms` (entries,)."""

_BLOCK = {"dense": PASSAGE_WINDOW, "sparse": 256, "maxsim": 2_048}
"""Texts of one forward call: bounded by the size of what comes back (V weights, L vectors of a text)."""
_NAME = {"dense": "embedding", "sparse": "sparse", "maxsim": "tokens"}
"""What `Model.encode` calls it."""


@dataclass(kw_only=True)
class Windows:
    """A folder of windows, each marked as done with the checksum of what it holds."""

    folder: Path
    num_rows: int
    window: int
    _checked: set[int] = field(default_factory=set, init=False)

    def __len__(self) -> int:
        return -(-self.num_rows // self.window)

    def rows(self, number: int) -> range:
        """Rows of a window."""
        return range(number * self.window, min((number + 1) * self.window, self.num_rows))

    def ready(self, number: int) -> bool:
        """Whether the window is marked as done and holds what it was marked with (read once)."""
        if number in self._checked:
            return True
        try:
            mark = read_json(self._mark(number))
            good = bool(mark["digest"] == self.digest(number))
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            good = False
        if good:
            self._checked.add(number)
        return good

    def require(self, numbers: Iterable[int]) -> None:
        """Raises ArtifactError when one of these windows is missing or damaged."""
        for number in numbers:
            if not self.ready(number):
                rows = self.rows(number)
                raise ArtifactError(
                    f"{self.folder}: rows {rows.start} to {rows.stop} are missing or damaged; run again to encode "
                    "them, and on several machines give all of them one cache folder"
                )

    def mark(self, number: int) -> None:
        """Say that a window is written; its bytes must be on disk."""
        self._mark(number).parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._mark(number)) as stream:
            stream.write(json.dumps({"digest": self.digest(number)}).encode())

    def digest(self, number: int) -> str:
        """Checksum of a window as it is on disk."""
        raise NotImplementedError

    def _mark(self, number: int) -> Path:
        return self.folder / "done" / f"{number:06d}.json"


@dataclass(kw_only=True)
class Vectors(Windows):
    """One vector a row, in one file: `vectors.npy` (rows, H), filled window by window."""

    dtype: DType = "float32"
    _mapped: np.ndarray | None = field(default=None, init=False)

    @property
    def array(self) -> np.ndarray:
        """(rows, H), memory-mapped, in the stored type. Only windows that are `ready` mean anything."""
        if self._mapped is None:
            self._mapped = load_array(self.folder / "vectors.npy").view(np.ndarray)
        return self._mapped

    @property
    def width(self) -> int:
        """H."""
        return int(self.array.shape[1])

    def block(self, begin: int, end: int) -> np.ndarray:
        """(end - begin, H) float32, contiguous; not copied where it is stored so."""
        return np.ascontiguousarray(self.array[begin:end], dtype=np.float32)

    def write(self, number: int, vectors: np.ndarray) -> None:
        """Store and mark a window."""
        rows = self.rows(number)
        assert vectors.shape[0] == len(rows)
        path = self.folder / "vectors.npy"
        if not self._allocated(vectors.shape[1]):
            self._allocate(path, vectors.shape[1])
        offset = path.stat().st_size - self.num_rows * self.width * np.dtype(self.dtype).itemsize
        # written, not assigned through the map: on a full disk a map kills the process, a write raises
        with path.open("r+b") as stream:
            stream.seek(offset + rows.start * self.width * np.dtype(self.dtype).itemsize)
            stream.write(np.ascontiguousarray(vectors, dtype=self.dtype).tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        self.mark(number)

    def digest(self, number: int) -> str:
        rows = self.rows(number)
        return _digest([self.array[rows.start : rows.stop]])

    def _allocated(self, width: int) -> bool:
        """Whether the file is there and whole (its content may still be nothing)."""
        try:
            return self.array.shape == (self.num_rows, width) and self.array.dtype == np.dtype(self.dtype)
        except (OSError, EOFError, ValueError):  # absent, or cut short
            return False

    def _allocate(self, path: Path, width: int) -> None:
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "allocate.lock"):
            if self._allocated(width):
                return
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as stream:
                shape = (self.num_rows, width)
                header = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                stream.truncate(stream.tell() + self.num_rows * width * np.dtype(self.dtype).itemsize)
            os.replace(temporary, path)  # a damaged file goes, and with it all that was marked
            self._mapped = None


@dataclass(kw_only=True)
class Ragged(Windows):
    """Any number of entries a row (token vectors, weighted terms): a few arrays for each window."""

    names: tuple[str, ...]

    def read(self, number: int) -> Columns:
        """The arrays of a window, memory-mapped."""
        return {name: load_array(self._file(number, name)).view(np.ndarray) for name in self.names}

    def write(self, number: int, columns: Mapping[str, np.ndarray]) -> None:
        """Store and mark a window."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            with self._file(number, name).open("wb") as stream:
                np.save(stream, columns[name], allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        self.mark(number)

    def digest(self, number: int) -> str:
        columns = self.read(number)
        return _digest([columns[name] for name in self.names])

    def _file(self, number: int, name: str) -> Path:
        return self.folder / f"{number:06d}.{name}.npy"


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]


def encode_vectors(
    model: str, texts: TextSource, role: str, context: StageContext, *, dtype: DType = "float32", whole: bool = True
) -> Vectors:
    """Embeddings of all texts by a model with `search == "dense"`, encoded where they are not in the cache yet.

    Args:
        model: a name the context resolves.
        role: `query` or `passage`.
        whole: require every window at the end, not only those of this process.
    Raises: DataError naming the text whose embedding is not finite.
    """
    place = _place(model, texts, role, context, "dense", dtype)
    store = Vectors(folder=place, num_rows=len(texts), window=_window(role), dtype=dtype)
    for number, blocks in _missing(store, model, texts, role, context, "dense"):
        with writing(store.folder):
            store.write(number, np.concatenate([block["values"] for block in blocks]))
    _finish(store, context, whole)
    return store


def encode_ragged(
    model: str, texts: TextSource, role: str, context: StageContext, *, kind: Literal["sparse", "maxsim"]
) -> Ragged:
    """Weighted terms (`sparse`: `counts`, `terms` int32, `values` float32) or token vectors (`maxsim`: `counts`,
    `values` (entries, H) float16) of all texts."""
    names = ("counts", "terms", "values") if kind == "sparse" else ("counts", "values")
    place = _place(model, texts, role, context, kind, "ragged")
    store = Ragged(folder=place, num_rows=len(texts), window=_window(role), names=names)
    for number, blocks in _missing(store, model, texts, role, context, kind):
        with writing(store.folder):
            store.write(number, {name: np.concatenate([block[name] for block in blocks]) for name in names})
    _finish(store, context, True)
    return store


def _window(role: str) -> int:
    return QUERY_WINDOW if role == "query" else PASSAGE_WINDOW


def _place(model: str, texts: TextSource, role: str, context: StageContext, kind: Kind, layout: str) -> Path:
    key = {
        "model": context.model_fingerprint(model),
        "texts": texts.fingerprint,
        "role": role,
        "kind": kind,
        "layout": layout,
        "precision": context.precision,
        "version": VERSION,
    }
    return context.cache / "embeddings" / fingerprint(key)


def _missing(
    store: Windows, model: str, texts: TextSource, role: str, context: StageContext, kind: Kind
) -> Iterator[tuple[int, list[Columns]]]:
    """Compute the windows of this process's share that are not there: (number, its blocks in order)."""
    share = context.workers.share(len(store))
    absent = [number for number in share if not store.ready(number)]
    if not absent:
        return
    loaded = context.model(model)
    if loaded.search != kind:
        what = f"is searched by {loaded.search!r} vectors" if loaded.search else "cannot encode one text by itself"
        raise ConfigError(f"model {model!r} {what}, not {kind!r}; choose the retriever that fits the model")
    title = "queries" if role == "query" else "passages"
    with context.progress(sum(len(store.rows(number)) for number in absent), f"encoding {title}", title) as progress:
        for run in _runs(absent):
            rows = range(store.rows(run[0]).start, store.rows(run[-1]).stop)
            number, blocks, have = run[0], list[Columns](), 0
            for block in _blocks(loaded, texts, role, rows, min(_BLOCK[kind], store.window), context, kind):
                count = len(block["counts"])
                _check_finite(block, texts, store.rows(number).start + have)
                blocks.append(block)
                have += count
                progress.update(count)
                if have == len(store.rows(number)):
                    yield number, blocks
                    number, blocks, have = number + 1, [], 0


def _runs(numbers: Sequence[int]) -> Iterator[range]:
    """Consecutive numbers as ranges."""
    begin = numbers[0]
    for previous, number in zip(numbers, [*numbers[1:], None], strict=True):
        if number != previous + 1:
            yield range(begin, previous + 1)
            if number is not None:
                begin = number


def _blocks(
    model: Model, texts: TextSource, role: str, rows: range, block: int, context: StageContext, kind: Kind
) -> Iterator[Columns]:
    """Blocks of `rows` as columns. Blocks divide windows, so a block never reaches into the next window."""
    from kdfw.models.forward import encode_blocks
    from kdfw.models.precision import autocast_dtype

    autocast = autocast_dtype(context.precision)
    for _, reps in encode_blocks(
        model, texts, role, rows=rows, device=context.device, autocast=autocast, block=block, name=_NAME[kind]
    ):
        yield columns_of(reps, kind)


def columns_of(reps: Mapping[str, Any], kind: Kind) -> Columns:
    """What is stored of a block of representations."""
    values: np.ndarray = reps[_NAME[kind]].float().numpy()
    if kind == "dense":
        return {"counts": np.ones(len(values), dtype=np.int32), "values": values}
    if kind == "sparse":
        where = values != 0
        rows, terms = np.nonzero(where)
        counts = np.bincount(rows, minlength=len(values)).astype(np.int32)
        return {"counts": counts, "terms": terms.astype(np.int32), "values": values[where]}
    mask = reps["token_mask"].numpy().astype(bool)
    return {"counts": mask.sum(axis=1).astype(np.int32), "values": values[mask].astype(np.float16)}


def _check_finite(block: Columns, texts: TextSource, first: int) -> None:
    values = block["values"]
    fine = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not fine.all():
        entry = int(np.flatnonzero(~fine)[0])
        row = int(np.searchsorted(np.cumsum(block["counts"]), entry, side="right")) + first
        raise DataError(
            f"the model's output for text {texts.id(row)!r} is not finite (NaN or infinite); check the weights, or "
            "use precision fp32"
        )


def _finish(store: Windows, context: StageContext, whole: bool) -> None:
    workers: Workers = context.workers
    if workers.world_size > 1:
        workers.barrier()
    store.require(range(len(store)) if whole else workers.share(len(store)))

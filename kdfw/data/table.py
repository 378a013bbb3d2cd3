"""Texts with ids in flat, memory-mapped files: the concrete corpus and query set of kdfw."""

from __future__ import annotations

import hashlib
import mmap
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from kdfw.data.lines import BadLines
from kdfw.data.store import build_folder, read_manifest, verify_digests, write_manifest
from kdfw.errors import ArtifactError, DataError
from kdfw.files import read_json

FORMAT = "kdfw-texts-1"
_WALK_BYTES = 1 << 22
_FLUSH = 1 << 16


class TextTable:
    """An ordered, read-only column of (id, text).

    Nothing is held in memory but a few arrays the operating system pages in and out: texts and ids are read from
    memory maps, and `row` finds an id by binary search in a sorted array of 64-bit hashes (checked against the id
    itself). `select` gives a view: other rows, same files.

    Files: `texts.bin`, `ids.bin` (UTF-8, without separators), `texts.ends.npy`, `ids.ends.npy` (rows, int64),
    `hashes.npy` (rows, uint64, sorted), `order.npy` (rows, int64: the row of each sorted hash), `manifest.json`.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder written by `TextTableWriter`; raises ArtifactError when a file has the wrong size."""
        manifest = read_manifest(folder)
        if manifest.get("format") != FORMAT:
            raise ArtifactError(f"{folder}: not a text table of this version; delete it and run again")
        self.folder = folder
        self.fingerprint: str = manifest["fingerprint"]
        self._files = _Files(folder, int(manifest["rows"]))
        self._rows: np.ndarray | None = None
        self._base: TextTable = self
        self._view_index: dict[int, int] | None = None

    def __len__(self) -> int:
        return self._files.rows if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        return f"<TextTable of {len(self):,} texts in {self.folder}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.folder, self._rows)

    @property
    def base(self) -> TextTable:
        """The table a view looks into; a table that is no view is its own base."""
        return self._base

    def base_row(self, row: int) -> int:
        """The row of the base that row `row` is."""
        return self._check(row)

    def _check(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return int(row) if self._rows is None else int(self._rows[row])

    def base_rows(self) -> np.ndarray | range:
        """(rows,) The base's row of every row."""
        return range(len(self)) if self._rows is None else self._rows

    def text(self, row: int) -> str:
        """The text of a row; IndexError outside `0 <= row < len`."""
        return self._files.text(self._check(row))

    def id(self, row: int) -> str:
        """The id of a row; IndexError outside `0 <= row < len`."""
        return self._files.id(self._check(row)).decode("utf-8")

    def row(self, id: str) -> int:
        """The row of an id; KeyError when there is none."""
        found = self._files.find(id)
        if found < 0:
            raise KeyError(id)
        if self._rows is None:
            return found
        if self._view_index is None:
            self._view_index = {int(base): row for row, base in enumerate(self._rows)}
        if found not in self._view_index:
            raise KeyError(id)
        return self._view_index[found]

    def __contains__(self, id: object) -> bool:
        try:
            self.row(id)  # type: ignore[arg-type]
        except (KeyError, UnicodeEncodeError, AttributeError):
            return False
        return True

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """(len(ids),) int64 rows, -1 where an id is not there."""
        found = np.full(len(ids), -1, dtype=np.int64)
        for number, id in enumerate(ids):
            try:
                found[number] = self.row(id)
            except KeyError:
                continue
        return found

    def ids(self) -> list[str]:
        """Every id in order. Costs memory: for query sets, not for large corpora."""
        return [self.id(row) for row in range(len(self))]

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str]]:
        """(id, text) of rows `start` to `stop`, read in order; memory use does not grow with the table."""
        start, stop, _ = slice(start, stop).indices(len(self))
        if self._rows is None:
            yield from self._files.walk(start, stop)
            return
        for row in range(start, stop):
            yield self.id(row), self.text(row)

    def lengths(self) -> np.ndarray:
        """(rows,) int64 bytes of each text: a cheap stand-in for its cost."""
        lengths = np.diff(self._files.text_ends, prepend=0)
        return lengths if self._rows is None else lengths[self._rows]

    def select(self, rows: Sequence[int] | np.ndarray) -> TextTable:
        """A view of some rows, in the order given; raises IndexError for a row that is not there, ValueError for one
        given twice."""
        chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"rows 0 to {len(self) - 1} exist; asked for {chosen.min()} to {chosen.max()}")
        if len(np.unique(chosen)) != len(chosen):
            raise ValueError("a view cannot hold a row twice")
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__, _view_index=None)
        view._rows = chosen if self._rows is None else self._rows[chosen]
        digest = hashlib.blake2b(self._base.fingerprint.encode(), digest_size=16)
        digest.update(view._rows.tobytes())
        view.fingerprint = digest.hexdigest()
        return view

    def verify(self) -> None:
        """Read every byte again and compare checksums; raises ArtifactError."""
        verify_digests(self.folder)

    @classmethod
    def from_lists(cls, folder: Path, ids: Sequence[str], texts: Sequence[str]) -> TextTable:
        """Write and open a table of texts held in memory. An existing folder with the same content is reused."""

        if len(ids) != len(texts):
            raise DataError(f"{len(ids)} ids for {len(texts)} texts")

        def build(place: Path) -> dict[str, Any]:
            with TextTableWriter(place) as writer:
                for number, (id, text) in enumerate(zip(ids, texts, strict=True), start=1):
                    writer.add(id, text, number)
            return read_json(place / "manifest.json")  # type: ignore[no-any-return]

        if folder.exists():
            existing = cls(folder)
            same = len(existing) == len(ids) and all(
                pair == known for pair, known in zip(zip(ids, texts, strict=True), existing.iterate(), strict=True)
            )
            if not same:
                raise ArtifactError(f"{folder}: holds other texts already; give another folder")
            return existing
        return cls(build_folder(folder, build))


def _reopen(kind: type[TextTable], folder: Path, rows: np.ndarray | None) -> TextTable:
    table = kind(folder)
    return table if rows is None else table.select(rows)


class _Files:
    """The mapped files of a table, shared by its views."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.rows = rows
        self.text_ends = _load(folder / "texts.ends.npy", rows)
        self.id_ends = _load(folder / "ids.ends.npy", rows)
        self.hashes = _load(folder / "hashes.npy", rows)
        self.order = _load(folder / "order.npy", rows)
        self.texts = _map(folder / "texts.bin")
        self.ids = _map(folder / "ids.bin")
        for ends, data, name in ((self.text_ends, self.texts, "texts"), (self.id_ends, self.ids, "ids")):
            if rows and int(ends[-1]) != len(data):
                raise ArtifactError(f"{folder / name}.ends.npy does not fit {name}.bin; delete {folder} and run again")

    def text(self, row: int) -> str:
        begin = int(self.text_ends[row - 1]) if row else 0
        return self.texts[begin : int(self.text_ends[row])].decode("utf-8")

    def id(self, row: int) -> bytes:
        begin = int(self.id_ends[row - 1]) if row else 0
        return self.ids[begin : int(self.id_ends[row])]

    def find(self, id: str) -> int:
        """Row of an id, or -1."""
        try:
            wanted = id.encode("utf-8")
        except UnicodeEncodeError:
            return -1
        key = np.uint64(hash_id(wanted))
        place = int(np.searchsorted(self.hashes, key))
        while place < self.rows and self.hashes[place] == key:
            row = int(self.order[place])
            if self.id(row) == wanted:
                return row
            place += 1
        return -1

    def walk(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        # plain reads, not the map: pages of a map that is walked once would pile up in the process's resident memory
        with (self.folder / "texts.bin").open("rb") as stream:
            row = start
            while row < stop:
                begin = int(self.text_ends[row - 1]) if row else 0
                last = int(np.searchsorted(self.text_ends[row:stop], begin + _WALK_BYTES, side="right")) + row
                last = min(max(last, row + 1), stop)
                ends = np.asarray(self.text_ends[row:last]) - begin
                stream.seek(begin)
                block = stream.read(int(ends[-1]))
                at = 0
                for number, end in enumerate(ends.tolist()):
                    yield self.id(row + number).decode("utf-8"), block[at:end].decode("utf-8")
                    at = end
                row = last


def _load(path: Path, rows: int) -> np.ndarray:
    try:
        loaded: np.ndarray = np.load(path, mmap_mode="r" if rows else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); delete {path.parent} and run again") from error
    if loaded.shape != (rows,):
        raise ArtifactError(f"{path}: {loaded.shape[0]} rows instead of {rows}; delete {path.parent} and run again")
    return np.asarray(loaded)  # a plain view: slicing the np.memmap subclass is several times slower


def _map(path: Path) -> mmap.mmap | bytes:
    if path.stat().st_size == 0:
        return b""  # an empty file cannot be mapped
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def hash_id(id: bytes) -> int:
    """The 64-bit hash ids are found by."""
    return int.from_bytes(hashlib.blake2b(id, digest_size=8).digest(), "little")


class TextTableWriter:
    """Writes a table row by row into an empty or new folder.

    Memory: 20 bytes a row for the index (180 MB for 8.8M passages) and write buffers; never the texts. The folder
    becomes a table when the `with` block ends without an error; give `build_folder` a function that uses a writer to
    have it appear atomically.
    """

    def __init__(self, folder: Path, bad: BadLines | None = None) -> None:
        """`bad` decides what a duplicate id does; by default it is an error."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._bad = bad or BadLines()
        self._hashes = array("Q")
        self._lines = array("I")
        self._sources: list[tuple[int, Path]] = []
        self._text = _Column(folder / "texts")
        self._id = _Column(folder / "ids")
        self._digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> TextTableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self._text.close()
            self._id.close()

    def __len__(self) -> int:
        return len(self._hashes)

    def source(self, path: Path) -> None:
        """Rows added from here on come from this file; named in errors about duplicates."""
        self._sources.append((len(self._hashes), path))

    def add(self, id: str, text: str, line: int = 0) -> None:
        """Append a row; raises DataError for an id or text that cannot be stored."""
        fault = id_fault(id)
        if fault:
            raise DataError(f"{self._where(len(self), line)}: {fault}")
        try:
            id_bytes, text_bytes = id.encode("utf-8"), text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{self._where(len(self), line)}: not valid Unicode: {error.reason}") from None
        self._hashes.append(hash_id(id_bytes))
        self._lines.append(min(line, 2**32 - 1))
        self._id.add(id_bytes)
        self._text.add(text_bytes)
        self._digest.update(b"%d %d\n" % (len(id_bytes), len(text_bytes)))
        self._digest.update(id_bytes)
        self._digest.update(text_bytes)

    def _where(self, row: int, line: int) -> str:
        file = next((path for start, path in reversed(self._sources) if start <= row), None)
        if file is None:
            return f"row {row + 1}"
        return f"{file}:{line}" if line else f"{file}"

    def finish(self) -> None:
        """Write the index and the manifest. Raises DataError for an id that stands twice."""
        self._text.close()
        self._id.close()
        hashes = np.frombuffer(self._hashes, dtype=np.uint64) if len(self) else np.zeros(0, dtype=np.uint64)
        # stable, so that of equal ids the first row comes first
        order = np.argsort(hashes, kind="stable").astype(np.int64)
        ordered = hashes[order]
        np.save(self.folder / "hashes.npy", ordered)
        np.save(self.folder / "order.npy", order)
        repeated = self._duplicates(ordered, order)
        if repeated:
            self._drop(repeated)
            return
        content = {"format": FORMAT, "rows": len(self), "fingerprint": self._digest.hexdigest()}
        write_manifest(self.folder, content)

    def _duplicates(self, ordered: np.ndarray, order: np.ndarray) -> list[int]:
        """Rows whose id stood in an earlier row; reported through `bad`, which may raise."""
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        if not len(same):
            return []
        files = _Files(self.folder, len(self))
        found: list[tuple[int, int, bytes]] = []
        place = 0
        while place < len(same):
            begin = end = int(same[place])
            while place < len(same) and int(same[place]) == end:
                end += 1
                place += 1
            first: dict[bytes, int] = {}
            for row in order[begin : end + 1].tolist():
                id = files.id(row)
                if id in first:
                    found.append((row, first[id], id))
                else:
                    first[id] = row
        for row, earlier, id in sorted(found):
            line, first_line = self._lines[row], self._lines[earlier]
            reason = f"id {id.decode('utf-8')!r} again; first at {self._where(earlier, first_line)}"
            file = next((path for start, path in reversed(self._sources) if start <= row), self.folder)
            self._bad.report(file, line or row + 1, reason, "ids must be distinct; remove one of the two")
        return [row for row, _, _ in sorted(found)]

    def _drop(self, rows: list[int]) -> None:
        """Write the table again without some rows (only under `on_error: skip`)."""
        files = _Files(self.folder, len(self))
        dropped = set(rows)
        rest = TextTableWriter(self.folder / "rest")
        for row, (id, text) in enumerate(files.walk(0, len(self))):
            if row not in dropped:
                rest.add(id, text)
        rest.finish()
        del files
        for path in sorted((self.folder / "rest").iterdir()):
            path.replace(self.folder / path.name)
        (self.folder / "rest").rmdir()


class _Column:
    """Bytes one after another, and where each ends."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._data: IO[bytes] = stem.with_name(stem.name + ".bin").open("wb", buffering=1 << 20)
        # the ends go to disk as they come; the .npy header is put before them once their number is known
        self._raw_path = stem.with_name(stem.name + ".ends.raw")
        self._raw: IO[bytes] = self._raw_path.open("wb")
        self._ends = array("q")
        self._end = 0
        self._count = 0
        self._closed = False

    def add(self, value: bytes) -> None:
        self._data.write(value)
        self._end += len(value)
        self._ends.append(self._end)
        if len(self._ends) >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        self._count += len(self._ends)
        self._ends.tofile(self._raw)
        self._ends = array("q")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._flush()
        self._data.close()
        self._raw.close()
        with (
            self._stem.with_name(self._stem.name + ".ends.npy").open("wb") as stream,
            self._raw_path.open("rb") as raw,
        ):
            header = {"descr": np.dtype(np.int64).str, "fortran_order": False, "shape": (self._count,)}
            np.lib.format.write_array_header_1_0(stream, header)
            while block := raw.read(1 << 20):
                stream.write(block)
        self._raw_path.unlink()


def id_fault(id: str) -> str:
    """What is wrong with an id, or an empty string. Ids go into tab- and line-separated files, so they hold neither."""
    if not id:
        return "an empty id"
    if id.isprintable():
        return ""
    for character in id:
        if ord(character) < 32 or character == "\x7f":
            return f"the id {id[:40]!r} holds a control character"
    return ""


def word_fault(id: str) -> str:
    """Like `id_fault`, for ids of queries and passages: run files part their columns at white space."""
    return id_fault(id) or (
        f"the id {id[:40]!r} holds white space" if len(id.split()) != 1 or id.split()[0] != id else ""
    )

"""The score store: teacher scores by content, on disk, for any number of stages and runs.

A store belongs to one teacher fingerprint (weights, template, lengths, activation, precision) and maps a pair of texts
to a score: 128 bits of the query's hash and 128 bits of the passage's to `width` float32 values, 36 bytes a pair at
width 1. Nothing in it refers to ids, so the same text in another data set costs nothing.

Layout of a folder. Every file is a row of blocks; a block is a header with its own checksum and a payload of columns
(q0, p0, q1, p1: uint64; scores: float32) sorted by (q0, p0):

    log-N.bin       one block for each `put`, whole or not there at all; files are only ever appended to
    segment-N.bin   blocks of up to 8,192 pairs in one global order, written once and read through a memory map

When the log has grown past 65,536 pairs it becomes a segment, and eight segments of like size become one, so a lookup
searches a handful of files whatever the number of `put`s. Sorting by the query's hash first keeps one query's list in
one or two blocks. Memory: one fence (first key, place) for each block, 100 kB at 1e8 pairs, and the log.

What can go wrong. A kill leaves at most an unfinished block at the end of a log (ignored, cut off by the next writer)
or a `.tmp` file (ignored, removed). A damaged block is found by its checksum before anything in it is used; it is named
once in the log of the program and its pairs count as missing, so they are scored again. Writers hold a file lock;
readers need none: files are never changed, only appended to or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdfw.errors import ArtifactError
from kdfw.files import read_json, replacing

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

META = "store.json"
FORMAT = 1
LOG_PAIRS = 1 << 16
"""A log of this many pairs becomes a segment."""
BLOCK_PAIRS = 1 << 13
"""Pairs of a segment's block: what one verification reads (300 kB)."""
FAN_OUT = 8
"""So many segments of like size are merged into one."""
MERGE_PAIRS = 1 << 21
"""A merge holds about this many pairs in memory at a time."""

_MAGIC = b"kdfwscr\x01"
_HEADER = struct.Struct("<8sIIQQ16s8s")  # magic, pairs, width, first q0, first p0, payload digest, header digest
_SHORT = struct.Struct("<8sIIQQ16s")
_logger = logging.getLogger(__name__)


def text_hashes(texts: Sequence[str], role: Literal["query", "passage"]) -> Words:
    """(n, 2) uint64: 128 bits of BLAKE2b of each text. Roles hash differently, so a pair is not its mirror image."""
    person = role.encode()
    digests = [
        hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16, person=person).digest() for t in texts
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2).astype(np.uint64)


def pair_keys(queries: Words, passages: Words) -> Words:
    """(n, 4) uint64 keys (q0, q1, p0, p1) from (n, 2) hashes of queries and passages, row by row."""
    return np.concatenate([queries, passages], axis=1).astype(np.uint64, copy=False)


@dataclass(kw_only=True)
class _Blocks:
    """Some blocks of one file (or of memory): columns inside `words`, the whole file seen as 64-bit words."""

    name: str
    words: Words
    starts: npt.NDArray[np.int64]
    """(B,) word at which each payload begins."""
    counts: npt.NDArray[np.int64]
    """(B,) pairs of each block."""
    fences: Words
    """(B, 2) first (q0, p0) of each block, ascending."""
    digests: list[bytes]
    state: npt.NDArray[np.int8]
    """(B,) 0 not looked at, 1 verified, -1 damaged."""
    width: int

    def __len__(self) -> int:
        return int(self.counts.sum())

    def payload(self, block: int) -> Words:
        begin = int(self.starts[block])
        return self.words[begin : begin + _payload_words(int(self.counts[block]), self.width)]

    def verify(self, blocks: npt.NDArray[np.int64]) -> None:
        """Check the blocks that were not yet looked at; a damaged one is named once."""
        for block in blocks[self.state[blocks] == 0]:
            good = hashlib.blake2b(self.payload(int(block)).tobytes(), digest_size=16).digest() == self.digests[block]
            self.state[block] = 1 if good else -1
            if not good:
                _logger.warning(
                    "%s: block %d (%d pairs) is damaged; its scores are not used and will be computed again",
                    self.name,
                    block,
                    self.counts[block],
                )

    def find(self, q0: Words, q1: Words, p0: Words, p1: Words, scores: Floats, found: Mask) -> None:
        """Fill in the scores of the keys that are here and not yet found. All arrays have n rows; changed in place."""
        todo = np.flatnonzero(~found)
        if not len(self.counts) or not len(todo):
            return
        a, b = q0[todo], p0[todo]
        low = np.zeros(len(todo), dtype=np.int64)
        high = np.full(len(todo), len(self.counts), dtype=np.int64)
        while (low < high).any():  # last fence that is not above the key
            middle = (low + high) // 2
            at = np.minimum(middle, len(self.counts) - 1)
            below = (self.fences[at, 0] < a) | ((self.fences[at, 0] == a) & (self.fences[at, 1] <= b))
            open_ = low < high
            low = np.where(open_ & below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        block = low - 1
        self.verify(np.unique(block[block >= 0]))
        usable = (block >= 0) & (self.state[np.maximum(block, 0)] == 1)
        todo, block, a, b = todo[usable], block[usable], a[usable], b[usable]
        if not len(todo):
            return
        start, count = self.starts[block], self.counts[block]
        low, high = np.zeros(len(todo), dtype=np.int64), count.copy()
        while (low < high).any():  # first pair of the block that is not below the key
            middle = (low + high) // 2
            at = start + np.minimum(middle, count - 1)
            q, p = self.words[at], self.words[at + count]
            below = (q < a) | ((q == a) & (p < b))
            open_ = low < high
            low = np.where(open_ & below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        inside = low < count
        todo, start, count, low = todo[inside], start[inside], count[inside], low[inside]
        at = start + low
        same = (
            (self.words[at] == q0[todo])
            & (self.words[at + count] == p0[todo])
            & (self.words[at + 2 * count] == q1[todo])
            & (self.words[at + 3 * count] == p1[todo])
        )
        todo, start, count, low = todo[same], start[same], count[same], low[same]
        first = 2 * (start + 4 * count) + low * self.width
        floats = self.words.view("<f4")
        scores[todo] = floats[first[:, None] + np.arange(self.width)]
        found[todo] = True

    def between(self, begin: int, end: int) -> tuple[Words, Floats]:
        """Keys (n, 4) and scores (n, C) with begin <= q0 < end, from undamaged blocks."""
        keys: list[Words] = []
        values: list[Floats] = []
        first = np.searchsorted(self.fences[:, 0], np.uint64(begin), side="left") - 1
        last = len(self.counts) if end >= 1 << 64 else np.searchsorted(self.fences[:, 0], np.uint64(end), side="left")
        blocks = np.arange(max(int(first), 0), int(last), dtype=np.int64)
        self.verify(blocks)
        for block in blocks[self.state[blocks] == 1]:
            key, value = _columns(self.payload(int(block)), int(self.counts[block]), self.width)
            inside = key[:, 0] >= np.uint64(begin)
            if end < 1 << 64:
                inside &= key[:, 0] < np.uint64(end)
            keys.append(key[inside])
            values.append(value[inside])
        if not keys:
            return np.zeros((0, 4), np.uint64), np.zeros((0, self.width), np.float32)
        return np.concatenate(keys), np.concatenate(values)


def _payload_words(pairs: int, width: int) -> int:
    """Words of a payload: four of key and `width` halves a pair, rounded up."""
    return 4 * pairs + (pairs * width + 1) // 2


def _columns(payload: Words, pairs: int, width: int) -> tuple[Words, Floats]:
    columns = payload[: 4 * pairs].reshape(4, pairs)
    keys = np.stack([columns[0], columns[2], columns[1], columns[3]], axis=1)
    return keys, payload[4 * pairs :].view("<f4")[: pairs * width].reshape(pairs, width)


def _sorted(keys: Words, scores: Floats) -> tuple[Words, Floats]:
    """In the order of (q0, p0), each key once (the first given wins)."""
    order = np.lexsort((keys[:, 2], keys[:, 0]))
    keys, scores = keys[order], scores[order]
    fresh = np.ones(len(keys), dtype=bool)
    fresh[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return keys[fresh], scores[fresh]


def _block(keys: Words, scores: Floats) -> bytes:
    """Header and payload of sorted pairs."""
    pairs, width = scores.shape
    payload = bytearray(8 * _payload_words(pairs, width))
    columns = np.ascontiguousarray(keys[:, [0, 2, 1, 3]].T.astype("<u8"))
    payload[: columns.nbytes] = columns.tobytes()
    values = scores.astype("<f4").tobytes()
    payload[columns.nbytes : columns.nbytes + len(values)] = values
    digest = hashlib.blake2b(payload, digest_size=16).digest()
    short = _SHORT.pack(_MAGIC, pairs, width, int(keys[0, 0]), int(keys[0, 2]), digest)
    return short + hashlib.blake2b(short, digest_size=8).digest() + bytes(payload)


def _walk(data: Words, width: int, begin: int, name: str) -> Iterator[tuple[int, int, int, int, bytes]]:
    """(payload word, pairs, first q0, first p0, digest) of every block from byte `begin` on that is whole in `data`.

    A damaged header is named, and the walk goes on at the next good one.
    """
    raw = data.view(np.uint8).data
    size, at = len(raw), begin
    while at + _HEADER.size <= size:
        magic, pairs, block_width, q0, p0, digest, check = _HEADER.unpack(raw[at : at + _HEADER.size])
        good = magic == _MAGIC and hashlib.blake2b(raw[at : at + _SHORT.size], digest_size=8).digest() == check
        if good and block_width == width and pairs:
            end = at + _HEADER.size + 8 * _payload_words(pairs, width)
            if end > size:
                return  # an unfinished block at the end: a writer is at work, or was killed
            yield (at + _HEADER.size) // 8, pairs, q0, p0, digest
            at = end
            continue
        after = _next_header(raw, at + 8)
        if after < 0:
            return
        _logger.warning("%s: bytes %d to %d are damaged; the scores there will be computed again", name, at, after)
        at = after


def _next_header(raw: memoryview, begin: int) -> int:
    """Byte of the next good header at or after `begin`, -1 when there is none."""
    step = 1 << 24
    for chunk in range(begin, len(raw), step):
        piece = bytes(raw[chunk : chunk + step + 8])
        place = piece.find(_MAGIC)
        while place >= 0:
            at = chunk + place
            short = raw[at : at + _SHORT.size]
            check = bytes(raw[at + _SHORT.size : at + _HEADER.size])
            if at % 8 == 0 and hashlib.blake2b(short, digest_size=8).digest() == check:
                return at
            place = piece.find(_MAGIC, place + 1)
    return -1


def _gather(found: list[tuple[int, int, int, int, bytes]], words: Words, width: int, name: str) -> _Blocks:
    return _Blocks(
        name=name,
        words=words,
        starts=np.asarray([row[0] for row in found], dtype=np.int64),
        counts=np.asarray([row[1] for row in found], dtype=np.int64),
        fences=np.asarray([row[2:4] for row in found], dtype=np.uint64).reshape(-1, 2),
        digests=[row[4] for row in found],
        state=np.zeros(len(found), dtype=np.int8),
        width=width,
    )


def _memory(keys: Words, scores: Floats, name: str) -> _Blocks:
    """Sorted pairs held in memory, as one verified block."""
    width = scores.shape[1]
    if not len(keys):
        return _gather([], np.zeros(0, np.uint64), width, name)
    words = np.frombuffer(_block(keys, scores), dtype="<u8")
    row = (_HEADER.size // 8, len(keys), int(keys[0, 0]), int(keys[0, 2]), b"")
    blocks = _gather([row], words, width, name)
    blocks.state[:] = 1
    return blocks


class ScoreStore:
    """Teacher scores of pairs of texts.

    Args:
        folder: one folder for each teacher fingerprint, made when it is not there.
        width: float32 values of a pair; fixed when the folder is made.
        describe: what the teacher is, for people who look into the folder; not read back.
    Raises: ArtifactError when the folder holds another width or a later format.
    """

    def __init__(self, folder: Path, *, width: int = 1, describe: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.width = width
        self.writable = True
        self._segments: dict[str, _Blocks] = {}
        self._logs: dict[str, tuple[int, Words, Floats]] = {}  # name: (valid bytes, keys, scores)
        self._kept: tuple[Words, Floats] = (np.zeros((0, 4), np.uint64), np.zeros((0, width), np.float32))
        self._recent: _Blocks | None = None
        self._warned_tail: set[str] = set()
        if width < 1:
            raise ValueError("a score has at least one value")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._settle_meta(describe or {})
        except OSError as error:
            self._memory_only(error)
            self._meta_is_whole()
        self._refresh()

    # ------------------------------------------------------------ reading

    def __len__(self) -> int:
        """Pairs on disk and in memory; a pair that two processes stored at once may count twice."""
        self._refresh()
        return sum(len(blocks) for blocks in self._segments.values()) + len(self._recent_blocks())

    def get(self, keys: Words) -> tuple[Floats, Mask]:
        """Scores of pairs.

        Args:
            keys: (n, 4) uint64 from `pair_keys`.
        Returns: (n,) float32 scores ((n, C) when the store's width C is above 1), NaN where missing, and (n,) bool,
            True where the pair was found.
        """
        keys = np.ascontiguousarray(keys, dtype=np.uint64).reshape(-1, 4)
        scores = np.full((len(keys), self.width), np.nan, dtype=np.float32)
        found = np.zeros(len(keys), dtype=bool)
        q0, q1, p0, p1 = np.ascontiguousarray(keys.T)
        self._refresh()
        for blocks in [self._recent_blocks(), *self._segments.values()]:
            blocks.find(q0, q1, p0, p1, scores, found)
        return (scores[:, 0] if self.width == 1 else scores), found

    # ------------------------------------------------------------ writing

    def put(self, keys: Words, scores: Floats) -> None:
        """Store pairs: all of them or, after a kill, none. On disk (fsync) when this returns.

        Args:
            keys: (n, 4) uint64. A key that is already there keeps its first score.
            scores: (n,) or (n, C) finite float32.
        Raises: ArtifactError when the disk is full (the store stays readable); ValueError for scores not finite.
        """
        keys = np.ascontiguousarray(keys, dtype=np.uint64).reshape(-1, 4)
        values = np.ascontiguousarray(scores, dtype=np.float32).reshape(len(keys), self.width)
        if not np.isfinite(values).all():
            raise ValueError("only finite scores are stored")
        if not len(keys):
            return
        keys, values = _sorted(keys, values)
        if self.writable:
            try:
                with self._lock():
                    self._append(_block(keys, values))
                    self._refresh()
                    self._tidy()
                return
            except PermissionError as error:
                self._memory_only(error)
            except OSError as error:
                if error.errno == 30:  # EROFS: remounted read-only under us
                    self._memory_only(error)
                else:
                    raise ArtifactError(
                        f"{self.folder}: cannot store scores: {error.strerror or error}; what was stored before is "
                        "kept. Free some space (or set KDFW_CACHE to another disk) and run again"
                    ) from error
        self._kept = _sorted(np.concatenate([self._kept[0], keys]), np.concatenate([self._kept[1], values]))
        self._recent = None

    # ------------------------------------------------------------ inside

    def _lock(self) -> Any:
        import filelock

        return filelock.FileLock(self.folder / "lock")

    def _memory_only(self, error: OSError) -> None:
        if self.writable:
            _logger.warning(
                "%s: cannot be written (%s); new scores stay in memory", self.folder, error.strerror or error
            )
        self.writable = False

    def _settle_meta(self, describe: dict[str, Any]) -> None:
        if not self._meta_is_whole():
            text = json.dumps({"format": FORMAT, "width": self.width, "teacher": describe}, indent=1, sort_keys=True)
            with replacing(self.folder / META) as file:
                file.write(text.encode())
        for leftover in self.folder.glob("*.tmp"):  # of a killed writer: the lock is ours
            leftover.unlink(missing_ok=True)

    def _meta_is_whole(self) -> bool:
        """Whether `store.json` is there and readable; where it is not, the blocks say what the store holds.

        Raises: ArtifactError when the store is of another format or width.
        """
        path = self.folder / META
        found = None
        try:
            meta = read_json(path)
            found = (meta["format"], meta["width"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            _logger.warning("%s: damaged; the scores beside it are not, and it is written again", path)
        if found == (FORMAT, self.width):
            return True
        width = self._width_of_blocks()
        if width is not None:
            found = (FORMAT, width)
        if found is None or found == (FORMAT, self.width):
            return False
        raise ArtifactError(
            f"{path}: format {found[0]} with {found[1]} values a pair; expected format {FORMAT} with {self.width}; "
            "delete the folder or use another cache"
        )

    def _width_of_blocks(self) -> int | None:
        """What the first good header of a block says; None without one."""
        for name, size in self._files().items():
            if size:
                raw = np.memmap(self.folder / name, dtype=np.uint8, mode="r").data
                if (at := _next_header(raw, 0)) >= 0:
                    return int(_HEADER.unpack(raw[at : at + _HEADER.size])[2])
        return None

    def _files(self) -> dict[str, int]:
        try:
            with os.scandir(self.folder) as entries:
                return {
                    e.name: e.stat().st_size for e in entries if e.name.endswith(".bin") and not e.name.startswith(".")
                }
        except FileNotFoundError:
            return {}

    def _refresh(self) -> None:
        """See what other processes wrote. A file that vanishes meanwhile was merged: look again."""
        for _ in range(20):
            try:
                files = self._files()
                self._see(files)
                return
            except FileNotFoundError:
                continue
        raise ArtifactError(f"{self.folder}: its files change faster than they can be read")

    def _see(self, files: dict[str, int]) -> None:
        for name in [name for name in self._segments if name not in files]:
            del self._segments[name]
        for name in [name for name in self._logs if name not in files]:
            del self._logs[name]
            self._recent = None
        for name in sorted(files):
            size = files[name] // 8 * 8
            if name.startswith("segment-") and name not in self._segments and size:
                words = np.memmap(self.folder / name, dtype="<u8", mode="r", shape=(size // 8,))
                found = list(_walk(words, self.width, 0, str(self.folder / name)))
                blocks = self._segments[name] = _gather(found, words, self.width, str(self.folder / name))
                end = 8 * (int(blocks.starts[-1]) + len(blocks.payload(len(found) - 1))) if found else 0
                if end != files[name]:
                    _logger.warning(
                        "%s: cut short or damaged after byte %d; the scores there will be computed again",
                        blocks.name,
                        end,
                    )
            elif name.startswith("log-"):
                known = self._logs.get(name, (0, np.zeros((0, 4), np.uint64), np.zeros((0, self.width), np.float32)))
                if size > known[0]:
                    self._read_log(name, known)

    def _read_log(self, name: str, known: tuple[int, Words, Floats]) -> None:
        """Take in the blocks that were appended since the last look."""
        with open(self.folder / name, "rb") as file:
            file.seek(known[0])
            raw = file.read()
        words = np.frombuffer(raw[: len(raw) // 8 * 8], dtype="<u8")
        keys, values, end = [known[1]], [known[2]], known[0]
        for start, pairs, _, _, digest in _walk(words, self.width, 0, f"{self.folder / name} (from byte {known[0]})"):
            payload = words[start : start + _payload_words(pairs, self.width)]
            end = known[0] + 8 * (start + len(payload))
            if hashlib.blake2b(payload.tobytes(), digest_size=16).digest() != digest:
                _logger.warning(
                    "%s: the block at byte %d (%d pairs) is damaged; its scores will be computed again",
                    self.folder / name,
                    known[0] + 8 * start - _HEADER.size,
                    pairs,
                )
                continue
            key, value = _columns(payload, pairs, self.width)
            keys.append(key)
            values.append(value)
        if end != known[0]:
            self._logs[name] = (end, np.concatenate(keys), np.concatenate(values))
            self._recent = None
        elif name not in self._logs:
            self._logs[name] = known

    def _recent_blocks(self) -> _Blocks:
        """The logs and what only memory holds, as one sorted block."""
        if self._recent is None:
            logs = [self._logs[name] for name in sorted(self._logs)]
            keys = np.concatenate([log[1] for log in logs] + [self._kept[0]])
            values = np.concatenate([log[2] for log in logs] + [self._kept[1]])
            self._recent = _memory(*_sorted(keys, values), name=str(self.folder))
        return self._recent

    def _append(self, block: bytes) -> None:
        """Add a block to the newest log. The lock is held."""
        files = self._files()
        self._see(files)
        logs = sorted(name for name in files if name.startswith("log-"))
        name = logs[-1] if logs else f"log-{self._next_number(files):06d}.bin"
        with open(self.folder / name, "ab") as file:
            end = self._logs[name][0] if name in self._logs else 0
            if os.fstat(file.fileno()).st_size != end:  # the torn block of a killed writer
                file.truncate(end)
            try:
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise

    def _next_number(self, files: dict[str, int]) -> int:
        return 1 + max((int(name.split("-")[1].split(".")[0]) for name in files), default=0)

    def _tidy(self) -> None:
        """Turn a long log into a segment, and merge segments of like size. The lock is held."""
        if sum(len(log[1]) for log in self._logs.values()) < LOG_PAIRS:
            return
        logs = sorted(self._logs)
        keys = np.concatenate([self._logs[name][1] for name in logs])
        values = np.concatenate([self._logs[name][2] for name in logs])
        self._replace([_memory(*_sorted(keys, values), name="log")], logs)
        while True:
            by_size: dict[int, list[str]] = {}
            for name, blocks in sorted(self._segments.items()):
                level, size = 0, max(len(blocks), 1) // LOG_PAIRS
                while size >= FAN_OUT:
                    level, size = level + 1, size // FAN_OUT
                by_size.setdefault(level, []).append(name)
            full = next((names for _, names in sorted(by_size.items()) if len(names) >= FAN_OUT), None)
            if full is None:
                return
            self._replace([self._segments[name] for name in full], full)

    def _replace(self, sources: list[_Blocks], names: list[str]) -> None:
        """Write one segment with the pairs of `sources`, then remove the files they came from.

        Query hashes are uniform, so equal ranges of q0 hold about equally many pairs: memory stays bounded.
        """
        total = sum(len(source) for source in sources)
        parts = max(1, -(-total // MERGE_PAIRS))
        edges = [(1 << 64) * part // parts for part in range(parts + 1)]
        target = self.folder / f"segment-{self._next_number(self._files()):06d}.bin"
        held: tuple[Words, Floats] = (np.zeros((0, 4), np.uint64), np.zeros((0, self.width), np.float32))
        with replacing(target) as file:
            for begin, end in zip(edges, edges[1:], strict=False):
                pieces = [source.between(begin, end) for source in sources]
                keys, values = _sorted(
                    np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])
                )
                held = np.concatenate([held[0], keys]), np.concatenate([held[1], values])
                whole = len(held[0]) // BLOCK_PAIRS * BLOCK_PAIRS if end < 1 << 64 else len(held[0])
                for first in range(0, whole, BLOCK_PAIRS):
                    last = min(first + BLOCK_PAIRS, whole)
                    file.write(_block(held[0][first:last], held[1][first:last]))
                held = held[0][whole:], held[1][whole:]
        for name in names:  # killed here: pairs are there twice, which costs space until the next merge, nothing else
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()
        self._refresh()

"""Inverted lists on disk: for each term the rows it occurs in and a value. BM25 and learned sparse search stand on it.

The three arrays are those of a (rows, terms) matrix in compressed columns, under the file names of bm25s, so an index
built here also opens with `bm25s.BM25.load(folder, mmap=True)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfw.data.order import ranked
from kdfw.files import load_array

if TYPE_CHECKING:
    from kdfw.types import TextSource

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(terms, rows, values) of some rows: int, int and float32 arrays of one length, sorted by term, then row."""


@dataclass(frozen=True, kw_only=True)
class Postings:
    """Inverted lists, memory-mapped."""

    starts: np.ndarray
    """(terms + 1,) int64: list t is `starts[t]:starts[t + 1]`."""
    rows: np.ndarray
    """(entries,) int32, ascending inside a list."""
    values: np.ndarray
    """(entries,) float32."""
    num_rows: int

    @classmethod
    def open(cls, folder: Path, num_rows: int) -> Postings:
        """From a folder written by `invert`."""

        def load(name: str) -> np.ndarray:
            mapped: np.ndarray = load_array(folder / f"{name}.csc.index.npy")
            return mapped.view(np.ndarray)  # np.memmap slices cost several times more than plain ones

        return cls(starts=load("indptr").astype(np.int64), rows=load("indices"), values=load("data"), num_rows=num_rows)

    def scores(self, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(rows,) float32: for each row the sum of weight times value over the terms, added up in the given order."""
        total = np.zeros(self.num_rows, dtype=np.float32)
        for term, weight in zip(terms.tolist(), weights.astype(np.float32), strict=True):
            part = slice(self.starts[term], self.starts[term + 1])
            total[self.rows[part]] += weight * self.values[part]
        return total

    def search(
        self, terms: np.ndarray, weights: np.ndarray, depth: int, corpus: TextSource
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores) of the best `depth` rows that score above zero, in order."""
        scores = self.scores(terms, weights)
        bound = np.float32(0)
        if depth < self.num_rows:
            bound = np.partition(scores, self.num_rows - depth)[self.num_rows - depth]
        rows = np.flatnonzero(scores >= bound if bound > 0 else scores > 0)
        return ranked(rows, scores[rows], corpus, depth)


def invert(
    blocks: Callable[[], Iterable[Entries]],
    folder: Path,
    num_terms: int,
    value: Callable[[Entries, np.ndarray], np.ndarray] = lambda entries, lengths: entries[2],
) -> None:
    """Write the inverted lists of blocks of rows, without holding more than a block in memory.

    Args:
        blocks: gives the blocks in the order of their rows; called twice, to count and to place.
        value: (entries, (terms,) lengths of all lists) -> the values to store.
    """
    lengths = np.zeros(num_terms, dtype=np.int64)
    for terms, _, _ in blocks():
        lengths += np.bincount(terms, minlength=num_terms)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    np.save(folder / "indptr.csc.index.npy", starts)
    total = int(starts[-1])
    if total == 0:  # an empty file cannot be mapped for writing
        np.save(folder / "indices.csc.index.npy", np.zeros(0, dtype=np.int32))
        np.save(folder / "data.csc.index.npy", np.zeros(0, dtype=np.float32))
        return
    rows_out = _mapped(folder / "indices.csc.index.npy", np.int32, total)
    values_out = _mapped(folder / "data.csc.index.npy", np.float32, total)
    cursor = starts[:-1].copy()
    for entries in blocks():
        terms, rows, _ = entries
        counts = np.bincount(terms, minlength=num_terms)
        # entry i of a term's run in this block goes to cursor[term] + i
        inside = np.arange(len(terms)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(cursor, counts) + inside
        rows_out[places] = rows
        values_out[places] = value(entries, lengths)
        cursor += counts
    rows_out.flush()
    values_out.flush()


def _mapped(path: Path, dtype: Any, entries: int) -> np.memmap:
    """A new array in a file. Its space is taken at once: on a full disk a write through a map kills the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(entries,))
    with path.open("r+b") as stream:
        size = os.fstat(stream.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.seek(array.offset)
            for begin in range(0, array.nbytes, 1 << 20):
                stream.write(bytes(min(1 << 20, array.nbytes - begin)))
    return array

"""How much a data set holds: counted where it has been read, from the files' lines where it has not."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdfw.amounts import UNREAD, Amount, Sizes, unknown
from kdfw.data.lines import open_bytes
from kdfw.data.sets import LabelledData, PairData, ParallelData, RankingData
from kdfw.errors import DataError

if TYPE_CHECKING:
    from kdfw.data.sets import Data
    from kdfw.data.table import TextTable

SAMPLE = 10_000
"""Texts whose lengths stand for those of all."""
COUNTED_BYTES = 256 << 20
"""Files up to this size are counted line by line; of larger ones the first `PROBED_BYTES` are."""
PROBED_BYTES = 4 << 20


def measured(data: Data) -> Sizes:
    """Of opened data: exact."""
    if isinstance(data, RankingData):
        positives = {split: data.positives(split) for split in data.queries}
        return Sizes(
            passages=Amount(len(data.corpus)),
            items={split: Amount(len(queries)) for split, queries in data.queries.items()},
            judged={split: Amount(sum(map(bool, found.values()))) for split, found in positives.items()},
            positives={split: Amount(sum(map(len, found.values()))) for split, found in positives.items()},
            triples={split: Amount(len(rows)) for split, rows in data.triples.items()},
            rankings={name: (Amount(len(r)), Amount(len(r.passages))) for name, r in data.rankings.items()},
            passage_bytes=_sample(data.corpus),
            item_bytes={split: _sample(queries) for split, queries in data.queries.items()},
        )
    items: dict[str, Amount] = {}
    lengths: dict[str, np.ndarray] = {}
    if isinstance(data, LabelledData):
        for split, rows in data.splits.items():
            items[split] = Amount(len(rows.ids))
            if rows.texts is not None:
                lengths[split] = _sample(rows.texts)
    elif isinstance(data, PairData):
        for split, pairs in data.splits.items():
            items[split] = Amount(len(pairs.ids))
            lengths[split] = _sample(pairs.left) + _sample(pairs.right)
    elif isinstance(data, ParallelData):
        for split, lines in data.splits.items():
            items[split] = Amount(len(lines.source))
            lengths[split] = _sample(lines.source) + _sample(lines.target)
    return Sizes(items=items, item_bytes=lengths)


def _sample(table: TextTable) -> np.ndarray:
    lengths = table.lengths()
    return np.asarray(lengths[:: max(1, -(-len(lengths) // SAMPLE))])


# ---------------------------------------------------------------- of files


def lines_in(paths: Path | Sequence[Path]) -> Amount:
    """Lines of one file or several that are not empty; of large files a figure from their beginning.

    Unknown for a file that cannot be read: whoever reads it in full says why.
    """
    total = Amount(0)
    for path in [paths] if isinstance(paths, Path) else paths:
        total = total + _lines(path)
    return total


def _lines(path: Path) -> Amount:
    size = path.stat().st_size
    try:
        with open_bytes(path) as stream:
            packed = getattr(stream, "fileobj", None)
            # unpacking is some ten times slower than reading
            whole = size <= (COUNTED_BYTES // 8 if packed is not None else COUNTED_BYTES)
            lines = seen = 0
            last = b"\n"
            while block := stream.read(1 << 20):
                lines += _ended(last, block)
                last = block[-1:]
                seen += len(block)
                if not whole and seen >= PROBED_BYTES:
                    done = packed.tell() if packed is not None else seen
                    return Amount(round(lines * size / done), "about")
            return Amount(lines + (last != b"\n"))
    except (DataError, OSError, EOFError, zlib.error):
        return unknown(UNREAD)


def _ended(last: bytes, block: bytes) -> int:
    """Ends of lines that are not empty in a block; `last` is the byte before it."""
    joined = last + block
    empty = len(re.findall(rb"(?<=\n)\r?\n", joined)) if b"\n\n" in joined or b"\n\r\n" in joined else 0
    return block.count(b"\n") - empty

"""What every data set does the same way: fingerprint its files, ingest them once, open what was ingested."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdfw.amounts import Sizes
from kdfw.components import Dataset
from kdfw.data.lines import BadLines, OnError
from kdfw.data.order import ranked
from kdfw.data.ranking import Ranking
from kdfw.data.sets import Data, SkippedLines
from kdfw.data.sizes import measured
from kdfw.data.store import build_folder, read_manifest, remembered_digest
from kdfw.data.table import TextTable, hash_id
from kdfw.errors import ArtifactError, DataError
from kdfw.files import read_json
from kdfw.fingerprint import fingerprint
from kdfw.types import Qrels

log = logging.getLogger(__name__)

GZ = ("", ".gz")


class IngestedDataset(Dataset):
    """A data set that reads files once and keeps what it read under `cache/data/`.

    A subclass names its files by role (`files`), what else decides the result (`decisive`), and turns them into a
    folder (`ingest`) and the folder into data (`load`). Where the files lie does not enter the fingerprint.
    """

    layout: ClassVar[str] = ""
    """Name of the layout, in folder names."""

    def __init__(self, *, name: str | None, on_error: OnError, decisive: Mapping[str, Any]) -> None:
        self.name = name
        self.on_error = on_error
        self.decisive = dict(decisive)

    def files(self) -> Mapping[str, Path]:
        """Every file read, by role. Raises DataError for one that is missing, saying what would do."""
        raise NotImplementedError

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        """Read the files and write tables and arrays into `folder`; returns what `load` needs, as plain values."""
        raise NotImplementedError

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        """The data of an ingested folder."""
        raise NotImplementedError

    def triples(self) -> Sequence[str]:
        return ()

    def extra_fingerprint(self) -> Any:
        """What the result depends on beside files and options, as a plain value."""
        return None

    def fingerprint(self, cache: Path | None = None) -> str:
        """Hash of the options and of the bytes of every file. File hashes are remembered in this process and, given a
        cache, in it. Raises DataError naming a missing file."""
        hashes = {role: remembered_digest(path, cache) for role, path in sorted(self.files().items())}
        return fingerprint(
            {
                "layout": self.layout,
                "version": self.version,
                "options": {**self.decisive, "on_error": self.on_error},
                "files": hashes,
                "extra": self.extra_fingerprint(),
            }
        )

    def ingested(self, cache: Path) -> Path:
        """The folder of what was read, made now if it is not there."""

        def build(folder: Path) -> Mapping[str, Any]:
            bad = BadLines(self.on_error)
            content = dict(self.ingest(folder, bad))
            skipped = [{"file": str(s.file), "count": s.count, "first": list(s.first)} for s in bad.skipped]
            return {"content": content, "skipped": skipped}

        return build_folder(self._place(cache), build)

    def _place(self, cache: Path) -> Path:
        return cache / "data" / f"{self.layout}-{self.fingerprint(cache)[:24]}"

    def sizes(self, cache: Path) -> Sizes:
        """Exact once the data has been read; before that what `counted` says."""
        folder = self._place(cache)
        if folder.exists():
            try:
                return measured(self.load(folder, read_manifest(folder)["content"], ""))
            except (ArtifactError, OSError, ValueError, KeyError):
                pass  # damaged: it will be read again
        return self.counted() if self.on_error == "raise" else self.counted().at_most()

    def counted(self) -> Sizes:
        """What options and the lines of the files say, without reading what is in them."""
        return Sizes()

    def open(self, cache: Path) -> Data:
        folder = self.ingested(cache)
        for skipped in self.skipped(cache):
            listed = "".join(f"\n    {line}" for line in skipped.listed())
            log.warning("%s: skipped %d lines that cannot be read%s", skipped.file, skipped.count, listed)
        return self.load(folder, read_manifest(folder)["content"], self.fingerprint(cache))

    def skipped(self, cache: Path) -> tuple[SkippedLines, ...]:
        try:
            if self.on_error == "raise" or not (folder := self._place(cache)).exists():
                return ()
            entries = read_manifest(folder)["skipped"]
        except (ArtifactError, DataError):
            return ()  # of a damaged folder, or files that are gone, whoever opens the data says more
        return tuple(
            SkippedLines(
                file=Path(entry["file"]), count=entry["count"], first=tuple((line, why) for line, why in entry["first"])
            )
            for entry in entries
        )

    def display_name(self, path: Path | None) -> str:
        """The name in reports: the option, or that of the folder or file."""
        return self.name or (path.resolve().name if path is not None else self.layout)


# ---------------------------------------------------------------- splits


def in_share(id: str, share: float, salt: str) -> bool:
    """Whether an id falls into a share of all ids. Depends on the id and the salt alone, so it never changes when
    other rows come or go."""
    return hash_id(f"{salt}\0{id}".encode("utf-8", "surrogatepass")) < share * 2.0**64


def carve(ids: Sequence[str], share: float, salt: str = "dev") -> tuple[list[int], list[int]]:
    """(rows that stay, rows carved out), both in order. Raises DataError when either would be empty."""
    out = [row for row, id in enumerate(ids) if in_share(id, share, salt)]
    chosen = set(out)
    stay = [row for row in range(len(ids)) if row not in chosen]
    if not out or not stay:
        raise DataError(f"{salt}_share {share} of {len(ids)} items leaves a part empty; choose another share")
    return stay, out


def without_labels(bare: Iterable[str], dev_share: float) -> frozenset[str]:
    """Splits without labels: those of the files, and the dev split that is carved from such a training split."""
    found = frozenset(bare)
    return found | {"dev"} if dev_share > 0 and "train" in found else found


def split_names(found: Sequence[str], dev_share: float) -> list[str]:
    """The splits with `dev` added when it is carved out of `train`."""
    names = list(found)
    if dev_share > 0:
        if "train" not in names:
            raise DataError(f"dev_share needs a split `train` to carve from; found: {', '.join(names) or 'none'}")
        if "dev" in names:
            raise DataError("dev_share is set, but the data has a split `dev` of its own; leave one of the two out")
        names.insert(names.index("train") + 1, "dev")
    return names


def known_split(name: str, found: Sequence[str]) -> str:
    """`dev` for the usual names of a development split, unless that would clash."""
    other = {"val", "valid", "validation", "development"}
    return "dev" if name in other and "dev" not in found else name


# ---------------------------------------------------------------- judgements, rankings


def write_qrels(path: Path, qrels: Qrels) -> None:
    """`qid TAB pid TAB grade` lines."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for query, rows in qrels.items():
            for passage, grade in rows.items():
                stream.write(f"{query}\t{passage}\t{grade}\n")


class StoredQrels(Mapping[str, Qrels]):
    """Judgements by split, read when first asked for."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._loaded: dict[str, Qrels] = {}

    def __getitem__(self, split: str) -> Qrels:
        if split not in self._loaded:
            qrels: Qrels = {}
            text = self._files[split].read_text(encoding="utf-8")
            for line in text.split("\n")[:-1]:
                query, passage, grade = line.split("\t")
                qrels.setdefault(query, {})[passage] = int(grade)
            self._loaded[split] = qrels
        return self._loaded[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def ordered(corpus: TextTable, rows: Sequence[int], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores in the order of a ranking. A row given twice keeps its better score."""
    best: dict[int, float] = {}
    for row, score in zip(rows, scores, strict=True):
        best[row] = max(score, best.get(row, -np.inf))
    found = np.asarray(list(best), dtype=np.int64)
    return ranked(found, np.asarray(list(best.values()), dtype=np.float32), corpus)


def save_rankings(folder: Path, rankings: Mapping[str, Ranking]) -> list[str]:
    """Write rankings into numbered folders (names come from data files and are no file names); returns the names."""
    names = list(rankings)
    for number, name in enumerate(names):
        rankings[name].save(folder / "rankings" / str(number))
    return names


def load_rankings(folder: Path, names: Sequence[str]) -> dict[str, Ranking]:
    """Rankings written by `save_rankings`."""
    return {name: Ranking.load(folder / "rankings" / str(number)) for number, name in enumerate(names)}


def write_strings(path: Path, values: Sequence[str]) -> None:
    """A list of strings as JSON."""
    path.write_text(json.dumps(list(values)), encoding="utf-8")


def read_strings(path: Path) -> list[str]:
    """A list written by `write_strings`."""
    found: list[str] = read_json(path)
    return found

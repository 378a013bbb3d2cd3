"""Sentence pairs, with or without a gold score; aligned sentences of a translation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from kdfw.amounts import Sizes
from kdfw.data.ingest import (
    IngestedDataset,
    carve,
    known_split,
    read_strings,
    split_names,
    without_labels,
    write_strings,
)
from kdfw.data.lines import BadLines, parse_float, read_lines, show
from kdfw.data.ranking_sets import DevShare, Name, Skip, in_usual_order
from kdfw.data.sets import Data, PairData, Pairs, Parallel, ParallelData
from kdfw.data.sizes import lines_in
from kdfw.data.store import missing_file
from kdfw.data.table import TextTable, TextTableWriter
from kdfw.errors import ConfigError, DataError, one_of
from kdfw.fingerprint import fingerprint as combined_fingerprint


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One sentence pair of a file."""

    line: int
    left: str
    right: str
    gold: float | None


def read_pairs(path: Path, bad: BadLines, gold: int | None, left: int, right: int) -> Iterator[PairRow]:
    """Rows of a tab-separated file; columns are counted from 0, `gold` None for files without a score."""
    needed = max(column for column in (gold, left, right) if column is not None) + 1
    for line, content in read_lines(path, bad):
        fields = content.split("\t")
        if len(fields) < needed:
            bad.report(path, line, f"{len(fields)} columns in {show(content)}, expected at least {needed}")
            continue
        score = None
        if gold is not None:
            score = parse_float(fields[gold].strip())
            if score is None:
                bad.report(path, line, f"the score {show(fields[gold])} in column {gold} is no finite number")
                continue
        if not fields[left].strip() or not fields[right].strip():
            bad.report(path, line, "an empty sentence")
            continue
        yield PairRow(line=line, left=fields[left], right=fields[right], gold=score)


PairSource = tuple[str, str, Path, Iterable[PairRow]]
"""(group, prefix of ids, file, rows)"""


GoldRange = Annotated[
    tuple[float, float] | None,
    Field(description="[lowest, highest] gold score there can be, mapped to 0 and 1; default: scores stay as they are"),
]


def ingest_pairs(
    folder: Path,
    splits: Mapping[str, Sequence[PairSource]],
    dev_share: float,
    bad: BadLines,
    gold_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Write pairs by split: two tables with the same ids (`prefix:line`), gold scores, group names."""
    low, high = gold_range or (0.0, 1.0)
    content: dict[str, Any] = {}
    for number, (split, sources) in enumerate(splits.items()):
        place = folder / str(number)
        ids: list[str] = []
        gold: list[float] = []
        groups: list[str] = []
        with (
            TextTableWriter(place / "left", bad) as left,
            TextTableWriter(place / "right", bad) as right,
        ):
            for group, prefix, path, rows in sources:
                left.source(path)
                right.source(path)
                for row in rows:
                    if gold_range is not None and row.gold is not None and not low <= row.gold <= high:
                        bad.report(path, row.line, f"the score {row.gold:g} is outside gold_range {low:g} to {high:g}")
                        continue
                    id = f"{prefix}:{row.line}"
                    left.add(id, row.left, row.line)
                    right.add(id, row.right, row.line)
                    ids.append(id)
                    groups.append(group)
                    gold.append(float("nan") if row.gold is None else (row.gold - low) / (high - low))
        scores = np.asarray(gold, dtype=np.float32)
        labelled = len(scores) > 0 and not np.isnan(scores).any()
        if labelled:
            np.save(place / "gold.npy", scores)
        names = sorted(set(groups))
        index = {name: code for code, name in enumerate(names)}
        np.save(place / "groups.npy", np.asarray([index[group] for group in groups], dtype=np.int32))
        write_strings(place / "groups.json", names)
        parts = {split: None}
        if split == "train" and dev_share > 0:
            stay, out = carve(ids, dev_share)
            np.save(place / "train.npy", np.asarray(stay, dtype=np.int64))
            np.save(place / "dev.npy", np.asarray(out, dtype=np.int64))
            parts = {"train": None, "dev": None}
        for part in parts:
            content[part] = {"number": number, "labelled": labelled, "rows": part if len(parts) == 2 else None}
    return {"splits": content}


Limit = Annotated[
    dict[str, Annotated[int, Field(ge=1)]] | None,
    Field(description="at most so many pairs of a split, by split: rows at even distances, the same in every run"),
]


def spread(number: int, limit: int) -> np.ndarray:
    """At most `limit` of `number` rows, at even distances, ascending."""
    kept = min(number, limit)
    return np.arange(kept, dtype=np.int64) * number // max(1, kept)


def checked_limit(limit: Mapping[str, int] | None, splits: Sequence[str], owner: str) -> dict[str, int]:
    """The limits as given. Raises ConfigError for a split that is not there."""
    for split in limit or {}:
        if split not in splits:
            raise ConfigError(f"{owner}: limit: no split {split!r}; {one_of(split, splits)}")
    return dict(limit or {})


def load_pairs(
    folder: Path,
    content: Mapping[str, Any],
    fingerprint: str,
    name: str,
    limit: Mapping[str, int] = {},  # noqa: B006
) -> PairData:
    """Open what `ingest_pairs` wrote, at most `limit` pairs of each split it names."""
    splits: dict[str, Pairs] = {}
    for split, entry in content["splits"].items():
        place = folder / str(entry["number"])
        left, right = TextTable(place / "left"), TextTable(place / "right")
        gold = np.load(place / "gold.npy", allow_pickle=False) if entry["labelled"] else None
        codes = np.load(place / "groups.npy", allow_pickle=False)
        if entry["rows"] is not None:
            rows = np.load(place / f"{entry['rows']}.npy", allow_pickle=False)
            left, right, codes = left.select(rows), right.select(rows), codes[rows]
            gold = None if gold is None else gold[rows]
        if split in limit:
            rows = spread(len(left), limit[split])
            left, right, codes = left.select(rows), right.select(rows), codes[rows]
            gold = None if gold is None else gold[rows]
        names = read_strings(place / "groups.json")
        groups = [names[code] for code in codes]
        splits[split] = Pairs(ids=left.ids(), left=left, right=right, gold=gold, groups=groups)
    whole = fingerprint if not limit else combined_fingerprint([fingerprint, dict(limit)])
    return PairData(name=name, fingerprint=whole, splits=splits)


def limited(sizes: Sizes, limit: Mapping[str, int]) -> Sizes:
    """Sizes of data that keeps at most so many pairs of a split."""
    return replace(
        sizes,
        items={split: each.within(limit[split]) if split in limit else each for split, each in sizes.items.items()},
    )


def checked_range(gold_range: tuple[float, float] | None, owner: str) -> tuple[float, float] | None:
    """The range as given; raises ConfigError when it is empty."""
    if gold_range is not None and not gold_range[0] < gold_range[1]:
        raise ConfigError(f"{owner}: gold_range: found {list(gold_range)}; write [lowest, highest]")
    return gold_range


class TsvPairs(IngestedDataset):
    """Sentence pairs in tab-separated files: `gold TAB sentence TAB sentence`, in columns of your choice.

    Several files of a split are its groups (by file name), over which evaluation averages.
    """

    task: ClassVar[str] = "pairs"
    layout: ClassVar[str] = "tsv-pairs"

    def __init__(
        self,
        *,
        files: Annotated[
            dict[str, Path | list[Path]], Field(min_length=1, description="file, or list of files, by split")
        ],
        gold: Annotated[
            int | None, Field(ge=0, description="column of the score, from 0; null for pairs without one")
        ] = 0,
        left: Annotated[int, Field(ge=0, description="column of the first sentence")] = 1,
        right: Annotated[int, Field(ge=0, description="column of the second sentence")] = 2,
        unlabelled: Annotated[
            list[str] | None, Field(description="splits whose files hold two columns, sentence TAB sentence")
        ] = None,
        gold_range: GoldRange = None,
        dev_share: DevShare = 0.0,
        limit: Limit = None,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self._gold_range = checked_range(gold_range, "tsv-pairs")
        self._files = {split: found if isinstance(found, list) else [found] for split, found in files.items()}
        self._gold, self._left, self._right, self._dev_share = gold, left, right, dev_share
        self._unlabelled = set(unlabelled or ())
        self._limit = checked_limit(limit, [*files, *(["dev"] if dev_share > 0 else [])], "tsv-pairs")
        unknown = self._unlabelled - set(files)
        if unknown:
            name = sorted(unknown)[0]
            raise ConfigError(f"tsv-pairs: unlabelled: no split {name!r}; {one_of(name, files)}")
        self.without_labels = without_labels(files if gold is None else self._unlabelled, dev_share)
        if len({gold, left, right}) != 3:
            raise ConfigError("tsv-pairs: gold, left and right must be different columns")
        decisive: dict[str, Any] = {
            "gold": gold,
            "range": gold_range,
            "left": left,
            "right": right,
            "unlabelled": sorted(self._unlabelled),
        }
        shape = {split: [_stem(path) for path in paths] for split, paths in self._files.items()}
        super().__init__(name=name, on_error=on_error, decisive={**decisive, "dev_share": dev_share, "files": shape})

    def files(self) -> Mapping[str, Path]:
        found = {f"{split}/{n}": path for split, paths in self._files.items() for n, path in enumerate(paths)}
        for role, path in found.items():
            if not path.is_file():
                raise missing_file(path, f"file ({role})")
        return found

    def splits(self) -> Sequence[str]:
        return split_names(list(self._files), self._dev_share)

    def counted(self) -> Sizes:
        """A pair is a line."""
        sizes = Sizes(items={split: lines_in(paths) for split, paths in self._files.items()}).with_dev(self._dev_share)
        return limited(sizes, self._limit)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        self.splits()
        sources: dict[str, list[PairSource]] = {}
        for split, paths in self._files.items():
            columns = (None, 0, 1) if split in self._unlabelled else (self._gold, self._left, self._right)
            sources[split] = []
            for number, path in enumerate(paths):
                repeated = [_stem(other) for other in paths].count(_stem(path)) > 1
                prefix = f"{_stem(path)}.{number}" if repeated else _stem(path)
                sources[split].append((_stem(path), prefix, path, read_pairs(path, bad, *columns)))
        return ingest_pairs(folder, sources, self._dev_share, bad, self._gold_range)

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        name = self.display_name(next(iter(self._files.values()))[0])
        return load_pairs(folder, content, fingerprint, name, self._limit)


def _stem(path: Path) -> str:
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    return name.rpartition(".")[0] or name


class Sts(IngestedDataset):
    """The folder of semantic textual similarity sets: `STSB/{train,dev,test}.tsv`, `STS12/<subset>.tsv`, `SICK-R/`.

    Split `test` joins the test pairs of every set; the group of a pair is its set (`STS12`), whose subsets are
    concatenated as in the "all" setting of SentEval. `train` and `dev` come from one set.
    """

    task: ClassVar[str] = "pairs"
    layout: ClassVar[str] = "sts"
    paper: ClassVar[str] = "arXiv:1803.05449"

    def __init__(
        self,
        *,
        folder: Annotated[Path, Field(description="the folder with one folder for each set")],
        test: Annotated[list[str] | None, Field(description="sets of the split test; default: all there are")] = None,
        train: Annotated[str | None, Field(description="set that gives train and dev; null for none")] = "STSB",
        unlabelled: Annotated[
            Path | None, Field(description="`sentence TAB sentence` file that becomes a split `unlabelled`")
        ] = None,
        gold_range: GoldRange = None,
        limit: Limit = None,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        there = ["test", *(["train", "dev"] if train else []), *(["unlabelled"] if unlabelled else [])]
        self._limit = checked_limit(limit, there, "sts")
        self.folder, self._test, self._train, self._unlabelled = folder, test, train, unlabelled
        self._gold_range = checked_range(gold_range, "sts")
        self.without_labels = frozenset({"unlabelled"} if unlabelled else ())
        decisive = {"test": test, "train": train, "unlabelled": unlabelled is not None, "range": gold_range}
        super().__init__(name=name, on_error=on_error, decisive=decisive)

    def _parts(self) -> dict[str, list[tuple[str, str, Path]]]:
        """(group, id prefix, file) by split."""
        if not self.folder.is_dir():
            raise missing_file(self.folder, "folder")
        there = sorted(place.name for place in self.folder.iterdir() if place.is_dir() and any(place.glob("*.tsv*")))
        parts: dict[str, list[tuple[str, str, Path]]] = {}
        if self._train is not None:
            for split in ("train", "dev"):
                path = self._find(self.folder / self._train, split)
                parts[split] = [(self._train, f"{self._train}/{split}", path)]
        parts["test"] = []
        for name in self._test if self._test is not None else there:
            place = self.folder / name
            files = sorted(path for path in place.glob("*.tsv*") if path.name.endswith((".tsv", ".tsv.gz")))
            if not files:
                raise missing_file(place / "test.tsv", "file", there)
            if {_stem(path) for path in files} & {"train", "dev", "test"}:
                files = [self._find(place, "test")]
            parts["test"] += [(name, f"{name}/{_stem(path)}", path) for path in files]
        if self._unlabelled is not None:
            parts["unlabelled"] = [("unlabelled", "unlabelled", self._unlabelled)]
        return parts

    @staticmethod
    def _find(place: Path, stem: str) -> Path:
        for path in (place / f"{stem}.tsv", place / f"{stem}.tsv.gz"):
            if path.is_file():
                return path
        raise missing_file(place / f"{stem}.tsv", "file")

    def files(self) -> Mapping[str, Path]:
        found = {f"{split}/{prefix}": path for split, parts in self._parts().items() for _, prefix, path in parts}
        for role, path in found.items():
            if not path.is_file():
                raise missing_file(path, f"file ({role})")
        return found

    def splits(self) -> Sequence[str]:
        return list(self._parts())

    def counted(self) -> Sizes:
        """A pair is a line."""
        sizes = Sizes(items={split: lines_in([p for _, _, p in parts]) for split, parts in self._parts().items()})
        return limited(sizes, self._limit)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        sources: dict[str, list[PairSource]] = {}
        for split, parts in self._parts().items():
            columns = (None, 0, 1) if split == "unlabelled" else (0, 1, 2)
            sources[split] = [(group, prefix, path, read_pairs(path, bad, *columns)) for group, prefix, path in parts]
        return ingest_pairs(folder, sources, 0.0, bad, self._gold_range)

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        return load_pairs(folder, content, fingerprint, self.display_name(self.folder), self._limit)


# ---------------------------------------------------------------- translation


def read_aligned(source: Path, target: Path, bad: BadLines) -> Iterator[tuple[int, str, str]]:
    """(line, source sentence, target sentence) of two files whose lines belong together.

    Raises: DataError when one file is longer. A sentence that is empty on either side goes to `bad`.
    """
    lines = zip_longest(read_lines(source, bad, keep_empty=True), read_lines(target, bad, keep_empty=True))
    for left, right in lines:
        if left is None or right is None:
            short, long = (source, target) if left is None else (target, source)
            line = (left or right or (0, ""))[0]
            raise DataError(f"{short}: ends before line {line}, but {long} goes on; aligned files have equal lengths")
        if not left[1].strip() or not right[1].strip():
            bad.report(source if not left[1].strip() else target, left[0], "an empty sentence")
            continue
        yield left[0], left[1], right[1]


def ingest_parallel(
    folder: Path,
    splits: Mapping[str, tuple[Path, Iterable[tuple[int, str, str]]]],
    bad: BadLines,
    dev_share: float = 0.0,
) -> dict[str, Any]:
    """Write aligned sentences by split; the id of a row is its line."""
    for number, (split, (path, rows)) in enumerate(splits.items()):
        with ExitStack() as stack:
            source = stack.enter_context(TextTableWriter(folder / str(number) / "source", bad))
            target = stack.enter_context(TextTableWriter(folder / str(number) / "target", bad))
            source.source(path)
            for line, left, right in rows:
                source.add(str(line), left, line)
                target.add(str(line), right, line)
        if split == "train" and dev_share > 0:
            ids = TextTable(folder / str(number) / "source").ids()
            for part, kept in zip(("train", "dev"), carve(ids, dev_share), strict=True):
                np.save(folder / str(number) / f"{part}.npy", np.asarray(kept, dtype=np.int64))
    return {"splits": list(splits), "carved": dev_share > 0}


def load_parallel(
    folder: Path, content: Mapping[str, Any], fingerprint: str, name: str, languages: tuple[str, str]
) -> ParallelData:
    """Open what `ingest_parallel` wrote."""
    splits = {}
    for number, split in enumerate(content["splits"]):
        place = folder / str(number)
        source, target = TextTable(place / "source"), TextTable(place / "target")
        if split == "train" and content.get("carved"):
            for part in ("train", "dev"):
                rows = np.load(place / f"{part}.npy", allow_pickle=False)
                splits[part] = Parallel(source=source.select(rows), target=target.select(rows))
        else:
            splits[split] = Parallel(source=source, target=target)
    return ParallelData(
        name=name, fingerprint=fingerprint, splits=splits, source_language=languages[0], target_language=languages[1]
    )


class ParallelText(IngestedDataset):
    """Sentences in two languages: files `<split>.<language>`, plain or gzip, one sentence a line, line by line aligned.

    `val` and `valid` are called `dev`.
    """

    task: ClassVar[str] = "translation"
    layout: ClassVar[str] = "parallel"

    def __init__(
        self,
        *,
        source: Annotated[str, Field(min_length=1, description="source language: the ending of its files")],
        target: Annotated[str, Field(min_length=1, description="target language: the ending of its files")],
        folder: Annotated[Path | None, Field(description="folder with `<split>.<language>[.gz]`")] = None,
        files: Annotated[
            dict[str, tuple[Path, Path]] | None, Field(description="[source file, target file] by split")
        ] = None,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        if (folder is None) == (files is None):
            raise ConfigError("parallel: give either `folder` or `files`")
        self.folder, self._files = folder, files
        self._languages = (source, target)
        decisive = {"source": source, "target": target}
        super().__init__(name=name, on_error=on_error, decisive=decisive)

    def _pairs(self) -> dict[str, tuple[Path, Path]]:
        if self._files is not None:
            return dict(self._files)
        assert self.folder is not None
        sides: dict[str, dict[str, list[Path]]] = {language: {} for language in self._languages}
        there = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        written = {path: path.name.removesuffix(".gz").rpartition(".") for path in there}
        splits = {split for split, _, language in written.values() if language in sides}
        for path, (split, _, language) in written.items():
            if split and language in sides:
                sides[language].setdefault(known_split(split, sorted(splits)), []).append(path)
        source, target = (in_usual_order(sides[language]) for language in self._languages)
        if not source and not target:
            raise missing_file(
                self.folder / f"train.{self._languages[0]}", "file", [f"train.{side}[.gz]" for side in self._languages]
            )
        for split, path in {**source, **target}.items():
            if split not in source or split not in target:
                other = self._languages[split in source]
                raise DataError(f"{path}: no such file for {other!r} beside it; name the splits to read by `files`")
        return {split: (path, target[split]) for split, path in source.items()}

    def files(self) -> Mapping[str, Path]:
        found = {}
        for split, pair in self._pairs().items():
            for language, path in zip(("source", "target"), pair, strict=True):
                if not path.is_file():
                    raise missing_file(path, f"file ({split}, {language})")
                found[f"{split}/{language}"] = path
        return found

    def splits(self) -> Sequence[str]:
        return list(self._pairs())

    def counted(self) -> Sizes:
        """A sentence is a line."""
        return Sizes(items={split: lines_in(source) for split, (source, _) in self._pairs().items()})

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        return ingest_parallel(
            folder, {split: (pair[0], read_aligned(*pair, bad)) for split, pair in self._pairs().items()}, bad
        )

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        name = self.display_name(self.folder or next(iter(self._pairs().values()))[0])
        return load_parallel(folder, content, fingerprint, name, self._languages)

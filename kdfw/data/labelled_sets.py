"""Texts and images with a class."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Sizes
from kdfw.data.image_table import MAX_IMAGE_BYTES
from kdfw.data.ingest import (
    IngestedDataset,
    carve,
    known_split,
    read_strings,
    split_names,
    without_labels,
    write_strings,
)
from kdfw.data.lines import BadLines, Fields, open_bytes, read_json, read_lines, show
from kdfw.data.ranking_sets import DevShare, Name, Skip
from kdfw.data.sets import ClassMeasure, Data, Labelled, LabelledData
from kdfw.data.sizes import lines_in
from kdfw.data.store import missing_file, open_zip
from kdfw.data.table import TextTable, TextTableWriter, id_fault
from kdfw.errors import ConfigError, DataError, MissingDependencyError, one_of


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """One line of a classification file; `label` is the name of the class, None where it has none."""

    line: int
    id: str
    text: str
    label: str | None


def read_labelled_json(path: Path, bad: BadLines, text: str, label: str | None, id: str) -> Iterator[LabelledRow]:
    """Rows of a JSONL file; without the key `id` a row is called by its line."""
    for line, value in read_json(path, bad):
        row, fault = labelled_row(value, line, text, label, id)
        if row is None:
            bad.report(path, line, fault)
        else:
            yield row


def labelled_row(
    value: dict[str, Any], line: int, text: str, label: str | None, id: str
) -> tuple[LabelledRow | None, str]:
    """A row from one JSON object or table row, or what is wrong with it."""
    fields = Fields(value)
    content = fields.text(text)
    name = None if label is None else _class_name(fields, label)
    own = fields.id(id) if value.get(id) is not None else str(line)
    fault = fields.fault or id_fault(own) or ("" if content.strip() else "an empty text")
    return (None, fault) if fault else (LabelledRow(line=line, id=own, text=content, label=name), "")


def _class_name(fields: Fields, key: str) -> str:
    """A label as text: words and whole numbers as they are, and what other programs make of 0 and 1."""
    found = fields.value.get(key)
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, float) and found.is_integer():
        return str(int(found))
    return fields.id(key)


def read_labelled_tsv(path: Path, bad: BadLines, text: int, label: int | None) -> Iterator[LabelledRow]:
    """Rows of a tab-separated file; columns are counted from 0."""
    needed = max(text, -1 if label is None else label) + 1
    for line, content in read_lines(path, bad):
        fields = content.split("\t")
        if len(fields) < needed:
            bad.report(path, line, f"{len(fields)} columns in {show(content)}, expected at least {needed}")
            continue
        name = None if label is None else fields[label].strip()
        if not fields[text].strip() or name == "":
            bad.report(path, line, "an empty text or label")
            continue
        yield LabelledRow(line=line, id=str(line), text=fields[text], label=name)


def class_names(found: Iterable[str]) -> list[str]:
    """Distinct labels in order: as numbers when all of them are, else alphabetical."""
    names = set(found)
    if all(name.isascii() and name.removeprefix("-").isdigit() and len(name) < 18 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def ingest_labelled(
    folder: Path,
    splits: Mapping[str, tuple[Path, Iterable[LabelledRow]]],
    classes: Sequence[str] | None,
    dev_share: float,
    bad: BadLines,
) -> dict[str, Any]:
    """Write texts and labels by split. Without `classes` they are those of all splits' labels."""
    names: dict[str, list[str | None]] = {}
    for number, (split, (path, rows)) in enumerate(splits.items()):
        names[split] = []
        known = None if classes is None else set(classes)
        with TextTableWriter(folder / str(number), bad) as writer:
            writer.source(path)
            seen: set[str] = set()
            for row in rows:
                if known is not None and row.label is not None and row.label not in known:
                    bad.report(path, row.line, f"the label {row.label!r} is not among `classes`")
                    continue
                if row.id in seen:
                    bad.report(path, row.line, f"id {row.id!r} again", "ids must be distinct")
                    continue
                seen.add(row.id)
                writer.add(row.id, row.text, row.line)
                names[split].append(row.label)
    found = list(classes) if classes is not None else class_names(n for part in names.values() for n in part if n)
    index = {name: code for code, name in enumerate(found)}
    content: dict[str, Any] = {}
    for number, (split, labels) in enumerate(names.items()):
        coded = np.asarray([-1 if label is None else index[label] for label in labels], dtype=np.int64)
        np.save(folder / f"{number}.labels.npy", coded)
        content |= _carved(folder, number, split, TextTable(folder / str(number)).ids(), dev_share)
    return {"splits": content, "classes": found}


def _carved(folder: Path, number: int, split: str, ids: Sequence[str], dev_share: float) -> dict[str, Any]:
    if split != "train" or dev_share == 0:
        return {split: {"number": number, "rows": None}}
    for part, rows in zip(("train", "dev"), carve(ids, dev_share), strict=True):
        np.save(folder / f"{number}.{part}.npy", np.asarray(rows, dtype=np.int64))
    return {part: {"number": number, "rows": part} for part in ("train", "dev")}


def load_labelled(folder: Path, content: Mapping[str, Any], fingerprint: str, name: str, measure: str) -> LabelledData:
    """Open what `ingest_labelled` or `Images` wrote."""
    splits: dict[str, Labelled] = {}
    for split, entry in content["splits"].items():
        number = entry["number"]
        labels = np.load(folder / f"{number}.labels.npy", allow_pickle=False)
        rows = None
        if entry["rows"] is not None:
            rows = np.load(folder / f"{number}.{entry['rows']}.npy", allow_pickle=False)
            labels = labels[rows]
        if (folder / f"{number}.images.npy").exists():
            images = np.load(folder / f"{number}.images.npy", mmap_mode="r", allow_pickle=False)
            ids = read_strings(folder / f"{number}.ids.json")
            if rows is not None:
                # one copy of the chosen images: a map cannot be indexed without one
                images, ids = images[rows], [ids[row] for row in rows]
            splits[split] = Labelled(ids=ids, labels=labels, images=images)
        else:
            texts = TextTable(folder / str(number))
            texts = texts if rows is None else texts.select(rows)
            splits[split] = Labelled(ids=texts.ids(), labels=labels, texts=texts)
    return LabelledData(
        name=name,
        fingerprint=fingerprint,
        splits=splits,
        classes=content["classes"],
        image_mean=content.get("mean", ()),
        image_std=content.get("std", ()),
        measure=measure,
    )


Measure = Annotated[ClassMeasure, Field(description="what the data is officially measured by")]
Classes = Annotated[list[str] | None, Field(description="class names in order; default: all labels found, sorted")]


def checked_classes(classes: Sequence[str] | None, owner: str) -> Sequence[str] | None:
    """The classes as given. Raises ConfigError for one that stands twice."""
    twice = [name for name, count in Counter(classes or ()).items() if count > 1]
    if twice:
        raise ConfigError(f"{owner}: classes: {twice[0]!r} stands twice")
    return classes


class TextClassification(IngestedDataset):
    """Texts with a label: JSONL (`{"text": ..., "label": ...}`) or, for files called `.tsv`, columns."""

    task: ClassVar[str] = "classification"
    layout: ClassVar[str] = "text-classification"

    def __init__(
        self,
        *,
        files: Annotated[dict[str, Path], Field(min_length=1, description="file by split, plain or gzip")],
        text: Annotated[str, Field(description="JSON key of the text")] = "text",
        label: Annotated[str, Field(description="JSON key of the label")] = "label",
        id: Annotated[str, Field(description="JSON key of the id; a row without it is called by its line")] = "id",
        text_column: Annotated[int, Field(ge=0, description="TSV column of the text, from 0")] = 0,
        label_column: Annotated[int, Field(ge=0, description="TSV column of the label, from 0")] = 1,
        unlabelled: Annotated[list[str] | None, Field(description="splits without labels")] = None,
        classes: Classes = None,
        measure: Measure = "accuracy",
        dev_share: DevShare = 0.0,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self._classes = checked_classes(classes, "text-classification")
        self._files, self._measure, self._dev_share = files, measure, dev_share
        self._keys = (text, label, id)
        self._columns = (text_column, label_column)
        self._unlabelled = set(unlabelled or ())
        unknown = self._unlabelled - set(files)
        if unknown:
            name = sorted(unknown)[0]
            raise ConfigError(f"text-classification: unlabelled: no split {name!r}; {one_of(name, files)}")
        self.without_labels = without_labels(self._unlabelled, dev_share)
        decisive: dict[str, Any] = {"keys": self._keys, "columns": self._columns, "classes": classes}
        decisive["dev_share"] = dev_share
        shape = {split: _is_tsv(path) for split, path in files.items()}
        decisive |= {"unlabelled": sorted(self._unlabelled), "tsv": shape, "measure": measure}
        super().__init__(name=name, on_error=on_error, decisive=decisive)

    def files(self) -> Mapping[str, Path]:
        for split, path in self._files.items():
            if not path.is_file():
                raise missing_file(path, f"file ({split})")
            if ".csv" in map(str.lower, path.suffixes):
                fix = "read are JSON lines, and tab-separated columns in files called .tsv or .txt"
                raise DataError(f"{path}: a CSV file; {fix} (for CSV: type `huggingface` with its folder)")
        return self._files

    def splits(self) -> Sequence[str]:
        return split_names(list(self._files), self._dev_share)

    def counted(self) -> Sizes:
        """A text is a line."""
        return Sizes(items={split: lines_in(path) for split, path in self._files.items()}).with_dev(self._dev_share)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        self.splits()
        sources = {}
        for split, path in self._files.items():
            text, label, id = self._keys
            labelled = split not in self._unlabelled
            if _is_tsv(path):
                rows = read_labelled_tsv(path, bad, self._columns[0], self._columns[1] if labelled else None)
            else:
                rows = read_labelled_json(path, bad, text, label if labelled else None, id)
            sources[split] = (path, rows)
        return ingest_labelled(folder, sources, self._classes, self._dev_share, bad)

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        name = self.display_name(next(iter(self._files.values())).parent)
        return load_labelled(folder, content, fingerprint, name, self._measure)


def _is_tsv(path: Path) -> bool:
    return bool({".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes})


# ---------------------------------------------------------------- images


def idx_rows(path: Path) -> int:
    """How many rows an IDX file says it has. Raises: DataError for a file without such a header."""
    with open_bytes(path) as stream:
        header = stream.read(8)
    if len(header) < 8 or header[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes (starts with {header[:4].hex() or 'nothing'})")
    return int(struct.unpack(">I", header[4:])[0])


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (MNIST's format), plain or gzip, as a uint8 array of its shape.

    Raises: DataError when it is no IDX file of bytes or its length does not fit its header.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise missing_file(path, "IDX file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: damaged or cut off gzip data: {error}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4:
        raise DataError(f"{path}: not an IDX file of unsigned bytes (starts with {data[:4].hex() or 'nothing'})")
    begin = 4 + 4 * data[3]
    if len(data) < begin:
        raise DataError(f"{path}: cut off in its header")
    shape = struct.unpack(f">{data[3]}I", data[4:begin])
    expected = 1
    for size in shape:
        expected *= size
    if expected != len(data) - begin:
        raise DataError(f"{path}: its header says {shape}, {expected} bytes; it holds {len(data) - begin}")
    return np.frombuffer(data, dtype=np.uint8, offset=begin).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class _ImageFile:
    split: str
    label: str
    id: str
    where: str
    read: Any


class Images(IngestedDataset):
    """Images with a class: a folder or zip archive `split/class/file`, or a folder with MNIST's IDX files.

    All images must have one size, unless `size` is given. Values are kept as bytes; mean and deviation are those of
    train.
    """

    task: ClassVar[str] = "classification"
    layout: ClassVar[str] = "images"
    holds: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(
        self,
        *,
        path: Annotated[Path, Field(description="folder or .zip with split/class/file, or folder with IDX files")],
        size: Annotated[int | None, Field(ge=1, le=4096, description="resize every image to this square")] = None,
        grey: Annotated[bool, Field(description="one channel instead of three")] = False,
        classes: Classes = None,
        measure: Measure = "accuracy",
        test_share: Annotated[
            float, Field(ge=0, lt=1, description="data with one split only: its share that becomes test")
        ] = 0.0,
        dev_share: DevShare = 0.0,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self._classes = checked_classes(classes, "images")
        self.path, self._size, self._grey = path, size, grey
        self._measure, self._test_share, self._dev_share = measure, test_share, dev_share
        decisive = {"size": size, "grey": grey, "classes": classes, "test_share": test_share, "dev_share": dev_share}
        super().__init__(name=name, on_error=on_error, decisive={**decisive, "measure": measure})

    def _idx(self) -> dict[str, tuple[Path, Path]]:
        """(images, labels) by split for a folder with IDX files."""
        found: dict[str, tuple[Path, Path]] = {}
        if self.path.is_dir():
            for split, stem in (("train", "train"), ("test", "t10k")):
                for end in ("", ".gz"):
                    images = self.path / f"{stem}-images-idx3-ubyte{end}"
                    labels = self.path / f"{stem}-labels-idx1-ubyte{end}"
                    if images.is_file() and labels.is_file():
                        found.setdefault(split, (images, labels))
        return found

    def files(self) -> Mapping[str, Path]:
        if self.path.is_file():
            return {"archive": self.path}
        if not self.path.is_dir():
            raise missing_file(self.path, "folder or archive")
        idx = self._idx()
        if idx:
            return {f"{split}/{side}": p for split, pair in idx.items() for side, p in zip("xy", pair, strict=True)}
        found = {str(path.relative_to(self.path)): path for path in sorted(self.path.glob("*/*/*")) if path.is_file()}
        if not found:
            layout = ["split/class/file.jpg", "t10k-images-idx3-ubyte.gz"]
            raise missing_file(self.path / "train", "folder of images", layout)
        return found

    def _images_in(self) -> dict[str, int]:
        """Number of images by split, train, dev and test first."""
        idx = self._idx()
        if idx:
            counts = {split: idx_rows(images) for split, (images, _) in idx.items()}
        elif self.path.is_file():
            with open_zip(self.path) as archive:
                names = [name for name in archive.namelist() if name.count("/") == 2 and not name.endswith("/")]
            counts = Counter(name.split("/")[0] for name in names)
        else:
            counts = Counter(role.split("/")[0] for role in self.files())
        usual = {"train": 0, "dev": 1, "test": 2}
        named = {known_split(name, sorted(counts)): count for name, count in counts.items()}
        return dict(sorted(named.items(), key=lambda item: (usual.get(item[0], 3), item[0])))

    def splits(self) -> Sequence[str]:
        found = list(self._images_in())
        if self._test_share > 0:
            if len(found) != 1:
                raise DataError(f"test_share is for data with one split; {self.path} has {', '.join(found)}")
            found = ["train", "test"]
        return split_names(found, self._dev_share)

    def counted(self) -> Sizes:
        """An image is a file, or a row of an IDX file."""
        items = {split: Amount(count) for split, count in self._images_in().items()}
        if self._test_share > 0:
            (only,) = items.values()
            items = {"train": (only * (1 - self._test_share)).about(), "test": (only * self._test_share).about()}
        return Sizes(items=items).with_dev(self._dev_share)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        self.splits()
        idx = self._idx()
        arrays = self._from_idx(idx) if idx else self._from_files(bad)
        names = class_names({label for _, labels, _ in arrays.values() for label in labels})
        if self._classes is not None:
            unknown = sorted(set(names) - set(self._classes))
            if unknown:
                raise DataError(f"{self.path}: class {unknown[0]!r} is not among `classes`")
            names = list(self._classes)
        if self._test_share > 0:
            images, labels, ids = next(iter(arrays.values()))
            parts = zip(("train", "test"), carve(ids, self._test_share, "test"), strict=True)
            arrays = {part: (images[rows], [labels[r] for r in rows], [ids[r] for r in rows]) for part, rows in parts}
        content: dict[str, Any] = {}
        index = {name: code for code, name in enumerate(names)}
        mean = std = None
        for number, split in enumerate(self._ordered(arrays)):
            images, labels, ids = arrays[split]
            np.save(folder / f"{number}.images.npy", images)
            np.save(folder / f"{number}.labels.npy", np.asarray([index[label] for label in labels], dtype=np.int64))
            write_strings(folder / f"{number}.ids.json", ids)
            if mean is None:
                values = images.reshape(-1, images.shape[-1])
                mean = (values.mean(0, dtype=np.float64) / 255).tolist()
                std = [max(s, 1e-6) for s in (values.std(0, dtype=np.float64) / 255).tolist()]
            content |= _carved(folder, number, split, ids, self._dev_share)
        return {"splits": content, "classes": names, "mean": mean, "std": std}

    @staticmethod
    def _ordered(arrays: Mapping[str, Any]) -> list[str]:
        usual = {"train": 0, "dev": 1, "test": 2}
        return sorted(arrays, key=lambda name: (usual.get(name, 3), name))

    def _from_idx(self, idx: Mapping[str, tuple[Path, Path]]) -> dict[str, tuple[np.ndarray, list[str], list[str]]]:
        found = {}
        for split, (image_path, label_path) in idx.items():
            images, labels = read_idx(image_path), read_idx(label_path)
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise DataError(f"{image_path}: {images.shape} images for {labels.shape} labels in {label_path.name}")
            ids = [f"{split}/{row:05d}" for row in range(len(images))]
            found[split] = (images[..., None], [str(label) for label in labels.tolist()], ids)
        return found

    def _from_files(self, bad: BadLines) -> dict[str, tuple[np.ndarray, list[str], list[str]]]:
        try:
            from PIL import Image
        except ImportError:
            raise MissingDependencyError("pillow", "reading image files", "images") from None
        rows: dict[str, list[np.ndarray]] = {}
        labels: dict[str, list[str]] = {}
        ids: dict[str, list[str]] = {}
        shape: tuple[int, ...] | None = None
        with ExitStack() as stack:
            for number, file in enumerate(self._image_files(stack), start=1):
                try:
                    with Image.open(io.BytesIO(file.read())) as opened:
                        image = opened.convert("L" if self._grey else "RGB")
                        if self._size is not None:
                            image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
                        pixels = np.asarray(image, dtype=np.uint8)
                # Pillow's decoders fail in many ways on damaged files; each means the same to the user
                except Exception as error:
                    # Pillow names the stream it was given, which says nothing
                    reason = re.sub(r" <_io\.BytesIO .*?>", "", str(error))
                    bad.report(
                        self.path, number, f"{file.where}: not a readable image: {type(error).__name__}: {reason}"
                    )
                    continue
                pixels = pixels[..., None] if pixels.ndim == 2 else pixels
                shape = shape or pixels.shape
                if pixels.shape != shape:
                    found = f"{file.where}: {pixels.shape[1]}x{pixels.shape[0]} among images of {shape[1]}x{shape[0]}"
                    bad.report(self.path, number, found, "set `size` to resize all of them")
                    continue
                rows.setdefault(file.split, []).append(pixels)
                labels.setdefault(file.split, []).append(file.label)
                ids.setdefault(file.split, []).append(file.id)
        if not rows:
            raise DataError(f"{self.path}: no images under split/class/file")
        return {split: (np.stack(rows[split]), labels[split], ids[split]) for split in rows}

    def _image_files(self, stack: ExitStack) -> Iterator[_ImageFile]:
        if self.path.is_file():
            archive = stack.enter_context(open_zip(self.path))
            distinct = sorted({name.split("/")[0] for name in archive.namelist()})
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                parts = entry.filename.split("/")
                if entry.is_dir() or len(parts) != 3:
                    continue

                def read(entry: zipfile.ZipInfo = entry) -> bytes:
                    # entries are read into memory, never extracted: a name cannot lead outside
                    if entry.file_size > MAX_IMAGE_BYTES:
                        raise DataError(f"{entry.file_size} bytes unpacked")
                    return archive.read(entry)

                yield _ImageFile(
                    split=known_split(parts[0], distinct), label=parts[1], id=entry.filename,
                    where=entry.filename, read=read,
                )  # fmt: skip
            return
        files = self.files()
        distinct = sorted({role.split("/")[0] for role in files})
        for role, path in files.items():
            split, label, _ = Path(role).parts
            name = known_split(split, distinct)
            yield _ImageFile(split=name, label=label, id=Path(role).as_posix(), where=role, read=path.read_bytes)

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        return load_labelled(folder, content, fingerprint, self.display_name(self.path), self._measure)

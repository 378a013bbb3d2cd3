"""The data set type `benchmark`: a test set by its name, from a local folder or over the network."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from kdfw.amounts import Sizes
from kdfw.components import Dataset
from kdfw.data.hub_sets import HuggingFace, IrDatasets
from kdfw.data.ingest import IngestedDataset, write_strings
from kdfw.data.labelled_sets import Images, load_labelled
from kdfw.data.lines import BadLines
from kdfw.data.pair_sets import ParallelText, Sts
from kdfw.data.ranking_sets import Beir, MsMarco
from kdfw.data.sets import Convention, Data, LabelledData, PairData, ParallelData, RankingData, SkippedLines
from kdfw.errors import DataError
from kdfw.evaluation.answers import AnswerSet
from kdfw.evaluation.benchmarks import Benchmark, benchmark, folders_of, same_collection

IMAGENET_SIDE = 224


class BenchmarkData(Dataset):
    """A benchmark by its name, as a data set with one split, which is called as the benchmark.

    Its files are taken from `folder`; without one, from the first of `near` and the folders below $KDFW_DATA that has
    them; else they are fetched by ir_datasets or datasets. `kdfw.evaluation.benchmarks.names()` lists the names.
    """

    trains = False

    def __init__(
        self,
        *,
        name: Annotated[
            str, Field(min_length=1, description="`trec-dl-2019/passage`, `beir/scifact`, `sts/STSB`, ...")
        ],
        folder: Annotated[
            Path | None, Field(description="where its files are; default: looked for below $KDFW_DATA, else fetched")
        ] = None,
        near: Annotated[
            list[Path] | None, Field(description="folders that are looked into before those below $KDFW_DATA")
        ] = None,
    ) -> None:
        self.benchmark = benchmark(name)
        if self.benchmark.parts:
            raise DataError(
                f"benchmark {name!r} is the mean of {len(self.benchmark.parts)} others and has no data itself"
            )
        self.task = _TASKS.get(self.benchmark.task, self.benchmark.task)  # type: ignore[misc]
        self._folder, self._near = folder, near or []
        self._inner: Dataset | None = None

    @property
    def inner(self) -> Dataset:
        """The data set in its layout. Raises DataError that says which files to put where when there is none."""
        if self._inner is None:
            self._inner = self._found()
        return self._inner

    def _found(self) -> Dataset:
        found = self.benchmark
        places = [self._folder] if self._folder is not None else folders_of(found, self._near)
        for place in places:
            files = {"images": place} if found.layout == "images" and place.is_file() else found.locate(place)
            if files is not None:
                return _LAYOUTS[found.layout](found, place, files)
        if self._folder is not None:
            raise found.missing(self._folder)
        return _fetched(found)

    @property
    def downloads(self) -> bool:
        return self.inner.downloads

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def splits(self) -> Sequence[str]:
        return [self.benchmark.name]

    def sizes(self, cache: Path) -> Sizes:
        sizes, split = self.inner.sizes(cache), self._inner_split()

        def renamed(amounts: Mapping[str, Any]) -> dict[str, Any]:
            return {self.benchmark.name: amounts[split]} if split in amounts else {}

        return replace(
            sizes,
            items=renamed(sizes.items),
            judged=renamed(sizes.judged),
            positives=renamed(sizes.positives),
            item_bytes=renamed(sizes.item_bytes),
        )

    def _inner_split(self) -> str:
        names = list(self.inner.splits())
        return self.benchmark.name if self.benchmark.name in names else "test" if "test" in names else names[0]

    def skipped(self, cache: Path) -> Sequence[SkippedLines]:
        return self.inner.skipped(cache)

    def open(self, cache: Path) -> Data:
        """The data, with one split called as the benchmark, only judged queries in it, and the convention."""
        data = self.inner.open(cache)
        split, name = self._inner_split(), self.benchmark.name
        if not isinstance(data, RankingData):
            parts: Any = data
            return self._with_convention(replace(parts, name=name, splits={name: parts.splits[split]}))
        queries, judged = data.queries[split], data.qrels.get(split)
        if judged is not None:
            rows = [row for row in range(len(queries)) if queries.id(row) in judged]
            queries = queries.select(np.asarray(rows, dtype=np.int64)) if len(rows) < len(queries) else queries
        own = replace(
            data,
            name=name,
            queries={name: queries},
            qrels={} if judged is None else {name: judged},
            answers={name: data.answers[split]} if split in data.answers else {},
            query_in_corpus=self.benchmark.remove_query,
        )
        return self._with_convention(own)

    def _with_convention(self, data: Any) -> Data:
        found, name = self.benchmark, self.benchmark.name
        if isinstance(data, RankingData):
            items = len(data.answers.get(name) or data.qrels.get(name, {}))
            counted = [("queries", items, found.items), ("passages", len(data.corpus), found.passages)]
        else:
            counted = [("items", _size(data, name), found.items)]
        other = [f"{here:,} of {there:,} {what}" for what, here, there in counted if there and here != there]
        convention = Convention(
            name=name,
            measures=found.measures,
            text=found.convention,
            differs=", ".join(other),
        )
        made: Data = replace(data, convention=convention)
        return made

    def fitted(self, data: Data, own: Data) -> Data:
        """Classes in the order of those that models were trained on, and images normalised as theirs."""
        if not isinstance(data, LabelledData) or not isinstance(own, LabelledData):
            return data
        unknown = [name for name in data.classes if name not in own.classes]
        if unknown:
            raise DataError(
                f"benchmark {data.name!r}: class {unknown[0]!r} is none of the data that models are trained on "
                f"({', '.join(own.classes[:10])}{', ...' if len(own.classes) > 10 else ''})"
            )
        number = np.array([own.classes.index(name) for name in data.classes], dtype=np.int64)
        splits = {
            split: replace(part, labels=np.where(part.labels >= 0, number[part.labels], -1))
            for split, part in data.splits.items()
        }
        return replace(data, splits=splits, classes=own.classes, image_mean=own.image_mean, image_std=own.image_std)


_TASKS = {"answers": "ranking"}


def _size(data: PairData | LabelledData | ParallelData, split: str) -> int:
    part: Any = data.splits[split]
    return len(part.source) if isinstance(data, ParallelData) else len(part.ids)


# ---------------------------------------------------------------- local files


def _msmarco(found: Benchmark, folder: Path, files: Mapping[str, Path]) -> Dataset:
    """All benchmarks whose files are there, as splits of one data set: their collection is read once."""
    there = {other.name: other.locate(folder) for other in same_collection(found)}
    there = {name: each for name, each in there.items() if each is not None}
    return MsMarco(
        collection=files["collection"],
        queries={name: each["queries"] for name, each in there.items() if each},
        qrels={name: each["qrels"] for name, each in there.items() if each},
        name=found.places[0],
    )


def _beir(found: Benchmark, folder: Path, files: Mapping[str, Path]) -> Dataset:
    return Beir(folder=folder, splits=[files["qrels"].name.partition(".")[0]], name=found.name)


def _dpr(found: Benchmark, folder: Path, files: Mapping[str, Path]) -> Dataset:
    return AnswerSet(passages=files["passages"], questions=files["questions"], split=found.name, name=found.name)


def _sts(found: Benchmark, folder: Path, files: Mapping[str, Path]) -> Dataset:
    return Sts(folder=folder, test=[found.name.partition("/")[2]], train=None, name=found.name)


def _images(found: Benchmark, folder: Path, files: Mapping[str, Path]) -> Dataset:
    path = files["images"]
    if path.suffix == ".bin":
        return CifarBinary(path=path, name=found.name)
    return Images(
        path=path if path.suffix == ".zip" else folder,
        size=IMAGENET_SIDE if found.name == "imagenet" else None,
        name=found.name,
    )


def _parallel(found: Benchmark, folder: Path, files: Mapping[str, Path]) -> Dataset:
    (source, left), (target, right) = files.items()
    return ParallelText(source=source, target=target, files={found.name: (left, right)}, name=found.name)


_LAYOUTS: Mapping[str, Callable[[Benchmark, Path, Mapping[str, Path]], Dataset]] = {
    "msmarco": _msmarco,
    "beir": _beir,
    "dpr": _dpr,
    "sts": _sts,
    "images": _images,
    "parallel": _parallel,
}


class CifarBinary(IngestedDataset):
    """CIFAR's binary files: records of one label byte (CIFAR-100: coarse, fine) and 3 x 32 x 32 bytes of an image.

    The classes' names are in `batches.meta.txt` or `fine_label_names.txt` beside it.
    """

    task: ClassVar[str] = "classification"
    layout: ClassVar[str] = "cifar"

    def __init__(self, *, path: Path, name: str) -> None:
        self.path = path
        super().__init__(name=name, on_error="raise", decisive={})

    def files(self) -> Mapping[str, Path]:
        for name in ("batches.meta.txt", "fine_label_names.txt"):
            if (self.path.parent / name).is_file():
                return {"images": self.path, "classes": self.path.parent / name}
        raise DataError(f"{self.path.parent}: no names of classes (batches.meta.txt or fine_label_names.txt)")

    def splits(self) -> Sequence[str]:
        return ["test"]

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        files = self.files()
        classes = [line for line in files["classes"].read_text(encoding="utf-8").splitlines() if line.strip()]
        labels_each = 1 if files["classes"].name == "batches.meta.txt" else 2
        size = labels_each + 3 * 32 * 32
        raw = np.fromfile(self.path, dtype=np.uint8)
        if not len(raw) or len(raw) % size:
            raise DataError(f"{self.path}: {len(raw)} bytes are no whole records of {size}")
        records = raw.reshape(-1, size)
        labels = records[:, labels_each - 1].astype(np.int64)
        if labels.max() >= len(classes):
            raise DataError(
                f"{self.path}: label {labels.max()}, but {files['classes'].name} has {len(classes)} classes"
            )
        images = records[:, labels_each:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return _write_images(folder, np.ascontiguousarray(images), labels, classes)

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        return load_labelled(folder, content, fingerprint, self.display_name(self.path), "accuracy")


def _write_images(folder: Path, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """One split `test` in the layout that `load_labelled` reads."""
    np.save(folder / "0.images.npy", images)
    np.save(folder / "0.labels.npy", labels)
    write_strings(folder / "0.ids.json", [f"test/{row:05d}" for row in range(len(labels))])
    values = images.reshape(-1, images.shape[-1])
    mean, std = values.mean(0, dtype=np.float64) / 255, values.std(0, dtype=np.float64) / 255
    return {
        "splits": {"test": {"number": 0, "rows": None}},
        "classes": list(classes),
        "mean": mean.tolist(),
        "std": [max(value, 1e-6) for value in std.tolist()],
    }


# ---------------------------------------------------------------- over the network


def _fetched(found: Benchmark) -> Dataset:
    """From a catalogue. Raises DataError when that is known not to go before anything is tried."""
    library = "ir_datasets" if found.ir_datasets else "datasets" if found.hub else ""
    if not library:
        raise found.missing(reason="no catalogue has it")
    if importlib.util.find_spec(library) is None:
        raise found.missing(reason=f"{library} is not installed; run: pip install 'kdfw[data]'")
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "TRUE") and not _downloaded(found):
        raise found.missing(reason="offline")
    if found.ir_datasets:
        return _IrBenchmark(found)
    return _HubImages(found) if found.task == "classification" else _HubBenchmark(found)


def _downloaded(found: Benchmark) -> bool:
    """Whether the catalogue may have kept it from an earlier time; its own cache decides."""
    if not found.ir_datasets:
        return True  # the library `datasets` reads its cache when it is offline
    home = Path(os.environ.get("IR_DATASETS_HOME") or Path.home() / ".ir_datasets")
    parts = found.ir_datasets.split("/")
    folder = home.joinpath(*parts[: 2 if parts[0] == "beir" else 1])
    # the library makes folders and notes of a few bytes when it is only asked about a data set
    return any(path.is_file() and path.stat().st_size > 1000 for path in folder.rglob("*"))


def _said(found: Benchmark, error: Exception) -> DataError:
    return found.missing(reason=str(error)[:300])


class _IrBenchmark(IrDatasets):
    """A benchmark through ir_datasets, with our own word on what to do without a network."""

    downloads = True

    def __init__(self, found: Benchmark) -> None:
        self._found = found
        super().__init__(ids={found.name: found.ir_datasets}, name=found.name)

    def open(self, cache: Path) -> Data:
        try:
            return super().open(cache)
        except DataError as error:
            raise _said(self._found, error) from error


class _HubBenchmark(HuggingFace):
    """Sentence pairs or translations through the library `datasets`."""

    downloads = True

    def __init__(self, found: Benchmark) -> None:
        self._found = found
        hub = found.hub
        task: Any = found.task
        super().__init__(
            path=hub["path"],
            splits={found.name: hub["split"]},
            task=task,
            columns=dict(hub["columns"]),
            name=found.name,
        )

    def open(self, cache: Path) -> Data:
        try:
            return super().open(cache)
        except DataError as error:
            raise _said(self._found, error) from error


class _HubImages(IngestedDataset):
    """Images through the library `datasets`."""

    task: ClassVar[str] = "classification"
    layout: ClassVar[str] = "hub-images"
    downloads = True

    def __init__(self, found: Benchmark) -> None:
        self._found = found
        super().__init__(name=found.name, on_error="raise", decisive={"hub": dict(found.hub)})

    def files(self) -> Mapping[str, Path]:
        return {}

    def splits(self) -> Sequence[str]:
        return ["test"]

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        hub = self._found.hub
        try:
            import datasets

            table = datasets.load_dataset(hub["path"], split=hub["split"])
            classes = list(table.features[hub["label"]].names)
        except Exception as error:  # the library raises a dozen kinds, network errors among them
            raise _said(self._found, error) from error
        images = np.stack(list(self._pixels(table, hub["image"])))
        return _write_images(folder, images, np.asarray(table[hub["label"]], dtype=np.int64), classes)

    def _pixels(self, table: Any, column: str) -> Iterator[np.ndarray]:
        side = IMAGENET_SIDE if self._found.name == "imagenet" else None
        for row in table:
            image = row[column].convert("RGB")
            yield np.asarray(image if side is None else image.resize((side, side)), dtype=np.uint8)

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        return load_labelled(folder, content, fingerprint, self._found.name, "accuracy")

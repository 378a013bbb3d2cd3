"""Data sets that another library fetches: Hugging Face `datasets` and `ir_datasets`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdfw.data.ingest import IngestedDataset, split_names
from kdfw.data.labelled_sets import (
    Classes,
    LabelledRow,
    Measure,
    checked_classes,
    ingest_labelled,
    labelled_row,
    load_labelled,
)
from kdfw.data.lines import BadLines, Fields, show
from kdfw.data.pair_sets import PairRow, ingest_pairs, ingest_parallel, load_pairs, load_parallel
from kdfw.data.ranking_files import RankingRecord, ranking_record
from kdfw.data.ranking_sets import DevShare, Name, RankingBuilder, Skip, ingest_records, load_ranking
from kdfw.data.sets import Data
from kdfw.data.store import missing_file
from kdfw.data.table import word_fault
from kdfw.errors import ConfigError, DataError, MissingDependencyError, one_of
from kdfw.files import existing_folder
from kdfw.types import Qrels

Task = Literal["ranking", "pairs", "classification", "translation"]
_ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ranking": (("query", "pos"), ("neg", "qid", "pos_scores", "neg_scores")),
    "pairs": (("left", "right"), ("gold",)),
    "classification": (("text",), ("label", "id")),
    "translation": (("source", "target"), ()),
}
"""Roles of columns by task: needed, possible."""


class HuggingFace(IngestedDataset):
    """A data set of the library `datasets`: a name on the hub, or a local folder.

    `columns` says which column plays which role: ranking `query`, `pos`, `neg`, `qid`, `pos_scores`, `neg_scores`;
    pairs `left`, `right`, `gold`; classification `text`, `label`, `id`; translation `source`, `target` (a language
    inside a `translation` column is written `translation.de`). Code of a data set is never run.
    """

    layout: ClassVar[str] = "huggingface"
    version: ClassVar[int] = 2

    def __init__(
        self,
        *,
        path: Annotated[str, Field(min_length=1, description="name on the hub, or a local folder")],
        splits: Annotated[
            dict[str, str], Field(min_length=1, description="split here -> split of the data set, `validation[:100]`")
        ],
        task: Annotated[Task, Field(description="what the rows are")] = "ranking",
        columns: Annotated[dict[str, str] | None, Field(description="role -> column; default: the same name")] = None,
        config: Annotated[str | None, Field(description="configuration of the data set")] = None,
        revision: Annotated[
            str | None, Field(description="commit on the hub; a branch may change without being noticed")
        ] = None,
        classes: Classes = None,
        measure: Measure = "accuracy",
        dev_share: DevShare = 0.0,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self._path, self._splits, self._columns = path, splits, dict(columns or {})
        self._config, self._revision = config, revision
        self._classes = checked_classes(classes, "huggingface")
        self._measure, self._dev_share = measure, dev_share
        self.task = task  # type: ignore[misc]  # the one data set whose task is an option
        needed, possible = _ROLES[task]
        unknown = set(self._columns) - {*needed, *possible}
        if unknown:
            roles = ", ".join((*needed, *possible))
            raise ConfigError(f"huggingface: no column role {sorted(unknown)[0]!r} for task {task}; roles: {roles}")
        decisive: dict[str, Any] = {
            "splits": splits,
            "task": task,
            "columns": self._columns,
            "config": config,
            "revision": revision,
        }
        decisive |= {"classes": classes, "measure": measure, "dev_share": dev_share}
        super().__init__(name=name, on_error=on_error, decisive=decisive)

    def _local(self) -> Path | None:
        return existing_folder(self._path)

    def files(self) -> Mapping[str, Path]:
        place = self._local()
        if place is None:
            if self._path.startswith((".", "/", "~")):
                raise missing_file(Path(self._path), "folder")
            return {}
        return {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}

    @property
    def downloads(self) -> bool:
        return self._local() is None

    def extra_fingerprint(self) -> Any:
        return None if self._local() else self._path

    def splits(self) -> Sequence[str]:
        return split_names(list(self._splits), self._dev_share)

    def _rows(self, split: str, scratch: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """(row number from 1, values by role)."""
        try:
            import datasets
        except ImportError:
            raise MissingDependencyError("datasets", "the data set type huggingface", "data") from None
        place = self._local()
        needed, possible = _ROLES[self.task]
        try:
            if place is not None and any((place / n).exists() for n in ("dataset_dict.json", "dataset_info.json")):
                table = self._part(datasets, datasets.load_from_disk(str(place)), split)
            else:
                # a folder's rows are cached in `scratch`: the shared cache of the library knows folders by path only
                own = {"cache_dir": str(scratch)} if place is not None else {}
                table = datasets.load_dataset(
                    str(place or self._path), self._config, split=self._splits[split], revision=self._revision, **own
                )
        except Exception as error:  # the library raises a dozen kinds, network errors among them
            raise DataError(
                f"huggingface: {self._path!r}, split {self._splits[split]!r} cannot be loaded: {type(error).__name__}: "
                f"{str(error)[:300]}; without network give the path of a folder with its parquet, JSONL or CSV files"
            ) from error
        names = {role: self._columns.get(role, role) for role in (*needed, *possible)}
        for role, column in names.items():
            if column.partition(".")[0] not in table.column_names and (role in needed or role in self._columns):
                raise DataError(
                    f"huggingface: {self._path!r} has no column {column!r} for {role!r}; "
                    f"{one_of(column, table.column_names)}; set `columns`"
                )
        label_names = getattr(table.features.get(names.get("label", ""), None), "names", None)
        for number, row in enumerate(table, start=1):
            values: dict[str, Any] = {}
            for role, column in names.items():
                outer, dot, inner = column.partition(".")
                value = row.get(outer)
                if dot and isinstance(value, dict):
                    value = value.get(inner)
                if value is not None:
                    values[role] = value
            if label_names and isinstance(values.get("label"), int) and 0 <= values["label"] < len(label_names):
                values["label"] = label_names[values["label"]]
            yield number, values

    def _part(self, datasets: Any, stored: Any, split: str) -> Any:
        """Of a folder of `save_to_disk`: the rows that `train`, `train[:100]` or a sum of such stands for."""
        if not isinstance(stored, datasets.DatasetDict):
            # a data set saved by itself is one split; where it has no name, what the recipe says first is its name
            stored = {str(stored.split or next(iter(self._splits.values())).partition("[")[0]): stored}
        lengths = {name: len(table) for name, table in stored.items()}
        parts = datasets.ReadInstruction.from_spec(self._splits[split]).to_absolute(lengths)
        return datasets.concatenate_datasets(
            [stored[part.splitname].select(range(part.from_, part.to)) for part in parts]
        )

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        self.splits()
        where = Path(self._path)
        with tempfile.TemporaryDirectory(prefix="kdfw-") as scratch_name:
            scratch = Path(scratch_name)
            if self.task == "ranking":
                records = {split: (where, self._records(split, scratch, bad)) for split in self._splits}
                return ingest_records(folder, records, self._dev_share, bad)
            if self.task == "pairs":
                pairs = {split: [(split, split, where, self._pairs(split, scratch, bad))] for split in self._splits}
                return ingest_pairs(folder, pairs, self._dev_share, bad)
            if self.task == "classification":
                texts = {split: (where, self._labelled(split, scratch, bad)) for split in self._splits}
                return ingest_labelled(folder, texts, self._classes, self._dev_share, bad)
            aligned = {split: (where, self._aligned(split, scratch, bad)) for split in self._splits}
            return ingest_parallel(folder, aligned, bad, self._dev_share)

    def _records(self, split: str, scratch: Path, bad: BadLines) -> Iterator[RankingRecord]:
        for number, values in self._rows(split, scratch):
            record, fault = ranking_record(values, number)
            if record is None:
                bad.report(Path(self._path), number, fault)
            else:
                yield record

    def _pairs(self, split: str, scratch: Path, bad: BadLines) -> Iterator[PairRow]:
        scored = any("gold" in values for _, values in self._rows(split, scratch))
        for number, values in self._rows(split, scratch):
            fields = Fields(values)
            left, right = fields.text("left"), fields.text("right")
            gold = None
            if scored and "gold" not in values:
                fields.fault = fields.fault or "no score, where other rows have one"
            if "gold" in values:
                values["gold"] = [values["gold"]]
                numbers = fields.numbers("gold")
                gold = numbers[0] if numbers else None
            fault = fields.fault or ("" if left.strip() and right.strip() else "an empty sentence")
            if fault:
                bad.report(Path(self._path), number, fault)
            else:
                yield PairRow(line=number, left=left, right=right, gold=gold)

    def _labelled(self, split: str, scratch: Path, bad: BadLines) -> Iterator[LabelledRow]:
        for number, values in self._rows(split, scratch):
            row, fault = labelled_row(values, number, "text", "label" if "label" in values else None, "id")
            if row is None:
                bad.report(Path(self._path), number, fault)
            else:
                yield row

    def _aligned(self, split: str, scratch: Path, bad: BadLines) -> Iterator[tuple[int, str, str]]:
        for number, values in self._rows(split, scratch):
            fields = Fields(values)
            source, target = fields.text("source"), fields.text("target")
            fault = fields.fault or ("" if source.strip() and target.strip() else "an empty sentence")
            if fault:
                bad.report(Path(self._path), number, fault)
            else:
                yield number, source, target

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        name = self.name or self._path.rstrip("/").rpartition("/")[2]
        if self.task == "ranking":
            return load_ranking(folder, content, fingerprint, name)
        if self.task == "pairs":
            return load_pairs(folder, content, fingerprint, name)
        if self.task == "classification":
            return load_labelled(folder, content, fingerprint, name, self._measure)
        source, target = (self._columns.get(role, "").rpartition(".")[2] for role in ("source", "target"))
        return load_parallel(folder, content, fingerprint, name, (source, target))


class IrDatasets(IngestedDataset):
    """Retrieval data by its id in the catalogue of `ir_datasets`; one id for each split, over one corpus."""

    layout: ClassVar[str] = "ir-datasets"
    paper: ClassVar[str] = "arXiv:2103.02280"
    version: ClassVar[int] = 2
    downloads = True

    def __init__(
        self,
        *,
        ids: Annotated[
            dict[str, str],
            Field(min_length=1, description="ir_datasets id by split, `{train: msmarco-passage/train, ...}`"),
        ],
        title: Annotated[bool, Field(description="put a document's title before its text")] = True,
        dev_share: DevShare = 0.0,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self._ids, self._title, self._dev_share = ids, title, dev_share
        decisive = {"ids": ids, "title": title, "dev_share": dev_share}
        super().__init__(name=name, on_error=on_error, decisive=decisive)

    def files(self) -> Mapping[str, Path]:
        return {}

    def splits(self) -> Sequence[str]:
        return split_names(list(self._ids), self._dev_share)

    def _open(self, id: str) -> Any:
        try:
            import ir_datasets
        except ImportError:
            raise MissingDependencyError("ir-datasets", "the data set type ir-datasets", "data") from None
        try:
            return ir_datasets.load(id)
        except Exception as error:  # unknown ids raise KeyError, broken downloads anything
            raise self._fault(id, error) from error

    def _fault(self, id: str, error: Exception) -> DataError:
        return DataError(
            f"ir-datasets: {id!r} cannot be read: {type(error).__name__}: {str(error)[:300]}; without network use "
            "local files: type `msmarco` (collection.tsv, queries.<split>.tsv, qrels.<split>.tsv) or `beir` "
            "(corpus.jsonl, queries.jsonl, qrels/<split>.tsv)"
        )

    def _texts(self, id: str, kind: str, bad: BadLines) -> Iterator[tuple[int, str, str]]:
        try:
            for number, row in enumerate(getattr(self._open(id), f"{kind}_iter")(), start=1):
                own = row.doc_id if kind == "docs" else row.query_id
                text = _text_of(row, self._title and kind == "docs")
                fault = word_fault(str(own)) or ("" if isinstance(text, str) else f"no text: {show(text)}")
                if fault or "\x00" in text:
                    bad.report(Path(id), number, fault or "a NUL character")
                    continue
                yield number, str(own), text
        except (OSError, RuntimeError, AttributeError, ValueError) as error:
            raise self._fault(id, error) from error

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        self.splits()
        builder = RankingBuilder(folder, bad, self._dev_share)
        first = next(iter(self._ids.values()))
        corpus = builder.table("corpus", [(Path(first), self._texts(first, "docs", bad))])
        for number, (split, id) in enumerate(self._ids.items()):
            queries = builder.table(f"queries.{number}", [(Path(id), self._texts(id, "queries", bad))])
            qrels: Qrels = {}
            opened = self._open(id)
            if opened.has_qrels():
                try:
                    for row in opened.qrels_iter():
                        qrels.setdefault(row.query_id, {})[row.doc_id] = int(row.relevance)
                except (OSError, RuntimeError, ValueError) as error:
                    raise self._fault(id, error) from error
            builder.split(split, f"queries.{number}", queries, None, qrels or None)
        builder.warn_unknown(corpus)
        return builder.content()

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        name = self.name or next(iter(self._ids.values())).partition("/")[0]
        return load_ranking(folder, content, fingerprint, name)


def _text_of(row: Any, title: bool) -> Any:
    """Text of a document or query: with its title when asked for; the body of one that has no field `text`."""
    text, heading = getattr(row, "text", None), getattr(row, "title", None)
    if text is None:  # a query of fields, or a document such as MS MARCO's: url, title, body
        text = getattr(row, "body", None)
    if text is None:
        return row.default_text()
    if title and heading and heading != text:
        return f"{heading} {text}" if text else heading
    return text or heading or text

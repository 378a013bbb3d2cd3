"""Retrieval data: MS MARCO's files, BEIR folders, JSONL with texts."""

from __future__ import annotations

import logging
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import UNREAD, Amount, Sizes, unknown
from kdfw.data.image_table import open_table
from kdfw.data.ingest import (
    IngestedDataset,
    StoredQrels,
    carve,
    known_split,
    load_rankings,
    ordered,
    save_rankings,
    split_names,
    write_qrels,
)
from kdfw.data.lines import BadLines, OnError
from kdfw.data.ranking import Ranking
from kdfw.data.ranking_files import (
    RankingRecord,
    content_id,
    read_hard_negatives,
    read_ranking_records,
    read_texts,
    read_triples,
)
from kdfw.data.runs import read_qrels, read_run
from kdfw.data.sets import RankingData
from kdfw.data.sizes import lines_in
from kdfw.data.store import missing_file
from kdfw.data.table import TextTable, TextTableWriter
from kdfw.errors import ConfigError, DataError, one_of
from kdfw.types import Qrels

log = logging.getLogger(__name__)

Name = Annotated[str | None, Field(description="name in tables and reports; default: that of the folder")]
Skip = Annotated[OnError, Field(description="a line that cannot be read: `raise` stops, `skip` counts and lists it")]
DevShare = Annotated[
    float, Field(ge=0, lt=1, description="carve this share of train into a split `dev`, by a hash of each id")
]
Title = Annotated[bool, Field(description="put the title before the text, joined by a blank")]
Files = Annotated[dict[str, Path] | None, Field(description="file by split; default: found in the folder by name")]


def find_file(folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of some file names that is in a folder, plain or gzip; raises DataError with what would do."""
    for name in names:
        found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if found:
            return only_file(found)
    raise missing_file(folder / names[0], what, [f"{name}[.gz]" for name in names])


def only_file(found: Sequence[Path]) -> Path:
    """The one file there is. A file is read, and not its packed form beside it, as unpacking leaves the two.

    Raises: DataError naming two others: nobody can say which is meant.
    """
    if len(found) > 1 and {path.name for path in found} == {found[0].name, f"{found[0].name}.gz"}:
        log.info("%s: is read, and not %s.gz beside it", found[0], found[0].name)
    elif len(found) > 1:
        raise DataError(f"{found[0]} and {found[1].name} stand for the same; remove one of the two, or name the file")
    return found[0]


def in_usual_order(found: Mapping[str, Sequence[Path]]) -> dict[str, Path]:
    """The one file of each split; train, dev and test first."""
    usual = {"train": 0, "dev": 1, "test": 2}
    return {split: only_file(found[split]) for split in sorted(found, key=lambda split: (usual.get(split, 3), split))}


def by_split(folder: Path, stem: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files `<stem>.<split><suffix>[.gz]` of a folder, by split, sorted (train, dev, test first)."""
    found: dict[str, list[Path]] = {}
    if folder.is_dir():
        ends = "|".join(re.escape(suffix) for suffix in suffixes)
        pattern = re.compile(rf"{re.escape(stem)}\.(?P<split>.+?)(?:{ends})(?:\.gz)?")
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and path.is_file():
                found.setdefault(match["split"], []).append(path)
    return in_usual_order(found)


def _check_files(files: Mapping[str, Path]) -> dict[str, Path]:
    for role, path in files.items():
        if not path.is_file():
            raise missing_file(path, f"file ({role})")
    return dict(files)


class RankingBuilder:
    """Writes the folder of a retrieval data set piece by piece."""

    def __init__(self, folder: Path, bad: BadLines, dev_share: float) -> None:
        self.folder = folder
        self.bad = bad
        self.dev_share = dev_share
        self.tables: list[str] = []
        self.splits: dict[str, dict[str, Any]] = {}
        self.rankings: dict[str, Ranking] = {}
        self.triples: dict[str, int] = {}

    def table(self, name: str, rows: Iterable[tuple[Path, Iterator[tuple[int, str, str]]]]) -> TextTable:
        with TextTableWriter(self.folder / name, self.bad) as writer:
            for path, lines in rows:
                writer.source(path)
                for line, id, text in lines:
                    writer.add(id, text, line)
        return TextTable(self.folder / name)

    def split(self, name: str, table: str, queries: TextTable, rows: Sequence[int] | None, qrels: Qrels | None) -> None:
        """A split: a table of queries, which of its rows (None: all), and the judgements."""
        if name == "train" and self.dev_share > 0:
            kept = list(range(len(queries))) if rows is None else list(rows)
            ids = [queries.id(row) for row in kept]
            stay, out = carve(ids, self.dev_share)
            carved = {ids[number] for number in out}
            for part, chosen in (("train", stay), ("dev", out)):
                # judged queries without a text stay in train, where they are counted in the log
                inside = None
                if qrels is not None:
                    inside = {query: grades for query, grades in qrels.items() if (query in carved) == (part == "dev")}
                self._split(part, table, [kept[number] for number in chosen], inside)
            return
        self._split(name, table, rows, qrels)

    def _split(self, name: str, table: str, rows: Sequence[int] | None, qrels: Qrels | None) -> None:
        number = len(self.splits)
        if rows is not None:
            np.save(self.folder / f"rows.{number}.npy", np.asarray(rows, dtype=np.int64))
        if qrels is not None:
            write_qrels(self.folder / f"qrels.{number}.tsv", qrels)
        self.splits[name] = {"number": number, "table": table, "view": rows is not None, "judged": qrels is not None}

    def queries(self, name: str) -> TextTable:
        entry = self.splits[name]
        table = open_table(self.folder / entry["table"])
        return table.select(np.load(self.folder / f"rows.{entry['number']}.npy")) if entry["view"] else table

    def warn_unknown(self, corpus: TextTable) -> None:
        """Judged passages that are not in the corpus stay (official measures count them); said once a split."""
        for name, entry in self.splits.items():
            if not entry["judged"]:
                continue
            qrels = StoredQrels({name: self.folder / f"qrels.{entry['number']}.tsv"})[name]
            queries = self.queries(name)
            passages = sum(passage not in corpus for grades in qrels.values() for passage in grades)
            texts = sum(query not in queries for query in qrels)
            if passages or texts:
                log.warning(
                    "split %s: %d of %d judged passages are not in the corpus, %d of %d judged queries have no text; "
                    "the judgements stay, as official measures count them",
                    name, passages, sum(map(len, qrels.values())), texts, len(qrels),
                )  # fmt: skip

    def candidates(self, corpus: TextTable, path: Path, lists: Iterable[tuple[int, str, str, Sequence[str]]]) -> None:
        """Id lists, best first: (line, ranking name, query id, passage ids).

        Ids that match nothing go to `bad`, and so does a second list of a query.
        """
        grouped: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
        seen = {name: set(known.query_ids) for name, known in self.rankings.items()}
        for line, name, query, ids in lists:
            if query in seen.setdefault(name, set()):
                self.bad.report(path, line, f"two candidate lists of {name!r} for query {query!r}")
                continue
            seen[name].add(query)
            rows = corpus.rows(ids)
            if (rows < 0).any():
                unknown = ids[int(np.argmax(rows < 0))]
                self.bad.report(path, line, f"passage {unknown!r} of query {query!r} is not in the corpus")
            kept, place = rows[rows >= 0].tolist(), -np.arange(len(ids), dtype=np.float64)[rows >= 0]
            grouped.setdefault(name, []).append((query, *ordered(corpus, kept, place.tolist())))
        for name, found in grouped.items():
            self.add_ranking(name, found)

    def add_ranking(self, name: str, lists: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
        """Lists of distinct queries, added to those that the ranking has."""
        before: list[tuple[str, np.ndarray, np.ndarray]] = []
        if name in self.rankings:
            known = self.rankings[name]
            before = [(query, *known.of(number)) for number, query in enumerate(known.query_ids)]
        self.rankings[name] = Ranking.from_lists(iter([*before, *lists]))

    def content(self) -> dict[str, Any]:
        return {
            "splits": self.splits,
            "rankings": save_rankings(self.folder, self.rankings),
            "triples": self.triples,
        }


def load_ranking(
    folder: Path, content: Mapping[str, Any], fingerprint: str, name: str, own: bool = False
) -> RankingData:
    tables: dict[str, TextTable] = {}
    queries: dict[str, TextTable] = {}
    for split, entry in content["splits"].items():
        if entry["table"] not in tables:
            tables[entry["table"]] = open_table(folder / entry["table"])
        table = tables[entry["table"]]
        if entry["view"]:
            table = table.select(np.load(folder / f"rows.{entry['number']}.npy", allow_pickle=False))
        queries[split] = table
    qrels = StoredQrels(
        {
            split: folder / f"qrels.{entry['number']}.tsv"
            for split, entry in content["splits"].items()
            if entry["judged"]
        }
    )
    triples = {
        split: np.load(folder / f"triples.{number}.npy", mmap_mode="r", allow_pickle=False)
        for split, number in content["triples"].items()
    }
    return RankingData(
        name=name,
        fingerprint=fingerprint,
        corpus=open_table(folder / "corpus"),
        queries=queries,
        qrels=qrels,
        rankings=load_rankings(folder, content["rankings"]),
        triples=triples,
        query_in_corpus=own,
    )


class MsMarco(IngestedDataset):
    """Retrieval data in MS MARCO's files, of any size.

    In `folder`, each plain or gzip: `collection.tsv` (`pid TAB text`), `queries.<split>.tsv` (`qid TAB text`),
    `qrels.<split>.tsv|trec|txt`. Any file can be given by name instead; triples, lists of negatives and runs are read
    only then. Without a collection the passages of text triples become the corpus.
    """

    layout: ClassVar[str] = "msmarco"
    paper: ClassVar[str] = "arXiv:1611.09268"

    def __init__(
        self,
        *,
        folder: Annotated[Path | None, Field(description="folder with the default file names")] = None,
        collection: Annotated[Path | None, Field(description="passages, `pid TAB text` or BEIR JSONL")] = None,
        queries: Files = None,
        qrels: Files = None,
        triples: Annotated[
            dict[str, Path] | None, Field(description="triples by split: texts, or ids; never read by default (large)")
        ] = None,
        triples_hold: Annotated[Literal["ids", "texts"], Field(description="what triples are made of")] = "ids",
        negatives: Annotated[
            dict[str, Path] | None,
            Field(description="hard-negative JSONL by split; each system's lists become a ranking of its name"),
        ] = None,
        runs: Annotated[
            dict[str, Path] | None, Field(description="run files by name: candidate lists that come with the data")
        ] = None,
        splits: Annotated[list[str] | None, Field(description="only these splits")] = None,
        title: Title = True,
        dev_share: DevShare = 0.0,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        if folder is None and (queries is None or (collection is None and triples is None)):
            raise ConfigError("msmarco: give `folder`, or `collection` (or text `triples`) and `queries`")
        self.folder = folder
        self._collection, self._queries, self._qrels = collection, queries, qrels
        self._triples, self._negatives, self._runs = triples or {}, negatives or {}, runs or {}
        self._hold, self._splits, self._title, self._dev_share = triples_hold, splits, title, dev_share
        decisive = {"title": title, "dev_share": dev_share, "splits": splits, "hold": triples_hold}
        super().__init__(name=name, on_error=on_error, decisive=decisive)

    def _query_files(self) -> dict[str, Path]:
        found = self._queries
        if found is None:
            assert self.folder is not None
            found = by_split(self.folder, "queries", [".tsv", ".jsonl"])
            if not found:
                raise missing_file(self.folder / "queries.train.tsv", "file", ["queries.<split>.tsv[.gz]"])
        if self._splits is not None:
            wanted = [split for split in self._splits if not (split == "dev" and self._dev_share > 0)]
            unknown = [split for split in wanted if split not in found]
            if unknown:
                raise DataError(f"no queries for split {unknown[0]!r}; found: {', '.join(found)}")
            found = {split: found[split] for split in wanted}
        return found

    def _collection_file(self) -> Path | None:
        if self._collection is not None:
            return self._collection
        if self.folder is not None and not (self._triples and self._hold == "texts" and not self._in_folder()):
            return find_file(self.folder, ["collection.tsv", "corpus.jsonl"], "collection")
        return None

    def _in_folder(self) -> bool:
        assert self.folder is not None
        return any(
            (self.folder / f"{stem}{gz}").is_file() for stem in ("collection.tsv", "corpus.jsonl") for gz in ("", ".gz")
        )

    def _parts(self, split: str) -> list[str]:
        """The splits that the queries of a file of a split end up in."""
        return ["train", "dev"] if split == "train" and self._dev_share > 0 else [split]

    def files(self) -> Mapping[str, Path]:
        found = {f"queries/{split}": path for split, path in self._query_files().items()}
        collection = self._collection_file()
        if collection is not None:
            found["collection"] = collection
        qrels = self._qrels
        if qrels is None:
            qrels = by_split(self.folder, "qrels", [".tsv", ".trec", ".txt"]) if self.folder is not None else {}
            qrels = {split: path for split, path in qrels.items() if f"queries/{split}" in found}
        known = self.splits()
        for role, given in (("qrels", qrels), ("triples", self._triples), ("negatives", self._negatives)):
            for split in given:
                if split not in known or (role == "qrels" and f"queries/{split}" not in found):
                    raise DataError(
                        f"msmarco: {role} for split {split!r}, which has no queries; {one_of(split, known)}"
                    )
        for role, given in (
            ("qrels", qrels), ("triples", self._triples), ("negatives", self._negatives), ("runs", self._runs),
        ):  # fmt: skip
            found |= {f"{role}/{key}": path for key, path in given.items()}
        return _check_files(found)

    def splits(self) -> Sequence[str]:
        return split_names(list(self._query_files()), self._dev_share)

    def triples(self) -> Sequence[str]:
        return list(self._triples)

    def counted(self) -> Sizes:
        """A passage, a query, a triple is a line."""
        files = self.files()
        queries = {split: lines_in(path) for split, path in self._query_files().items()}
        return Sizes(
            passages=lines_in(files["collection"]) if "collection" in files else unknown(UNREAD),
            items=queries,
            judged={split: queries[split].at_most() for split in queries if f"qrels/{split}" in files},
            positives={
                split: lines_in(files[f"qrels/{split}"]).at_most() for split in queries if f"qrels/{split}" in files
            },
            triples={split: lines_in(path) for split, path in self._triples.items()},
        ).with_dev(self._dev_share)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        files = self.files()
        builder = RankingBuilder(folder, bad, self._dev_share)
        self.splits()
        if "collection" in files:
            path = files["collection"]
            corpus = builder.table("corpus", [(path, read_texts(path, bad, self._title))])
        else:
            corpus = _corpus_of_triples(folder, [files[f"triples/{split}"] for split in self._triples], bad)
        for number, (split, path) in enumerate(self._query_files().items()):
            queries = builder.table(f"queries.{number}", [(path, read_texts(path, bad, self._title))])
            judged = files.get(f"qrels/{split}")
            qrels = None if judged is None else read_qrels(judged, builder.bad, may_be_empty=True)
            builder.split(split, f"queries.{number}", queries, None, qrels)
        builder.warn_unknown(corpus)
        for split in self._negatives:
            path = files[f"negatives/{split}"]
            tables = [builder.queries(name) for name in self._parts(split)]
            builder.candidates(corpus, path, _lists_of(tables, split, path, bad))
        for name in self._runs:
            path = files[f"runs/{name}"]
            lists = []
            for query, scores in read_run(path, bad).items():
                rows = corpus.rows(list(scores))
                if (rows < 0).any():
                    log.warning("%s: query %s: %d passages are not in the corpus", path, query, int((rows < 0).sum()))
                pairs = [(int(row), score) for row, score in zip(rows, scores.values(), strict=True) if row >= 0]
                lists.append((query, *ordered(corpus, [row for row, _ in pairs], [score for _, score in pairs])))
            builder.add_ranking(name, lists)
        for number, split in enumerate(self._triples):
            _write_triples(
                folder, number, files[f"triples/{split}"], self._hold, corpus,
                {name: builder.queries(name) for name in self._parts(split)}, builder.triples, bad,
            )  # fmt: skip
        return builder.content()

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> RankingData:
        return load_ranking(folder, content, fingerprint, self.display_name(self.folder or self._collection))


def _lists_of(
    tables: Sequence[TextTable], split: str, path: Path, bad: BadLines
) -> Iterator[tuple[int, str, str, Sequence[str]]]:
    """(line, system, query id, passage ids) of a hard-negative file; queries that are not in the split go to `bad`."""
    for record in read_hard_negatives(path, bad):
        if not any(record.query in table for table in tables):
            bad.report(path, record.line, f"query {record.query!r} is not among those of split {split!r}")
            continue
        for system, ids in record.negatives.items():
            yield record.line, system, record.query, ids


def _corpus_of_triples(folder: Path, paths: Sequence[Path], bad: BadLines) -> TextTable:
    """Distinct passages of text triples, with ids made from their content. Memory: about 100 bytes a passage."""
    seen: set[str] = set()
    with TextTableWriter(folder / "corpus", bad) as writer:
        for path in paths:
            writer.source(path)
            for line, _, positive, negative in read_triples(path, bad):
                for text in (positive, negative):
                    id = content_id(text)
                    if id not in seen:
                        seen.add(id)
                        writer.add(id, text, line)
    return TextTable(folder / "corpus")


class _ByContent:
    """Row of a text: 16 bytes a row, checked against the text itself."""

    def __init__(self, table: TextTable) -> None:
        self._table = table
        hashes = array("Q", (int(content_id(text)[:16], 16) for _, text in table.iterate()))
        found = np.frombuffer(hashes, dtype=np.uint64) if len(hashes) else np.zeros(0, dtype=np.uint64)
        self._order = np.argsort(found, kind="stable")
        self._hashes = found[self._order]

    def row(self, text: str) -> int:
        key = np.uint64(int(content_id(text)[:16], 16))
        place = int(np.searchsorted(self._hashes, key))
        while place < len(self._hashes) and self._hashes[place] == key:
            row = int(self._order[place])
            if self._table.text(row) == text:
                return row
            place += 1
        return -1


def _write_triples(
    folder: Path,
    first: int,
    path: Path,
    hold: str,
    corpus: TextTable,
    queries: Mapping[str, TextTable],
    numbers: dict[str, int],
    bad: BadLines,
) -> None:
    """Triples as (T, 3) int64 rows of queries, corpus, corpus: one array for each split the queries fall into."""
    kept = {name: array("q") for name in queries}
    if hold == "ids":
        find_query = {name: _rows_by_id(table) for name, table in queries.items()}
        find_passage = _rows_by_id(corpus)
    else:
        find_query = {name: _ByContent(table).row for name, table in queries.items()}
        find_passage = _ByContent(corpus).row
    last: tuple[str, str, int] = ("", "", -1)
    for line, query, positive, negative in read_triples(path, bad):
        if query != last[0]:
            place = next(((name, row) for name in queries if (row := find_query[name](query)) >= 0), ("", -1))
            last = (query, *place)
        name, row = last[1], last[2]
        good, wrong = find_passage(positive), find_passage(negative)
        if row < 0 or good < 0 or wrong < 0:
            what = f"query {query[:60]!r}" if row < 0 else f"passage {(positive if good < 0 else negative)[:60]!r}"
            bad.report(path, line, f"{what} is not in the data")
            continue
        kept[name].extend((row, good, wrong))
    for offset, (name, values) in enumerate(kept.items()):
        number = first * 2 + offset
        np.save(folder / f"triples.{number}.npy", np.asarray(values, dtype=np.int64).reshape(-1, 3))
        numbers[name] = number


def _rows_by_id(table: TextTable) -> Any:
    def find(id: str) -> int:
        try:
            return table.row(id)
        except KeyError:
            return -1

    return find


class Beir(IngestedDataset):
    """A BEIR folder: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`, each plain or gzip.

    A split is the queries that `qrels/<split>.tsv` judges; queries that no file judges are left out and counted in
    the log.
    """

    layout: ClassVar[str] = "beir"
    paper: ClassVar[str] = "arXiv:2104.08663"

    def __init__(
        self,
        *,
        folder: Annotated[Path, Field(description="the BEIR folder")],
        title: Title = True,
        separator: Annotated[str, Field(description="stands between title and text")] = " ",
        splits: Annotated[list[str] | None, Field(description="only these splits")] = None,
        dev_share: DevShare = 0.0,
        query_in_corpus: Annotated[
            bool, Field(description="remove each query from its own results (ArguAna, Quora)")
        ] = False,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self.folder = folder
        self._title, self._separator, self._splits = title, separator, splits
        self._dev_share, self._own = dev_share, query_in_corpus
        decisive = {"title": title, "separator": separator, "splits": splits, "dev_share": dev_share}
        super().__init__(name=name, on_error=on_error, decisive={**decisive, "query_in_corpus": query_in_corpus})

    def _qrels_files(self) -> dict[str, Path]:
        place = self.folder / "qrels"
        files: dict[str, list[Path]] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            match = re.fullmatch(r"(.+?)\.tsv(\.gz)?", path.name)
            if match:
                files.setdefault(match[1], []).append(path)
        if not files:
            raise missing_file(place / "test.tsv", "file", ["qrels/<split>.tsv[.gz]"])
        found = in_usual_order(files)
        if self._splits is not None:
            wanted = [split for split in self._splits if not (split == "dev" and self._dev_share > 0)]
            unknown = [split for split in wanted if split not in found]
            if unknown:
                raise DataError(f"{place}: no judgements for split {unknown[0]!r}; found: {', '.join(found)}")
            found = {split: found[split] for split in wanted}
        return found

    def files(self) -> Mapping[str, Path]:
        return {
            "corpus": find_file(self.folder, ["corpus.jsonl"], "corpus"),
            "queries": find_file(self.folder, ["queries.jsonl"], "queries"),
            **{f"qrels/{split}": path for split, path in self._qrels_files().items()},
        }

    def splits(self) -> Sequence[str]:
        return split_names(list(self._qrels_files()), self._dev_share)

    def counted(self) -> Sizes:
        """A passage is a line; a query is in the split that judges it."""
        qrels = {
            split: read_qrels(path, BadLines("skip"), may_be_empty=True) for split, path in self._qrels_files().items()
        }
        queries = {split: Amount(len(found)).at_most() for split, found in qrels.items()}
        return Sizes(
            passages=lines_in(self.files()["corpus"]),
            items=queries,
            judged=queries,
            positives={split: Amount(sum(map(len, found.values()))).at_most() for split, found in qrels.items()},
        ).with_dev(self._dev_share)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        files = self.files()
        self.splits()
        builder = RankingBuilder(folder, bad, self._dev_share)
        rows = read_texts(files["corpus"], bad, self._title, self._separator)
        corpus = builder.table("corpus", [(files["corpus"], rows)])
        queries = builder.table("queries", [(files["queries"], read_texts(files["queries"], bad, False))])
        used: set[int] = set()
        for split, path in self._qrels_files().items():
            qrels = read_qrels(path, builder.bad, may_be_empty=True)
            found = queries.rows(list(qrels))
            kept = np.unique(found[found >= 0]).tolist()
            used.update(kept)
            builder.split(split, "queries", queries, kept, qrels)
        if len(used) < len(queries):
            log.info("%s: %d of %d queries are judged in no split", self.folder, len(queries) - len(used), len(queries))
        builder.warn_unknown(corpus)
        return builder.content()

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> RankingData:
        return load_ranking(folder, content, fingerprint, self.display_name(self.folder), self._own)


@dataclass(frozen=True, kw_only=True)
class _Joined:
    """What the lines of one query say, an entry a passage: compact, since there may be hundreds of millions."""

    digest: str
    """Of the query's text."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("b"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    """The teacher's, NaN where there is none."""
    lines: array[int] = field(default_factory=lambda: array("q"))

    def ranked(self, query: str, corpus: TextTable, path: Path, bad: BadLines) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores, best first: the teacher's scores where each passage has one, else the labels.

        Two different scores of a passage go to `bad`.
        """
        given: dict[int, float] = {}
        for row, score, line in zip(self.rows, self.scores, self.lines, strict=True):
            known = given.get(row, math.nan)
            if math.isnan(known):
                given[row] = score
            elif not math.isnan(score) and score != known:
                passage = corpus.text(row)[:60]
                found = f"query {query!r}: score {score:g} of passage {passage!r} after {known:g} before"
                bad.report(path, line, found, "keep one of the two")
        if any(map(math.isnan, given.values())):
            return ordered(corpus, self.rows, self.labels)
        return ordered(corpus, list(given), list(given.values()))


def ingest_records(
    folder: Path, splits: Mapping[str, tuple[Path, Iterator[RankingRecord]]], dev_share: float, bad: BadLines
) -> dict[str, Any]:
    """Write a retrieval data set from records with texts.

    The corpus is every distinct passage, with an id made from its content; positives become judgements of grade 1; the
    passages of each query become its list in the ranking `given`, scored by the teacher where scores came along (in a
    list where only some have scores, and where there are none, by label). Memory: some 200 bytes a distinct passage,
    25 bytes an entry of a list.
    """
    builder = RankingBuilder(folder, bad, dev_share)
    seen: dict[str, int] = {}
    joined: dict[str, dict[str, _Joined]] = {}
    judged: dict[str, Qrels] = {}
    with TextTableWriter(folder / "corpus", bad) as corpus_writer:
        for number, (split, (path, records)) in enumerate(splits.items()):
            qrels: Qrels = {}
            known = joined[split] = {}
            with TextTableWriter(folder / f"queries.{number}", bad) as writer:
                corpus_writer.source(path)
                writer.source(path)
                for record in records:
                    # lines of one query are joined: contrastive files repeat a query once for each positive
                    digest = content_id(record.query)
                    other = next((name for name, queries in joined.items() if record.id in queries), split)
                    if other != split:
                        found = f"query {record.query[:60]!r} (id {record.id!r}) is in split {other!r}, too"
                        bad.report(path, record.line, found, "a query belongs to one split")
                        continue
                    if record.id in known and known[record.id].digest != digest:
                        bad.report(path, record.line, f"query id {record.id!r} again with another text")
                        continue
                    if record.id not in known:
                        writer.add(record.id, record.query, record.line)
                        known[record.id] = _Joined(digest=digest)
                    entries = known[record.id]
                    for texts, given, label in (
                        (record.positives, record.positive_scores, 1),
                        (record.negatives, record.negative_scores, 0),
                    ):
                        for place, text in enumerate(texts):
                            id = content_id(text)
                            if id not in seen:
                                seen[id] = len(seen)
                                corpus_writer.add(id, text, record.line)
                            entries.rows.append(seen[id])
                            entries.labels.append(label)
                            entries.scores.append(math.nan if given is None else given[place])
                            entries.lines.append(record.line)
                            if label:
                                qrels.setdefault(record.id, {})[id] = 1
            judged[split] = qrels
    corpus = TextTable(folder / "corpus")
    lists = []
    for number, (split, (path, _)) in enumerate(splits.items()):
        queries = TextTable(folder / f"queries.{number}")
        builder.split(split, f"queries.{number}", queries, None, judged[split])
        lists += [(query, *entries.ranked(query, corpus, path, bad)) for query, entries in joined[split].items()]
    builder.add_ranking("given", lists)
    return builder.content()


class JsonlRanking(IngestedDataset):
    """Training files with texts: one JSON object a line, `{"query": ..., "pos": [...], "neg": [...]}`.

    `pos_scores` and `neg_scores` are teacher scores, kept in the ranking `given`. Ids of passages (and of queries
    without `qid`) are made from their content.
    """

    layout: ClassVar[str] = "jsonl"
    version: ClassVar[int] = 2

    def __init__(
        self,
        *,
        files: Annotated[dict[str, Path], Field(min_length=1, description="JSONL file by split, plain or gzip")],
        dev_share: DevShare = 0.0,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self._files, self._dev_share = files, dev_share
        super().__init__(name=name, on_error=on_error, decisive={"dev_share": dev_share, "splits": list(files)})

    def files(self) -> Mapping[str, Path]:
        return _check_files(self._files)

    def splits(self) -> Sequence[str]:
        return split_names(list(self._files), self._dev_share)

    def counted(self) -> Sizes:
        """A line is a query, or more of one."""
        queries = {split: lines_in(path).at_most() for split, path in self._files.items()}
        return Sizes(items=queries, judged=queries).with_dev(self._dev_share)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        self.splits()
        sources = {split: (path, read_ranking_records(path, bad)) for split, path in self._files.items()}
        return ingest_records(folder, sources, self._dev_share, bad)

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> RankingData:
        return load_ranking(folder, content, fingerprint, self.display_name(next(iter(self._files.values()))))


def normalised_splits(names: Sequence[str]) -> dict[str, str]:
    """Usual split name -> name in the data (`dev` for `validation`)."""
    return {known_split(name, names): name for name in names}

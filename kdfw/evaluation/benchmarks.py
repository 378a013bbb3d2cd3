"""Benchmarks by name: the official measures and conventions, and where their data come from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdfw.errors import DataError, one_of
from kdfw.types import Qrels

ROOT_VARIABLE = "KDFW_DATA"
"""Environment variable with the folder that holds a folder for each data set."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A test set with what is customary on it."""

    name: str
    task: str
    """`ranking`, `answers` (retrieval without judgements), `pairs`, `classification` or `translation`."""
    measures: tuple[str, ...]
    """The official ones, the main one first."""
    convention: str
    """What the measures mean here, printed with every result."""
    layout: str
    """How its files are read: see `kdfw.evaluation.benchmark_data`."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What a local folder must hold, by role: one of these names, plain or gzip; the first is the official one."""
    places: tuple[str, ...] = ()
    """Names of the folder that are tried below the root."""
    remove_query: bool = False
    """A query is removed from its own results."""
    ir_datasets: str = ""
    """Its id in ir_datasets, for retrieval."""
    hub: Mapping[str, Any] = field(default_factory=dict)
    """Where the library `datasets` has it: `path`, `split` and, by task, `columns`."""
    items: int | None = None
    """How many queries, pairs, images or sentences the official test set has."""
    passages: int | None = None
    """Of retrieval: how many passages the official collection has."""
    parts: tuple[str, ...] = ()
    """Of a benchmark that is the mean of others: their names."""

    def locate(self, folder: Path) -> dict[str, Path] | None:
        """Its files in a folder, by role; None when one is missing. `*` stands for any part of a name."""
        found = {}
        for role, names in self.files.items():
            path = next((path for name in names for path in _matches(folder, name)), None)
            if path is None:
                return None
            found[role] = path
        return found

    def wanted(self) -> str:
        """The official file names."""
        return ", ".join(names[0] for names in self.files.values()) or "the data set"

    def missing(self, folder: Path | None = None, reason: str = "") -> DataError:
        """The error when neither a local folder nor a network has the data: which files to put where."""
        root = os.environ.get(ROOT_VARIABLE)
        place = self.places[0] if self.places else self.name
        if folder is not None:
            where = str(folder)
        elif root:
            where = f"{Path(root) / place} (or name their folder: `folder: PATH`)"
        else:
            where = f"a folder and name it: `folder: PATH`; or into {place} below ${ROOT_VARIABLE}, which is not set"
        network = " and cannot be downloaded" + (f" ({reason})" if reason else "") if folder is None else ""
        id = f"; in ir_datasets it is {self.ir_datasets}" if self.ir_datasets else ""
        files = f"put {self.wanted()} (plain or .gz) into {where}"
        return DataError(f"benchmark {self.name!r}: its files are not here{network}; {files}{id}")


def _matches(folder: Path, name: str) -> Iterator[Path]:
    if name == ".":
        yield from [folder] if folder.exists() else []
    elif "*" in name:
        yield from sorted(folder.glob(name))[:1]
    else:
        yield from (path for path in (folder / name, folder / f"{name}.gz") if path.is_file())


def folders_of(found: Benchmark, near: Sequence[Path] = ()) -> list[Path]:
    """Where a benchmark's files are looked for, in order: `near`, then below the root.

    All BEIR sets have the same file names, and so have folders of images: of these a folder near must be called as the
    benchmark.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if found.layout in ("beir", "images"):
        ends = [Path(place).parts for place in found.places]
        near = [folder for folder in near if any(folder.resolve().parts[-len(end) :] == end for end in ends)]
    return [*near, *(Path(root).expanduser() / place for place in found.places if root)]


# ---------------------------------------------------------------- the table

_DL = ("nDCG@10", "AP(rel=2)", "RR(rel=2)", "R(rel=2)@1000")
_DL_TEXT = "nDCG uses the grades 0-3 as gains; AP, RR and R count grades >= 2 as relevant; mean over the judged queries"
_DL_DOC = "nDCG uses the grades 0-3 as gains; the other measures count grades >= 1; mean over the judged queries"
_BEIR: Mapping[str, tuple[str, int, int]] = {
    "trec-covid": ("beir/trec-covid", 50, 171_332),
    "nfcorpus": ("beir/nfcorpus/test", 323, 3_633),
    "nq": ("beir/nq", 3_452, 2_681_468),
    "hotpotqa": ("beir/hotpotqa/test", 7_405, 5_233_329),
    "fiqa": ("beir/fiqa/test", 648, 57_638),
    "arguana": ("beir/arguana", 1_406, 8_674),
    "webis-touche2020": ("beir/webis-touche2020/v2", 49, 382_545),
    "quora": ("beir/quora/test", 10_000, 522_931),
    "dbpedia-entity": ("beir/dbpedia-entity/test", 400, 4_635_922),
    "scidocs": ("beir/scidocs", 1_000, 25_657),
    "fever": ("beir/fever/test", 6_666, 5_416_568),
    "climate-fever": ("beir/climate-fever", 1_535, 5_416_593),
    "scifact": ("beir/scifact/test", 300, 5_183),
    "msmarco": ("beir/msmarco/dev", 6_980, 8_841_823),
    "bioasq": ("", 500, 14_914_603),
    "signal1m": ("", 97, 2_866_316),
    "trec-news": ("", 57, 594_977),
    "robust04": ("", 249, 528_155),
}
"""id in ir_datasets, queries, passages (arXiv:2104.08663, table 1)."""
_FORUMS: Mapping[str, tuple[int, int]] = {
    "android": (699, 22_998),
    "english": (1_570, 40_221),
    "gaming": (1_595, 45_301),
    "gis": (885, 37_637),
    "mathematica": (804, 16_705),
    "physics": (1_039, 38_316),
    "programmers": (876, 32_176),
    "stats": (652, 42_269),
    "tex": (2_906, 68_184),
    "unix": (1_072, 47_382),
    "webmasters": (506, 17_405),
    "wordpress": (541, 48_605),
}
"""Queries and passages of the forums of CQADupStack."""
_PAIRS = {
    "STS12": ("mteb/sts12-sts", 3_108),
    "STS13": ("mteb/sts13-sts", 1_500),
    "STS14": ("mteb/sts14-sts", 3_750),
    "STS15": ("mteb/sts15-sts", 3_000),
    "STS16": ("mteb/sts16-sts", 1_186),
    "STSB": ("mteb/stsbenchmark-sts", 1_379),
    "SICK-R": ("", 4_927),
}


def _all() -> dict[str, Benchmark]:
    found = [*_ms_marco(), *_beir(), *_answers(), *_pairs(), *_images(), *_translations()]
    return {benchmark.name: benchmark for benchmark in found}


def _ms_marco() -> Iterator[Benchmark]:
    for kind in ("passage", "document"):
        passages = kind == "passage"
        collection = ("collection.tsv", "corpus.jsonl") if passages else ("msmarco-docs.tsv", "collection.tsv")
        size = 8_841_823 if passages else 3_213_835
        queries = ("queries.dev.small.tsv",) if passages else ("msmarco-docdev-queries.tsv",)
        qrels = ("qrels.dev.small.tsv", "qrels.dev.small.trec") if passages else ("msmarco-docdev-qrels.tsv",)
        cutoff, number = (10, 6_980) if passages else (100, 5_193)
        yield Benchmark(
            name=f"msmarco-{kind}/dev",
            task="ranking",
            measures=(f"RR@{cutoff}", "R@1000"),
            convention=f"RR@{cutoff} as on the leaderboard, over the {number:,} queries of dev; one grade",
            layout="msmarco",
            files={"collection": collection, "queries": queries, "qrels": qrels},
            places=(f"msmarco-{kind}",),
            ir_datasets=f"msmarco-{kind}/dev" + ("/small" if passages else ""),
            items=number,
            passages=size,
        )
        for year, judged in ((2019, 43), (2020, 54 if passages else 45)):
            short = f"dl{year % 100}"
            yield Benchmark(
                name=f"trec-dl-{year}/{kind}",
                task="ranking",
                measures=_DL if passages else ("nDCG@10", "AP", "RR", "R@100"),
                convention=_DL_TEXT if passages else _DL_DOC,
                layout="msmarco",
                files={
                    "collection": collection,
                    "queries": (f"msmarco-test{year}-queries.tsv", f"queries.{short}.tsv"),
                    "qrels": (
                        f"{year}qrels-{'pass' if passages else 'docs'}.txt",
                        *((f"qrels.{short}.trec", f"qrels.{short}.txt") if passages else ()),
                    ),
                },
                places=(f"msmarco-{kind}",),
                ir_datasets=f"msmarco-{kind}/trec-dl-{year}/judged",
                items=judged,
                passages=size,
            )


def _beir() -> Iterator[Benchmark]:
    sets = {**_BEIR, **{f"cqadupstack/{f}": (f"beir/cqadupstack/{f}", *sizes) for f, sizes in _FORUMS.items()}}
    for name, (source, queries, passages) in sets.items():
        own = name in ("arguana", "quora")
        split = "dev" if name == "msmarco" else "test"
        yield Benchmark(
            name=f"beir/{name}",
            task="ranking",
            measures=("nDCG@10", "R@100"),
            convention="nDCG@10 with the grades as gains"
            + ("; a query is removed from its own results" if own else ""),
            layout="beir",
            files={
                "corpus": ("corpus.jsonl",),
                "queries": ("queries.jsonl",),
                "qrels": (f"qrels/{split}.tsv",),
            },
            places=(f"beir/{name}", name, f"{name}/beir"),
            remove_query=own,
            ir_datasets=source,
            items=queries,
            passages=passages,
        )
    yield Benchmark(
        name="beir/cqadupstack",
        task="ranking",
        measures=("nDCG@10", "R@100"),
        convention="nDCG@10 with the grades as gains; the mean over the 12 forums",
        layout="beir",
        parts=tuple(f"beir/cqadupstack/{forum}" for forum in _FORUMS),
    )


def _answers() -> Iterator[Benchmark]:
    for name, file, number in (("nq", "nq-test.qa.csv", 3_610), ("trivia-qa", "trivia-test.qa.csv", 11_313)):
        yield Benchmark(
            name=name,
            task="answers",
            measures=("accuracy@1", "accuracy@5", "accuracy@20", "accuracy@100"),
            convention="share of questions with a top-k passage that holds an answer as a run of tokens, "
            "case ignored, titles left out (arXiv:2004.04906)",
            layout="dpr",
            files={"passages": ("psgs_w100.tsv",), "questions": (file,)},
            places=("dpr", "wikipedia-dpr", name),
            items=number,
            passages=21_015_324,
        )


def _pairs() -> Iterator[Benchmark]:
    for name, (source, number) in _PAIRS.items():
        columns = {"left": "sentence1", "right": "sentence2", "gold": "score"}
        single = name in ("STSB", "SICK-R")
        yield Benchmark(
            name=f"sts/{name}",
            task="pairs",
            measures=("spearman",),
            convention="Spearman x 100 over all subsets concatenated (`all`), ties with average ranks",
            layout="sts",
            files={
                "pairs": (f"{name}/test.tsv" if single else f"{name}/*.tsv", *([] if single else [f"{name}/*.tsv.gz"]))
            },
            places=("sts",),
            hub={"path": source, "split": "test", "columns": columns} if source else {},
            items=number,
        )


def _images() -> Iterator[Benchmark]:
    for name, hub, binary, number in (
        ("cifar10", {"path": "uoft-cs/cifar10", "image": "img", "label": "label"}, "test_batch.bin", 10_000),
        ("cifar100", {"path": "uoft-cs/cifar100", "image": "img", "label": "fine_label"}, "test.bin", 10_000),
    ):
        yield Benchmark(
            name=name,
            task="classification",
            measures=("accuracy", "accuracy@5"),
            convention="top-1 and top-5 accuracy, one view an image",
            layout="images",
            files={"images": (binary, "test/*/*", "*.zip")},
            places=(
                name,
                f"{name.replace('cifar', 'cifar-')}-batches-bin",
                f"{name.replace('cifar', 'cifar-')}-binary",
            ),
            hub={**hub, "split": "test"},
            items=number,
        )
    yield Benchmark(
        name="imagenet",
        task="classification",
        measures=("accuracy", "accuracy@5"),
        convention="top-1 and top-5 accuracy on the validation images, resized to 224 x 224, one view an image",
        layout="images",
        files={"images": ("val/*/*",)},
        places=("imagenet",),
        hub={"path": "ILSVRC/imagenet-1k", "image": "image", "label": "label", "split": "validation"},
        items=50_000,
    )


def _translations() -> Iterator[Benchmark]:
    for source, target in (("de", "en"), ("en", "de")):
        yield Benchmark(
            name=f"multi30k/{source}-{target}",
            task="translation",
            measures=("bleu", "chrf"),
            convention="BLEU of sacrebleu with its default tokenizer (13a), on detokenized text, case counts; "
            "test_2016_flickr",
            layout="parallel",
            files={side: (f"test_2016_flickr.{side}",) for side in (source, target)},
            places=("multi30k",),
            hub={"path": "bentrevett/multi30k", "split": "test", "columns": {"source": source, "target": target}},
            items=1_000,
        )


def names() -> list[str]:
    """Every benchmark there is, sorted."""
    return sorted(_all())


def benchmark(name: str) -> Benchmark:
    """A benchmark by name; `trec-dl-2019` is that of passages, and `beir/` may be left out where that is clear.

    Raises: DataError with the nearest known one.
    """
    known = _all()
    for full in (name, f"{name}/passage", f"beir/{name}", f"sts/{name}"):
        if full in known:
            return known[full]
    raise DataError(f"no benchmark {name!r}; {one_of(name, known)}")


def slug_of(name: str) -> str:
    """A benchmark's name as part of the name of a stage."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def same_collection(found: Benchmark) -> list[Benchmark]:
    """The benchmark and those over the same collection of passages."""
    others = (other for other in _all().values() if other.layout == found.layout and other.places == found.places)
    return [found, *(other for other in others if other.name != found.name)]


def load_qrels(name: str, folder: Path | None = None) -> Qrels:
    """Judgements of a retrieval benchmark: from a local folder, else through ir_datasets.

    Args:
        folder: where its file of judgements is; default: looked for below $KDFW_DATA. The collection is not needed.
    Raises: DataError that says which files to put where when there is neither.
    """
    from kdfw.data.runs import read_qrels

    found = benchmark(name)
    if found.task != "ranking" or found.parts:
        what = "it is the mean of others" if found.parts else f"its task is {found.task}"
        raise DataError(f"benchmark {found.name!r} has no judgements of passages: {what}")
    for place in [folder] if folder is not None else folders_of(found):
        path = next((path for name in found.files["qrels"] for path in _matches(place, name)), None)
        if path is not None:
            return read_qrels(path)
    if folder is not None or not found.ir_datasets:
        raise found.missing(folder)
    qrels: Qrels = {}
    try:
        import ir_datasets

        for row in ir_datasets.load(found.ir_datasets).qrels_iter():
            qrels.setdefault(row.query_id, {})[row.doc_id] = int(row.relevance)
    except Exception as error:  # whatever a download can fail with; the way out is the same
        raise found.missing(reason=f"{type(error).__name__}: {str(error)[:200]}") from error
    return qrels

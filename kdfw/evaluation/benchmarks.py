"""Benchmarks by name: the official measures and conventions, and where their data come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdfw.errors import DataError, one_of
from kdfw.types import Qrels


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A test set with what is customary on it."""

    name: str
    task: str
    measures: tuple[str, ...]
    """The official ones, the main one first."""
    convention: str
    """What the measures mean here, printed with every result."""
    split: str = "test"
    remove_query: bool = False
    """A query is removed from its own results."""
    ir_datasets: str = ""
    """Its id in ir_datasets, for retrieval."""
    files: tuple[str, ...] = ()
    """What a local folder must hold, relative to it."""

    def missing(self, folder: Path) -> DataError:
        """The error when neither a network nor a local folder has the data."""
        wanted = ", ".join(self.files) or "the data set"
        return DataError(
            f"benchmark {self.name!r}: its data are not at {folder} and cannot be downloaded; "
            f"put there: {wanted}" + (f" (ir_datasets id {self.ir_datasets})" if self.ir_datasets else "")
        )


_DL = ("nDCG@10", "AP(rel=2)", "RR(rel=2)", "R(rel=2)@1000")
_DL_TEXT = "nDCG uses the grades 0-3 as gains; AP, RR and R count grades >= 2 as relevant; mean over the judged queries"
_DL_DOC = "nDCG uses the grades 0-3 as gains; the other measures count grades >= 1; mean over the judged queries"
_BEIR = {
    "trec-covid": "beir/trec-covid",
    "nfcorpus": "beir/nfcorpus/test",
    "nq": "beir/nq",
    "hotpotqa": "beir/hotpotqa/test",
    "fiqa": "beir/fiqa/test",
    "arguana": "beir/arguana",
    "webis-touche2020": "beir/webis-touche2020/v2",
    "quora": "beir/quora/test",
    "dbpedia-entity": "beir/dbpedia-entity/test",
    "scidocs": "beir/scidocs",
    "fever": "beir/fever/test",
    "climate-fever": "beir/climate-fever",
    "scifact": "beir/scifact/test",
    "msmarco": "beir/msmarco/dev",
    "bioasq": "",
    "signal1m": "",
    "trec-news": "",
    "robust04": "",
    **{
        f"cqadupstack/{forum}": f"beir/cqadupstack/{forum}"
        for forum in (
            "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
            "webmasters", "wordpress",
        )
    },
}  # fmt: skip


def _all() -> dict[str, Benchmark]:
    msmarco = ("collection.tsv", "queries.tsv", "qrels.trec")
    found = [
        Benchmark(
            name="msmarco-passage/dev",
            task="ranking",
            measures=("RR@10", "R@1000"),
            convention="RR@10 as on the leaderboard, over the 6,980 queries of dev small; one grade",
            split="dev",
            ir_datasets="msmarco-passage/dev/small",
            files=msmarco,
        ),
        Benchmark(
            name="msmarco-document/dev",
            task="ranking",
            measures=("RR@100", "R@1000"),
            convention="RR@100 as on the leaderboard, over the 5,193 queries of dev; one grade",
            split="dev",
            ir_datasets="msmarco-document/dev",
            files=msmarco,
        ),
    ]
    for year in (2019, 2020):
        for kind in ("passage", "document"):
            passages = kind == "passage"
            judged = "/judged"
            found.append(
                Benchmark(
                    name=f"trec-dl-{year}/{kind}",
                    task="ranking",
                    measures=_DL if passages else ("nDCG@10", "AP", "RR", "R@100"),
                    convention=_DL_TEXT if passages else _DL_DOC,
                    ir_datasets=f"msmarco-{kind}/trec-dl-{year}{judged}",
                    files=msmarco,
                )
            )
    for name, source in _BEIR.items():
        own = name in ("arguana", "quora")
        text = "nDCG@10 with the grades as gains" + ("; a query is removed from its own results" if own else "")
        if name.startswith("cqadupstack"):
            text += "; CQADupStack is the mean over its 12 forums"
        split = "dev" if name == "msmarco" else "test"
        found.append(
            Benchmark(
                name=f"beir/{name}",
                task="ranking",
                measures=("nDCG@10", "R@100"),
                convention=text,
                split=split,
                remove_query=own,
                ir_datasets=source,
                files=("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"),
            )
        )
    for name in ("nq", "trivia-qa"):
        found.append(
            Benchmark(
                name=name,
                task="answers",
                measures=("accuracy@1", "accuracy@5", "accuracy@20", "accuracy@100"),
                convention="share of questions with a top-k passage that holds an answer as a run of tokens, "
                "case ignored (arXiv:2004.04906)",
                files=("psgs_w100.tsv", f"{name}-test.qa.csv"),
            )
        )
    for name in ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICK-R"):
        found.append(
            Benchmark(
                name=f"sts/{name}",
                task="pairs",
                measures=("spearman",),
                convention="Spearman x 100 over all subsets concatenated (`all`), ties with average ranks",
                files=(f"{name}/*.tsv",),
            )
        )
    for name, files in (
        ("cifar10", ("cifar-10-batches",)),
        ("cifar100", ("cifar-100",)),
        ("imagenet", ("val/<class>/*.JPEG",)),
    ):
        found.append(
            Benchmark(
                name=name,
                task="classification",
                measures=("accuracy", "accuracy@5"),
                convention="top-1 and top-5 accuracy, one view an image",
                split="validation" if name == "imagenet" else "test",
                files=files,
            )
        )
    found.append(
        Benchmark(
            name="multi30k/de-en",
            task="translation",
            measures=("bleu", "chrf"),
            convention="BLEU of sacrebleu with its default tokenizer (13a), on detokenized text, case counts",
            files=("test_2016_flickr.de", "test_2016_flickr.en"),
        )
    )
    return {benchmark.name: benchmark for benchmark in found}


def names() -> list[str]:
    """Every benchmark there is, sorted."""
    return sorted(_all())


def benchmark(name: str) -> Benchmark:
    """A benchmark by name; raises DataError with the nearest known one."""
    known = _all()
    name = {"trec-dl-2019": "trec-dl-2019/passage", "trec-dl-2020": "trec-dl-2020/passage"}.get(name, name)
    if name not in known:
        raise DataError(f"no benchmark {name!r}; {one_of(name, known)}")
    return known[name]


def load_qrels(name: str, folder: Path) -> Qrels:
    """Judgements of a retrieval benchmark: from a local folder, else through ir_datasets.

    Raises: DataError that says which files to put where when there is neither.
    """
    from kdfw.data.runs import read_qrels

    found = benchmark(name)
    if found.task != "ranking":
        raise DataError(f"benchmark {name!r} has no judgements of passages: its task is {found.task}")
    local = folder / found.files[-1]
    for path in (local, local.with_name(local.name + ".gz")):
        if path.is_file():
            return read_qrels(path)
    if not found.ir_datasets:
        raise found.missing(folder)
    try:
        import ir_datasets
    except ImportError:
        raise found.missing(folder) from None
    qrels: Qrels = {}
    try:
        for row in ir_datasets.load(found.ir_datasets).qrels_iter():
            qrels.setdefault(row.query_id, {})[row.doc_id] = int(row.relevance)
    except Exception as error:  # whatever a download can fail with; the way out is the same
        raise found.missing(folder) from error
    return qrels


def has_answer(passage: str, answers: list[str]) -> bool:
    """Whether a passage holds one of the answers as a run of whole tokens, as DPR matches them (arXiv:2004.04906)."""
    tokens = _tokens(passage)
    for answer in answers:
        wanted = _tokens(answer)
        if wanted and any(tokens[at : at + len(wanted)] == wanted for at in range(len(tokens) - len(wanted) + 1)):
            return True
    return False


def _tokens(text: str) -> list[str]:
    """DPR's simple tokens: runs of letters, digits and marks, and each other visible character; NFD, lower case."""
    import unicodedata

    found: list[str] = []
    word = ""
    for character in unicodedata.normalize("NFD", text).lower():
        category = unicodedata.category(character)
        if category[0] in "LNM":
            word += character
            continue
        if word:
            found.append(word)
        word = ""
        if category[0] not in "ZC":
            found.append(character)
    return [*found, word] if word else found


def answer_accuracy(ranked: list[list[str]], answers: list[list[str]], cutoffs: tuple[int, ...]) -> dict[str, float]:
    """Top-k accuracy by answer match.

    Args:
        ranked: for each question the texts of its passages, best first.
        answers: for each question the accepted answers.
    """
    if not ranked or len(ranked) != len(answers):
        raise DataError(f"{len(ranked)} lists of passages for {len(answers)} questions")
    first = [
        next((rank for rank, text in enumerate(texts[: max(cutoffs)]) if has_answer(text, own)), None)
        for texts, own in zip(ranked, answers, strict=True)
    ]
    return {f"accuracy@{k}": sum(rank is not None and rank < k for rank in first) / len(first) for k in cutoffs}

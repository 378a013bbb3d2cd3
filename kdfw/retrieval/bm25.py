"""BM25: analysis of texts, an index built block by block, exact search.

The index has the layout and the formulas of bm25s (arXiv:2407.03618), which holds every token of the corpus as a
Python object while it builds; here a block of passages is in memory at a time. `bm25s.BM25.load` opens the result.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdfw.components import Retriever
from kdfw.errors import ConfigError, MissingDependencyError
from kdfw.files import load_array, read_json
from kdfw.fingerprint import fingerprint
from kdfw.retrieval.postings import Entries, Postings, invert
from kdfw.retrieval.queries import search_in_shares
from kdfw.retrieval.store import Opened, kept

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.types import Corpus, TextSource

Method = Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]
BLOCK_PASSAGES = 50_000
_WORD = re.compile(r"\b\w\w+\b")  # the words of bm25s: two word characters or more


@dataclass(frozen=True, kw_only=True)
class Analyzer:
    """How a text becomes terms: lower case, words of two characters or more, stop words out, the rest stemmed."""

    stemmer: str | None
    """A Snowball algorithm (`english`, `porter`, `german`, ...); None keeps words as they are."""
    stopwords: str | Sequence[str] | None
    """A language bm25s has a list for, the words themselves, or None."""

    def vocabulary(self) -> Vocabulary:
        """An empty vocabulary that analyses with these settings."""
        return Vocabulary(self)

    @cached_property
    def dropped(self) -> frozenset[str]:
        """The stop words."""
        if self.stopwords is None:
            return frozenset()
        if not isinstance(self.stopwords, str):
            return frozenset(word.lower() for word in self.stopwords)
        try:
            from bm25s import stopwords as lists
        except ImportError as error:
            raise MissingDependencyError("bm25s", "BM25 with a list of stop words") from error
        name = {"english": "EN"}.get(self.stopwords, self.stopwords.upper())
        words = getattr(lists, f"STOPWORDS_{name}", None)
        if words is None:
            known = sorted(n.removeprefix("STOPWORDS_").lower() for n in dir(lists) if n.startswith("STOPWORDS_"))
            raise ConfigError(f"bm25: no stop words for {self.stopwords!r}; known: english, {', '.join(known)}")
        return frozenset(words)

    @cached_property
    def stem(self) -> Any:
        """word -> stem."""
        if self.stemmer is None:
            return str
        try:
            import Stemmer
        except ImportError as error:
            raise MissingDependencyError("PyStemmer", "BM25 with stemming") from error
        if self.stemmer not in Stemmer.algorithms():
            known = ", ".join(Stemmer.algorithms())
            raise ConfigError(f"bm25: no stemmer {self.stemmer!r}; known: {known}; or null for none")
        return Stemmer.Stemmer(self.stemmer).stemWord


class Vocabulary(dict[str, int]):
    """Word -> number of its term, -1 for stop words; grows as words are looked up, until `terms` is frozen."""

    def __init__(self, analyzer: Analyzer, terms: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.analyzer = analyzer
        self.terms: dict[str, int] = dict(terms or {})
        self.grows = terms is None

    def __missing__(self, word: str) -> int:
        term = -1
        if word not in self.analyzer.dropped:
            stem = self.analyzer.stem(word)
            term = self.terms.setdefault(stem, len(self.terms)) if self.grows else self.terms.get(stem, -1)
        self[word] = term
        return term

    def of(self, text: str) -> list[int]:
        """Terms of a text in order; -1 where a word is dropped or unknown."""
        return list(map(self.__getitem__, _WORD.findall(text.lower())))


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Weight of a term in a passage (arXiv:2407.03618, table 1; the variants of Kamphuis et al., ECIR 2020)."""

    method: Method
    k1: float
    b: float
    delta: float

    def idf(self, frequency: np.ndarray, num_passages: int) -> np.ndarray:
        """Inverse document frequency of terms that occur in `frequency` passages, float32."""
        df, n = frequency.astype(np.float64), float(num_passages)
        with np.errstate(divide="ignore"):
            if self.method == "lucene":
                value = np.log1p((n - df + 0.5) / (df + 0.5))
            elif self.method == "robertson":
                value = np.log(np.maximum((n - df + 0.5) / (df + 0.5), 1.0))  # never negative
            elif self.method == "atire":
                value = np.log(n / df)
            elif self.method == "bm25l":
                value = np.log((n + 1) / (df + 0.5))
            else:
                value = np.log((n + 1) / df)
        return value.astype(np.float32)

    def saturation(self, count: np.ndarray | float, relative_length: np.ndarray | float) -> np.ndarray:
        """The part that grows with the number of occurrences; lengths are relative to the mean length."""
        norm = 1 - self.b + self.b * np.asarray(relative_length, dtype=np.float64)
        tf = np.asarray(count, dtype=np.float64)
        value: np.ndarray
        if self.method in ("lucene", "robertson"):
            value = tf / (self.k1 * norm + tf)
        elif self.method == "atire":
            value = tf * (self.k1 + 1) / (tf + self.k1 * norm)
        elif self.method == "bm25l":
            shifted = tf / norm + self.delta
            value = (self.k1 + 1) * shifted / (self.k1 + shifted)
        else:
            value = (self.k1 + 1) * tf / (self.k1 * norm + tf) + self.delta
        return value

    def absent(self, frequency: np.ndarray, num_passages: int) -> np.ndarray | None:
        """Weight of a term in a passage without it; None for the methods where that is zero."""
        if self.method not in ("bm25l", "bm25+"):
            return None
        value: np.ndarray = self.idf(frequency, num_passages) * self.saturation(0.0, 1.0)
        return value.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Index:
    """An opened BM25 index."""

    postings: Postings
    vocabulary: Vocabulary
    absent: np.ndarray | None
    """(terms,) float32: added for each query term, whatever the passage (BM25L, BM25+)."""

    def search(self, query: str, depth: int, corpus: TextSource) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores) of the passages that share a term with the query, best `depth`, in order."""
        found = np.asarray([term for term in self.vocabulary.of(query) if term >= 0], dtype=np.int64)
        terms, counts = np.unique(found, return_counts=True)
        rows, scores = self.postings.search(terms, counts, depth, corpus)
        if self.absent is not None:
            scores = scores + np.float32((self.absent[terms] * counts).sum())
        return rows, scores


def build(corpus: Corpus, analyzer: Analyzer, formula: Formula, folder: Path) -> None:
    """Write the index of a corpus into a folder, a block of passages at a time."""
    vocabulary = analyzer.vocabulary()
    lengths: list[np.ndarray] = []
    spilled: list[Path] = []
    for begin in range(0, len(corpus), BLOCK_PASSAGES):
        tokens, sizes = array("i"), array("i")
        for _, text in corpus.iterate(begin, min(begin + BLOCK_PASSAGES, len(corpus))):
            before = len(tokens)
            tokens.extend(term for term in vocabulary.of(text) if term >= 0)
            sizes.append(len(tokens) - before)
        counts = np.frombuffer(sizes, dtype=np.int32).astype(np.int64)
        inside = np.repeat(np.arange(len(counts)), counts)
        # one sort of (term, passage) keys gives the block's inverted lists and the occurrences at once
        keys = np.frombuffer(tokens, dtype=np.int32).astype(np.int64) * len(counts) + inside
        keys, occurrences = np.unique(keys, return_counts=True)
        block = np.stack([keys // len(counts), keys % len(counts) + begin, occurrences]).astype(np.int32)
        spilled.append(folder / f"block-{len(spilled)}.npy")
        np.save(spilled[-1], block)
        lengths.append(counts)
    length = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
    relative = length / max(float(length.mean()) if len(length) else 0.0, 1e-9)

    def blocks() -> Iterator[Entries]:
        for file in spilled:
            terms, rows, occurrences = load_array(file)
            yield terms, rows, occurrences

    def value(entries: Entries, frequency: np.ndarray) -> np.ndarray:
        terms, rows, occurrences = entries
        idf, absent = formula.idf(frequency, len(corpus)), formula.absent(frequency, len(corpus))
        weights = idf[terms] * formula.saturation(occurrences, relative[rows]).astype(np.float32)
        return weights if absent is None else weights - absent[terms]

    invert(blocks, folder, len(vocabulary.terms), value)
    frequency = np.diff(load_array(folder / "indptr.csc.index.npy", mapped=False))
    absent = formula.absent(frequency, len(corpus))
    if absent is not None:
        np.save(folder / "nonoccurrence_array.index.npy", absent)
    for file in spilled:
        file.unlink()
    text = json.dumps(vocabulary.terms, ensure_ascii=False)
    (folder / "vocab.index.json").write_text(text, encoding="utf-8")
    parameters = {
        "k1": formula.k1,
        "b": formula.b,
        "delta": formula.delta,
        "method": formula.method,
        "idf_method": formula.method,
        "dtype": "float32",
        "int_dtype": "int32",
        "num_docs": len(corpus),
        "backend": "numpy",
    }
    (folder / "params.index.json").write_text(json.dumps(parameters, indent=1), encoding="utf-8")


class BM25(Retriever):
    """BM25 over the corpus's texts; a data set decides whether a title is part of the text."""

    paper = "10.1561/1500000019"

    reads = frozenset({"text"})

    def __init__(
        self,
        *,
        k1: Annotated[float, Field(ge=0, description="saturation of term counts")] = 0.9,
        b: Annotated[float, Field(ge=0, le=1, description="how much the length of a passage counts")] = 0.4,
        delta: Annotated[float, Field(ge=0, description="of bm25l and bm25+ only")] = 0.5,
        method: Annotated[Method, Field(description="variant of the formula")] = "lucene",
        stemmer: Annotated[
            str | None, Field(description="Snowball algorithm: english, porter, german, ...; null for none")
        ] = "english",
        stopwords: Annotated[
            str | list[str] | None, Field(description="language of a list, the words themselves, or null for none")
        ] = "english",
    ) -> None:
        self.formula = Formula(method=method, k1=k1, b=b, delta=delta)
        self.analyzer = Analyzer(stemmer=stemmer, stopwords=stopwords)
        self._opened = Opened[Index]()

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """Versions of what supplies stop words and stems."""
        return _versions()

    def index(self, corpus: Corpus, context: StageContext) -> Index:
        """The index of a corpus, built under the cache the first time."""
        key = fingerprint(
            {
                "corpus": corpus.fingerprint,
                "formula": vars(self.formula),
                "analyzer": [self.analyzer.stemmer, sorted(self.analyzer.dropped)],
                "version": self.version,
                **_versions(),
            }
        )

        def make(folder: Path) -> None:
            context.log.info("building the BM25 index of %d passages", len(corpus))
            build(corpus, self.analyzer, self.formula, folder)

        folder = kept(context.cache / "bm25" / key, make)
        terms = read_json(folder / "vocab.index.json")
        absent = folder / "nonoccurrence_array.index.npy"
        return Index(
            postings=Postings.open(folder, len(corpus)),
            vocabulary=Vocabulary(self.analyzer, terms),
            absent=load_array(absent, mapped=False) if absent.exists() else None,
        )

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """Passages that share a term with the query; lists are shorter than `depth` where there are fewer."""
        index = self._opened.get(data.corpus.fingerprint, lambda: self.index(data.corpus, context))
        return search_in_shares(
            queries, lambda number: index.search(queries.text(number), depth, data.corpus), context, "BM25"
        )


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata

    found = {}
    for package in ("bm25s", "PyStemmer"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found

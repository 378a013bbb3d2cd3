"""BM25 against hand arithmetic, against bm25s, and against the known figures of SciFact."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from retrieval_fakes import Context, Texts, as_lists, ranking_data, two_workers

from kdfw.errors import ConfigError
from kdfw.retrieval import bm25 as module
from kdfw.retrieval.bm25 import BM25

CORPUS = Texts(
    [
        ("a", "cats chase the mice"),
        ("b", "a cat and another cat sleep"),
        ("c", "stones"),
        ("d", "the mice chased a cat"),  # as `a`, after analysis: a tie
        ("e", ""),
    ]
)
PLAIN = Texts([("x", "red red blue"), ("y", "red green"), ("z", "blue green green green")])


def search(retriever: BM25, corpus: Texts, queries: list[tuple[str, str]], tmp_path: Path, depth: int = 10):
    texts = Texts(queries)
    ranking = retriever.search(ranking_data(corpus, texts), texts, depth, Context(tmp_path))
    return as_lists(ranking, corpus)


def test_lucene_scores_by_hand(tmp_path: Path) -> None:
    # lengths 3, 2, 4, mean 3; `red` in 2 of 3 passages, `blue` in 2 of 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    red_x = idf * 2 / (1.2 * (0.5 + 0.5 * 3 / 3) + 2)
    blue_x = idf * 1 / (1.2 * (0.5 + 0.5 * 3 / 3) + 1)
    red_y = idf * 1 / (1.2 * (0.5 + 0.5 * 2 / 3) + 1)
    blue_z = idf * 1 / (1.2 * (0.5 + 0.5 * 4 / 3) + 1)
    retriever = BM25(k1=1.2, b=0.5, stemmer=None, stopwords=None)
    found = search(retriever, PLAIN, [("q", "red red blue")], tmp_path)["q"]
    assert [id for id, _ in found] == ["x", "y", "z"]
    expected = [2 * red_x + blue_x, 2 * red_y, blue_z]  # a term counts as often as the query has it
    assert [score for _, score in found] == pytest.approx(expected, rel=1e-6)


def test_stems_stop_words_ties_and_passages_without_a_term(tmp_path: Path) -> None:
    found = search(BM25(), CORPUS, [("q", "The cat chasing mice"), ("none", "zebra"), ("stop", "the and")], tmp_path)
    assert [id for id, _ in found["q"]] == ["d", "a", "b"]
    assert found["q"][0][1] == found["q"][1][1] > found["q"][2][1] > 0
    assert found["none"] == [] and found["stop"] == []


def test_a_tie_at_the_cut_keeps_the_greater_ids(tmp_path: Path) -> None:
    corpus = Texts([(id, "same words here") for id in ("3", "10", "2", "1")])
    found = search(BM25(), corpus, [("q", "words")], tmp_path, depth=2)["q"]
    assert [id for id, _ in found] == ["3", "2"]  # as texts, descending


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire", "bm25l", "bm25+"])
def test_every_variant_gives_the_scores_of_bm25s(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bm25s

    monkeypatch.setattr(module, "BLOCK_PASSAGES", 7)  # several blocks
    rng = np.random.default_rng(0)
    words = np.asarray([f"w{number}" for number in range(30)])
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 12))) for _ in range(40)]
    corpus = Texts([(f"{number:02d}", text) for number, text in enumerate(texts)])
    retriever = BM25(method=method, k1=1.1, b=0.3, stemmer=None, stopwords=None)
    found = search(retriever, corpus, [("q", "w3 w4 w5 w3")], tmp_path, depth=40)["q"]
    peer = bm25s.BM25(method=method, k1=1.1, b=0.3)
    peer.index([text.split() for text in texts], show_progress=False)
    expected = peer.get_scores(["w3", "w4", "w5", "w3"])
    sharing = [number for number, text in enumerate(texts) if {"w3", "w4", "w5"} & set(text.split())]
    if method != "robertson":  # its weights may be zero, and a passage that scores zero is not a result
        assert {id for id, _ in found} == {f"{number:02d}" for number in sharing}
    assert found
    for id, score in found:
        assert score == pytest.approx(float(expected[int(id)]), rel=1e-5)


def test_the_index_opens_in_bm25s(tmp_path: Path) -> None:
    import bm25s

    found = search(BM25(k1=1.2, b=0.5, stemmer=None, stopwords=None), PLAIN, [("q", "red blue")], tmp_path)["q"]
    (folder,) = (path for path in (tmp_path / "cache" / "bm25").iterdir() if path.is_dir())
    scores = bm25s.BM25.load(folder, mmap=True).get_scores(["red", "blue"])
    assert dict(found) == pytest.approx(dict(zip("xyz", scores.tolist(), strict=True)), rel=1e-6)


def test_the_index_is_built_once_for_a_corpus_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    real = module.build
    monkeypatch.setattr(module, "build", lambda *given: (built.append(1), real(*given)))
    for _ in range(2):
        first = search(BM25(), CORPUS, [("q", "cat mice")], tmp_path)
    assert len(built) == 1
    search(BM25(k1=1.0), CORPUS, [("q", "cat mice")], tmp_path)
    search(BM25(), Texts([("a", "other")]), [("q", "cat mice")], tmp_path)
    assert len(built) == 3
    # a changed byte is found and the index built again
    for file in (tmp_path / "cache" / "bm25").glob("*/data.csc.index.npy"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 64
        file.write_bytes(content)
    assert search(BM25(), CORPUS, [("q", "cat mice")], tmp_path) == first
    assert len(built) == 4


def test_a_build_that_fails_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "invert", full)
    with pytest.raises(Exception, match="No space left"):
        search(BM25(), CORPUS, [("q", "cat")], tmp_path)
    monkeypatch.undo()
    assert [id for id, _ in search(BM25(), CORPUS, [("q", "cat")], tmp_path)["q"]][0] == "b"


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    queries = Texts(
        [(f"q{number}", text) for number, text in enumerate(["cat", "mice cat", "stones", "zebra", "sleep"])]
    )
    data = ranking_data(CORPUS, queries)
    alone = as_lists(BM25().search(data, queries, 3, Context(tmp_path / "one")), CORPUS)

    def task(workers: object) -> dict[str, list[tuple[str, float]]]:
        context = Context(tmp_path / "two", workers=workers)
        return as_lists(BM25().search(data, queries, 3, context), CORPUS)

    assert two_workers(task) == [alone, alone]


def test_an_empty_corpus_gives_empty_lists(tmp_path: Path) -> None:
    assert search(BM25(), Texts([]), [("q", "cat")], tmp_path) == {"q": []}


def test_unknown_languages_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="klingon.*porter"):
        search(BM25(stemmer="klingon"), CORPUS, [("q", "cat")], tmp_path)
    with pytest.raises(ConfigError, match="klingon.*german"):
        search(BM25(stopwords="klingon"), CORPUS, [("q", "cat")], tmp_path)


def scifact(data_dir: Path, split: str) -> tuple[Texts, Texts, dict[str, dict[str, int]]]:
    folder = data_dir / "scifact" / "msmarco"
    if not folder.is_dir():
        pytest.skip(f"no SciFact in {data_dir}")

    def texts(stream: object) -> Texts:
        return Texts([tuple(line.rstrip("\n").split("\t", 1)) for line in stream])

    with gzip.open(folder / "collection.tsv.gz", "rt", encoding="utf-8") as stream:
        corpus = texts(stream)
    with (folder / f"queries.{split}.tsv").open(encoding="utf-8") as stream:
        queries = texts(stream)
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / f"qrels.{split}.trec").read_text().splitlines():
        query, _, passage, grade = line.split()
        qrels.setdefault(query, {})[passage] = int(grade)
    return corpus, queries, qrels


def test_scifact_reaches_the_reference_figures(tmp_path: Path, data_dir: Path) -> None:
    """BM25, Lucene variant, k1 0.9, b 0.4, English stemming, title and text: nDCG@10 0.6762, R@100 0.9127."""
    corpus, queries, qrels = scifact(data_dir, "test")
    ranking = BM25().search(ranking_data(corpus, queries), queries, 100, Context(tmp_path))
    gains, recalls = [], []
    for number, query in enumerate(ranking.query_ids):
        ids = [corpus.id(int(row)) for row in ranking.of(number)[0]]
        best = sorted(qrels[query].values(), reverse=True)[:10]
        ideal = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))
        got = sum(qrels[query].get(id, 0) / math.log2(rank + 2) for rank, id in enumerate(ids[:10]))
        gains.append(got / ideal)
        recalls.append(sum(id in qrels[query] for id in ids) / len(qrels[query]))
    assert len(gains) == 300
    assert np.mean(gains) == pytest.approx(0.6762, abs=5e-4)
    assert np.mean(recalls) == pytest.approx(0.9127, abs=5e-4)

"""Dense search against brute force in float64, in one process and in two, exact and approximate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from retrieval_fakes import CharacterModel, Context, Texts, as_lists, ranking_data, two_workers

from kdfw.errors import ConfigError
from kdfw.retrieval import encode, indexes
from kdfw.retrieval.dense import Dense
from kdfw.retrieval.encode import Vectors
from kdfw.retrieval.indexes import IVF, IVFPQ, PQ, Approximate, Flat, IndexOptions, build_index, nearest

RNG = np.random.default_rng(5)


def texts(prefix: str, count: int) -> Texts:
    return Texts(
        [(f"{prefix}{n}", "".join(RNG.choice(list("abcdefgh"), size=RNG.integers(12, 40)))) for n in range(count)]
    )


CORPUS, QUERIES = texts("p", 70), texts("q", 9)


def brute_force(corpus: Texts, queries: Texts) -> np.ndarray:
    model = CharacterModel()
    passages = np.stack([model.vector(text) for _, text in corpus.rows])
    return np.stack([model.vector(text) for _, text in queries.rows]) @ passages.T


@pytest.mark.parametrize("depth", [1, 5, 70, 200])
def test_exact_search_is_brute_force(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PASSAGE_WINDOW", 16)
    monkeypatch.setattr(indexes, "BLOCK_ROWS", 32)
    context = Context(tmp_path, models={"m": CharacterModel()})
    ranking = Dense(model="m").search(ranking_data(CORPUS, QUERIES), QUERIES, depth, context)
    expected = brute_force(CORPUS, QUERIES)
    for number in range(len(QUERIES)):
        rows, scores = ranking.of(number)
        assert rows.tolist() == np.argsort(-expected[number])[:depth].tolist()
        np.testing.assert_allclose(scores, expected[number][rows], atol=1e-5)


def test_equal_scores_are_ordered_by_id_also_at_the_cut(tmp_path: Path) -> None:
    corpus = Texts([("x", "zzz"), ("9", "abc"), ("10", "abc"), ("y", "zzz"), ("2", "abc"), ("b", "abc")])
    query = Texts([("q", "abc")])
    scores = brute_force(corpus, query)[0]
    assert scores[1] > scores[0]
    context = Context(tmp_path, models={"m": CharacterModel()})
    found = as_lists(Dense(model="m").search(ranking_data(corpus, query), query, 3, context), corpus)["q"]
    assert [id for id, _ in found] == ["b", "9", "2"]  # ids are texts


def test_two_processes_find_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PASSAGE_WINDOW", 1024)
    corpus, queries = texts("p", 3000), texts("q", 30)
    data = ranking_data(corpus, queries)
    alone = Dense(model="m").search(data, queries, 20, Context(tmp_path / "1", models={"m": CharacterModel()}))

    def task(workers: object) -> object:
        context = Context(tmp_path / "2", models={"m": CharacterModel()}, workers=workers)
        return Dense(model="m").search(data, queries, 20, context)

    for ranking in two_workers(task):
        np.testing.assert_array_equal(ranking.passages, alone.passages)
        np.testing.assert_array_equal(ranking.scores, alone.scores)
        np.testing.assert_array_equal(ranking.starts, alone.starts)
        assert ranking.query_ids == alone.query_ids


@pytest.mark.parametrize("index", ["ivf", "hnsw", "pq", "ivf-pq"])
def test_two_processes_agree_on_an_approximate_index(index: str, tmp_path: Path) -> None:
    corpus, queries = texts("p", 700), texts("q", 9)
    data = ranking_data(corpus, queries)
    options = {"type": index, "bytes_per_vector": 8} if "pq" in index else {"type": index}

    def dense() -> Dense:
        return Dense(model="m", index=TypeAdapter(IndexOptions).validate_python(options))

    alone = dense().search(data, queries, 5, Context(tmp_path / "1", models={"m": CharacterModel()}))

    def task(workers: object) -> object:
        return dense().search(
            data, queries, 5, Context(tmp_path / "2", models={"m": CharacterModel()}, workers=workers)
        )

    for ranking in two_workers(task):
        assert as_lists(ranking, corpus) == as_lists(alone, corpus)


def clustered(folder: Path, rows: int, width: int) -> tuple[Vectors, np.ndarray]:
    """Vectors around 64 centres, as embeddings are, and queries near some of them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(64, width))
    vectors = centres[rng.integers(0, 64, rows)] + 0.6 * rng.normal(size=(rows, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = Vectors(folder=folder, num_rows=rows, window=rows)
    store.write(0, vectors.astype(np.float32))
    queries = vectors[rng.integers(0, rows, 50)] + 0.05 * rng.normal(size=(50, width))
    return store, queries.astype(np.float32)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        (IVF(lists=64, probes=16), 0.9),
        (indexes.HNSW(), 0.95),
        (PQ(bytes_per_vector=16, rescore=8), 0.9),
        (IVFPQ(lists=64, probes=16, bytes_per_vector=16, rescore=8), 0.85),
    ],
)
def test_approximate_indexes_find_most_of_the_true_neighbours(options: object, least: float, tmp_path: Path) -> None:
    store, queries = clustered(tmp_path / "v", 5000, 32)
    import torch

    cpu = torch.device("cpu")
    truth = np.argsort(-(queries @ store.array.T), axis=1)[:, :10]
    exact = indexes.in_order(nearest(queries, store, range(5000), 10, cpu), Numbers(5000), 10)
    assert [rows.tolist() for rows, _ in exact] == truth.tolist()
    build_index(store, options, tmp_path)
    found = indexes.in_order(Approximate(tmp_path, options, store, cpu).search(queries, 10), Numbers(5000), 10)
    recall = np.mean([len(set(rows) & set(best)) / 10 for (rows, _), best in zip(found, truth, strict=True)])
    assert least <= recall <= 1.0
    if getattr(options, "rescore", 1):  # scores are exact, also where the index holds only codes
        for query, (rows, scores) in enumerate(found):
            np.testing.assert_allclose(scores, store.array[rows] @ queries[query], atol=1e-5)


class Numbers:
    def __init__(self, count: int) -> None:
        self.count = count

    def id(self, row: int) -> str:
        return str(row)


def test_the_search_of_gpus_finds_what_faiss_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    store, queries = clustered(tmp_path, 500, 16)
    cpu = torch.device("cpu")
    expected = indexes.in_order(nearest(queries, store, range(500), 7, cpu), Numbers(500), 7)
    monkeypatch.setattr(indexes, "_block_best", indexes.torch_best)
    found = indexes.in_order(nearest(queries, store, range(500), 7, cpu), Numbers(500), 7)
    assert [rows.tolist() for rows, _ in found] == [rows.tolist() for rows, _ in expected]


def test_an_index_by_name_and_with_options() -> None:
    adapter = TypeAdapter(IndexOptions)
    assert adapter.validate_python("flat") == Flat()
    assert adapter.validate_python({"type": "ivf", "probes": 3}) == IVF(probes=3)
    with pytest.raises(ValidationError, match="probs"):
        adapter.validate_python({"type": "ivf", "probs": 3})
    with pytest.raises(ValidationError, match="flatt"):
        adapter.validate_python("flatt")


def test_codes_that_do_not_fit_the_width_are_refused(tmp_path: Path) -> None:
    store, _ = clustered(tmp_path / "v", 300, 32)
    with pytest.raises(ConfigError, match=r"bytes_per_vector 24 does not divide the width 32.*\[16, 32\]"):
        build_index(store, PQ(bytes_per_vector=24), tmp_path)


def test_an_empty_corpus_gives_empty_lists(tmp_path: Path) -> None:
    context = Context(tmp_path, models={"m": CharacterModel()})
    ranking = Dense(model="m").search(ranking_data(Texts([]), QUERIES), QUERIES, 3, context)
    assert len(ranking) == 9 and len(ranking.passages) == 0


@pytest.mark.parametrize(
    "options", [IVF(lists=64), PQ(bytes_per_vector=16), IVFPQ(lists=64, bytes_per_vector=16)], ids=lambda o: o.type
)
def test_few_passages_are_indexed_without_a_word(
    options: IVF | PQ | IVFPQ, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, _ = clustered(tmp_path / "v", 500, 32)
    build_index(store, options, tmp_path)
    assert "".join(capfd.readouterr()) == ""

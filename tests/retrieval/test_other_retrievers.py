"""Sparse, late interaction, run files, re-ranking and fusion, against brute force and hand arithmetic."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_fakes import CharacterModel, Context, Texts, as_lists, ranking_data, two_workers

from kdfw.components import Retriever
from kdfw.data.ranking import Ranking
from kdfw.errors import ConfigError, DataError
from kdfw.retrieval import RETRIEVERS, STAGES, encode, maxsim, retriever_for, search_with
from kdfw.retrieval.fusion import Fusion
from kdfw.retrieval.given import RunFile, Triples, sample_negatives
from kdfw.retrieval.maxsim import LateInteraction
from kdfw.retrieval.rerank import Rerank, score_lists
from kdfw.retrieval.sparse import Sparse
from kdfw.types import Signals

RNG = np.random.default_rng(7)


def texts(prefix: str, count: int) -> Texts:
    letters = list("abcdefghij")
    return Texts([(f"{prefix}{n}", "".join(RNG.choice(letters, size=RNG.integers(3, 12)))) for n in range(count)])


CORPUS, QUERIES = texts("p", 60), texts("q", 7)
DATA = ranking_data(CORPUS, QUERIES)


class SparseModel(CharacterModel):
    """Weight of a character: how often it occurs, times a fixed number."""

    search = "sparse"

    def encode(self, micro, need):  # type: ignore[no-untyped-def]
        self.encoded += len(micro.ids)
        mask = torch.ones_like(micro.ids) if micro.mask is None else micro.mask.long()
        counts = torch.zeros(len(micro.ids), 128).scatter_add_(1, micro.ids, mask.float())
        return {"sparse": counts * self.table[:, 0].abs()}


class TokenModel(CharacterModel):
    """A unit vector for each character; `a` is not scored."""

    search = "maxsim"

    def encode(self, micro, need):  # type: ignore[no-untyped-def]
        mask = torch.ones_like(micro.ids, dtype=torch.bool) if micro.mask is None else micro.mask
        scored = mask & (micro.ids != ord("a"))
        vectors = torch.nn.functional.normalize(self.table[micro.ids], dim=-1)
        return {"tokens": vectors * scored[:, :, None], "token_mask": scored}


def brute_sparse(query: str, passage: str) -> float:
    weight = SparseModel().table[:, 0].abs().double()
    return float(sum(query.count(c) * passage.count(c) * weight[ord(c)] ** 2 for c in set(query)))


def brute_maxsim(query: str, passage: str) -> float:
    """Late interaction in float64 over vectors kept in half precision."""
    table = torch.nn.functional.normalize(TokenModel().table, dim=-1).half().double()
    left = [table[ord(c)] for c in query if c != "a"]
    right = [table[ord(c)] for c in passage if c != "a"]
    return float(sum(max(one @ other for other in right) for one in left)) if right else 0.0


def check(ranking: Ranking, brute: Callable[[str, str], float], depth: int, positive: bool) -> None:
    for number, (_, query) in enumerate(QUERIES.rows):
        expected = np.asarray([brute(query, passage) for _, passage in CORPUS.rows])
        rows, scores = ranking.of(number)
        possible = int((expected > 0).sum()) if positive else len(expected)
        assert len(rows) == min(depth, possible)
        np.testing.assert_allclose(scores, expected[rows], rtol=1e-4)
        np.testing.assert_allclose(scores, -np.sort(-expected)[: len(rows)], rtol=1e-4)
        order = [(-score, id) for score, id in zip(scores, (CORPUS.id(int(row)) for row in rows), strict=True)]
        assert all(a[0] < b[0] or (a[0] == b[0] and a[1] > b[1]) for a, b in zip(order, order[1:], strict=False))


@pytest.mark.parametrize("depth", [4, 100])
def test_sparse_search_is_brute_force(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PASSAGE_WINDOW", 16)
    monkeypatch.setattr(encode, "QUERY_WINDOW", 4)
    context = Context(tmp_path, models={"m": SparseModel()})
    check(Sparse(model="m").search(DATA, QUERIES, depth, context), brute_sparse, depth, positive=True)


@pytest.mark.parametrize("depth", [4, 100])
def test_late_interaction_is_brute_force(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PASSAGE_WINDOW", 16)
    monkeypatch.setattr(maxsim, "BLOCK_TOKENS", 50)
    monkeypatch.setattr(maxsim, "BLOCK_QUERIES", 3)
    context = Context(tmp_path, models={"m": TokenModel()})
    check(LateInteraction(model="m").search(DATA, QUERIES, depth, context), brute_maxsim, depth, positive=False)


def test_late_interaction_over_what_a_first_retriever_finds(tmp_path: Path) -> None:
    first = Listed({id: [(f"p{n}", 1.0) for n in (9, 3, 50)] for id, _ in QUERIES.rows})
    context = Context(tmp_path, models={"m": TokenModel()})
    ranking = LateInteraction(model="m", first=first).search(DATA, QUERIES, 2, context)
    for number, (_, query) in enumerate(QUERIES.rows):
        expected = sorted((brute_maxsim(query, CORPUS.text(row)) for row in (9, 3, 50)), reverse=True)[:2]
        np.testing.assert_allclose(ranking.of(number)[1], expected, rtol=1e-4)


def test_a_passage_without_scored_tokens_scores_zero(tmp_path: Path) -> None:
    corpus = Texts([("p0", "aaa"), ("p1", "bcd")])
    context = Context(tmp_path, models={"m": TokenModel()})
    query = Texts([("q", "b")])
    found = as_lists(LateInteraction(model="m").search(ranking_data(corpus, query), query, 5, context), corpus)["q"]
    assert dict(found) == pytest.approx({"p1": 1.0, "p0": 0.0}, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "model"), [(Sparse, SparseModel), (LateInteraction, TokenModel)], ids=["sparse", "late-interaction"]
)
def test_two_processes_find_what_one_finds(kind: type, model: type, tmp_path: Path) -> None:
    alone = kind(model="m").search(DATA, QUERIES, 5, Context(tmp_path / "1", models={"m": model()}))

    def task(workers: object) -> Ranking:
        context = Context(tmp_path / "2", models={"m": model()}, workers=workers)
        return kind(model="m").search(DATA, QUERIES, 5, context)

    for ranking in two_workers(task):
        assert as_lists(ranking, CORPUS) == as_lists(alone, CORPUS)


def test_a_run_file_in_trec_layout(tmp_path: Path) -> None:
    path = tmp_path / "run.trec.gz"
    lines = ["q0 Q0 p3 1 2.5 x", "q0 Q0 p4 2 2.5 x", "q0 Q0 p5 3 3.5 x", "unknown Q0 p1 1 1.0 x"]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = as_lists(RunFile(path=path).search(DATA, QUERIES, 2, Context(tmp_path)), CORPUS)
    assert found["q0"] == [("p5", 3.5), ("p4", 2.5)]
    assert found["q1"] == [] and len(found) == len(QUERIES)


def test_a_passage_that_is_not_in_the_corpus_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.tsv"
    path.write_text("q0\tp3\t1\nq0\tzz\t2\n")
    with pytest.raises(DataError, match="'q0': no passage 'zz'"):
        RunFile(path=path).search(DATA, QUERIES, 2, Context(tmp_path))
    before = RunFile(path=path).fingerprint_parts()
    path.write_text("q0\tp3\t1\n")
    assert RunFile(path=path).fingerprint_parts() != before


class Listed(Retriever):
    def __init__(self, lists: dict[str, list[tuple[str, float]]]) -> None:
        self.lists = lists

    def search(self, data, queries, depth, context) -> Ranking:  # type: ignore[no-untyped-def]
        ids = [queries.id(number) for number in range(len(queries))]
        return Ranking.from_lists(
            (
                id,
                np.asarray([data.corpus.row(passage) for passage, _ in self.lists.get(id, [])[:depth]], dtype=np.int64),
                np.asarray([score for _, score in self.lists.get(id, [])[:depth]]),
            )
            for id in ids
        )


class PairModel(CharacterModel):
    """Score of a pair: characters in common."""

    search = ""

    def rows(self, batch, need):  # type: ignore[no-untyped-def]
        return [self.text_rows(batch.inputs["passage"], "passage")]

    def signals(self, reps, batch, need):  # type: ignore[no-untyped-def]
        queries, passages = batch.inputs["query"], batch.inputs["passage"]
        values = [
            [float(len(set(str(query)) & set(str(passages[p])))) for p in row.tolist()]
            for query, row in zip(queries, batch.candidates, strict=True)
        ]
        return Signals(logits=torch.tensor(values))


FIRST = {
    "q0": [("p1", 9.0), ("p2", 8.0), ("p3", 7.0), ("p4", 6.0)],
    "q2": [("p1", 5.0)],
    "q6": [("p9", 5.0), ("p1", 4.0)],
}


def common(query: str, passage: str) -> float:
    return float(len(set(QUERIES.text(QUERIES.row(query))) & set(CORPUS.text(CORPUS.row(passage)))))


def test_re_ranking_orders_by_the_model_and_leaves_out_what_it_did_not_score(tmp_path: Path) -> None:
    context = Context(tmp_path, models={"m": PairModel()})
    ranking = Rerank(first=Listed(FIRST), model="m", depth=3).search(DATA, QUERIES, 10, context)
    for query, found in as_lists(ranking, CORPUS).items():
        pairs = [(passage, common(query, passage)) for passage, _ in FIRST.get(query, [])[:3]]
        assert found == sorted(sorted(pairs, reverse=True), key=lambda pair: -pair[1])


def test_scores_of_lists_keep_their_order_in_one_process_and_in_two(tmp_path: Path) -> None:
    lists = Listed(FIRST).search(DATA, QUERIES, 10, None)
    alone = score_lists(PairModel(), CORPUS, QUERIES, lists)
    np.testing.assert_array_equal(alone.passages, lists.passages)
    expected = [common(query, passage) for query, found in FIRST.items() for passage, _ in found]
    assert alone.scores.tolist() == expected
    for ranking in two_workers(lambda workers: score_lists(PairModel(), CORPUS, QUERIES, lists, workers=workers)):
        assert as_lists(ranking, CORPUS) == as_lists(alone, CORPUS)


def test_reciprocal_rank_fusion_by_hand(tmp_path: Path) -> None:
    one = Listed({"q0": [("p1", 9.0), ("p2", 8.0)]})
    two = Listed({"q0": [("p2", 0.3), ("p3", 0.2), ("p1", 0.1)]})
    found = as_lists(Fusion(retrievers=[one, two], k=1).search(DATA, QUERIES, 2, Context(tmp_path)), CORPUS)["q0"]
    # ranks: p1 (1), p2 (2) of the first, and p2 (1), p3 (2) of the second, which is cut at the depth
    assert dict(found) == pytest.approx({"p2": 1 / 3 + 1 / 2, "p1": 1 / 2})
    deep = Fusion(retrievers=[one, two], k=1, depth_each=3, weights=[1.0, 2.0])
    found = as_lists(deep.search(DATA, QUERIES, 9, Context(tmp_path)), CORPUS)["q0"]
    assert [id for id, _ in found] == ["p2", "p1", "p3"]
    assert dict(found) == pytest.approx({"p2": 1 / 3 + 2 / 2, "p1": 1 / 2 + 2 / 4, "p3": 2 / 3})


def test_min_max_fusion_by_hand(tmp_path: Path) -> None:
    one = Listed({"q0": [("p1", 9.0), ("p2", 8.0), ("p3", 5.0)], "q1": [("p1", 3.0)]})
    two = Listed({"q0": [("p2", 0.3), ("p4", 0.1)]})
    fusion = Fusion(retrievers=[one, two], how="min-max")
    found = as_lists(fusion.search(DATA, QUERIES, 9, Context(tmp_path)), CORPUS)
    assert dict(found["q0"]) == pytest.approx({"p2": 0.75 + 1, "p1": 1.0, "p3": 0.0, "p4": 0.0})
    assert [id for id, _ in found["q0"]] == ["p2", "p1", "p4", "p3"]
    assert found["q1"] == [("p1", 1.0)]  # a list of one score


def test_fusion_needs_two_retrievers_and_a_weight_for_each() -> None:
    with pytest.raises(ConfigError, match="found 1 retriever"):
        Fusion(retrievers=[Listed({})])
    with pytest.raises(ConfigError, match="1 weights for 2"):
        Fusion(retrievers=[Listed({}), Listed({})], weights=[1.0])


def test_the_right_search_for_any_model(tmp_path: Path) -> None:
    models = {"dense": CharacterModel(), "sparse": SparseModel(), "tokens": TokenModel(), "pairs": PairModel()}
    context = Context(tmp_path, models=models)
    for name in ("dense", "sparse", "tokens"):
        direct = retriever_for(name, models[name].search).search(DATA, QUERIES, 5, context)
        assert as_lists(search_with(name, DATA, QUERIES, 5, context), CORPUS) == as_lists(direct, CORPUS)
    found = as_lists(search_with("pairs", DATA, QUERIES, 5, context, first=Listed(FIRST)), CORPUS)
    assert {id for id, _ in found["q0"]} == {"p1", "p2", "p3", "p4"}
    with pytest.raises(ConfigError, match="type: rerank"):
        retriever_for("pairs", "")


def test_every_retriever_and_stage_has_options_that_can_be_checked() -> None:
    from kdfw.options import options_of, plain_model

    assert len(RETRIEVERS) == 8 and set(STAGES) == {"mine", "filter", "encode"}
    for component in [*RETRIEVERS.values(), *STAGES.values()]:
        options = options_of(component)
        assert options and all(option.description for option in options.values()), component
        plain_model(component)


def triples_of(*queries: tuple[int, int]) -> np.ndarray:
    """(T, 3): query row, its positive, and each of its negatives, shuffled."""
    rows = [(query, 0, negative) for query, count in queries for negative in range(1, count + 1)]
    return np.random.default_rng(0).permutation(np.asarray(rows, dtype=np.int64))


def test_a_sample_of_triples_is_distinct_bounded_and_the_same_however_they_come() -> None:
    triples = triples_of((0, 500), (2, 3), (5, 500))
    rows, negatives = sample_negatives(triples, 30)
    assert np.unique(rows, return_counts=True)[1].tolist() == [30, 3, 30]
    pairs = set(zip(rows.tolist(), negatives.tolist(), strict=True))
    assert len(pairs) == len(rows) and pairs <= {(int(q), int(n)) for q, _, n in triples}
    others = np.concatenate((triples[::-1], triples[:100]))  # another order, and some triples twice
    for again in (sample_negatives(triples, 30, block=7), sample_negatives(others, 30)):
        assert np.array_equal(again[0], rows) and np.array_equal(again[1], negatives)
    # two queries with the same negatives get different ones, from all over the list, in no order
    first, last = negatives[:30], negatives[-30:]
    assert set(first) != set(last) and abs(first.mean() - 250) < 100 and (np.diff(first) < 0).any()


def test_triples_become_candidate_lists(tmp_path: Path) -> None:
    corpus = Texts([(f"p{n}", f"text {n}") for n in range(600)])
    queries = Texts([("a", "first"), ("b", "second"), ("c", "third")])
    data = ranking_data(corpus, queries, triples={"train": triples_of((0, 500), (2, 3))})
    found = Triples().search(data, queries, 20, Context(tmp_path, data))
    lengths = np.diff(found.starts).tolist()
    assert found.query_ids == ("a", "b", "c") and lengths == [20, 0, 3]
    assert all((np.diff(found.of(number)[1]) < 0).all() for number in range(3))
    assert set(found.of(2)[0].tolist()) == {1, 2, 3}
    fewer = Triples(per_query=5).search(data, queries, 20, Context(tmp_path, data))
    assert fewer.of(0)[0].tolist() == found.of(0)[0][:5].tolist()
    with pytest.raises(DataError, match=r"no triples for split 'dev' \(splits with triples: train\)"):
        Triples(split="dev").search(data, queries, 20, Context(tmp_path, data))

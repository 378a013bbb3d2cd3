"""Mining: which results become candidates, by hand on given rankings; resumed and shared out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from retrieval_fakes import CharacterModel, Context, Texts, as_lists, ranking_data, two_workers

from kdfw.components import Retriever
from kdfw.data.ranking import Ranking
from kdfw.errors import DataError
from kdfw.retrieval import mining
from kdfw.retrieval.bm25 import BM25
from kdfw.retrieval.filter import Filter
from kdfw.retrieval.mining import Mine

CORPUS = Texts([(f"p{n}", f"text {n}") for n in range(10)])
QUERIES = Texts([("q1", "first"), ("q2", "second"), ("q3", "third")])
# q1: positives at ranks 2 and (p9) not found; q2: positive at rank 1; q3: no judgement
GIVEN = {
    "q1": [("p0", 10.0), ("p1", 8.0), ("p2", 7.8), ("p3", 6.0), ("p4", 2.0)],
    "q2": [("p5", 4.0), ("p6", 3.9), ("p7", 1.0)],
    "q3": [("p8", 1.0), ("p2", 0.5)],
}
QRELS = {"q1": {"p1": 1, "p9": 2}, "q2": {"p5": 1, "p6": 0}}


class Given(Retriever):
    def __init__(self, lists: dict[str, list[tuple[str, float]]] = GIVEN) -> None:
        self.lists = lists
        self.asked: list[tuple[int, int]] = []

    def search(self, data, queries, depth, context) -> Ranking:  # type: ignore[no-untyped-def]
        self.asked.append((len(queries), depth))
        ids = [queries.id(number) for number in range(len(queries))]
        lists = [self.lists.get(id, [])[:depth] for id in ids]
        return Ranking.from_lists(
            (id, np.asarray([data.corpus.row(p) for p, _ in found], dtype=np.int64), np.asarray([s for _, s in found]))
            for id, found in zip(ids, lists, strict=True)
        )


def mine(tmp_path: Path, context: Context | None = None, **options: object) -> dict[str, list[str]]:
    context = context or Context(tmp_path, ranking_data(CORPUS, QUERIES, QRELS))
    Mine(retriever=options.pop("retriever", Given()), **options).run(context)  # type: ignore[arg-type]
    mined = as_lists(Ranking.load(context.folder), context.data().corpus)
    return {query: [id for id, _ in found] for query, found in mined.items()}


def test_labelled_positives_are_dropped_and_judged_negatives_stay(tmp_path: Path) -> None:
    context = Context(tmp_path, ranking_data(CORPUS, QUERIES, QRELS))
    found = mine(tmp_path, context)
    assert found == {"q1": ["p0", "p2", "p3", "p4"], "q2": ["p6", "p7"], "q3": ["p8", "p2"]}
    assert context.summaries["queries"] == 3
    assert context.summaries["mean_length"] == round(8 / 3, 2)
    assert context.summaries["positives_found"] == round(2 / 3, 4)
    assert context.summaries["dropped_positives"] == 2
    run = (context.folder / "run.trec").read_text().splitlines()
    assert run[0] == "q1 Q0 p0 1 10 kdfw" and run[2] == "q1 Q0 p3 3 6 kdfw" and len(run) == 8


def test_positives_may_stay_where_they_are_or_be_added(tmp_path: Path) -> None:
    assert mine(tmp_path / "a", drop_positives=False)["q1"] == ["p0", "p1", "p2", "p3", "p4"]
    context = Context(tmp_path / "b", ranking_data(CORPUS, QUERIES, QRELS))
    found = mine(tmp_path, context, include_positives=True)
    assert found["q1"] == ["p0", "p1", "p2", "p3", "p4", "p9"]
    assert found["q2"] == ["p5", "p6", "p7"]
    scores = Ranking.load(context.folder).of(0)[1]
    assert (np.diff(scores) < 0).all() and scores[-1] == pytest.approx(2.0, abs=1e-5)


def test_positives_that_stay_are_neither_dropped_nor_counted_by_other_rules(tmp_path: Path) -> None:
    found = mine(tmp_path, drop_positives=False, ranks=(2, 9), max_score=7.0, limit=1)
    assert found == {"q1": ["p1", "p3"], "q2": ["p5", "p7"], "q3": ["p2"]}


def test_a_grade_decides_what_a_positive_is(tmp_path: Path) -> None:
    assert mine(tmp_path, min_grade=2)["q1"] == ["p0", "p1", "p2", "p3", "p4"]


def test_the_depth_counts_positives_and_the_window_does_not(tmp_path: Path) -> None:
    assert mine(tmp_path / "a", depth=3)["q1"] == ["p0", "p2"]
    assert mine(tmp_path / "b", ranks=(2, 3))["q1"] == ["p2", "p3"]
    assert mine(tmp_path / "c", ranks=(2, 2), include_positives=True)["q1"] == ["p1", "p2", "p9"]
    assert mine(tmp_path / "d", limit=1) == {"q1": ["p0"], "q2": ["p6"], "q3": ["p8"]}


def test_score_bounds(tmp_path: Path) -> None:
    found = mine(tmp_path, min_score=1.0, max_score=7.0)
    assert found == {"q1": ["p3", "p4"], "q2": ["p6", "p7"], "q3": ["p8"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # the best positive of q1 found is p1 with 8.0; of q2 p5 with 4.0; q3 has none, so nothing is known to be below
        ({"margin": 0.0}, {"q1": ["p2", "p3", "p4"], "q2": ["p6", "p7"], "q3": []}),
        ({"margin": 0.5}, {"q1": ["p3", "p4"], "q2": ["p7"], "q3": []}),
        ({"relative_margin": 0.05}, {"q1": ["p3", "p4"], "q2": ["p7"], "q3": []}),  # 7.6 and 3.8
        ({"relative_margin": 0.02}, {"q1": ["p2", "p3", "p4"], "q2": ["p6", "p7"], "q3": []}),  # 7.84 and 3.92
        ({"relative_margin": 0.02, "margin": 3.0}, {"q1": ["p4"], "q2": ["p7"], "q3": []}),  # both hold
    ],
)
def test_margins_below_the_best_positive(options: dict[str, float], expected: object, tmp_path: Path) -> None:
    assert mine(tmp_path, **options) == expected


def test_a_relative_margin_lies_below_a_negative_score_too(tmp_path: Path) -> None:
    lists = {"q1": [("p1", -10.0), ("p2", -10.5), ("p3", -11.5)]}
    assert mine(tmp_path, retriever=Given(lists), relative_margin=0.1)["q1"] == ["p3"]  # at most -11


def test_margins_by_the_scores_of_a_model(tmp_path: Path) -> None:
    model = Judge({"p0": 1.0, "p1": 5.0, "p2": 4.0, "p3": 6.0, "p4": 3.0, "p9": 4.5, "p5": 2.0, "p6": 9.0, "p7": 1.0})
    context = Context(tmp_path, ranking_data(CORPUS, QUERIES, QRELS), models={"judge": model})
    found = mine(tmp_path, context, margin=0.5, filter_model="judge")
    # candidates keep the retriever's order and scores; p3 and p6 beat the positives in the judge's eyes
    assert found == {"q1": ["p0", "p2", "p4"], "q2": ["p7"], "q3": []}
    assert Ranking.load(context.folder).of(0)[1].tolist() == [10.0, np.float32(7.8), 2.0]


class Judge(CharacterModel):
    """Scores by passage id, through the signals every model gives."""

    def __init__(self, scores: dict[str, float]) -> None:
        super().__init__()
        self.scores = scores

    def rows(self, batch, need):  # type: ignore[no-untyped-def]
        return [self.text_rows(batch.inputs["passage"], "passage")]

    def signals(self, reps, batch, need):  # type: ignore[no-untyped-def]
        import torch

        from kdfw.types import Signals

        values = torch.tensor([self.scores.get(id, 0.0) for id in batch.passage_ids])
        return Signals(logits=values[batch.candidates])


def test_a_query_is_not_its_own_candidate_and_the_depth_is_kept(tmp_path: Path) -> None:
    queries = Texts([("p1", "text 1")])
    lists = {"p1": [("p1", 9.0), ("p2", 8.0), ("p3", 7.0), ("p4", 6.0)]}
    data = ranking_data(CORPUS, queries, {"p1": {"p2": 1}}, query_in_corpus=True)
    context = Context(tmp_path, data)
    assert mine(tmp_path, context, retriever=Given(lists), depth=2) == {"p1": ["p3"]}
    assert context.summaries["dropped_own"] == 1


def test_a_killed_run_goes_on_at_the_next_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "BLOCK_QUERIES", 2)
    whole = mine(tmp_path / "whole")

    class Dies(Given):
        def search(self, data, queries, depth, context):  # type: ignore[no-untyped-def]
            if self.asked:
                raise KeyboardInterrupt
            return super().search(data, queries, depth, context)

    context = Context(tmp_path / "killed", ranking_data(CORPUS, QUERIES, QRELS))
    with pytest.raises(KeyboardInterrupt):
        mine(tmp_path, context, retriever=Dies())
    rest = Given()
    assert mine(tmp_path, context, retriever=rest) == whole
    assert rest.asked == [(1, 200)]
    assert context.summaries["dropped_positives"] == 2  # counted once, over both tries


def test_two_processes_mine_what_one_mines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "BLOCK_QUERIES", 4)
    rng = np.random.default_rng(1)
    words = [f"w{number}" for number in range(40)]
    corpus = Texts([(f"p{n}", " ".join(rng.choice(words, size=8))) for n in range(60)])
    queries = Texts([(f"q{n}", " ".join(rng.choice(words, size=3))) for n in range(11)])
    qrels = {f"q{n}": {f"p{n}": 1} for n in range(11)}

    def task(folder: Path, **more: object) -> bytes:
        context = Context(folder, ranking_data(corpus, queries, qrels), **more)
        Mine(retriever=BM25(), depth=20, ranks=(2, 9)).run(context)
        return b"".join(path.read_bytes() for path in sorted(context.folder.glob("ranking.*")))

    alone = task(tmp_path / "one")
    main, _ = two_workers(lambda workers: task(tmp_path / "two", workers=workers))
    assert main == alone and len(alone) > 1000


def test_filter_by_rank_and_teacher_rank_as_prod_selects(tmp_path: Path) -> None:
    """2 <= rank of the student <= 3 and the teacher ranks the positive first (PROD's data selection)."""
    lists = {
        "q1": [("p0", 9.0), ("p1", 8.0), ("p2", 7.0)],  # positive p1: rank 2
        "q2": [("p5", 9.0), ("p6", 8.0)],  # positive p5: rank 1
        "q3": [("p8", 9.0), ("p2", 8.0), ("p3", 7.0)],  # positive p2: rank 2, teacher says 2
        "q4": [("p8", 9.0)],  # positive not in the list
    }
    teacher = {"q1": [1.0, 3.0, 2.0], "q2": [3.0, 1.0], "q3": [5.0, 4.0, 1.0], "q4": [1.0]}
    queries = Texts([(query, query) for query in lists])
    data = ranking_data(CORPUS, queries, {"q1": {"p1": 1}, "q2": {"p5": 1}, "q3": {"p2": 1}, "q4": {"p0": 1}})
    context = Context(tmp_path, data)
    given = Given(lists).search(data, queries, 10, context)
    scores = np.concatenate([np.asarray(values, dtype=np.float32) for values in teacher.values()])
    scored = Ranking(query_ids=given.query_ids, starts=given.starts, passages=given.passages, scores=scores)
    context.rankings = {"lists": given, "teacher": scored}
    context.scores = context.candidates  # type: ignore[attr-defined]

    def kept(**options: object) -> dict[str, list[str]]:
        Filter(of="lists", **options).run(context)  # type: ignore[arg-type]
        mined = as_lists(Ranking.load(context.folder), CORPUS)
        return {query: [id for id, _ in found] for query, found in mined.items()}

    assert kept(scores="teacher", ranks=(2, 3), score_ranks=(1, 1)) == {"q1": ["p0", "p2"]}
    assert context.summaries == {"queries": 4, "kept": 1, "without_positive": 1, "mean_length": 2.0}
    assert set(kept(ranks=(1, 2))) == {"q1", "q2", "q3"}  # consistency filter: positive among the best k
    assert set(kept(ranks=(1, 1), drop_positives=False)) == {"q2"}
    assert set(kept(scores="teacher", improves=True)) == {"q1"}


def test_a_filter_takes_scores_of_more_than_the_list_and_refuses_scores_of_less(tmp_path: Path) -> None:
    lists = {"q1": [("p0", 9.0), ("p1", 8.0), ("p2", 7.0)]}
    queries = Texts([("q1", "q1")])
    data = ranking_data(CORPUS, queries, {"q1": {"p1": 1, "p9": 1, "elsewhere": 1}})  # not every judged passage is here
    context = Context(tmp_path, data)
    # p9 is a positive that a score stage added: it beats p1, and does not count, since the list does not hold it
    added = {"q1": [("p9", 9.0), ("p1", 8.0), ("p2", 1.0), ("p0", 0.0)]}
    context.rankings = {
        "lists": Given(lists).search(data, queries, 10, context),
        "teacher": Given(added).search(data, queries, 10, context),
        "short": Given({"q1": added["q1"][:2]}).search(data, queries, 10, context),
    }
    context.scores = context.candidates  # type: ignore[attr-defined]
    Filter(of="lists", scores="teacher", ranks=(2, 2), score_ranks=(1, 1)).run(context)
    kept = as_lists(Ranking.load(context.folder), CORPUS)
    assert kept == {"q1": [("p0", 9.0), ("p2", 7.0)]}
    with pytest.raises(DataError, match="query 'q1' has a passage without a score"):
        Filter(of="lists", scores="short", improves=True).run(context)


def test_a_filter_that_keeps_nothing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = Context(tmp_path, ranking_data(CORPUS, QUERIES, QRELS))
    context.rankings = {"lists": Given().search(context.data(), QUERIES, 10, context)}
    Filter(of="lists", ranks=(9, 9)).run(context)
    assert context.summaries["kept"] == 0
    assert "none of 3 queries is kept; 1 have no positive in their list" in caplog.text


def test_the_rank_of_a_positive_counts_strictly_higher_scores() -> None:
    from kdfw.retrieval.filter import rank_of_best

    scores = np.asarray([3.0, 2.0, 2.0, 1.0])
    assert rank_of_best(scores, np.asarray([False, False, True, False])) == 2
    assert rank_of_best(scores, np.asarray([False, True, False, True])) == 2
    assert rank_of_best(scores, np.zeros(4, dtype=bool)) == math.inf
    unscored = np.asarray([3.0, np.nan, 2.0, 1.0])
    assert rank_of_best(unscored, np.asarray([False, True, False, False])) == math.inf
    assert rank_of_best(unscored, np.asarray([False, True, False, True])) == 3

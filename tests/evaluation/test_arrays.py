"""Measures from arrays have the values of measures from run files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfw.data.order import trec_order
from kdfw.data.ranking import Ranking
from kdfw.data.runs import read_qrels, read_run
from kdfw.errors import DataError
from kdfw.evaluation.arrays import JudgedRows, score_gains, score_ranking
from kdfw.evaluation.measures import parse_measures, score_run
from kdfw.types import Qrels, Run

ALL = (
    "nDCG@3 nDCG dcg@2 ndcg_burges@3 dcg_burges RR RR(rel=2)@2 AP AP(rel=2) AP@2 R@3 R(rel=2) P@3 P Success@1 hits@3 "
    "f1@3 f1 Rprec Rprec(rel=2) Bpref Bpref(rel=2) rbp.8 Judged@3 Judged"
)


def as_ranking(run: Run) -> tuple[Ranking, dict[str, int]]:
    rows = {passage: row for row, passage in enumerate(sorted({p for results in run.values() for p in results}))}
    lists = []
    for query, results in run.items():
        order = trec_order(results)
        scores = np.array([results[passage] for passage in order], dtype=np.float32)
        lists.append((query, np.array([rows[passage] for passage in order], dtype=np.int64), scores))
    return Ranking.from_lists(iter(lists)), rows


def agree(run: Run, qrels: Qrels, names: str) -> None:
    measures = parse_measures(names)
    ranking, rows = as_ranking(run)
    expected = score_run(run, qrels, measures)
    found = score_ranking(ranking, JudgedRows.of(qrels, rows.__getitem__, len(rows)), measures)
    for measure in measures:
        np.testing.assert_allclose(found[measure.text], list(expected[measure.text].values()), atol=1e-9, rtol=0)


_RESULTS = st.dictionaries(st.sampled_from("abcdefg"), st.floats(-3, 3, width=16), min_size=1)
_GRADES = st.dictionaries(st.sampled_from("abcdefgxyz"), st.integers(-1, 3), min_size=1)


@settings(max_examples=80, deadline=None)
@given(
    run=st.dictionaries(st.sampled_from(["q1", "q2", "q3", "other"]), _RESULTS, min_size=1),
    qrels=st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), _GRADES, min_size=1),
)
def test_a_ranking_scores_as_the_run_it_stands_for(run: Run, qrels: Qrels) -> None:
    if set(run) & set(qrels):
        agree(run, qrels, ALL)


def test_real_runs_score_alike(data_dir: Path) -> None:
    run = read_run(data_dir / "msmarco-dl/runs/pt-bm25.dl20.trec.gz")
    qrels = read_qrels(data_dir / "msmarco-dl/qrels.dl20.trec")
    agree(run, qrels, ALL)
    run.pop(next(iter(run)))
    agree(run, qrels, ALL)


def test_a_ranking_without_judged_passages_scores_zero() -> None:
    ranking, rows = as_ranking({"q": {"a": 1.0}})
    found = score_ranking(ranking, JudgedRows.of({"q": {"x": 1}}, rows.__getitem__, len(rows)), "AP nDCG Judged@1")
    assert {name: values.tolist() for name, values in found.items()} == {"AP": [0], "nDCG": [0], "Judged@1": [0]}


def test_gain_matrices_score_as_the_run_they_stand_for() -> None:
    rng = np.random.default_rng(3)
    names = "nDCG@4 nDCG RR RR(rel=2)@3 AP AP(rel=2) R@5 P@4 Success@2 Rprec f1@4 rbp.5"
    gains = np.where(rng.random((30, 8)) < 0.3, rng.integers(1, 4, (30, 8)), 0)
    depths = rng.integers(1, 9, 30)
    run = {f"q{q}": {f"p{d}": float(-d) for d in range(depths[q])} for q in range(30)}
    qrels = {f"q{q}": {f"p{d}": int(gains[q, d]) for d in range(8)} | {"far": 2} for q in range(30)}
    expected = score_run(run, qrels, parse_measures(names))
    relevant = [list(grades.values()) for grades in qrels.values()]
    for form in (relevant, np.array(relevant)):
        found = score_gains(gains.astype(np.int8), form, names, depths)
        for name, values in found.items():
            np.testing.assert_allclose(values, list(expected[name].values()), atol=1e-9, rtol=0)


def test_gains_cannot_say_what_was_judged() -> None:
    with pytest.raises(DataError, match="do not say what was judged"):
        score_gains(np.zeros((1, 2), dtype=int), [[1]], "Judged@2")
    with pytest.raises(DataError, match="for 2 queries"):
        score_gains(np.zeros((1, 2), dtype=int), [[1], [1]], "AP")

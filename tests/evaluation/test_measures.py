"""Measures agree with trec_eval: by hand, on made-up hard cases, and on every real run at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trec_eval_values import COMPARED, trec_eval

from kdfw.data.order import trec_order
from kdfw.data.runs import read_qrels, read_run
from kdfw.errors import DataError
from kdfw.evaluation.measures import parse_measure, parse_measures, score_run
from kdfw.types import Qrels, Run

pytest.importorskip("pytrec_eval")


@pytest.mark.parametrize(
    ("name", "ranx"),
    [
        ("nDCG@10", "ndcg@10"),
        ("nDCG", "ndcg"),
        ("RR@10", "mrr@10"),
        ("MRR@10", "mrr@10"),
        ("RR(rel=2)@10", "mrr@10-l2"),
        ("AP(rel=2)", "map-l2"),
        ("AP@1000", "map@1000"),
        ("R(rel=2)@1000", "recall@1000-l2"),
        ("Recall@100", "recall@100"),
        ("P@30", "precision@30"),
        ("Success@5", "hit_rate@5"),
        ("Judged@10", ""),
        ("Rprec", "r-precision"),
        ("ndcg_cut_10", "ndcg@10"),
        ("recip_rank", "mrr"),
        ("map-l2", "map-l2"),
        ("ndcg_burges@5", "ndcg_burges@5"),
        ("nDCG(dcg='exp-log2')@5", "ndcg_burges@5"),
        ("rbp.95", "rbp.95"),
        ("precision@3-l2", "precision@3-l2"),
    ],
)
def test_names_of_the_field_and_of_ranx(name: str, ranx: str) -> None:
    measure = parse_measure(name)
    assert (measure.ranx_name, measure.text) == (ranx, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDGC@10", r"no measure 'nDGC@10'; did you mean 'nDCG@10'\?"),
        ("recal@100", r"did you mean 'recall@100'\?"),
        ("nDCG@0", "at least 1"),
        ("nDCG(rel=2)@10", "uses the grades themselves"),
        ("AP(min=2)", "unknown parameter 'min=2'"),
        ("AP(rel=0)", "grade 1 or above"),
        ("Bpref@10", "no cutoff"),
        ("rbp.0", "above 0"),
        ("", "no measure ''"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_measure(name)


def test_a_string_of_measures_is_split_outside_of_parentheses() -> None:
    assert [m.text for m in parse_measures(" nDCG@10, RR( rel=2 )@10  AP ")] == ["nDCG@10", "RR( rel=2 )@10", "AP"]
    with pytest.raises(DataError, match="no measure asked for"):
        parse_measures(" ")


def test_by_hand() -> None:
    qrels = {"q": {"a": 3, "b": 1, "c": 2, "d": 0}, "none": {"a": 0}, "missing": {"a": 1}}
    run = {"q": {"x": 9.0, "b": 8.0, "a": 7.0, "d": 6.0}, "none": {"a": 1.0}, "unjudged query": {"a": 1.0}}
    found = score_run(run, qrels, parse_measures("nDCG@3 RR RR(rel=2) AP AP(rel=2) R@3 P@10 Success@1 Judged@3"))
    dcg = 1 / math.log2(3) + 3 / math.log2(4)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    expected = {
        "nDCG@3": dcg / ideal,
        "RR": 1 / 2,
        "RR(rel=2)": 1 / 3,
        "AP": (1 / 2 + 2 / 3) / 3,
        "AP(rel=2)": (1 / 3) / 2,
        "R@3": 2 / 3,
        "P@10": 2 / 10,
        "Success@1": 0.0,
        "Judged@3": 2 / 3,
    }
    for name, value in expected.items():
        assert found[name]["q"] == pytest.approx(value, abs=1e-12), name
        assert found[name]["missing"] == 0.0
        assert list(found[name]) == ["q", "none", "missing"]
    assert found["AP"]["none"] == found["nDCG@3"]["none"] == 0.0
    assert found["Judged@3"]["none"] == 1.0  # its one result is judged


def test_ties_are_ordered_as_trec_eval_orders_them() -> None:
    assert trec_order({"b": 1.0, "a": 1.0, "c": 1.0, "z": 0.5}) == ["c", "b", "a", "z"]
    assert trec_order({"9": 1.0, "10": 1.0}) == ["9", "10"]  # as strings
    assert trec_order({"\uffee": 1.0, "\U0001f600": 1.0}) == ["\U0001f600", "\uffee"]  # as UTF-8 bytes
    below_single_precision = {"a": 0.5 + 1e-9, "b": 0.5}
    assert trec_order(below_single_precision) == ["b", "a"]
    assert trec_order({"a": 1e39, "b": math.inf, "c": -math.inf}) == ["b", "a", "c"]
    with pytest.raises(DataError, match="query 'q', passage 'b'"):
        trec_order({"a": 1.0, "b": math.nan}, "q")


def test_a_run_of_other_queries_is_refused() -> None:
    with pytest.raises(DataError, match="no query of the run is in the qrels"):
        score_run({"x": {"a": 1.0}}, {"q": {"a": 1}}, parse_measures("AP"))
    with pytest.raises(DataError, match="the qrels have no query"):
        score_run({"x": {"a": 1.0}}, {}, parse_measures("AP"))


_PASSAGES = st.sampled_from("abcdefgh")
_SCORES = st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 1.5, -2.0, 1e39, math.inf, -0.0])
_RUNS = st.fixed_dictionaries({"q": st.dictionaries(_PASSAGES, _SCORES, min_size=1)})
# pytrec_eval can loop for ever on a query with negative grades only
_GRADES = st.dictionaries(_PASSAGES, st.integers(-1, 3), min_size=1).filter(lambda grades: max(grades.values()) >= 0)
_QRELS = st.fixed_dictionaries({"q": _GRADES})


@settings(max_examples=60, deadline=None)
@given(run=_RUNS, qrels=_QRELS)
def test_any_small_run_scores_as_in_trec_eval(run: Run, qrels: Qrels) -> None:
    measures = parse_measures(COMPARED)
    found = score_run(run, qrels, measures)
    for measure in measures:
        assert found[measure.text] == pytest.approx(trec_eval(run, qrels, measure), abs=1e-9), measure.text


def _real_runs(root: Path) -> list[tuple[Path, Path]]:
    runs = [
        (run, root / f"msmarco-dl/qrels.{run.name.split('.')[-3]}.trec") for run in root.glob("msmarco-dl/runs/*.gz")
    ]
    dev = root / "msmarco-dev/qrels.dev.ans-small.trec"
    return sorted(runs) + [(run, dev) for run in sorted(root.glob("msmarco-dev/runs/*.gz"))]


def test_every_real_run_scores_as_in_trec_eval(data_dir: Path) -> None:
    runs = _real_runs(data_dir)
    assert len(runs) == 19
    measures = parse_measures(COMPARED)
    for path, judgements in runs:
        run, qrels = read_run(path), read_qrels(judgements)
        found = score_run(run, qrels, measures)
        for measure in measures:
            expected = trec_eval(run, qrels, measure)
            worst = max(abs(found[measure.text][query] - expected[query]) for query in qrels)
            assert worst < 1e-9, (path.name, measure.text, worst)


NAMES = {
    "nDCG@10": "nDCG@10",
    "nDCG@100": "nDCG@100",
    "MAP(rel>=2)": "AP(rel=2)",
    "MRR(rel>=2)": "RR(rel=2)",
    "MRR@10(rel>=2)": "RR(rel=2)@10",
    "R@100(rel>=2)": "R(rel=2)@100",
    "R@1000(rel>=2)": "R(rel=2)@1000",
    "P@10(rel>=2)": "P(rel=2)@10",
}


def test_every_dl_run_has_its_published_values(data_dir: Path) -> None:
    expected = json.loads((data_dir / "msmarco-dl/runs/expected_metrics.json").read_text())["runs"]
    assert len(expected) == 16
    for name, values in expected.items():
        run = read_run(data_dir / f"msmarco-dl/runs/{name}.trec.gz")
        qrels = read_qrels(data_dir / f"msmarco-dl/qrels.{name.split('.')[-1]}.trec")
        assert len(qrels) == values["queries"]
        found = score_run(run, qrels, parse_measures(NAMES.values()))
        for theirs, ours in NAMES.items():
            assert np.mean(list(found[ours].values())) == pytest.approx(values[theirs], abs=5.001e-5), (name, ours)


def test_every_dev_run_has_its_published_reciprocal_rank(data_dir: Path) -> None:
    expected = json.loads((data_dir / "msmarco-dev/runs/expected_metrics.json").read_text())["runs"]
    qrels = read_qrels(data_dir / "msmarco-dev/qrels.dev.ans-small.trec")
    for name, values in expected.items():
        run = read_run(data_dir / f"msmarco-dev/runs/{name}.msmarco.tsv.gz")
        found = score_run(run, qrels, parse_measures("RR@10"))
        mean = np.mean(list(found["RR@10"].values()))
        assert mean == pytest.approx(values["MRR@10"], abs=1e-12)
    assert expected

"""Run files and qrels: every layout read alike, every fault named, nothing lost on the way back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfw.data.order import trec_order
from kdfw.data.runs import read_qrels, read_run
from kdfw.errors import DataError
from kdfw.evaluation.formats import (
    mteb_name,
    write_beir,
    write_msmarco,
    write_mteb,
    write_trec,
)

RUN = {"q1": {"a": 3.5, "b": 2.0}, "q2": {"c": -1.0}}


def put(folder: Path, content: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "q1 Q0 a 1 3.5 tag\nq1 Q0 b 2 2.0 tag\nq2 Q0 c 1 -1 tag\n",
        "q1\t0\ta\t0\t3.5\ttag\nq1\t0\tb\t1\t2.0\ttag\nq2\t0\tc\t0\t-1e0\ttag",
        "q1 Q0 a 1 3.5\r\nq1 Q0 b 2 2\r\n\r\nq2 Q0 c 1 -1\r\n",
        "q1   Q0  a 1\t3.5 two words\nq1 Q0 b 2 2.0 tag\nq2 Q0 c 1 -1 tag",
        "\ufeffq1 Q0 a 1 3.5 tag\nq1 Q0 b 2 2.0 tag\nq2 Q0 c 1 -1 tag\n",
        json.dumps(RUN),
        " \n" + json.dumps(RUN, indent=1),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_one_run_in_every_layout(tmp_path: Path, content: str, packed: bool) -> None:
    data = content.encode()
    assert read_run(put(tmp_path, gzip.compress(data) if packed else data)) == RUN


def test_tab_separated_ids_may_hold_spaces(tmp_path: Path) -> None:
    assert read_run(put(tmp_path, "q 1\tQ0\tdoc a\t1\t3\ttag\n")) == {"q 1": {"doc a": 3.0}}


def test_msmarco_ranks_become_falling_scores(tmp_path: Path) -> None:
    run = read_run(put(tmp_path, "7\t100\t2\n7\t101\t1\n"))
    assert run == {"7": {"100": -2, "101": -1}}
    assert trec_order(run["7"]) == ["101", "100"]


def test_three_columns_with_scores_are_read_only_when_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, "7\t100\t0.25\n7\t101\t0.5\n")
    with pytest.raises(DataError, match=r"file:1: '0.25' is no rank; .*scores"):
        read_run(path)
    assert read_run(path, format="scores") == {"7": {"100": 0.25, "101": 0.5}}


def test_json_lists_are_best_first(tmp_path: Path) -> None:
    run = read_run(put(tmp_path, '{"q": ["a", "b", "c"]}'))
    assert trec_order(run["q"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1 Q0 a 1 3.5 t\nq1 Q0 a 2 1.0 t\n", r"file:2: passage 'a' stands twice for query 'q1'"),
        ("q1 Q0 a 1 3.5 t\nq1 Q0 b 2 high t\n", r"file:2: the score 'high' is no finite number"),
        ("q1 Q0 a 1 nan t\n", r"file:1: the score 'nan' is no finite number"),
        ("q1 Q0 a 1 1_0 t\n", r"file:1: the score '1_0' is no finite number"),
        ("q1 Q0 a 1 1 t\nq1 Q0\n", r"file:2: 2 columns in .* `qid Q0 pid rank score tag`"),
        ("q1 a 1\nq1 b x\n", r"file:2: 'x' is no rank"),
        ("q1 a -1\n", r"file:1: '-1' is no rank"),
        ("q1\n", r"file:1: 1 columns"),
        ("", r"no results"),
        (b"q1 Q0 \xff 1 1 t\n", r"file:1: not UTF-8: byte 0xff at position 7"),
        ('{"q": {"a": 1, "a": 2}}', r"the key 'a' stands twice"),
        ('{"q": {"a": "x"}}', r"query 'q', passage 'a': 'x' is not a score"),
        ('{"q": {"a": NaN}}', r"passage 'a': nan is not a score"),
        ('{"q": {"a": true}}', r"passage 'a': True is not a score"),
        ('{"q": ["a", "a"]}', r"passage 'a' stands twice"),
        ('{"q":\n {"a": }}', r"file:2: not JSON"),
        ("{}", r"an empty object"),
        ("{" * 10 + '"a":' * 3, r"not JSON"),
        ('{"a":' * 200_000, r"nested too deeply|not JSON"),
    ],
)
def test_faults_of_runs_name_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_run(put(tmp_path, content))


def test_a_cut_gzip_file_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b"q Q0 %d 1 %f t\n" % (n, n / 7) for n in range(2000)))
    with pytest.raises(DataError, match="damaged or cut off"):
        read_run(put(tmp_path, packed[: len(packed) // 2]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file"):
        read_qrels(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        "q1 0 a 2\nq1 0 b -1\nq2 0 c 0\n",
        "q1\t0\ta\t2\nq1\t0\tb\t-1\nq2\t0\tc\t0\n",
        "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t-1\nq2\tc\t0\n",
        "q1\ta\t2\nq1\tb\t-1\nq2\tc\t0.0\r\n",
        "q1 Q0 a 2\nq1 Q0 a 2\nq1 Q0 b -1\nq2 Q0 c 0\n",
        '{"q1": {"a": 2, "b": -1}, "q2": {"c": 0}}',
    ],
)
def test_one_set_of_judgements_in_every_layout(tmp_path: Path, content: str) -> None:
    assert read_qrels(put(tmp_path, content)) == {"q1": {"a": 2, "b": -1}, "q2": {"c": 0}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q 0 a 1\nq 0 a 2\n", r"file:2: query 'q', passage 'a': grade 2 after 1 in an earlier line"),
        ("q 0 a 1.5\n", r"file:1: the grade '1.5' is no integer"),
        ("q 0 a 1\nq a 1\n", r"file:2: 3 columns in 'q a 1', expected 4"),
        ("q 0 a inf\n", r"file:1: the grade 'inf' is no integer"),
        ("q 0 a one\n", r"file:1: the grade 'one' is no integer"),
        ("query-id\tcorpus-id\tscore\n", r"no judgements"),
        ('{"q": ["a"]}', r"query 'q' holds a list"),
        ('{"q": {"a": 1.5}}', r"1.5 is not a whole grade"),
    ],
)
def test_faults_of_qrels_name_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_qrels(put(tmp_path, content))


def test_trec_files_are_written_in_trec_order_and_come_back_equal(tmp_path: Path) -> None:
    run = {"q": {"a": 1.0, "c": 2.0, "b": 2.0, "d": 1 / 3}}
    path = tmp_path / "run.trec"
    write_trec(run, path, "my-run")
    expected = ["q Q0 c 1 2.0 my-run", "q Q0 b 2 2.0 my-run", "q Q0 a 3 1.0 my-run"]
    assert path.read_text().splitlines() == [*expected, f"q Q0 d 4 {1 / 3!r} my-run"]
    assert read_run(path) == run
    assert [file.name for file in tmp_path.iterdir()] == ["run.trec"]


def test_gzipped_output_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_trec(RUN, tmp_path / "a.gz", "t")
    write_trec(RUN, tmp_path / "b.gz", "t")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert read_run(tmp_path / "a.gz") == RUN


def test_msmarco_submission(tmp_path: Path) -> None:
    write_msmarco({"7": {"x": 0.1, "y": 0.9, "z": 0.5}}, tmp_path / "run.tsv", depth=2)
    assert (tmp_path / "run.tsv").read_text() == "7\ty\t1\n7\tz\t2\n"


def test_beir_results_come_back_equal(tmp_path: Path) -> None:
    write_beir(RUN, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == RUN
    assert read_run(tmp_path / "run.json") == RUN


def test_mteb_results_carry_mteb_names(tmp_path: Path) -> None:
    write_mteb(tmp_path / "r.json", "SciFact", {"nDCG@10": 0.5, "RR@10": 0.25, "R@100": 0.75})
    entry = json.loads((tmp_path / "r.json").read_text())["scores"]["test"][0]
    assert entry["main_score"] == entry["ndcg_at_10"] == 0.5
    assert (entry["mrr_at_10"], entry["recall_at_100"]) == (0.25, 0.75)
    assert mteb_name("AP") == "map"
    with pytest.raises(DataError, match="main score"):
        write_mteb(tmp_path / "r.json", "SciFact", {"RR@10": 0.25})


@pytest.mark.parametrize("bad", ["two words", "", "tab\there", "line\nend"])
def test_ids_that_would_not_survive_are_refused(tmp_path: Path, bad: str) -> None:
    for write in (
        lambda: write_trec({"q": {bad: 1.0}}, tmp_path / "x", "t"),
        lambda: write_msmarco({bad: {"a": 1.0}}, tmp_path / "x"),
    ):
        with pytest.raises(DataError, match="white space"):
            write()
    assert list(tmp_path.iterdir()) == []


_LINES = st.lists(st.sampled_from(["q1", "q2", "a", "b", "Q0", "0", "1", "2", "0.5", "-3e2", "nan", "x"]), max_size=7)
_TEXT = st.lists(st.tuples(_LINES, st.sampled_from([" ", "\t"])), max_size=6).map(
    lambda rows: "\n".join(separator.join(fields) for fields, separator in rows).encode()
)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200) | _TEXT | _TEXT.map(gzip.compress) | st.binary().map(lambda b: b"\x1f\x8b" + b))
def test_any_bytes_give_a_value_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(content)
    for read in (read_run, read_qrels):
        try:
            found = read(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert found
            for values in found.values():
                assert all(value == value for value in values.values())


@settings(max_examples=100, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_gives_a_value_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps(value))
    for read in (read_run, read_qrels):
        try:
            found = read(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert isinstance(found, dict)


_IDS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    run=st.dictionaries(
        _IDS, st.dictionaries(_IDS, st.floats(allow_nan=False), min_size=1, max_size=5), min_size=1, max_size=3
    )
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "there-and-back"
    write_trec(run, path, "tag")
    back = read_run(path, format="trec", finite=False)
    assert back == run
    for query in run:
        assert list(back[query]) == trec_order(run[query])

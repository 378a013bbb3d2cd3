"""Readers of files: each layout, each complaint with file and line, and any bytes at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfw.data.labelled_sets import read_idx, read_labelled_json, read_labelled_tsv
from kdfw.data.lines import BadLines, parse_float, parse_int, read_lines
from kdfw.data.pair_sets import read_aligned, read_pairs
from kdfw.data.ranking_files import (
    content_id,
    read_beir_texts,
    read_hard_negatives,
    read_id_text,
    read_ranking_records,
    read_triples,
)
from kdfw.data.runs import read_judgements, read_run
from kdfw.data.score_files import read_scores
from kdfw.errors import DataError
from kdfw.evaluation.answers import read_passages, read_questions

Reader = Callable[[Path, BadLines], Any]


def write(folder: Path, content: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(reader: Reader, path: Path, on_error: str = "raise") -> list[Any]:
    return list(reader(path, BadLines(on_error)))  # type: ignore[arg-type]


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffone\r\n\ntwo\u2028still two\x0c\rsame\nlast")
    assert rows(read_lines, path) == [(1, "one"), (3, "two\u2028still two\x0c\rsame"), (4, "last")]
    assert [text for _, text in read_lines(path, BadLines(), keep_empty=True)][1] == ""


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    content = gzip.compress(b"1\tone\n2\ttwo\n")
    assert rows(read_id_text, write(tmp_path, content, "plainly-named")) == [(1, "1", "one"), (2, "2", "two")]
    with pytest.raises(DataError, match="cut off"):
        rows(read_id_text, write(tmp_path, content[:-9], "cut.gz"))
    with pytest.raises(DataError, match="not a gzip file"):
        rows(read_id_text, write(tmp_path, b"1\tone\n", "false.gz"))
    with pytest.raises(DataError, match="not a gzip file"):
        rows(read_id_text, write(tmp_path, b"", "empty.gz"))
    with pytest.raises(DataError, match="damaged"):
        rows(read_id_text, write(tmp_path, content[:12] + b"\xff\xff\xff" + content[15:], "bad.gz"))


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "", "collection.csv")
    with pytest.raises(DataError, match=r"collection\.tsv: no such file.*collection\.csv"):
        rows(read_id_text, tmp_path / "collection.tsv")
    with pytest.raises(DataError, match="cannot be read|no such"):
        rows(read_id_text, tmp_path)


@pytest.mark.parametrize(
    ("reader", "line", "complaint"),
    [
        (read_id_text, "no tab here", "no tab"),
        (read_id_text, "\ttext", "empty id"),
        (read_id_text, "1\ta\x00b", "NUL"),
        (read_id_text, b"1\t\xff\xfe", "not UTF-8: byte 0xff at position 3"),
        (read_judgements, "1 0 7", "3 columns"),
        (read_judgements, "1 0 7 1.5", "no integer"),
        (read_judgements, "1 0 7 1 9", "5 columns"),
        (read_judgements, "1 0 7 １", "no integer"),
        (read_triples, "a\tb", "2 columns"),
        (read_triples, "a\tb\t", "empty column"),
        (read_beir_texts, '{"_id": "1"}', "no text under 'text'"),
        (read_beir_texts, '{"_id": true, "text": "x"}', "no id"),
        (read_beir_texts, '{"_id": "1", "text": "\\ud800"}', "surrogate"),
        (read_beir_texts, '{"_id": "1", "text": "\\u0000"}', "NUL"),
        (read_beir_texts, '{"_id": "1\\n2", "text": "x"}', "control character"),
        (read_beir_texts, "[1]", "a JSON list"),
        (read_beir_texts, "{", "not valid JSON"),
        (read_beir_texts, "[" * 100_000, "nested too deeply|not valid JSON"),
        (read_beir_texts, '{"_id": "1", "text": "x", "score": NaN}', "NaN is no number"),
        (read_ranking_records, '{"query": "q", "pos": 3}', "no list under 'pos'"),
        (read_ranking_records, '{"query": "q", "pos": ["a", 1]}', "instead of a text"),
        (read_ranking_records, '{"query": "q", "pos": ["a"], "pos_scores": [1, 2]}', "2 numbers in pos_scores for 1"),
        (read_ranking_records, '{"query": "q", "pos": ["a"], "pos_scores": ["1"]}', "instead of a number"),
        (read_ranking_records, '{"query": "q", "pos": ["a"], "pos_scores": [1e999]}', "not finite"),
        (read_ranking_records, '{"query": " ", "pos": ["a"]}', "an empty query"),
        (read_ranking_records, '{"query": "q", "pos": []}', "neither positives nor negatives"),
        (read_hard_negatives, '{"qid": 1, "pos": [2], "neg": [3]}', "lists by system"),
        (read_hard_negatives, '{"qid": 1, "pos": [2], "neg": {"bm25": [null]}}', "no id under 'bm25'"),
        (lambda p, b: read_pairs(p, b, 0, 1, 2), "5.0\tone", "2 columns"),
        (lambda p, b: read_pairs(p, b, 0, 1, 2), "nan\tone\ttwo", "no finite number"),
        (lambda p, b: read_pairs(p, b, 0, 1, 2), "1\t \ttwo", "empty sentence"),
        (lambda p, b: read_labelled_tsv(p, b, 0, 1), "text\t ", "empty text or label"),
        (lambda p, b: read_labelled_json(p, b, "text", "label", "id"), '{"text": "x"}', "no id under 'label'"),
    ],
)
def test_complaints_name_file_and_line_and_can_be_skipped(
    tmp_path: Path, reader: Reader, line: str | bytes, complaint: str
) -> None:
    raw = line.encode() if isinstance(line, str) else line
    path = write(tmp_path, b"\n" + raw + b"\n")
    with pytest.raises(DataError, match=complaint) as caught:
        rows(reader, path)
    assert str(caught.value).startswith(f"{path}:2: ")
    bad = BadLines("skip")
    assert list(reader(path, bad)) == []
    assert bad.skipped[0].file == path and bad.skipped[0].count == 1 and bad.skipped[0].first[0][0] == 2


def test_numbers_are_strict() -> None:
    assert [parse_float(text) for text in ("1", "-2.5e3", ".5", "+1.")] == [1.0, -2500.0, 0.5, 1.0]
    for text in ("nan", "inf", "1_0", "１", "1e999", "", " 1", "0x1"):
        assert parse_float(text) is None
    assert parse_int("-2") == -2 and parse_int("1_0") is None and parse_int("9" * 30) is None


def test_judgements_in_three_layouts(tmp_path: Path) -> None:
    expected = [("1", "a", 2), ("2", "b", -1)]
    trec = rows(read_judgements, write(tmp_path, "1 0 a 2\n2 Q0  b -1\n"))
    msmarco = rows(read_judgements, write(tmp_path, "1\t0\ta\t2\n2\t0\tb\t-1\n"))
    beir = rows(read_judgements, write(tmp_path, "query-id\tcorpus-id\tscore\n1\ta\t2\n2\tb\t-1\n"))
    assert [row[1:] for row in trec] == [row[1:] for row in msmarco] == [row[1:] for row in beir] == expected
    spaces = rows(read_judgements, write(tmp_path, "query-id\tcorpus-id\tscore\nq 1\td 1\t1\n"))
    assert spaces == [(2, "q 1", "d 1", 1)]
    with pytest.raises(DataError, match=":2: 3 columns .* expected 4"):
        rows(read_judgements, write(tmp_path, "1 0 a 2\n1\tb\t1\n"))
    with pytest.raises(DataError, match=":1: 3 columns in '1 a 2', expected 4; three are read between tabs only"):
        rows(read_judgements, write(tmp_path, "1 a 2\n"))


def test_titles_join_with_a_blank(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"_id": 7, "title": "T", "text": "x"}\n{"_id": "8", "title": "", "text": "y"}\n'
        '{"_id": "9", "title": "Only", "text": ""}\n{"_id": "10", "title": null, "text": "z"}',
    )
    assert [row[1:] for row in rows(read_beir_texts, path)] == [("7", "T x"), ("8", "y"), ("9", "Only"), ("10", "z")]
    assert [row[2] for row in read_beir_texts(path, BadLines(), title=False)] == ["x", "y", "", "z"]
    assert next(iter(read_beir_texts(path, BadLines(), separator=" | ")))[2] == "T | x"


def test_records_of_the_two_jsonl_layouts(tmp_path: Path) -> None:
    path = write(tmp_path, '{"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [3], "neg_scores": [1, 0.5]}')
    (record,) = rows(read_ranking_records, path)
    assert (record.id, record.positives, record.negative_scores) == (content_id("q"), ["a"], [1.0, 0.5])
    path = write(tmp_path, '{"qid": 5, "question": "q", "positive": "a"}')
    (record,) = rows(read_ranking_records, path)
    assert (record.id, record.query, list(record.positives), list(record.negatives)) == ("5", "q", ["a"], [])
    path = write(
        tmp_path, '{"query": "q", "positive_passages": [{"docid": "1", "title": "T", "text": "a"}, {"text": "b"}, "c"]}'
    )
    (record,) = rows(read_ranking_records, path)
    assert record.positives == ["T a", "b", "c"]
    path = write(tmp_path, '{"qid": "5", "pos": [1, "2"], "neg": {"bm25": [3], "dense": []}}')
    (lists,) = rows(read_hard_negatives, path)
    assert (lists.query, lists.positives, lists.negatives) == ("5", ["1", "2"], {"bm25": ["3"], "dense": []})


# ---------------------------------------------------------------- runs and scores


def test_trec_runs_keep_scores_and_take_any_second_column(tmp_path: Path) -> None:
    path = write(tmp_path, "q1 Q0 b 1 2.5 tag\nq1\t0\ta\t2\t2.5\tmy tag\nq2 Q0 a 0 -1e-3 x\n")
    run = read_run(path)
    assert run == {"q1": {"b": 2.5, "a": 2.5}, "q2": {"a": -0.001}}
    assert read_run(path, order="rank") == {"q1": {"b": -1.0, "a": -2.0}, "q2": {"a": 0.0}}


@pytest.mark.parametrize("first", [0, 1])
def test_msmarco_runs_keep_their_order_from_rank_zero_or_one(tmp_path: Path, first: int) -> None:
    path = write(tmp_path, gzip.compress(f"1\tb\t{first + 1}\n1\ta\t{first}\n".encode()), "run.tsv.gz")
    run = read_run(path)
    assert sorted(run["1"], key=run["1"].__getitem__, reverse=True) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("1\ta\t1\n1\tb\t1\n", ":2: rank 1 stands twice"),
        ("1\ta\t1\n1\ta\t2\n", ":2: passage 'a' stands twice"),
        ("1\ta\t0.5\n", "is no rank; with scores in the third column"),
        ("1 Q0 a 1 nan t\n", "no finite number"),
        ("1 Q0 a 1\n", "4 columns"),
        ("1 Q0 a 1 1.0 t\n1\tb\t2\n", ":2: 3 columns"),
        ("", "no results in it"),
    ],
)
def test_faulty_runs_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_run(write(tmp_path, content))


def test_score_files_in_every_layout(tmp_path: Path) -> None:
    expected = {"q": {"a": 3.0, "b": -1.5}}
    assert read_scores(write(tmp_path, "q\ta\t3\nq\tb\t-1.5\n")).scores == expected
    margin = read_scores(write(tmp_path, "3\t-1.5\tq\ta\tb\n"))
    assert margin.scores == expected and margin.triples == [("q", "a", "b")] and margin.margin("q", "a", "b") == 4.5
    assert read_scores(write(tmp_path, "q Q0 a 1 3 t\nq Q0 b 2 -1.5 t\n")).scores == expected
    assert read_scores(write(tmp_path, "q Q0 a 1 3\nq Q0 b 2 -1.5\n")).scores == expected
    assert read_scores(write(tmp_path, "1 0 17 1 3.0\n")).scores == {"1": {"17": 3.0}}
    assert read_scores(write(tmp_path, '{"qid": "q", "pids": ["a", "b"], "scores": [3, -1.5]}')).scores == expected
    assert read_scores(write(tmp_path, '{"qid": "q", "scores": {"a": 3, "b": -1.5}}')).scores == expected
    texts = {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [3], "neg_scores": [-1.5]}
    found = read_scores(write(tmp_path, json.dumps(texts)))
    assert found.layout == "jsonl"
    assert found.scores == {content_id("q"): {content_id("a"): 3.0, content_id("b"): -1.5}}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("q\ta\t1\nq\ta\t2\n", ":2: .*score 2.0 after 1.0"),
        ("q\ta\tinf\n", "no finite number"),
        ("q\ta\n", "2 columns"),
        ('{"qid": "q", "pids": ["a"], "scores": [1, 2]}', "2 scores for 1 passages"),
        ('{"query": "q", "pos": ["a"]}', "no scores in it"),
        ("1\t2\tq\ta\n", "4 columns"),
        ("", "empty"),
    ],
)
def test_faulty_score_files_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_scores(write(tmp_path, content))


def test_aligned_files_of_unequal_length_are_refused(tmp_path: Path) -> None:
    left, right = write(tmp_path, "a\nb\n", "l"), write(tmp_path, "A\nB\nC\n", "r")
    with pytest.raises(DataError, match=r"l: ends before line 3"):
        list(read_aligned(left, right, BadLines()))
    assert list(read_aligned(left, write(tmp_path, "A\nB", "r"), BadLines())) == [(1, "a", "A"), (2, "b", "B")]
    bad = BadLines("skip")  # an unreadable line must not shift the lines after it
    assert list(read_aligned(left, write(tmp_path, b"\xff\nB\n", "r"), bad)) == [(2, "b", "B")]
    assert bad.skipped[0].first[0][0] == 1


# ---------------------------------------------------------------- any bytes

READERS: dict[str, Callable[[Path, BadLines], Any]] = {
    "id-text": read_id_text,
    "beir": read_beir_texts,
    "qrels": read_judgements,
    "triples": read_triples,
    "records": read_ranking_records,
    "hard-negatives": read_hard_negatives,
    "run": lambda path, bad: read_run(path, bad),
    "run-by-rank": lambda path, bad: read_run(path, bad, order="rank"),
    **{f"scores-{n}": (lambda path, bad, n=n: read_scores(path, n, bad)) for n in ("auto", "tsv", "margin", "jsonl")},
    "pairs": lambda path, bad: read_pairs(path, bad, 0, 1, 2),
    "labelled-json": lambda path, bad: read_labelled_json(path, bad, "text", "label", "id"),
    "labelled-tsv": lambda path, bad: read_labelled_tsv(path, bad, 0, 1),
    "aligned": lambda path, bad: read_aligned(path, path, bad),
    "questions": read_questions,
    "wikipedia": read_passages,
    "idx": lambda path, bad: [read_idx(path)],
}
_PIECES = st.sampled_from(
    [b"\t", b"\n", b"\r\n", b" ", b"1", b"0.5", b"-3", b"q1", b"{", b"}", b"[", b"]", b'"', b":", b",", b"\x00",
     b"\xff", b"a\rb", b"\xef\xbb\xbf", b'"query"', b'"pos"', b'"neg"', b'"scores"', b'"qid"', b'"text"', b'"_id"',
     b"null", b"true", b"1e999", b"NaN", b"\\ud800", b"\x1f\x8b", b"\x00\x00\x08\x01", b"9" * 5000, "é\u2028".encode()]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["query", "pos", "neg", "qid", "_id", "text", "title", "scores", "pids", "pos_scores"])
            | st.text(max_size=2),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
_CONTENT = (
    st.binary(max_size=60)
    | st.lists(_PIECES, max_size=24).map(b"".join)
    | st.lists(_JSON.map(lambda value: json.dumps(value).encode()), max_size=3).map(b"\n".join)
)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, deadline=None)
@given(content=_CONTENT, packed=st.booleans())
def test_any_bytes_give_an_error_of_ours_or_values(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, packed: bool
) -> None:
    path = write(tmp_path_factory.getbasetemp(), gzip.compress(content, mtime=0) if packed else content, f"fuzz-{name}")
    found: list[Any] | None
    try:
        found = list(READERS[name](path, BadLines()).__iter__() if name[:3] not in ("run", "sco") else [
            READERS[name](path, BadLines())
        ])  # fmt: skip
    except DataError as error:
        assert str(path) in str(error)
        found = None
    bad = BadLines("skip")
    try:
        kept = list(READERS[name](path, bad)) if name[:3] not in ("run", "sco") else [READERS[name](path, bad)]
    except DataError:
        assert found is None  # faults of the whole file cannot be skipped
    else:
        # nothing is lost in silence: either strict reading gives the same, or something was counted
        assert (found is None) == (sum(skipped.count for skipped in bad.skipped) > 0)
        if found is not None and name != "idx":
            assert kept == found


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(
        st.text(
            st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\r\x00"), min_size=1, max_size=12
        ).filter(lambda text: not text.startswith("\ufeff")),
        min_size=1,
        max_size=6,
    ),
    ending=st.sampled_from(["\n", "\r\n"]),
    packed=st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], ending: str, packed: bool
) -> None:
    content = "".join(f"id{number}\t{text}{ending}" for number, text in enumerate(texts)).encode()
    path = write(tmp_path_factory.getbasetemp(), gzip.compress(content) if packed else content, "written")
    assert rows(read_id_text, path) == [(n + 1, f"id{n}", text) for n, text in enumerate(texts)]

"""The built-in data set: docstrings become queries and passages without running anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdfw.data.pydocs import PyDocs, collect, documented, split_docstring, usable
from kdfw.data.sets import RankingData
from kdfw.errors import DataError


@pytest.mark.parametrize(
    ("docstring", "query", "rest"),
    [
        ("Add two sums. They may\n    be.\n\n    Args:\n        a: one", "Add two sums", "They may be. Args: a: one"),
        ("Uses e.g. a heap, i.e. a tree. More.", "Uses e.g. a heap, i.e. a tree", "More."),
        ("dot(a, b, out=None)\n\nDot product of two arrays.\n\nRest", "Dot product of two arrays", "Rest"),
        ("Wrap :class:`~torch.nn.Linear` in `x`.", "Wrap torch.nn.Linear in x", ""),
        ("Version 2.0 of it\nspans\n\nParameters\n----------\nx", "Version 2.0 of it spans", "Parameters x"),
        ("Is it prime? True if so.", "Is it prime?", "True if so."),
        ("   \n\n", "", ""),
        ("f(x) -> y", "", ""),
    ],
)  # fmt: skip
def test_the_first_sentence_is_the_query_and_the_rest_the_passage(docstring: str, query: str, rest: str) -> None:
    assert split_docstring(docstring) == (query, rest)


def test_source_is_parsed_and_never_run() -> None:
    source = b'"""Mod."""\nraise SystemExit\nclass A:\n  "d"\n  def f(self):\n    "e"\n  def _g(self):\n    "hidden"\n'
    assert dict(documented(source, "m")) == {"m": "Mod.", "m.A": "d", "m.A.f": "e"}
    for rubbish in (b"\xff\xfe(", b"def", b"x = \x00", b"(" * 5000):
        assert list(documented(rubbish, "m")) == []


def test_what_makes_a_usable_pair() -> None:
    passage = " ".join(["word"] * 30)
    assert usable("Compute the mean of values", passage, (4, 30), 25)
    for query in ("Too short", ">>> compute the mean of it", "Deprecated alias for the mean", "3 means of the values"):
        assert not usable(query, passage, (4, 30), 25)
    assert not usable("Compute the mean of values", "compute the mean of values " + passage, (4, 30), 25)
    assert not usable("Compute the mean of values", "0 1 2 3 " * 20, (4, 30), 25)


def test_queries_that_mean_several_things_are_left_out(tmp_path: Path) -> None:
    def function(name: str, query: str, words: str) -> str:
        return f'def {name}():\n    """{query}.\n\n    {" ".join([words] * 10)}\n    """\n'

    content = (
        function("a", "Open the first of files", "alpha beta gamma")
        + function("b", "Open the first of files", "delta epsilon zeta")
        + function("c", "Close the first of files", "eta theta iota")
        + function("d", "Remove the first of files", "eta theta iota")
    )
    (tmp_path / "m.py").write_text(content)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text(function("e", "Test the first of files", "kappa lambda"))
    found = collect({"pkg": tmp_path}, (4, 30), 5)
    assert [(item.id, item.query) for item in found] == [("pkg.m.c", "Close the first of files")]


def test_the_standard_library_as_a_data_set(tmp_path: Path) -> None:
    before = set(sys.modules)
    dataset = PyDocs(packages=["stdlib"], max_passages=300)
    data = dataset.open(tmp_path)
    assert isinstance(data, RankingData)
    assert not {"turtle", "antigravity", "this"} & (set(sys.modules) - before)
    assert len(data.corpus) == 300 and list(data.queries) == ["train", "dev", "test"]
    ids = [id for split in data.queries for id in data.queries[split].ids()]
    assert sorted(ids) == sorted(data.corpus.ids()) and len(set(ids)) == 300
    for split, queries in data.queries.items():
        assert data.qrels[split] == {id: {id: 1} for id in queries.ids()}
        for id, query in queries.iterate():
            passage = data.corpus.text(data.corpus.row(id))
            assert query.lower() not in passage.lower() and 4 <= len(query.split()) <= 30
    again = PyDocs(packages=["stdlib"], max_passages=300).open(tmp_path / "elsewhere")
    assert isinstance(again, RankingData)
    assert again.corpus.fingerprint == data.corpus.fingerprint and again.fingerprint == data.fingerprint
    smaller = PyDocs(packages=["stdlib"], max_passages=200).open(tmp_path)
    assert isinstance(smaller, RankingData)
    assert set(smaller.queries["test"].ids()) < set(data.queries["test"].ids())  # growing moves nothing between splits


def test_packages_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no package 'nonesuch'"):
        PyDocs(packages=["nonesuch"]).fingerprint()
    assert "torch" not in PyDocs(exclude=["torch"])._found()

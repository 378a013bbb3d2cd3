"""Text tables: what is written is what is read, and damage is noticed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfw.data.lines import BadLines
from kdfw.data.store import build_folder, read_manifest, remembered_digest
from kdfw.data.table import TextTable, TextTableWriter, hash_id
from kdfw.errors import ArtifactError, DataError

IDS = ["q1", "a b", "ünï", "7067032", "x" * 300]
TEXTS = ["one", "", "zwei\nZeilen\t\u2028 ü", "日本語", "five" * 1000]


@pytest.fixture
def table(tmp_path: Path) -> TextTable:
    return TextTable.from_lists(tmp_path / "table", IDS, TEXTS)


def test_rows_ids_and_texts_come_back(table: TextTable) -> None:
    assert len(table) == 5
    assert [table.text(row) for row in range(5)] == TEXTS
    assert [table.id(row) for row in range(5)] == IDS == table.ids()
    assert [table.row(id) for id in IDS] == [0, 1, 2, 3, 4]
    assert list(table.iterate()) == list(zip(IDS, TEXTS, strict=True))
    assert list(table.iterate(2, 4)) == [("ünï", TEXTS[2]), ("7067032", "日本語")]
    assert table.rows(["7067032", "absent", "q1"]).tolist() == [3, -1, 0]
    assert table.lengths().tolist() == [len(text.encode()) for text in TEXTS]
    assert "a b" in table and "a" not in table


def test_unknown_ids_and_rows_are_errors(table: TextTable) -> None:
    for id in ("", "absent", "\ud800"):
        with pytest.raises(KeyError):
            table.row(id)
    for row in (-1, 5):
        with pytest.raises(IndexError):
            table.text(row)
        with pytest.raises(IndexError):
            table.id(row)


def test_a_view_has_its_own_rows_and_fingerprint(table: TextTable) -> None:
    view = table.select([3, 0])
    assert view.ids() == ["7067032", "q1"] and view.text(0) == "日本語" and view.row("q1") == 1
    assert list(view.iterate(1)) == [("q1", "one")]
    with pytest.raises(KeyError):
        view.row("a b")
    with pytest.raises(IndexError):
        view.text(2)
    nested = view.select([1])
    assert nested.ids() == ["q1"] and nested.base is table and list(nested.base_rows()) == [0]
    assert len({table.fingerprint, view.fingerprint, table.select([0, 3]).fingerprint, nested.fingerprint}) == 4
    with pytest.raises(IndexError):
        view.select([2])
    with pytest.raises(ValueError, match="twice"):
        table.select([1, 1])


def test_a_table_survives_pickling_by_reference(table: TextTable) -> None:
    assert pickle.loads(pickle.dumps(table.select([2]))).ids() == ["ünï"]


def test_fingerprint_sees_ids_texts_order_and_their_boundaries(tmp_path: Path) -> None:
    variants = [(["a", "b"], ["x", "y"]), (["b", "a"], ["x", "y"]), (["a", "b"], ["xy", ""]), (["ab", "c"], ["", "xy"])]
    prints = [TextTable.from_lists(tmp_path / str(n), *v).fingerprint for n, v in enumerate(variants)]
    again = TextTable.from_lists(tmp_path / "again", *variants[0]).fingerprint
    assert len(set(prints)) == 4 and again == prints[0]


def test_an_empty_table_works(tmp_path: Path) -> None:
    empty = TextTable.from_lists(tmp_path / "empty", [], [])
    assert len(empty) == 0 and list(empty.iterate()) == [] and "x" not in empty
    assert len(empty.select([])) == 0


def test_walks_cross_read_blocks(tmp_path: Path) -> None:
    texts = [f"{row} " + "t" * (row % 7 * 200_000) for row in range(60)]
    table = TextTable.from_lists(tmp_path / "large", [str(row) for row in range(60)], texts)
    assert [text for _, text in table.iterate()] == texts


@pytest.mark.parametrize("id", ["", "a\tb", "a\nb", "a\x00", "\ud800"])
def test_ids_that_cannot_be_filed_are_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(DataError, match="collection.tsv:7"), TextTableWriter(tmp_path / "t") as writer:
        writer.source(Path("collection.tsv"))
        writer.add(id, "text", 7)


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"b\.tsv:9: id 'x' again; first at a\.tsv:3"),
        TextTableWriter(tmp_path / "t") as writer,
    ):
        writer.source(Path("a.tsv"))
        writer.add("x", "1", 3)
        writer.source(Path("b.tsv"))
        writer.add("y", "2", 8)
        writer.add("x", "1", 9)


def test_skipping_keeps_the_first_of_duplicates(tmp_path: Path) -> None:
    bad = BadLines("skip")
    with TextTableWriter(tmp_path / "t", bad) as writer:
        writer.source(Path("a.tsv"))
        for line, (id, text) in enumerate([("x", "1"), ("y", "2"), ("x", "3"), ("z", "4"), ("x", "5")], start=1):
            writer.add(id, text, line)
    table = TextTable(tmp_path / "t")
    assert list(table.iterate()) == [("x", "1"), ("y", "2"), ("z", "4")] and table.row("z") == 2
    assert bad.skipped[0].count == 2 and bad.skipped[0].first[0][0] == 3


def test_ids_with_equal_hashes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdfw.data.table.hash_id", lambda id: hash_id(id) % 3)
    ids = [f"id{number}" for number in range(40)]
    table = TextTable.from_lists(tmp_path / "t", ids, ids)
    assert [table.row(id) for id in ids] == list(range(40)) and "other" not in table
    with pytest.raises(DataError, match="'id5' again"):
        TextTable.from_lists(tmp_path / "u", [*ids, "id5"], [*ids, ""])


def test_a_cut_file_is_refused_and_a_changed_byte_is_found_on_demand(tmp_path: Path) -> None:
    table = TextTable.from_lists(tmp_path / "t", IDS, TEXTS)
    table.verify()
    path = tmp_path / "t" / "texts.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"texts\.bin"):
        TextTable(tmp_path / "t").verify()
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="bytes instead of"):
        TextTable(tmp_path / "t")
    (tmp_path / "t" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        TextTable(tmp_path / "t")


def test_lists_are_not_mixed_up_with_an_older_table(tmp_path: Path) -> None:
    TextTable.from_lists(tmp_path / "t", ["a"], ["x"])
    assert TextTable.from_lists(tmp_path / "t", ["a"], ["x"]).text(0) == "x"
    with pytest.raises(ArtifactError, match="other texts"):
        TextTable.from_lists(tmp_path / "t", ["a"], ["y"])


def test_a_folder_appears_whole_and_a_damaged_one_is_built_again(tmp_path: Path) -> None:
    folder, calls = tmp_path / "deep" / "folder", []

    def fail(place: Path) -> dict[str, int]:
        (place / "half").write_text("half")
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        build_folder(folder, fail)
    assert not folder.exists()

    def build(place: Path) -> dict[str, int]:
        calls.append(place)
        TextTable.from_lists(place / "inner", ["a"], ["text"])
        return {"number": len(calls)}

    build_folder(folder, build)
    build_folder(folder, build)
    assert len(calls) == 1 and read_manifest(folder)["number"] == 1
    (folder / "inner" / "texts.bin").write_bytes(b"")  # damage inside a nested folder counts too
    build_folder(folder, build)
    assert len(calls) == 2 and TextTable(folder / "inner").text(0) == "text"
    assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".tmp")] == []


def test_file_hashes_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr("kdfw.data.store._RACY_NS", 0)  # the file is as young as the test

    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    first = remembered_digest(path, cache)
    assert len(list((cache / "file-hashes").iterdir())) == 1
    assert remembered_digest(path, cache) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(10**18, 10**18))  # same size, same date: only the time of the change of status tells
    assert remembered_digest(path, cache) != first
    with pytest.raises(DataError, match="absent"):
        remembered_digest(tmp_path / "absent")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda s: all(ord(c) >= 32 and c != "\x7f" for c in s)).filter(
            lambda s: not any("\ud800" <= c <= "\udfff" for c in s)
        ),
        st.text(max_size=20).filter(lambda s: not any("\ud800" <= c <= "\udfff" for c in s)),
        max_size=12,
    )
)  # fmt: skip
def test_any_texts_come_back(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, str]) -> None:
    table = TextTable.from_lists(tmp_path_factory.mktemp("t") / "t", list(rows), list(rows.values()))
    assert dict(table.iterate()) == rows
    assert [table.row(id) for id in rows] == list(range(len(rows)))
    assert np.array_equal(table.rows(list(rows)), np.arange(len(rows)))

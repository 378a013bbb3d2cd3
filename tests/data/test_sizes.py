"""Sizes before the data is read agree with what is counted once it has been."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kdfw.amounts import UNREAD, Amount, Sizes, unknown
from kdfw.data import sizes as module
from kdfw.data.ingest import IngestedDataset
from kdfw.data.labelled_sets import Images, TextClassification
from kdfw.data.pair_sets import ParallelText, Sts, TsvPairs
from kdfw.data.pydocs import PyDocs
from kdfw.data.ranking_sets import Beir, JsonlRanking, MsMarco
from kdfw.data.sizes import lines_in


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "lines"),
    [(b"", 0), (b"a\n", 1), (b"a\nb", 2), (b"\n\n\na\n\n\nb\n\n", 2), (b"a\r\n\r\nb\r\n", 2), (b"a\n\r\n\nb", 2)],
)
def test_lines_are_counted_without_empty_ones(tmp_path: Path, content: bytes, lines: int, packed: bool) -> None:
    path = tmp_path / "f"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert lines_in(path) == Amount(lines)


def test_several_files_add_up_and_a_damaged_one_is_unknown(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad.gz"
    good.write_bytes(b"a\nb\n")
    bad.write_bytes(gzip.compress(b"a\n" * 50_000)[:60])
    assert lines_in([good, good]) == Amount(4)
    assert lines_in([good, bad]) == unknown(UNREAD)


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_judged_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    monkeypatch.setattr(module, "COUNTED_BYTES", 1 << 20)
    monkeypatch.setattr(module, "PROBED_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    lines = [bytes(rng.integers(97, 123, size=length, dtype=np.uint8)) for length in rng.integers(20, 180, 60_000)]
    path = tmp_path / "f"
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    found = lines_in(path)
    assert found.sure == "about" and found.value is not None and abs(found.value / 60_000 - 1) < 0.05


def agree(said: Sizes, found: Sizes) -> int:
    """Compare every amount; returns how many were known beforehand."""
    known = 0
    pairs: list[tuple[Mapping[str, Amount], Mapping[str, Amount]]] = [
        ({"passages": said.passages}, {"passages": found.passages}),
        (said.items, found.items),
        (said.judged, found.judged),
        (said.positives, found.positives),
        (said.triples, found.triples),
    ]
    for before, after in pairs:
        for name, amount in before.items():
            if amount.value is None:
                continue
            known += 1
            real = after[name]
            assert real.value is not None and real.sure == "exactly", name
            if amount.sure == "exactly":
                assert amount == real, name
            elif amount.sure == "up to":
                assert real.value <= amount.value, name
            else:
                # a share of the ids by their hash: three standard deviations
                assert abs(real.value - amount.value) <= 3 * max(amount.value, 1) ** 0.5, name
    return known


def msmarco(folder: Path) -> IngestedDataset:
    (folder / "collection.tsv").write_text("".join(f"p{n}\ttext {n}\n" for n in range(30)))
    (folder / "queries.train.tsv").write_text("".join(f"q{n}\twhat is {n}\n" for n in range(400)))
    (folder / "queries.test.tsv").write_text("t1\tone\n\nt2\ttwo\n")
    (folder / "qrels.train.tsv").write_text("".join(f"q{n} 0 p{n % 30} 1\n" for n in range(399)))
    (folder / "qrels.test.tsv").write_text("t1 0 p1 1\nt1 0 p2 0\nt1 0 p3 2\n")
    (folder / "triples.tsv").write_text("t1\tp1\tp2\n")
    return MsMarco(folder=folder, dev_share=0.25, triples={"test": folder / "triples.tsv"})


def beir(folder: Path) -> IngestedDataset:
    (folder / "qrels").mkdir()
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"_id": f"p{n}", "title": "", "text": f"text {n}"}) + "\n" for n in range(12))
    lines = [json.dumps({"_id": f"q{n}", "text": f"query {n}"}) + "\n" for n in range(10)]
    (folder / "queries.jsonl").write_text("".join(lines))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\nq1\tp2\t1\nq9\tp3\t0\nq77\tp1\t1\n")
    return Beir(folder=folder)


def jsonl(folder: Path) -> IngestedDataset:
    rows = [{"query": "a", "pos": ["x"], "neg": ["y"]}, {"query": "a", "pos": ["z"]}, {"query": "b", "pos": ["x"]}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlRanking(files={"train": folder / "train.jsonl"})


def pairs(folder: Path) -> IngestedDataset:
    (folder / "a.tsv").write_text("1\ta\tb\n2\tc\td\n")
    (folder / "b.tsv").write_text("3\te\tf\n")
    return TsvPairs(files={"train": [folder / "a.tsv", folder / "b.tsv"]})


def parallel(folder: Path) -> IngestedDataset:
    (folder / "train.en").write_text("a b\nc\n")
    (folder / "train.de").write_text("A B\nC\n")
    return ParallelText(folder=folder, source="en", target="de")


def texts(folder: Path) -> IngestedDataset:
    (folder / "train.tsv").write_text("".join(f"text {n}\t{n % 2}\n" for n in range(300)))
    return TextClassification(files={"train": folder / "train.tsv"}, dev_share=0.2, on_error="skip")


def pictures(folder: Path) -> IngestedDataset:
    image = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for split, count in (("train", 5), ("test", 2)):
            for number in range(count):
                path = folder / "one.png"
                image.new("RGB", (4, 4), (number, 0, 0)).save(path)
                archive.write(path, f"{split}/{number % 2}/{number}.png")
    return Images(path=folder / "images.zip")


def digits(folder: Path) -> IngestedDataset:
    header = b"\x00\x00\x08\x03" + np.array([40, 2, 2], dtype=">u4").tobytes()
    labels = np.array([40], dtype=">u4").tobytes() + bytes(n % 4 for n in range(40))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(160)))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x01" + labels))
    return Images(path=folder, test_share=0.3)


def documentation(folder: Path) -> IngestedDataset:
    return PyDocs(packages=["stdlib"], max_passages=100)


@pytest.mark.parametrize(
    ("make", "known"),
    [(msmarco, 11), (beir, 4), (jsonl, 2), (pairs, 1), (parallel, 1), (texts, 2), (pictures, 2), (digits, 2),
     (documentation, 10)],
)  # fmt: skip
def test_counted_before_and_after(tmp_path: Path, make: object, known: int) -> None:
    dataset: IngestedDataset = make(tmp_path)  # type: ignore[operator]
    cache = tmp_path / "cache"
    before = dataset.sizes(cache)
    assert not cache.exists()  # a question, not a reading
    dataset.open(cache)
    assert agree(before, dataset.sizes(cache)) == known


def test_exact_numbers_of_small_files(tmp_path: Path) -> None:
    before = msmarco(tmp_path).counted()
    assert before.passages == Amount(30)
    assert before.items == {"test": Amount(2), "train": Amount(300, "about"), "dev": Amount(100, "about")}
    assert before.positives["test"] == Amount(3, "up to")
    after = msmarco(tmp_path)
    after.open(tmp_path / "cache")
    found = after.sizes(tmp_path / "cache")
    assert found.judged["test"] == Amount(1) and found.positives["test"] == Amount(2)
    assert found.triples == {"test": Amount(1)}
    assert found.passage_bytes is not None and found.passage_bytes.tolist() == [6] * 10 + [7] * 20


def test_a_damaged_reading_counts_for_nothing(tmp_path: Path) -> None:
    dataset = msmarco(tmp_path)
    dataset.open(tmp_path / "cache")
    next((tmp_path / "cache" / "data").glob("msmarco-*/corpus/texts.bin")).unlink()
    assert dataset.sizes(tmp_path / "cache").passages == dataset.counted().passages
    assert dataset.sizes(tmp_path / "cache").passage_bytes is None


def test_real_files(data_dir: Path, tmp_path: Path) -> None:
    for dataset, known in (
        (Beir(folder=data_dir / "scifact" / "beir"), 7),
        (Sts(folder=data_dir / "sts"), 3),
        (ParallelText(folder=data_dir / "multi30k", source="en", target="de"), 5),
    ):
        before = dataset.sizes(tmp_path)
        dataset.open(tmp_path)
        assert agree(before, dataset.sizes(tmp_path)) == known

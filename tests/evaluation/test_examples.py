"""Which queries are kept with their texts, and what of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.data.sets import Data, Labelled, LabelledData, PairData, Pairs, Parallel, ParallelData
from kdfw.data.table import TextTable
from kdfw.evaluation.examples import MAX_ITEMS, answers_of, choose, spaced, write_answers
from kdfw.evaluation.tasks import TaskValues


def test_all_of_few_are_kept() -> None:
    values = {"a": {"q2": 0.0, "q1": 1.0}, "b": {"q2": 1.0, "q1": 1.0}}
    assert choose(values, ["a"]) == ["q2", "q1"]


def test_of_many_the_best_and_worst_of_each_comparison() -> None:
    rng = np.random.default_rng(0)
    ids = [f"q{number}" for number in range(3000)]
    values = {name: dict(zip(ids, rng.uniform(size=3000).tolist(), strict=True)) for name in ("bm25", "t", "s")}
    kept = choose(values, ["s"])
    assert len(kept) <= MAX_ITEMS and kept == [id for id in ids if id in set(kept)]
    for other in ("bm25", "t"):
        order = sorted(ids, key=lambda id: values["s"][id] - values[other][id])
        assert {*order[:50], *order[-50:]} <= set(kept)
    assert len(kept) > MAX_ITEMS - 4  # queries that are extreme in two comparisons make room for others
    assert choose(values, ["s"]) == kept
    assert choose({"s": values["s"]}, ["s"]) == []  # nothing to compare with


def test_items_without_a_value_are_evenly_spaced() -> None:
    ids = [str(number) for number in range(1001)]
    assert spaced(ids[:10]) == ids[:10]
    assert spaced(ids) == ids[::6] and len(spaced(ids)) <= MAX_ITEMS


def table(folder: Path, name: str, texts: list[str]) -> TextTable:
    return TextTable.from_lists(folder / name, [str(number) for number in range(len(texts))], texts)


def written(folder: Path, data: Data, values: TaskValues, chosen: list[str]) -> list[dict[str, Any]]:
    answers = {"s": answers_of(values, data), "t": {}}
    write_answers(folder, data, "test", answers, chosen)
    return [json.loads(line) for line in (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_classes_are_answered_by_their_names(tmp_path: Path) -> None:
    texts = table(tmp_path, "texts", ["a\nb " + "x" * 500, "c", "d"])
    rows = Labelled(ids=["i", "j", "k"], labels=np.array([1, 0, -1]), texts=texts)
    data = LabelledData(name="d", fingerprint="", splits={"test": rows}, classes=["no", "yes"])
    values = TaskValues(measures={}, ids=["i", "j"], per_item={"predicted": np.array([0, 1])})
    first, second = written(tmp_path, data, values, ["j", "i"])
    assert first["text"].startswith("a b x") and first["text"].endswith("…") and len(first["text"]) == 400
    assert (first["query"], first["gold"], first["answers"]) == ("i", "yes", {"s": "no"})
    assert (second["query"], second["gold"], second["answers"]) == ("j", "no", {"s": "yes"})
    images = LabelledData(
        name="d", fingerprint="", splits={"test": replace(rows, texts=None)}, classes=["no", "yes"]
    )  # fmt: skip
    assert [row["text"] for row in written(tmp_path, images, values, ["i"])] == [""]


def test_pairs_are_answered_by_scores_and_sentences_by_translations(tmp_path: Path) -> None:
    left, right = table(tmp_path, "left", ["a", "b"]), table(tmp_path, "right", ["c", "d"])
    pairs = Pairs(ids=["0", "1"], left=left, right=right, gold=np.array([4.5, 1.0], dtype=np.float32))
    data = PairData(name="d", fingerprint="", splits={"test": pairs})
    values = TaskValues(measures={}, ids=["0", "1"], per_item={"score": np.array([0.25, 0.5])})
    (row,) = written(tmp_path, data, values, ["1"])
    assert (row["text"], row["gold"], row["answers"]) == ("b | d", "1", {"s": "0.500"})
    parallel = ParallelData(name="d", fingerprint="", splits={"test": Parallel(source=left, target=right)})
    values = TaskValues(measures={}, ids=["0", "1"], per_item={}, answers=["C", "D"])
    (row,) = written(tmp_path, parallel, values, ["0"])
    assert (row["text"], row["gold"], row["answers"]) == ("a", "c", {"s": "C"})

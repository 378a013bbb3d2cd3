"""Which queries are kept with their texts, and what of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kdfw.evaluation.examples import MAX_ITEMS, choose, spaced, write_answers


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


def test_answers_are_cut_and_on_one_line(tmp_path: Path) -> None:
    write_answers(tmp_path, ["1"], {"1": "a\nb " + "x" * 500}, {"1": "yes"}, {"s": {"1": "no"}, "t": {}})
    (line,) = (tmp_path / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert found["text"].startswith("a b x") and found["text"].endswith("…") and len(found["text"]) == 400
    assert found["gold"] == "yes" and found["answers"] == {"s": "no"}

"""Samplers on small data: what is drawn, what is left out, and that only (seed, epoch, item) decide."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdfw.data.ranking import Ranking
from kdfw.data.sets import Labelled, LabelledData, PairData, Pairs, Parallel, ParallelData, RankingData
from kdfw.data.table import TextTable
from kdfw.errors import ConfigError, DataError, Problem
from kdfw.retrieval import RETRIEVERS
from kdfw.samplers import SAMPLERS
from kdfw.samplers.collate import item_rng
from kdfw.types import Clock, Example


def clock(epoch: int = 0, seed: int = 13) -> Clock:
    return Clock(step=0, total_steps=100, epoch=epoch, total_epochs=10, steps_per_epoch=10, seed=seed)


class Context:
    """The part of a stage's context that samplers use."""

    log = logging.getLogger("kdfw.tests")

    def __init__(self, **lists: Ranking) -> None:
        self.lists = lists

    def candidates(self, name: str) -> Ranking:
        return self.lists[name]

    scores = candidates


def ranking(lists: dict[str, list[int]], scores: dict[str, list[float]] | None = None) -> Ranking:
    def entries() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for query, rows in lists.items():
            values = scores[query] if scores else [float(-place) for place in range(len(rows))]
            yield query, np.asarray(rows), np.asarray(values, dtype=np.float32)

    return Ranking.from_lists(entries())


@pytest.fixture()
def data(tmp_path: Path) -> RankingData:
    corpus = TextTable.from_lists(tmp_path / "c", [f"d{n}" for n in range(20)], [f"text {n}" for n in range(20)])
    queries = TextTable.from_lists(tmp_path / "q", ["a", "b", "c", "d"], ["what a", "what b", "what c", "what d"])
    return RankingData(
        name="tiny",
        fingerprint="f",
        corpus=corpus,
        queries={"train": queries},
        qrels={"train": {"a": {"d1": 1, "d2": 2, "d3": 0}, "b": {"d5": 1}, "c": {"nowhere": 1}}},
        triples={"train": np.asarray([[0, 1, 9], [1, 5, 8], [0, 2, 7]])},
    )


BM25 = ranking({"a": [1, 10, 2, 11, 3, 12], "b": [13, 5, 14], "d": [15, 16]})
DENSE = ranking({"a": [11, 17, 18], "b": [5, 13]})


def bound(kind: str, data: Any, context: Context | None = None, **options: Any) -> Any:
    build: Callable[..., Any] = SAMPLERS[kind]
    sampler = build(**options)
    sampler.bind(data, "train", context or Context(bm25=BM25, dense=DENSE))
    return sampler


def drawn(sampler: Any, epoch: int = 0, seed: int = 13) -> list[Example]:
    return [
        sampler.draw(item, clock(epoch, seed), item_rng(seed, epoch, name)) for item, name in enumerate(sampler.items())
    ]


def names(example: Example) -> list[str]:
    return [candidate.id for candidate in example.candidates]


def test_mined_takes_positives_first_then_negatives_of_the_window(data: RankingData) -> None:
    sampler = bound("mined", data, of=["bm25"], negatives=2, ranks=(2, 3), draw="top")
    assert sampler.items() == ["a", "b"]
    first, second = drawn(sampler)
    # of a: positives d2 (grade 2, best first) and d1 are removed, then ranks 2 and 3 of d10 d11 d3 d12
    assert names(first) == ["d2", "d11", "d3"]
    assert [candidate.label for candidate in first.candidates] == [2.0, 0.0, 0.0]
    assert [candidate.kind for candidate in first.candidates] == ["positive", "negative", "negative"]
    assert str(first.text) == "what a" and str(first.candidates[1].text) == "text 11"
    # of b: d13 d14 without the positive: rank 2 alone, repeated
    assert names(second) == ["d5", "d14", "d14"]
    assert sampler.num_candidates == 3


def test_queries_that_cannot_be_used_are_counted_by_reason(data: RankingData) -> None:
    sampler = bound("mined", data, of=["bm25"])
    assert dict(sampler.skipped) == {
        "labelled positives that are not in the corpus": 1,
        "queries without a labelled positive": 2,
    }
    far = bound("mined", data, of=["bm25"], ranks=(3, 9))
    assert far.items() == ["a"]
    assert far.skipped["queries without a negative in the window"] == 1
    few = bound("mined", data, of=["bm25"], negatives=3, short="drop")
    assert few.items() == ["a"]
    assert few.skipped["queries with too few negatives (short: drop)"] == 1
    none = bound("mined", data, of=["dense"], negatives=3, ranks=(4, 5))
    assert none.items() == [] and none.skipped["queries without a negative in the window"] == 2


def test_short_pad_gives_fewer_candidates(data: RankingData) -> None:
    sampler = bound("mined", data, of=["bm25"], negatives=6, short="pad", draw="top")
    assert [len(example.candidates) for example in drawn(sampler)] == [5, 3]
    assert sampler.num_candidates is None


def test_draws_depend_on_seed_epoch_and_item_only(data: RankingData) -> None:
    sampler = bound("mined", data, of=["bm25"], negatives=2)
    first = [names(example) for example in drawn(sampler)]
    assert first == [names(example) for example in drawn(bound("mined", data, of=["bm25"], negatives=2))]
    alone = sampler.draw(1, clock(), item_rng(13, 0, "b"))
    assert names(alone) == first[1]
    epochs = {tuple(names(drawn(sampler, epoch)[0])) for epoch in range(12)}
    assert len(epochs) > 3


def test_negatives_are_never_labelled_positives(data: RankingData) -> None:
    sampler = bound("mined", data, of=["bm25", "dense"], negatives=4)
    for epoch in range(30):
        for example in drawn(sampler, epoch):
            relevant = {"a": {"d1", "d2"}, "b": {"d5"}}[example.id]
            assert not relevant & set(names(example)[1:])


def test_several_sources_share_equally(data: RankingData) -> None:
    sampler = bound("mined", data, of=["bm25", "dense"], negatives=4, mix="equal-share", draw="top")
    assert names(drawn(sampler)[0]) == ["d2", "d10", "d11", "d11", "d17"]
    once = bound("mined", data, of=["bm25", "dense"], negatives=4, mix="equal-share", draw="top", unique=True)
    assert names(drawn(once)[0]) == ["d2", "d10", "d11", "d17", "d18"]
    weighted = bound("mined", data, of=["bm25", "dense"], negatives=4, mix="proportions", weights=[3, 1], draw="top")
    assert names(drawn(weighted)[0]) == ["d2", "d10", "d11", "d3", "d11"]


def test_choice_of_positives(data: RankingData) -> None:
    assert names(drawn(bound("in-batch", data, positives_choice="all"))[0]) == ["d2", "d1"]
    assert names(drawn(bound("in-batch", data, positives=5))[0]) == ["d2", "d1"]
    rotated = bound("in-batch", data, positives_choice="rotate")
    assert [names(drawn(rotated, epoch, seed=0)[0]) for epoch in range(3)] == [["d2"], ["d1"], ["d2"]]
    random = bound("in-batch", data, positives_choice="random")
    assert {names(drawn(random, epoch)[0])[0] for epoch in range(20)} == {"d1", "d2"}
    assert names(drawn(bound("in-batch", data, min_grade=2))[0]) == ["d2"]
    assert bound("in-batch", data, min_grade=2).items() == ["a"]


def test_most_candidates_are_respected(data: RankingData) -> None:
    sampler = bound("mined", data, of=["bm25"], negatives=2, positives_choice="all", max_candidates=3, draw="top")
    assert names(drawn(sampler)[0]) == ["d2", "d10", "d11"]


def test_a_query_that_is_a_passage_is_not_its_own_negative(tmp_path: Path, data: RankingData) -> None:
    queries = TextTable.from_lists(tmp_path / "own", ["d10"], ["text 10"])
    own = RankingData(
        name="self", fingerprint="f", corpus=data.corpus, queries={"train": queries},
        qrels={"train": {"d10": {"d1": 1}}}, query_in_corpus=True,
    )  # fmt: skip
    sampler = bound("mined", own, Context(x=ranking({"d10": [10, 11, 1]})), of=["x"], negatives=1, draw="top")
    assert names(drawn(sampler)[0]) == ["d1", "d11"]


def test_scored_draws_only_what_has_a_score(data: RankingData) -> None:
    scores = ranking(
        {"a": [1, 10, 2, 11, 12], "b": [13, 5, 14], "d": [15]},
        {"a": [3.0, math.nan, math.nan, 1.0, 2.0], "b": [1.0, math.nan, 0.5], "d": [1.0]},
    )
    sampler = bound("scored", data, Context(ce=scores), of="ce", negatives=3)
    assert sampler.items() == ["a"]
    # d2, the better positive, has no score: d1 it is, and d2 is no negative either
    example = drawn(sampler)[0]
    assert names(example)[0] == "d1" and set(names(example)[1:]) == {"d11", "d12"}
    assert sampler.skipped["queries without a labelled positive that has a score"] == 1
    assert sampler.skipped["queries without a labelled positive"] == 2


def test_scored_lists_can_be_drawn_without_labels(data: RankingData) -> None:
    scores = ranking({"a": [10, 1, 11], "d": [15, 16]})
    sampler = bound(
        "scored", data, Context(ce=scores), of="ce", positives=0, negatives=3, remove_positives=False, short="pad"
    )
    assert sampler.items() == ["a", "d"]
    first, second = drawn(sampler)
    assert names(first) == ["d1", "d10", "d11"]
    assert [candidate.kind for candidate in first.candidates] == ["positive", "negative", "negative"]
    assert names(second) == ["d15", "d16"]


def test_triples_are_taken_as_given(data: RankingData) -> None:
    sampler = bound("triples", data)
    assert list(sampler.items()) == ["a", "b", "a"] and sampler.items()[1:] == ["b", "a"]
    assert [names(example) for example in drawn(sampler)] == [["d1", "d9"], ["d5", "d8"], ["d2", "d7"]]
    assert [candidate.label for candidate in drawn(sampler)[0].candidates] == [1.0, 0.0]


@pytest.mark.parametrize("known", [None, ["train"], ["dev"], []])
def test_a_plan_knows_where_triples_are_missing(known: list[str] | None) -> None:
    def problem(*path: str, found: str, fix: str) -> Problem:
        return Problem(where=".".join(path), found=found, fix=fix)

    plan = SimpleNamespace(stage=SimpleNamespace(split="train"), triples=known, problem=problem)
    for part in (SAMPLERS["triples"](), RETRIEVERS["triples"]()):
        found = [str(fault) for fault in part.check(plan)]  # type: ignore[attr-defined]
        assert len(found) == (known in (["dev"], []))
        assert all("no triples for the split 'train' (splits with triples: " in fault for fault in found)


def test_what_cannot_be_drawn_from_is_said(data: RankingData) -> None:
    without = RankingData(name="plain", fingerprint="f", corpus=data.corpus, queries=data.queries, qrels=data.qrels)
    with pytest.raises(DataError, match="no triples for split 'train'"):
        bound("triples", without)
    build: Any = SAMPLERS["in-batch"]
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        build().bind(data, "trian", Context())
    with pytest.raises(DataError, match="sampler 'in-batch' draws from ranking data"):
        bound("in-batch", ParallelData(name="p", fingerprint="f", splits={}))
    with pytest.raises(DataError, match="no split 'train'"):
        bound("pairs", PairData(name="p", fingerprint="f", splits={}))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"of": []}, "names no candidate lists"),
    ({"of": ["x"], "ranks": (5, 2)}, "are empty"),
    ({"of": ["x", "y"], "negatives": 7, "mix": "equal-share"}, "cannot be shared equally by 2"),
    ({"of": ["x", "y"], "mix": "proportions"}, "needs them"),
    ({"of": ["x", "y"], "weights": [1.0, 1.0]}, "go with mix: proportions"),
    ({"of": ["x", "y"], "mix": "proportions", "weights": [1.0]}, "1 weights for 2 lists"),
    ({"of": ["x"], "positives": 0, "negatives": 0}, "neither positives nor negatives"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    build: Any = SAMPLERS["mined"]
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_pairs_in_both_orders_keep_the_id_of_the_pair(tmp_path: Path) -> None:
    left = TextTable.from_lists(tmp_path / "l", ["p0", "p1"], ["one", "two"])
    right = TextTable.from_lists(tmp_path / "r", ["p0", "p1"], ["eins", "zwei"])
    rows = Pairs(ids=["p0", "p1"], left=left, right=right, gold=np.asarray([0.5, 4.0], dtype=np.float32))
    data = PairData(name="p", fingerprint="f", splits={"train": rows})
    assert len(bound("pairs", data).items()) == 2
    both = drawn(bound("pairs", data, symmetric=True))
    assert [(e.id, str(e.text), str(e.candidates[0].text), e.candidates[0].label) for e in both] == [
        ("p0", "one", "eins", 0.5), ("p1", "two", "zwei", 4.0), ("p0", "eins", "one", 0.5), ("p1", "zwei", "two", 4.0),
    ]  # fmt: skip
    unlabelled = Pairs(ids=["p0", "p1"], left=left, right=right, gold=None)
    without = bound("pairs", PairData(name="p", fingerprint="f", splits={"train": unlabelled}))
    assert math.isnan(drawn(without)[0].candidates[0].label)
    assert [str(example.text) for example in drawn(bound("views", data))] == ["one", "two", "eins", "zwei"]


def test_images_are_normalised_and_augmented_by_their_own_randomness() -> None:
    images = np.random.default_rng(0).integers(1, 256, size=(3, 8, 8, 3), dtype=np.uint8)
    rows = Labelled(ids=["0", "1", "2"], labels=np.asarray([2, 0, -1]), images=images)
    data = LabelledData(
        name="i", fingerprint="f", splits={"train": rows}, classes=["x", "y", "z"],
        image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.2, 0.1),
    )  # fmt: skip
    plain = drawn(bound("labelled", data))
    assert [example.label for example in plain] == [2, 0, -1]
    assert plain[0].image is not None and plain[0].image.shape == (3, 8, 8)
    expected = (images[0, 2, 5, 1] / 255 - 0.4) / 0.2
    assert float(plain[0].image[1, 2, 5]) == pytest.approx(expected, abs=1e-6)
    changing = bound("labelled", data, crop_padding=4, flip=True)
    again = drawn(bound("labelled", data, crop_padding=4, flip=True))
    versions = set()
    for epoch in range(10):
        image = drawn(changing, epoch)[0].image
        assert image is not None and image.shape == (3, 8, 8)
        versions.add(tuple(image.flatten().tolist()))
        if epoch == 0:
            assert again[0].image is not None and (again[0].image == image).all()
    assert len(versions) > 5


def test_crops_are_windows_of_the_padded_image_and_flips_mirror_it() -> None:
    from kdfw.samplers.rows import augment_image

    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[t : t + 4, s : s + 4].tobytes() for t in range(5) for s in range(5)}
    seen = {augment_image(image, 2, False, np.random.default_rng(seed)).tobytes() for seed in range(400)}
    assert seen == windows
    flips = {augment_image(image, 0, True, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert flips == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}


def test_texts_and_translations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = TextTable.from_lists(tmp_path / "s", ["0", "1"], ["ein Hund", "eine Katze"])
    target = TextTable.from_lists(tmp_path / "t", ["0", "1"], ["a dog", "a cat"])
    example = drawn(
        bound(
            "parallel",
            ParallelData(name="m", fingerprint="f", splits={"train": Parallel(source=source, target=target)}),
        )
    )[1]
    assert (example.id, str(example.text), str(example.target)) == ("1", "eine Katze", "a cat")
    rows = Labelled(ids=["x", "y"], labels=np.asarray([1, 0]), texts=target)
    texts = LabelledData(name="t", fingerprint="f", splits={"train": rows}, classes=["a", "b"])
    with caplog.at_level("WARNING"):
        labelled = drawn(bound("labelled", texts, flip=True))
    assert "no effect" in caplog.text
    assert [(e.id, str(e.text), e.label) for e in labelled] == [("x", "a dog", 1), ("y", "a cat", 0)]


def test_every_sampler_is_exercised_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(SAMPLERS) >= 7
    assert all(re.search(rf'bound\(\s*"{name}"', source) for name in SAMPLERS)


# ---------------------------------------------------------------- random passages


def test_random_negatives_are_distinct_and_no_positives(data: RankingData) -> None:
    sampler = bound("random", data, negatives=17)
    assert sampler.items() == ["a", "b"] and sampler.num_candidates == 18
    assert dict(sampler.skipped) == {"queries without a labelled positive": 2}
    first, second = drawn(sampler)
    # of a: every passage but the positives d2 and d1, 18 of which 17 are drawn; d3 has grade 0
    assert names(first)[0] == "d2" and len(set(names(first))) == 18 and "d1" not in names(first)
    assert [candidate.label for candidate in first.candidates] == [2.0] + [0.0] * 17
    assert names(second)[0] == "d5" and names(second).count("d5") == 1
    kept = bound("random", data, negatives=19, remove_positives=False)
    example = drawn(kept)[0]
    assert sorted(names(example)) == sorted(f"d{n}" for n in range(20))
    assert dict(zip(names(example), [c.label for c in example.candidates], strict=True))["d1"] == 1.0
    assert len(drawn(bound("random", data, negatives=50))[1].candidates) == 20  # no more than there are


def test_random_negatives_of_the_split_and_of_all_alike(data: RankingData) -> None:
    sampler = bound("random", data, negatives=2, pool="split")
    assert names(drawn(sampler)[0]) == ["d2", "d5"]  # what is relevant to some query of the split
    assert sorted(names(drawn(sampler)[1])) == ["d1", "d2", "d5"]
    counts = np.zeros(20)
    one = bound("random", data, negatives=3)
    for epoch in range(400):
        for name in names(drawn(one, epoch)[1])[1:]:
            counts[int(name[1:])] += 1
    # 1200 draws of 19 passages: 63 each, deviation 7.3
    assert counts[5] == 0 and counts.sum() == 1200
    assert abs(np.delete(counts, 5) - 1200 / 19).max() < 4 * 7.3
    assert names(drawn(one, 3)[0]) == names(drawn(bound("random", data, negatives=3), 3)[0])

"""Views of texts: what is drawn twice, how views differ, and the contrastive loss over them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdfw.data.sets import LabelledData, PairData, Pairs, RankingData
from kdfw.data.table import TextTable
from kdfw.errors import ConfigError, DataError, TrainingError
from kdfw.losses.contrastive import InfoNCE
from kdfw.samplers.collate import collate, item_rng
from kdfw.samplers.rows import Pairs as PairSampler
from kdfw.samplers.views import Distort, Views, cropped, erased, span_masked
from kdfw.types import Clock, Example, Signals, Text

CLOCK = Clock(step=0, total_steps=10, epoch=0, total_epochs=1, steps_per_epoch=10, seed=3)
LEFT, RIGHT = ["one", "two", "one", "four"], ["two", "three", "five", "four"]


@pytest.fixture
def pairs(tmp_path: Path) -> PairData:
    ids = ["a", "b", "c", "d"]
    left = TextTable.from_lists(tmp_path / "left", ids, LEFT)
    right = TextTable.from_lists(tmp_path / "right", ids, RIGHT)
    rows = Pairs(ids=ids, left=left, right=right, gold=np.array([0.1, 0.9, 0.5, 1.0], dtype=np.float32))
    return PairData(name="toy", fingerprint="", splits={"train": rows})


def drawn(data: Any, **options: Any) -> list[Example]:
    sampler = Views(**options)
    sampler.bind(data, "train", None)  # type: ignore[arg-type]
    return [sampler.draw(item, CLOCK, np.random.default_rng(0)) for item in range(len(sampler.items()))]


def test_each_distinct_sentence_of_the_pairs_is_its_own_positive(pairs: PairData) -> None:
    examples = drawn(pairs)
    assert [str(example.text) for example in examples] == ["one", "two", "four", "three", "five"]
    for example in examples:
        (own,) = example.candidates
        assert own.text == example.text and own.text.made is None and (own.label, own.kind) == (1.0, "positive")
    assert len({example.id for example in examples}) == 5
    sampler = Views()
    sampler.bind(pairs, "train", None)  # type: ignore[arg-type]
    assert [example.id for example in examples] == list(sampler.items())[:] == sampler.items()[0:5]


def test_passages_and_queries_of_a_ranking_are_views_of_their_own(tmp_path: Path) -> None:
    corpus = TextTable.from_lists(tmp_path / "corpus", ["1", "2"], ["north", "south"])
    queries = TextTable.from_lists(tmp_path / "queries", ["1", "2"], ["where", "why"])
    data = RankingData(
        name="r", fingerprint="", corpus=corpus, queries={"train": queries}, qrels={"train": {"1": {"2": 1}}}
    )
    assert [str(example.text) for example in drawn(data)] == ["north", "south"]
    assert [str(example.text) for example in drawn(data, texts="queries")] == ["where", "why"]
    # query 1 is judged, the view of passage 1 is not query 1: its only positive is itself
    known = collate(drawn(data), "ranking", data).known_positives
    assert known is not None and known.tolist() == [[True, False], [False, True]]


def test_other_data_and_splits_are_refused(pairs: PairData) -> None:
    sampler = Views()
    with pytest.raises(DataError, match="no split 'dev'"):
        sampler.bind(pairs, "dev", None)  # type: ignore[arg-type]
    classes = LabelledData(name="digits", fingerprint="", splits={}, classes=())
    with pytest.raises(DataError, match="cannot draw from classification data"):
        sampler.bind(classes, "train", None)  # type: ignore[arg-type]


def test_info_nce_over_views_finds_each_text_among_the_others(pairs: PairData) -> None:
    batch = collate(drawn(pairs)[:3], "pairs")
    scores = torch.tensor([[2.0, 0.0, 1.0], [0.5, 3.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    student = Signals(
        logits=scores.diagonal()[:, None], mask=batch.mask, labels=batch.labels, extra={"batch_logits": scores}
    )
    loss = InfoNCE(temperature=0.5, in_batch=True)(student, [], batch, CLOCK).total
    expected = torch.nn.functional.cross_entropy(scores / 0.5, torch.arange(3))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    both = InfoNCE(temperature=0.5, in_batch=True, symmetric=True)(student, [], batch, CLOCK).total
    other = torch.nn.functional.cross_entropy(scores.T / 0.5, torch.arange(3))
    assert both.item() == pytest.approx((expected + other).item() / 2, rel=1e-9)


def test_info_nce_refuses_pairs_with_scores(pairs: PairData) -> None:
    sampler = PairSampler()
    sampler.bind(pairs, "train", None)  # type: ignore[arg-type]
    batch = collate([sampler.draw(item, CLOCK, np.random.default_rng(0)) for item in range(2)], "pairs")
    student = Signals(logits=torch.zeros(2, 1), labels=batch.labels, extra={"batch_logits": torch.zeros(2, 2)})
    with pytest.raises(TrainingError, match="use the sampler `views`"):
        InfoNCE(in_batch=True)(student, [], batch, CLOCK)


# ---------------------------------------------------------------- distort


def test_a_crop_is_a_piece_of_consecutive_words() -> None:
    rng = np.random.default_rng(0)
    words = [str(number) for number in range(10)]
    pieces = [cropped(words, 0.4, rng) for _ in range(200)]
    assert all(piece == words[int(piece[0]) : int(piece[0]) + 4] for piece in pieces)
    assert {int(piece[0]) for piece in pieces} == set(range(7))
    assert cropped(["x"], 0.1, rng) == ["x"] and cropped(words, 1.0, rng) == words


def test_each_word_is_left_out_with_the_given_probability() -> None:
    rng = np.random.default_rng(0)
    words = [str(number) for number in range(50)]
    kept = [erased(words, 0.3, rng) for _ in range(400)]
    counts = Counter(word for one in kept for word in one)
    assert all(one == sorted(one, key=int) for one in kept)
    assert 0.68 < sum(counts.values()) / (400 * 50) < 0.73 and min(counts.values()) > 230
    assert all(erased(["only"], 0.99, rng) == ["only"] for _ in range(20))


def test_a_span_of_characters_becomes_the_mask() -> None:
    rng = np.random.default_rng(0)
    text = "abcdefghij" * 4
    for _ in range(50):
        before, after = span_masked(text, 5, "[MASK]", rng).split(" [MASK] ")
        assert len(before) + len(after) == 35 and text.startswith(before) and text.endswith(after)


def example(text: str) -> Example:
    from kdfw.types import Candidate

    return Example(
        id="e", text=Text(source=None, made=text), candidates=(Candidate(id="c", text=Text(None, made=text)),)
    )


def test_only_the_chosen_side_changes_and_only_seed_epoch_and_item_decide() -> None:
    text = "a sentence of some length in which there is a span to mask and a word to lose"
    for sides, changed in (("passages", (False, True)), ("queries", (True, False)), ("both", (True, True))):
        augmenter = Distort(erase=0.2, mask_characters=5, sides=sides)  # type: ignore[arg-type]
        found = augmenter.apply(example(text), CLOCK, item_rng(1, 0, "e"))
        again = augmenter.apply(example(text), CLOCK, item_rng(1, 0, "e"))
        other = augmenter.apply(example(text), CLOCK, item_rng(1, 1, "e"))
        assert found == again != other
        assert (str(found.text) != text, str(found.candidates[0].text) != text) == changed
        assert found.id == "e" and found.candidates[0].id == "c"


def test_a_text_that_does_not_change_stays_a_row_of_its_source(pairs: PairData) -> None:
    short = drawn(pairs)[0]
    found = Distort(mask_characters=5).apply(short, CLOCK, item_rng(1, 0, "e"))
    assert found.candidates[0].text is short.candidates[0].text
    assert "[MASK]" in str(
        Distort(mask_characters=2, min_characters=0).apply(short, CLOCK, item_rng(1, 0, "e")).candidates[0].text
    )
    with pytest.raises(ConfigError, match="nothing is changed"):
        Distort()

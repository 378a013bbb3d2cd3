"""Scores of sentence pairs: what the stage writes, and the mean of several stages."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from teacher_fakes import FakeContext, Lengths

from kdfw.data.ranking import Ranking
from kdfw.data.sets import LabelledData, PairData, Pairs, scored_texts
from kdfw.data.table import TextTable
from kdfw.errors import ConfigError, DataError, TrainingError
from kdfw.samplers.collate import StoredScores, collate
from kdfw.samplers.rows import Pairs as PairSampler
from kdfw.teachers.ensemble import EnsembleOfScores
from kdfw.teachers.score_stage import Score
from kdfw.types import Clock

LEFT = ["a", "bb", "a", "ccc"]
RIGHT = ["xxxx", "x", "xxxx", "xx"]
IDS = ["p0", "p1", "p2", "p3"]
CLOCK = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    left = TextTable.from_lists(tmp_path / "left", IDS, LEFT)
    right = TextTable.from_lists(tmp_path / "right", IDS, RIGHT)
    data = PairData(name="toy", fingerprint="toy", splits={"train": Pairs(ids=IDS, left=left, right=right, gold=None)})
    return FakeContext(
        cache=tmp_path / "cache", folder=tmp_path / "stage", sets=data, teachers={"t": Lengths(), "u": Lengths()}
    )


def test_every_pair_has_one_score_and_equal_texts_are_asked_once(context: FakeContext) -> None:
    Score(teacher="t", queries_per_block=2).run(context)
    found = Ranking.load(context.folder)
    assert found.query_ids == tuple(IDS)
    assert found.passages.tolist() == [0, 1, 2, 3] and found.scores.tolist() == [3, -1, 3, -1]
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths) and teacher.asked == [("a", "xxxx"), ("bb", "x"), ("ccc", "xx")]
    checks = json.loads((context.folder / "checks.json").read_text())
    assert (checks["pairs"], checks["lowest"], checks["highest"], checks["missing_pairs"]) == (4, -1, 3, 0)


def test_sigmoid_is_applied_to_what_is_written_not_to_what_is_stored(context: FakeContext, tmp_path: Path) -> None:
    Score(teacher="t", activation="sigmoid").run(context)
    expected = 1 / (1 + np.exp(-np.array([3.0, -1.0, 3.0, -1.0])))
    assert Ranking.load(context.folder).scores == pytest.approx(expected, abs=1e-7)
    again = replace(context, folder=tmp_path / "raw")
    Score(teacher="t").run(again)
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths) and len(teacher.asked) == 3
    assert Ranking.load(again.folder).scores.tolist() == [3, -1, 3, -1]


def test_a_reversed_pair_finds_the_score_of_the_pair(context: FakeContext) -> None:
    Score(teacher="t").run(context)
    sampler = PairSampler(symmetric=True)
    sampler.bind(context.sets, "train", context)
    draws = [sampler.draw(number, CLOCK, np.random.default_rng(0)) for number in (1, 5, 4, 0)]
    assert [str(example.text) for example in draws] == ["bb", "x", "xxxx", "a"]
    logits, mask = StoredScores(Ranking.load(context.folder), scored_texts(context.sets, "train")).logits(
        collate(draws, "pairs")
    )
    assert logits[:, 0].tolist() == [-1, -1, 3, 3] and bool(mask.all())


def test_pairs_that_all_have_one_score_are_named(context: FakeContext, caplog: pytest.LogCaptureFixture) -> None:
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths)
    teacher.special = dict.fromkeys(RIGHT, 0.5)
    with caplog.at_level(logging.WARNING):
        Score(teacher="t").run(context)
    assert "all 4 pairs have the same score, 0.5" in caplog.text
    with pytest.raises(TrainingError, match="same score"):
        Score(teacher="t", on_constant="error").run(context)


def test_a_check_leaves_a_stand_in_for_every_pair(context: FakeContext) -> None:
    report = Score(teacher="t", activation="sigmoid").preflight(context)
    found = Ranking.load(context.folder)
    assert report["queries"] == 2 and found.query_ids == tuple(IDS)  # two asked, four written
    assert bool(((found.scores > 0) & (found.scores < 1)).all())


def test_a_split_that_is_not_there_and_data_without_pairs_are_named(context: FakeContext) -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        Score(teacher="t", split="dev").run(context)
    classes = LabelledData(name="digits", fingerprint="", splits={}, classes=())
    with pytest.raises(DataError, match="digits.*not classification"):
        scored_texts(classes, "train")


def test_the_mean_of_stages_is_that_of_their_scores(context: FakeContext, tmp_path: Path) -> None:
    one = Ranking.from_lists(iter([("p0", np.array([0]), np.array([0.2])), ("p1", np.array([1]), np.array([-0.4]))]))
    two = Ranking.from_lists(iter([("p1", np.array([1]), np.array([0.8])), ("p0", np.array([0]), np.array([0.6]))]))
    both = replace(context, lists={"one": one, "two": two})

    def mean(*of: str, weights: list[float] | None = None) -> dict[str, float]:
        EnsembleOfScores(of=list(of), weights=weights).run(both)
        found = Ranking.load(both.folder)
        return dict(zip(found.query_ids, found.scores.tolist(), strict=True))

    assert mean("one", "two") == pytest.approx({"p0": 0.4, "p1": 0.2})
    assert mean("two", "one") == pytest.approx({"p0": 0.4, "p1": 0.2})
    assert mean("one") == pytest.approx({"p0": 0.2, "p1": -0.4})
    assert mean("one", "one") == mean("one")
    assert mean("one", "two", weights=[3, 1]) == pytest.approx({"p0": 0.3, "p1": -0.1})
    with pytest.raises(ConfigError, match="2 weights for 1"):
        EnsembleOfScores(of=["one"], weights=[1, 1])


def test_lists_are_joined_and_a_missing_score_counts_for_nothing(context: FakeContext) -> None:
    one = Ranking.from_lists(iter([("q", np.array([5, 3]), np.array([1.0, 2.0]))]))
    two = Ranking.from_lists(iter([("q", np.array([3, 8]), np.array([4.0, np.nan])), ("r", np.array([1]), np.ones(1))]))
    EnsembleOfScores(of=["one", "two"]).run(replace(context, lists={"one": one, "two": two}))
    found = Ranking.load(context.folder)
    assert found.query_ids == ("q", "r")
    rows, scores = found.of(0)
    assert rows.tolist() == [5, 3, 8] and scores[:2].tolist() == [1.0, 3.0] and np.isnan(scores[2])

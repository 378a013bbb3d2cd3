"""Ensembles by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from teacher_fakes import FakeContext, Lengths

from kdfw.errors import ConfigError
from kdfw.teachers.ensemble import Ensemble, combined, normalised

NAN = math.nan


def test_scales_by_hand() -> None:
    scores = np.asarray([1.0, 3.0, NAN, 5.0])
    e = math.exp(2) / (1 + math.exp(2) + math.exp(4))
    expected = {
        "none": [1, 3, NAN, 5],
        "min-max": [0, 0.5, NAN, 1],
        "z-score": [-2 / math.sqrt(8 / 3), 0, NAN, 2 / math.sqrt(8 / 3)],
        "softmax": [e / math.exp(2), e, NAN, e * math.exp(2)],
        "rank": [0, 0.5, NAN, 1],
    }
    for how, values in expected.items():
        np.testing.assert_allclose(normalised(scores, how), values, atol=1e-12)  # type: ignore[arg-type]


def test_ties_share_their_mean_rank_and_equal_scores_are_in_the_middle() -> None:
    assert normalised(np.asarray([7.0, 2.0, 7.0, 9.0, 7.0]), "rank").tolist() == [0.5, 0, 0.5, 1, 0.5]
    for how, value in (("min-max", 0.5), ("rank", 0.5), ("z-score", 0.0), ("softmax", 0.5)):
        assert normalised(np.asarray([4.0, 4.0]), how).tolist() == [value, value]  # type: ignore[arg-type]
    assert normalised(np.asarray([4.0]), "rank").tolist() == [0.5]
    assert np.isnan(normalised(np.asarray([NAN, NAN]), "softmax")).all()


def test_the_mean_is_over_the_teachers_that_have_a_score() -> None:
    first, second = np.asarray([1.0, NAN, NAN, 4.0]), np.asarray([3.0, 6.0, NAN, 8.0])
    mixed = combined([first, second], [3.0, 1.0], "none")
    np.testing.assert_allclose(mixed, [(3 + 3) / 4, 6.0, NAN, (12 + 8) / 4])
    assert np.isnan(combined([first, second], [1.0, 0.0], "none")[1])  # the second counts for nothing
    np.testing.assert_allclose(combined([first, second], [1, 1], "min-max")[[0, 3]], [0.0, 1.0])


def test_members_are_scored_through_the_store_and_combined(tmp_path: Path) -> None:
    members = {"a": Lengths(), "b": Lengths()}
    members["b"].fingerprint = lambda: "other"  # type: ignore[method-assign]
    members["b"].special = {"xx": 9.0}
    teacher = Ensemble(of=["a", "b"], weights=[1.0, 3.0])
    teacher.load(FakeContext(cache=tmp_path, folder=tmp_path, teachers=members))
    found = teacher.score(["q"], [["x", "xx"]], [("1", ["d1", "d2"])])
    assert found[0].tolist() == [0.0, (1 + 27) / 4]
    again = Ensemble(of=["a", "b"], normalise="rank")
    again.load(FakeContext(cache=tmp_path, folder=tmp_path, teachers=members))
    assert again.score(["q"], [["x", "xx"]], [("1", ["d1", "d2"])])[0].tolist() == [0.0, 1.0]
    assert len(members["a"].asked) == len(members["b"].asked) == 2


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="names no teacher"):
        Ensemble(of=[])
    with pytest.raises(ConfigError, match="1 weights for 2 teachers"):
        Ensemble(of=["a", "b"], weights=[1.0])
    with pytest.raises(ConfigError, match="all weights are 0"):
        Ensemble(of=["a", "b"], weights=[0.0, 0.0])

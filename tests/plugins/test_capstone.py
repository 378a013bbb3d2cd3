"""Invariants of CAPSTONE (arXiv:2212.09114)."""

import numpy as np
import pytest
import torch

from kdfw_plugins.capstone.curriculum import draw, kept_candidates, part_at, part_ranks
from kdfw_plugins.capstone.porter import stem
from kdfw_plugins.capstone.similarity import rouge_l
from kdfw_plugins.capstone.views import average_scores, best_scores


@pytest.mark.parametrize(("total", "parts"), [(20000, 3), (25000, 4), (7, 4), (4, 4)])
def test_parts_go_from_the_least_similar_to_the_most(total: int, parts: int) -> None:
    seen = [part_at(step, total, parts) for step in range(total)]
    assert seen[0] == parts and seen[-1] == 1 and seen == sorted(seen, reverse=True)
    assert set(seen) == set(range(1, parts + 1))
    assert part_at(total, total, parts, "gradual-gold") == 0


def test_parts_divide_the_ranks() -> None:
    reach = [part_ranks(part, 4, 12, 12) for part in (1, 2, 3, 4)]
    assert sum(reach, []) == list(range(12)) and {len(ranks) for ranks in reach} == {3}
    assert part_ranks(4, 4, 12, 5) == [4]


def test_a_draw_comes_from_its_part() -> None:
    scores = [0.1, 0.9, 0.5, 0.7, 0.3, 0.2]
    rng = np.random.default_rng(0)
    assert {draw(scores, 1, 3, rng) for _ in range(50)} == {1, 3}
    assert {draw(scores, 3, 3, rng) for _ in range(50)} == {0, 5}
    assert kept_candidates(scores, 0.25) == [5, 0] and kept_candidates(scores, 0.0) == [0]


def test_rouge_l() -> None:
    assert rouge_l("The cats, running!", "the cat RUNNING") == pytest.approx(1.0)
    assert rouge_l("a b c d", "a x c") == pytest.approx(2 * 2 / 7) == rouge_l("a x c", "a b c d")
    assert rouge_l("alpha", "beta") == 0.0


# worked through Porter's rules by hand, with the extensions
STEMS = {"caresses": "caress", "ponies": "poni", "ties": "tie", "agreed": "agre", "plastered": "plaster"}
STEMS |= {"hopping": "hop", "falling": "fall", "filing": "file", "happy": "happi", "relational": "relat"}
STEMS |= {"day": "day", "rationally": "ration", "dying": "die", "analogy": "analog", "probate": "probat"}


@pytest.mark.parametrize("word", sorted(STEMS))
def test_stems(word: str) -> None:
    assert stem(word) == STEMS[word]


def test_the_average_never_beats_the_best_view() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, views = torch.randn(3, 4, generator=generator), torch.randn(5, 6, 4, generator=generator)
    average, best = average_scores(queries, views), best_scores(queries, views)
    assert (average <= best + 1e-6).all()
    assert torch.allclose(average, torch.stack([queries @ view.T for view in views]).mean(0), atol=1e-6)
    assert torch.allclose(average_scores(queries, views[:1]), best_scores(queries, views[:1]))

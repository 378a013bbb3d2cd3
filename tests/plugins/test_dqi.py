"""Invariants of DQI (arXiv:2208.04232)."""

import numpy as np

from kdfw.types import Candidate, Clock, Example, Text
from kdfw_plugins.dqi.augment import QueryPrefixed
from kdfw_plugins.dqi.views import best_views, corpus_views, turning_window


def test_search_is_ranking_by_the_best_view() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        documents = [int(document) for document in rng.permutation(np.repeat(np.arange(8), 3))]
        scores = rng.normal(size=24)
        pairs = list(zip(scores, documents, strict=True))
        best = {document: max(score for score, own in pairs if own == document) for document in range(8)}
        expected = sorted(best, key=lambda document: -best[document])[:5]
        ids, found = best_views(scores, documents, 5, 15)
        assert ids == expected and found == [best[document] for document in expected]


def test_every_view_starts_with_its_query_and_is_cut_as_a_whole() -> None:
    views = corpus_views([[1, 2], [3]], [7], [8, 9, 10], num_views=5, separator=0, max_tokens=6)
    assert views == [[1, 2, 0, 7, 8, 9], [3, 0, 7, 8, 9, 10]]


def test_windows_show_fresh_negatives() -> None:
    assert [turning_window("abcde", 3, epoch) for epoch in range(3)] == [list("abc"), list("dea"), list("bcd")]


def test_negatives_are_prefixed_too() -> None:
    clock = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)
    candidates = tuple(Candidate(id=name, text=Text(source=None, made=f"text {name}")) for name in "pn")
    example = Example(id="q", text=Text(source=None, made="what"), candidates=candidates)
    made = QueryPrefixed().apply(example, clock, np.random.default_rng(0))
    assert [str(candidate.text) for candidate in made.candidates] == ["what [SEP] text p", "what [SEP] text n"]
    assert [candidate.id for candidate in made.candidates] == ["p", "n"]

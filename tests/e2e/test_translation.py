"""English to German on Multi30k: two translators from scratch, one teaching the other for some dozens of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from e2e_results import check_items, check_report, lines, losses, measures


@pytest.mark.slow
def test_a_translator_learns_from_another(run_recipe: Any) -> None:
    settings = ["stages.teach.train.log_every=1", "stages.distill.train.log_every=1"]
    result = run_recipe("multi30k-tiny", settings)
    for stage in ("teach", "distill"):
        values = losses(result.stages[stage])
        assert len(values) == 30 and np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    # the first loss of a model that knows nothing is the log of its vocabulary
    assert losses(result.stages["teach"])[0] == pytest.approx(np.log(500), abs=0.3)
    terms = [line for line in lines(result.stages["distill"] / "metrics.jsonl") if "kl" in line]
    assert terms[-1]["kl"] < 0.3 * terms[0]["kl"]
    for system in measures(result.stages["test"]).values():
        assert 0 <= system["bleu"] < 20 and 1 < system["chrf"] < 40
    check_items(result.stages["test"], 1000)
    check_report(result)

    translate_in_transformers(result.stages["distill"] / "model")


def translate_in_transformers(folder: Any) -> None:
    """The exported folder opens as a translator that can generate."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    opened = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(["A man is riding a horse ."], return_tensors="pt")
    tokens.pop("token_type_ids", None)
    assert opened.generate(**tokens, max_new_tokens=5, num_beams=1, do_sample=False).shape[1] > 1

"""Recomputing activations: every transformer of a model does it, and gradients stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WORDS, write_bert

from kdfw.engine.training import _checkpoint_activations
from kdfw.models import STUDENTS
from kdfw.models.forward import represent
from kdfw.types import Text


@pytest.mark.parametrize(("name", "options"), [("bi-encoder", {"towers": "two"}), ("sparse", {})])
def test_every_layer_recomputes_and_gradients_stay(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = write_bert(tmp_path / "bert")

    def trained(recompute: bool) -> Any:
        model: Any = STUDENTS[name](base=str(base), dropout=0.0, max_passage_tokens=64, **options)
        model.load()
        model.train()
        if recompute:
            _checkpoint_activations(model)
        calls = []
        for module in model.modules():
            if type(module).__name__ == "BertSelfAttention":
                module.query.register_forward_hook(lambda *_: calls.append(1))
        texts = [Text(source=None, made=" ".join(WORDS[:number])) for number in (3, 9)]
        groups = [model.text_rows(texts, role) for role in ("query", "passage")]
        for reps in represent(model, groups, frozenset()).values():
            sum(value.square().sum() for value in reps.values()).backward()
        return model, len(calls)

    (plain, once), (recomputing, twice) = trained(False), trained(True)
    assert once == 4 and twice == 8  # two layers for queries, and for passages
    for (key, weight), other in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        if weight.grad is not None:
            assert other.grad is not None, key
            torch.testing.assert_close(other.grad, weight.grad, msg=key)

"""A model that gives the signals no student of the core has, with parameters inside and outside `encode`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kdfw.components import Model
from kdfw.models.rows import MicroBatch, RowGroup
from kdfw.types import Batch, Signals

WIDTH, CLASSES, HEADS = 8, 3, 2


class ManySignals(Model):
    """Mean of word vectors through a tower for each role; heads and granularities by matrices in `signals`."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ranking"})
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "batch_logits", "logits/passage", "logits/sentence"})

    def load(self, weights: Path | None = None) -> None:
        self.words = nn.Embedding(64, WIDTH)
        self.towers = nn.ModuleDict({role: nn.Linear(WIDTH, WIDTH) for role in ("query", "passage", "text")})
        self.heads = nn.Parameter(torch.randn(HEADS, WIDTH, CLASSES))
        self.grains = nn.Parameter(torch.randn(2, WIDTH, WIDTH) / WIDTH)

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        def group(role: str) -> RowGroup:
            texts: Any = batch.inputs[role]
            return RowGroup(name=role, ids=[_numbers(str(text)) for text in texts])

        return [group("query"), group("passage")] if batch.task == "ranking" else [group("text")]

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        assert micro.ids is not None
        states = self.words(micro.ids)
        mask = torch.ones_like(micro.ids, dtype=torch.bool) if micro.mask is None else micro.mask
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"state": torch.tanh(self.towers[micro.group](mean))}

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        if batch.task != "ranking":
            heads = torch.einsum("qh,khc->kqc", reps["text"]["state"], self.heads)
            return Signals(logits=heads.mean(0), labels=batch.labels, extra={"head_logits": heads})
        queries, passages = reps["query"]["state"], reps["passage"]["state"]
        assert batch.candidates is not None
        extra = {"batch_logits": 3 * queries @ passages.T}
        logits = extra["batch_logits"].gather(1, batch.candidates)
        for number, grain in enumerate(("passage", "sentence")):
            extra[f"logits/{grain}"] = (queries @ self.grains[number] @ passages.T).gather(1, batch.candidates)
        return Signals(logits=logits, mask=batch.mask, labels=batch.labels, extra=extra)


class ManyHeads(ManySignals):
    """The same for texts of three classes."""

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "head_logits"})


def _numbers(text: str) -> np.ndarray:
    words: Sequence[str] = text.split()
    return np.asarray([sum(map(ord, word)) % 64 for word in words], dtype=np.int64)

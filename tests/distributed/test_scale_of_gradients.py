"""The scale of in-batch negatives between processes, worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from run_processes import Together
from torch import nn

from kdfw.components import Model
from kdfw.models.rows import RowGroup
from kdfw.types import Candidate, Clock, Example, Signals, Text


class Numbers(Model):
    """A text of n letters becomes the vector weight * onehot(n), and scores are dot products."""

    provides = frozenset({"logits", "batch_logits"})

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def rows(self, batch: Any, need: frozenset[str]) -> list[RowGroup]:
        import numpy as np

        return [
            RowGroup(name=role, ids=[np.full(len(str(text)), len(str(text))) for text in batch.inputs[role]])
            for role in ("query", "passage")
        ]

    def encode(self, micro: Any, need: frozenset[str]) -> dict[str, torch.Tensor]:
        return {"vector": self.weight * nn.functional.one_hot(micro.ids[:, 0], 4).float()}

    def signals(self, reps: Any, batch: Any, need: frozenset[str]) -> Signals:
        whole = reps["query"]["vector"] @ reps["passage"]["vector"].T
        return Signals(
            logits=whole.gather(1, batch.candidates), mask=batch.mask, labels=batch.labels,
            extra={"batch_logits": whole},
        )  # fmt: skip


def step(out: Path) -> None:
    from distributed_steps import Context, Given

    from kdfw.engine.launch import start_processes
    from kdfw.engine.settings import TrainSettings
    from kdfw.engine.train_stage import Train
    from kdfw.engine.training import Trainer
    from kdfw.losses.contrastive import InfoNCE

    workers, _ = start_processes()
    examples = [
        Example(
            id=letters,
            text=Text(source=None, made=letters),
            candidates=(Candidate(id=letters, text=Text(source=None, made=letters), label=1.0, kind="positive"),),
        )
        for letters in ("a", "aa", "aaa")
    ]
    stage = Train(
        student="student",
        losses=[InfoNCE(in_batch=True)],
        sampler=Given(examples),
        train=TrainSettings(batch_size=3, lr=0.0, optimizer="sgd", clip=None, precision="fp32", dropout=False),
    )
    model = Numbers()
    trainer = Trainer(stage, Context(workers, {"student": model}, "ranking"))  # type: ignore[arg-type]
    clock = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)
    loss = trainer.step(trainer.feed.batch(0), clock)["loss"]
    assert model.weight.grad is not None
    (out / f"{workers.rank}.txt").write_text(f"{loss!r} {model.weight.grad.item()!r}")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_in_batch_negatives_between_processes_by_hand(processes: int, together: Together, tmp_path: Path):
    """Every query scores w**2 = 4 with its own passage and 0 with the two of the others, wherever those were encoded.

    Loss: log(1 + 2 exp(-w**2)). Gradient: -2 w * 2 exp(-w**2) / (1 + 2 exp(-w**2)), the same for each of the three.
    """
    started = together.start(processes, step, tmp_path)
    assert started.codes() == [0] * processes, started.errors()
    others = 2 * math.exp(-4.0)
    for rank in range(processes):
        loss, gradient = map(float, (tmp_path / f"{rank}.txt").read_text().split())
        assert loss == pytest.approx(math.log(1 + others), rel=1e-5)  # float32 near 1
        assert gradient == pytest.approx(-4 * others / (1 + others), rel=1e-5)

"""What a running stage may ask of the engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kdfw.components import Model, Teacher
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import Data


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among those of the run."""

    rank: int = 0
    world_size: int = 1

    @property
    def main(self) -> bool:
        """True on the one process that writes artifacts."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """The contiguous part of `total` units that this process works on; parts differ by at most one unit."""
        begin = total * self.rank // self.world_size
        return range(begin, total * (self.rank + 1) // self.world_size)

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Every process's rows, in rank order, on every process. Arrays may differ in their first length."""
        from kdfw.processes import gather_rows

        return gather_rows(array, self)

    def barrier(self) -> None:
        """Wait for the others."""
        from kdfw.processes import barrier

        barrier(self)


class Progress(Protocol):
    """A progress bar, or plain log lines where there is no terminal."""

    def update(self, amount: int = 1, **shown: object) -> None: ...
    def __enter__(self) -> Progress: ...
    def __exit__(self, *exc: object) -> None: ...


class StageContext(Protocol):
    """Given to `Stage.run`, `Sampler.bind`, `Retriever.search`, `Teacher.load`."""

    folder: Path
    """The artifact's working folder. Kept after a kill, committed atomically when the stage returns."""
    cache: Path
    """Shared store of what is kept by content: token stores, teacher scores, embeddings, indexes."""
    seed: int
    workers: Workers
    device: torch.device
    log: logging.Logger
    precision: str
    """`fp32` or `bf16`, resolved."""
    offline: bool

    def data(self, name: str | None = None) -> Data:
        """A data set by name, or the stage's own (the recipe's only one)."""
        ...

    def model(self, name: str) -> Model:
        """A loaded model in eval mode on `device`: an entry under `models:` or the output of a training stage."""
        ...

    def model_fingerprint(self, name: str) -> str:
        """What the weights and options of that model come from; the key for anything computed with it."""
        ...

    def teacher(self, name: str) -> Model | Teacher:
        """A loaded teacher: a model, or a source of scores."""
        ...

    def scorer(self, name: str) -> Model | Teacher:
        """The loaded teacher that wrote the scores of an earlier stage."""
        ...

    def is_model(self, name: str) -> bool:
        """Whether a reference names a model, or a stage that trains one."""
        ...

    def holds_scores(self, name: str) -> bool:
        """Whether a teacher reference names a stage with stored scores rather than a model."""
        ...

    def candidates(self, name: str) -> Ranking:
        """Candidate lists written by an earlier stage, or those that came with the data."""
        ...

    def scores(self, name: str) -> Ranking:
        """Teacher scores written by an earlier stage: the same lists with `scores` those of the teacher, unsorted."""
        ...

    def artifact(self, name: str) -> Path:
        """The committed folder of an earlier stage."""
        ...

    def progress(self, total: int, title: str, unit: str = "it", start: int = 0) -> Progress:
        """A progress display for `total` units of work, `start` of them done before."""
        ...

    def trackers(self, config: Mapping[str, Any]) -> Any:
        """The recipe's experiment trackers for this stage: `log(step, values)` and `close()`."""
        ...

    def record(self, **values: Any) -> None:
        """Append one line to the stage's `metrics.jsonl`."""
        ...

    def summary(self, values: Mapping[str, Any]) -> None:
        """Numbers that describe the stage's result; shown in the result table and the manifest."""
        ...

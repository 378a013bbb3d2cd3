"""Stand-ins for what the engine gives a running stage, and texts held in memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdfw.components import Model
from kdfw.context import Workers
from kdfw.data.ranking import Ranking
from kdfw.data.sets import RankingData
from kdfw.models.rows import MicroBatch, RowGroup
from kdfw.types import Qrels, Text


class Texts:
    """A text source in memory."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self.rows = list(rows)
        self.numbers = {id: number for number, (id, _) in enumerate(self.rows)}
        self.fingerprint = hashlib.sha256(repr(self.rows).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, row: int) -> str:
        return self.rows[row][1]

    def id(self, row: int) -> str:
        return self.rows[row][0]

    def row(self, id: str) -> int:
        return self.numbers[id]

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str]]:
        yield from self.rows[start:stop]

    def select(self, rows: Sequence[int]) -> Texts:
        return Texts([self.rows[row] for row in rows])


def ranking_data(corpus: Any, queries: Any, qrels: Qrels | None = None, **more: Any) -> RankingData:
    """Data with one split, `train`."""
    sets = {"corpus": corpus, "queries": {"train": queries}, "qrels": {"train": qrels or {}}}
    return RankingData(name="made", fingerprint="made", **sets, **more)


class CharacterModel(Model):
    """One vector a text: the mean of a fixed random vector for each of its characters. Counts its texts."""

    search = "dense"

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.table = torch.randn(128, width, generator=torch.Generator().manual_seed(seed))
        self.encoded = 0

    def text_rows(self, texts: Sequence[Text], role: str) -> RowGroup:
        return RowGroup(name=role, ids=[np.asarray([ord(c) % 128 for c in str(text)]) for text in texts])

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, torch.Tensor]:
        self.encoded += len(micro.ids)
        mask = torch.ones_like(micro.ids, dtype=torch.bool) if micro.mask is None else micro.mask
        states = self.table[micro.ids] * mask[:, :, None]
        return {"embedding": states.sum(1) / mask.sum(1, keepdim=True)}

    def vector(self, text: str) -> np.ndarray:
        """The embedding of a text, in float64."""
        return self.table[[ord(c) % 128 for c in text]].double().mean(0).numpy()


class Bar:
    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def update(self, amount: int = 1, **shown: object) -> None: ...


class Context:
    """A `StageContext` over a temporary folder."""

    def __init__(self, folder: Path, data: Any = None, models: dict[str, Any] | None = None, **more: Any) -> None:
        self.folder = folder / "stage"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cache = folder / "cache"
        self.seed = 0
        self.workers = Workers()
        self.device = torch.device("cpu")
        self.log = logging.getLogger("test")
        self.precision = "fp32"
        self.offline = True
        self.models = models or {}
        self.rankings: dict[str, Ranking] = {}
        self.summaries: dict[str, Any] = {}
        self._data = data
        vars(self).update(more)

    def data(self, name: str | None = None) -> Any:
        return self._data

    def model(self, name: str) -> Any:
        return self.models[name]

    def model_fingerprint(self, name: str) -> str:
        return f"fingerprint of {name}"

    def candidates(self, name: str) -> Ranking:
        return self.rankings[name]

    def progress(self, total: int, title: str, unit: str = "it") -> Bar:
        return Bar()

    def record(self, **values: Any) -> None: ...

    def summary(self, values: Any) -> None:
        self.summaries.update(values)


def as_lists(ranking: Ranking, corpus: Any) -> dict[str, list[tuple[str, float]]]:
    """Query id -> [(passage id, score)] in order."""
    return {
        id: [(corpus.id(int(row)), float(score)) for row, score in zip(*ranking.of(number), strict=True)]
        for number, id in enumerate(ranking.query_ids)
    }


def two_workers(task: Any) -> list[Any]:
    """Run `task(workers)` as two processes would, with a real exchange of arrays between two threads."""
    import threading

    slots: list[Any] = [None, None]
    meeting = threading.Barrier(2)

    class Linked(Workers):
        def gather(self, array: np.ndarray) -> np.ndarray:
            slots[self.rank] = array
            meeting.wait(60)
            joined = np.concatenate(slots)
            meeting.wait(60)
            return joined

        def barrier(self) -> None:
            meeting.wait(60)

    results: list[Any] = [None, None]

    def work(rank: int) -> None:
        try:
            results[rank] = task(Linked(rank=rank, world_size=2))
        except BaseException as error:
            results[rank] = error
            meeting.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results

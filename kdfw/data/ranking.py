"""Candidate lists as arrays: what retrieval writes, and samplers, teachers and measures read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdfw.errors import ArtifactError
from kdfw.files import load_array
from kdfw.types import Run

if TYPE_CHECKING:
    from kdfw.types import TextSource


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """For each query a ranked list of passages, as rows of a corpus. Lists may differ in length.

    Lists are ordered by score descending, ties by passage id descending (trec_eval's order).
    """

    query_ids: tuple[str, ...]
    starts: np.ndarray
    """(Q + 1,) int64: list q is `starts[q]:starts[q + 1]`."""
    passages: np.ndarray
    """(total,) int64 rows of the corpus."""
    scores: np.ndarray
    """(total,) float32."""

    def __len__(self) -> int:
        return len(self.query_ids)

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """(passage rows, scores) of query number `query`."""
        begin, end = int(self.starts[query]), int(self.starts[query + 1])
        return self.passages[begin:end], self.scores[begin:end]

    def index(self) -> dict[str, int]:
        """Query id -> number."""
        return {id: number for number, id in enumerate(self.query_ids)}

    def run(self, corpus: TextSource) -> Run:
        """As a dictionary of ids, for measures and run files."""
        result: Run = {}
        for number, query_id in enumerate(self.query_ids):
            rows, scores = self.of(number)
            result[query_id] = {corpus.id(int(row)): float(score) for row, score in zip(rows, scores, strict=True)}
        return result

    def save(self, folder: Path) -> None:
        """Write `ranking.*` files into a folder (plain arrays and a text file: no pickle)."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "ranking.starts.npy", self.starts)
        np.save(folder / "ranking.passages.npy", self.passages)
        np.save(folder / "ranking.scores.npy", self.scores)
        (folder / "ranking.queries.txt").write_text("".join(f"{id}\n" for id in self.query_ids), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Ranking:
        """Memory-mapped from a folder written by `save`. Raises ArtifactError for one that is damaged."""
        try:
            return cls(
                query_ids=tuple((folder / "ranking.queries.txt").read_text(encoding="utf-8").split("\n")[:-1]),
                starts=load_array(folder / "ranking.starts.npy"),
                passages=load_array(folder / "ranking.passages.npy"),
                scores=load_array(folder / "ranking.scores.npy"),
            )
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{folder}: not a readable ranking ({error}); delete it and run again") from error

    @classmethod
    def from_lists(cls, lists: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> Ranking:
        """From (query id, passage rows, scores) in query order; the lists are taken as they stand."""
        ids, rows, scores, starts = [], [], [], [0]
        for query_id, list_rows, list_scores in lists:
            ids.append(query_id)
            rows.append(np.asarray(list_rows, dtype=np.int64))
            scores.append(np.asarray(list_scores, dtype=np.float32))
            starts.append(starts[-1] + len(rows[-1]))
        return cls(
            query_ids=tuple(ids),
            starts=np.asarray(starts, dtype=np.int64),
            passages=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
            scores=np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32),
        )

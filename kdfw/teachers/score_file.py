"""Teacher scores that someone else computed: files of (query id, passage id, score)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from kdfw.components import Teacher
from kdfw.errors import DataError
from kdfw.fingerprint import file_digest, fingerprint

if TYPE_CHECKING:
    from kdfw.context import StageContext


class ScoreFile(Teacher):
    """Scores from a file, by query and passage id.

    Args:
        path: the file, plain or gzip
        layout: `tsv` (qid pid score), `margin` (positive_score negative_score qid positive_id negative_id), `jsonl`
            (score lists), `trec` (a run file), or `auto`: told by the first line
        hold: `probabilities` become their logits, the scale of the scores that losses compare; 0 and 1 are taken for
            1e-7 from the end
    """

    made_texts: ClassVar[bool] = False
    keeps_own_scores: ClassVar[bool] = True

    def __init__(
        self,
        *,
        path: Path,
        layout: Literal["auto", "tsv", "margin", "jsonl", "trec"] = "auto",
        hold: Literal["scores", "probabilities"] = "scores",
    ) -> None:
        self.path = path
        self.layout = layout
        self.hold = hold
        self._scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def fingerprint(self) -> str:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such score file; paths are relative to where kdfw runs")
        return fingerprint(["score-file", self.layout, self.hold, file_digest(self.path)])

    def load(self, context: StageContext | None = None) -> None:
        """Read the file: 12 bytes a pair stay in memory, beside the ids."""
        from kdfw.data.score_files import read_scores

        if not self.path.is_file():
            raise DataError(f"{self.path}: no such score file; paths are relative to where kdfw runs")
        found = read_scores(self.path, self.layout)
        for query in list(found.scores):
            row = found.scores.pop(query)
            ids = np.asarray([passage.encode() for passage in row], dtype="S")
            order = np.argsort(ids)
            scores = np.fromiter(row.values(), dtype=np.float64, count=len(row))[order]
            if self.hold == "probabilities":
                scores = self._logits(query, scores)
            self._scores[query] = ids[order], scores.astype(np.float32)

    def _logits(self, query: str, probabilities: np.ndarray) -> np.ndarray:
        if (probabilities < 0).any() or (probabilities > 1).any():
            raise DataError(f"{self.path}: query {query!r} has a score outside [0, 1]; write `hold: scores`")
        inside = probabilities.clip(1e-7, 1 - 1e-7)
        logits: np.ndarray = np.log(inside / (1 - inside))
        return logits

    def score(
        self, query: Sequence[str], passages: Sequence[Sequence[str]], ids: Sequence[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        found = []
        for query_id, passage_ids in ids:
            scores = np.full(len(passage_ids), np.nan, dtype=np.float32)
            if query_id in self._scores and passage_ids:
                known, values = self._scores[query_id]
                wanted = np.asarray([passage.encode() for passage in passage_ids], dtype="S")
                at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
                same = known[at] == wanted
                scores[same] = values[at[same]]
            found.append(scores)
        return found

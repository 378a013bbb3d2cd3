"""Vectors of a score stage's passages, for teachers with one vector a text: each is computed once a stage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdfw.components import Model
from kdfw.retrieval.encode import Vectors
from kdfw.retrieval.store import writing
from kdfw.types import Batch, Signals, Text, TextSource

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.models.forward import Budget

CHUNK = 4096
"""Passages encoded and written together."""
WORTH_SHARING = 1024
"""Corpora from this size on are encoded whole into the cache when a stage needs at least half of them."""


def has_vectors(model: object) -> bool:
    """Whether a model scores by one vector a text, so that a passage's vector serves every query."""
    return isinstance(model, Model) and model.search == "dense" and hasattr(model, "text_rows")


class PassageVectors:
    """The stage's distinct passages in chunks, in the stage's folder until the stage is done.

    Chunks are cut from all passages of the stage, whatever is stored already and whatever the number of processes: a
    vector has the same bits in every try. A chunk whose checksum does not hold is made again.

    Args:
        rows: distinct corpus rows of the stage, ascending.
        name: the teacher's name in the recipe, by which the shared embeddings of a whole corpus are kept.
    """

    def __init__(
        self,
        context: StageContext,
        model: Model,
        corpus: TextSource,
        rows: np.ndarray,
        budget: Budget,
        name: str = "",
    ) -> None:
        self.context = context
        # a search with the same model, later or in another run, then finds the embeddings in the cache
        self.shared = name if len(corpus) >= WORTH_SHARING and 2 * len(rows) >= len(corpus) else ""
        self.model = model
        self.corpus = corpus
        self.rows = rows
        self.budget = budget
        self.folder: Path = context.folder / "vectors"
        self._kept = Vectors(folder=self.folder, num_rows=len(rows), window=CHUNK)
        self._broken: dict[int, np.ndarray] = {}
        self._whole: np.ndarray | None = None

    def prepare(self, needed: np.ndarray) -> None:
        """Encode the chunks that hold these rows, each process its share. Every process must call this."""
        if self.shared:
            from kdfw.retrieval.encode import encode_vectors

            self._whole = encode_vectors(self.shared, self.corpus, "passage", self.context).array
            return
        own = np.unique(np.searchsorted(self.rows, needed) // CHUNK)
        chunks = np.unique(self.context.workers.gather(own.astype(np.int64)))
        share = self.context.workers.share(len(chunks))
        with self.context.progress(len(share), "encode passages", unit="chunk") as bar:
            for chunk in chunks[share.start : share.stop]:
                self._chunk(int(chunk))
                bar.update(1)
        self.context.workers.barrier()

    def _chunk(self, chunk: int) -> np.ndarray:
        """(n, H) float32 vectors of a chunk; made when there is none (another machine's disk)."""
        if chunk in self._broken:
            return self._broken[chunk]
        span = self._kept.rows(chunk)
        if not self._kept.ready(chunk):
            found = self._encode(self.rows[span.start : span.stop])
            if not np.isfinite(found).all():
                # the scores will not be finite either and name their queries; another try starts afresh
                self._broken[chunk] = found
                return found
            with writing(self.folder):
                self._kept.write(chunk, found)
        return self._kept.block(span.start, span.stop)

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        from kdfw.models.forward import encode_texts
        from kdfw.models.precision import autocast_dtype

        return encode_texts(
            self.model,
            [Text(source=self.corpus, row=int(row)) for row in rows],
            "passage",
            device=self.context.device,
            budget=self.budget,
            autocast=autocast_dtype(self.context.precision),
        )

    def take(self, rows: Sequence[int]) -> torch.Tensor:
        """(n, H) float32 vectors of corpus rows."""
        if self._whole is not None:
            return torch.from_numpy(np.asarray(self._whole[np.asarray(rows, dtype=np.int64)], dtype=np.float32))
        places = np.searchsorted(self.rows, np.asarray(rows, dtype=np.int64))
        chunks, offsets = places // CHUNK, places % CHUNK
        found = np.empty((len(places), self._chunk(int(chunks[0])).shape[1]), dtype=np.float32)
        for chunk in np.unique(chunks):
            inside = chunks == chunk
            found[inside] = self._chunk(int(chunk))[offsets[inside]]
        return torch.from_numpy(found)

    def signals(self, batch: Batch) -> Signals:
        """The model's logits for a batch whose passages are rows of the corpus."""
        from kdfw.models.forward import evaluating, represent
        from kdfw.models.precision import autocast_dtype
        from kdfw.models.tokenize import unique_texts

        need = frozenset({"logits"})
        roles = {role: [text for text in batch.inputs[role] if isinstance(text, Text)] for role in ("query", "passage")}
        with torch.no_grad(), evaluating(self.model):
            group = self.model.text_rows(unique_texts(roles["query"])[0], "query")  # type: ignore[operator]
            reps = represent(
                self.model,
                [group],
                need,
                device=self.context.device,
                budget=self.budget,
                autocast=autocast_dtype(self.context.precision),
            )
            vectors = self.take([text.row for text in unique_texts(roles["passage"])[0]])
            reps["passage"] = {"embedding": vectors.to(self.context.device)}
            return self.model.signals(reps, batch, need)

    def close(self) -> None:
        """Remove the files, once every process is done with them."""
        self._broken.clear()
        self.context.workers.barrier()
        if self.context.workers.main:
            shutil.rmtree(self.folder, ignore_errors=True)

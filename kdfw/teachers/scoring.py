"""Scores of candidate lists by any teacher, each pair computed once: what the score stage and ensembles stand on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdfw.components import Model, Teacher
from kdfw.errors import TrainingError
from kdfw.fingerprint import fingerprint
from kdfw.teachers.store import ScoreStore, pair_keys, text_hashes
from kdfw.types import Batch, Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdfw.context import StageContext
    from kdfw.teachers.vectors import PassageVectors

NAMED = 10
"""How many queries an error or a warning names."""


def ranking_batch(
    ids: Sequence[str],
    queries: Sequence[Text],
    passages: Sequence[Sequence[Text]],
    passage_ids: Sequence[Sequence[str]],
) -> Batch:
    """A batch of queries with their candidates; a passage that several queries share stands in it once.

    Args:
        passages: for each query at least one text. Equal rows of one source (or equal made-up texts) are one passage.
    """
    rows: dict[tuple[int, int, str | None], int] = {}
    unique: list[Text] = []
    names: list[str] = []
    depth = max(len(texts) for texts in passages)
    candidates = np.zeros((len(ids), depth), dtype=np.int64)
    mask = np.zeros((len(ids), depth), dtype=bool)
    for item, (texts, own_ids) in enumerate(zip(passages, passage_ids, strict=True)):
        for column, (text, name) in enumerate(zip(texts, own_ids, strict=True)):
            key = (id(text.source), text.row, text.made)
            if key not in rows:
                rows[key] = len(unique)
                unique.append(text)
                names.append(name)
            candidates[item, column] = rows[key]
        candidates[item, len(texts) :] = candidates[item, 0]
        mask[item, : len(texts)] = True
    return Batch(
        task="ranking",
        ids=tuple(ids),
        inputs={"query": list(queries), "passage": unique},
        num_items=float(len(ids)),
        candidates=torch.from_numpy(candidates),
        mask=torch.from_numpy(mask),
        passage_ids=tuple(names),
        kinds=tuple(("candidate",) * len(texts) for texts in passages),
    )


class PairScorer:
    """Scores lists of passages with one teacher of a stage, through the score store.

    Args:
        name: the teacher's reference in the recipe.
        tokens_per_batch: token budget of a micro-batch, for teachers that are models; None: what suits the device.
    """

    def __init__(self, context: StageContext, name: str, *, tokens_per_batch: int | None = None) -> None:
        self.name = name
        self.context = context
        self.teacher: Model | Teacher = context.teacher(name)
        self.computed = 0
        """Pairs scored by the teacher."""
        self.known = 0
        """Pairs whose score was stored."""
        self.store: ScoreStore | None = None
        self.vectors: PassageVectors | None = None
        """Set by a stage whose passages are shared by many lists."""
        if isinstance(self.teacher, Model):
            from kdfw.models.forward import Budget

            self.budget = Budget(tokens=tokens_per_batch)
            made_of: Mapping[str, object] = {
                "model": context.model_fingerprint(name),
                "precision": context.precision,
                "activation": "none",
            }
            self.store = ScoreStore(store_folder(context, fingerprint(made_of)), describe=dict(made_of))
        elif not self.teacher.keeps_own_scores:
            made_of = {"teacher": self.teacher.fingerprint(), "precision": context.precision}
            self.store = ScoreStore(store_folder(context, fingerprint(made_of)), describe=dict(made_of))

    def score(
        self,
        ids: Sequence[str],
        queries: Sequence[Text],
        passages: Sequence[Sequence[Text]],
        passage_ids: Sequence[Sequence[str]],
    ) -> list[np.ndarray]:
        """One float32 array a query; NaN only where a `Teacher` has no score.

        Raises: TrainingError naming queries for which a model gives NaN or Inf.
        """
        if self.store is None:
            assert isinstance(self.teacher, Teacher)
            found = self._ask(self.teacher, ids, queries, passages, passage_ids)
            self.computed += sum(len(scores) for scores in found)
            return found
        counts = [len(texts) for texts in passages]
        keys = self._keys(queries, passages)
        scores, known = self.store.get(keys)
        # the same text may stand in a list under two ids: ask once, or its place in the batch decides its last digits
        _, first = np.unique(keys, axis=0, return_index=True)
        ask = np.zeros(len(keys), dtype=bool)
        ask[first] = True
        ask &= ~known
        self.known += int(known.sum())
        if ask.any():
            self.computed += int(ask.sum())
            starts = np.concatenate([[0], np.cumsum(counts)])
            wanted = [np.flatnonzero(ask[starts[q] : starts[q + 1]]).tolist() for q in range(len(ids))]
            items = [q for q, columns in enumerate(wanted) if len(columns)]
            part_ids = [ids[q] for q in items]
            part_texts = [[passages[q][c] for c in wanted[q]] for q in items]
            part_names = [[passage_ids[q][c] for c in wanted[q]] for q in items]
            part_queries = [queries[q] for q in items]
            if isinstance(self.teacher, Model):
                fresh = self._forward(self.teacher, part_ids, part_queries, part_texts, part_names)
            else:
                fresh = self._ask(self.teacher, part_ids, part_queries, part_texts, part_names)
            scores[ask] = np.concatenate(fresh)
            finite = ask & np.isfinite(scores)
            self.store.put(keys[finite], scores[finite])
            missing = ~known & ~ask
            if missing.any():  # second places of a text: take the score of its first
                order = {key.tobytes(): scores[row] for row, key in enumerate(keys) if ask[row]}
                for row in np.flatnonzero(missing):
                    scores[row] = order[keys[row].tobytes()]
        return np.split(scores, np.cumsum(counts)[:-1])

    def incomplete(self, queries: Sequence[Text], passages: Sequence[Sequence[Text]]) -> list[bool]:
        """For each query whether the teacher has to be asked about any of its passages."""
        if self.store is None:
            return [True] * len(queries)
        _, known = self.store.get(self._keys(queries, passages))
        parts = np.split(known, np.cumsum([len(row) for row in passages])[:-1])
        return [not part.all() for part in parts]

    def _keys(self, queries: Sequence[Text], passages: Sequence[Sequence[Text]]) -> np.ndarray:
        unique: dict[tuple[int, int, str | None], int] = {}
        texts: list[str] = []
        places = []
        for row in passages:
            for text in row:
                key = (id(text.source), text.row, text.made)
                if key not in unique:
                    unique[key] = len(texts)
                    texts.append(str(text))
                places.append(unique[key])
        counts = [len(row) for row in passages]
        query_hashes = np.repeat(text_hashes([str(text) for text in queries], "query"), counts, axis=0)
        return pair_keys(query_hashes, text_hashes(texts, "passage")[np.asarray(places, dtype=np.int64)])

    def _ask(
        self,
        teacher: Teacher,
        ids: Sequence[str],
        queries: Sequence[Text],
        passages: Sequence[Sequence[Text]],
        passage_ids: Sequence[Sequence[str]],
    ) -> list[np.ndarray]:
        texts = [[str(text) for text in row] for row in passages]
        found = teacher.score([str(text) for text in queries], texts, list(zip(ids, passage_ids, strict=True)))
        for query, row, scores in zip(ids, passages, found, strict=True):
            if len(scores) != len(row):
                raise TrainingError(
                    f"teacher {self.name!r}, query {query!r}: {len(scores)} scores for {len(row)} passages; "
                    "Teacher.score must give one number a passage, NaN where it has none"
                )
        bad = [query for query, scores in zip(ids, found, strict=True) if np.isinf(scores).any()]
        if bad:
            raise not_finite(self.name, bad, "infinite")
        return [np.asarray(scores, dtype=np.float32) for scores in found]

    def _forward(
        self,
        model: Model,
        ids: Sequence[str],
        queries: Sequence[Text],
        passages: Sequence[Sequence[Text]],
        passage_ids: Sequence[Sequence[str]],
    ) -> list[np.ndarray]:
        from kdfw.models.forward import signals_of
        from kdfw.models.precision import autocast_dtype

        batch = ranking_batch(ids, queries, passages, passage_ids)
        if self.vectors is not None:
            signals = self.vectors.signals(batch)
        else:
            signals = signals_of(
                model,
                batch,
                frozenset({"logits"}),
                device=self.context.device,
                budget=self.budget,
                autocast=autocast_dtype(self.context.precision),
            )
        logits = signals["logits"].float().cpu().numpy()
        found = [logits[item, : len(row)] for item, row in enumerate(passages)]
        bad = [query for query, scores in zip(ids, found, strict=True) if not np.isfinite(scores).all()]
        if bad:
            raise not_finite(self.name, bad, "NaN or infinite")
        return found


def store_folder(context: StageContext, made_of: str) -> Path:
    """Where the scores of a teacher with that fingerprint are kept."""
    return context.cache / "scores" / made_of


def not_finite(name: str, queries: Sequence[str], what: str) -> TrainingError:
    """The error for scores that are no numbers, with the queries."""
    named = ", ".join(repr(query) for query in queries[:NAMED]) + (", ..." if len(queries) > NAMED else "")
    return TrainingError(
        f"teacher {name!r}: {what} scores for {len(queries)} queries: {named}; nothing of them was stored. "
        "Try precision fp32, or look at these queries' texts"
    )

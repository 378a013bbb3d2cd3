"""From drawn examples to the batch of a step, and what goes with it: order, random draws, stored teacher scores."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdfw.errors import DataError
from kdfw.types import Batch, Candidate, Example, Text

if TYPE_CHECKING:
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import Data
    from kdfw.types import TextSource

# ---------------------------------------------------------------- order and draws


def _generator(*parts: object) -> np.random.Generator:
    # lengths keep ("a", "bc") and ("ab", "c") apart; Python's own hash differs from process to process
    text = "".join(f"{len(str(part))}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def item_rng(seed: int, epoch: int, item_id: str) -> np.random.Generator:
    """The random numbers of one item in one epoch: the same on every process, machine and after a resume."""
    return _generator("item", seed, epoch, item_id)


def epoch_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    """(num_items,) int64: the order in which an epoch goes through the items."""
    return _generator("order", seed, epoch).permutation(num_items)


# ---------------------------------------------------------------- batches


def collate(examples: Sequence[Example], task: str, data: Data | None = None) -> Batch:
    """The batch of a step.

    Ranking and pairs: passages are listed once however often they are drawn; candidates are padded to the longest
    list with column 0, masked. `known_positives` marks every passage of the step that the judgements of `data` (any
    split), or an example's own labels, call relevant to a query.
    `num_items` is the number of examples; for a translation the model replaces it by its number of target tokens.

    Args:
        examples: what the sampler drew, at least one.
        task: one of `kdfw.types.TASKS`.
        data: where judgements come from, for ranking.
    Raises: DataError when an example lacks what the task needs.
    """
    assert examples, "a batch has at least one example"
    ids = tuple(example.id for example in examples)
    extras = _extras(examples)
    if task in ("ranking", "pairs"):
        batch = _with_candidates(examples, ids, task, extras)
        return batch if task == "pairs" else replace(batch, known_positives=_known_positives(batch, data))
    if task == "classification":
        labels = torch.tensor([-1 if example.label is None else example.label for example in examples])
        if examples[0].image is not None:
            images = [example.image for example in examples if example.image is not None]
            if len(images) < len(examples):
                raise DataError(f"{len(examples) - len(images)} of {len(examples)} examples have no image")
            inputs: Mapping[str, Sequence[Text] | Tensor] = {"image": torch.stack(images)}
        else:
            inputs = {"text": [_text(example, example.text, "text") for example in examples]}
        return Batch(task=task, ids=ids, inputs=inputs, num_items=float(len(ids)), labels=labels, extras=extras)
    inputs = {
        "source": [_text(example, example.text, "source text") for example in examples],
        "target": [_text(example, example.target, "target text") for example in examples],
    }
    return Batch(task=task, ids=ids, inputs=inputs, num_items=float(len(ids)), extras=extras)


def _text(example: Example, text: Text | None, what: str) -> Text:
    if text is None:
        raise DataError(f"item {example.id!r} has no {what}")
    return text


def _with_candidates(
    examples: Sequence[Example], ids: tuple[str, ...], task: str, extras: Mapping[str, Tensor]
) -> Batch:
    width = max(len(example.candidates) for example in examples)
    columns = np.zeros((len(examples), width), dtype=np.int64)
    mask = np.zeros((len(examples), width), dtype=bool)
    labels = np.zeros((len(examples), width), dtype=np.float32)
    seen: dict[tuple[int, int | str], int] = {}
    passages: list[Candidate] = []
    for number, example in enumerate(examples):
        if not example.candidates:
            raise DataError(f"item {example.id!r} has no candidates")
        for column, candidate in enumerate(example.candidates):
            text = candidate.text
            # by where the text stands, not by its id: a rewritten passage keeps its id and is another text
            key = (0, text.made) if text.made is not None else (id(text.source), text.row)
            place = seen.setdefault(key, len(passages))
            if place == len(passages):
                passages.append(candidate)
            columns[number, column] = place
            labels[number, column] = candidate.label
        mask[number, : len(example.candidates)] = True
        columns[number, len(example.candidates) :] = columns[number, 0]
    return Batch(
        task=task,
        ids=ids,
        inputs={
            "query": [_text(example, example.text, "query text") for example in examples],
            "passage": [candidate.text for candidate in passages],
        },
        num_items=float(len(ids)),
        candidates=torch.from_numpy(columns),
        mask=torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
        passage_ids=tuple(candidate.id for candidate in passages),
        kinds=tuple(tuple(candidate.kind for candidate in example.candidates) for example in examples),
        extras=extras,
    )


def _known_positives(batch: Batch, data: Data | None) -> Tensor:
    assert batch.candidates is not None and batch.mask is not None and batch.labels is not None
    columns, own = batch.candidates.numpy(), (batch.mask & (batch.labels > 0)).numpy()
    known = np.zeros((len(batch), len(batch.passage_ids)), dtype=bool)
    queries, places = np.nonzero(own)
    known[queries, columns[queries, places]] = True
    judgements = getattr(data, "qrels", {})
    if judgements:
        where: dict[str, list[int]] = {}
        for position, passage in enumerate(batch.passage_ids):
            where.setdefault(passage, []).append(position)
        for number, query in enumerate(batch.ids):
            for qrels in judgements.values():
                for passage, grade in qrels.get(query, {}).items():
                    if grade > 0 and passage in where:
                        known[number, where[passage]] = True
    return torch.from_numpy(known)


def _extras(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Per-item values by name, stacked: missing numbers become NaN, missing tensors are an error."""
    names = dict.fromkeys(name for example in examples for name in example.extras)
    found: dict[str, Tensor] = {}
    for name in names:
        values = [example.extras.get(name, math.nan) for example in examples]
        tensors = [
            torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float32) for value in values
        ]
        shape = next((value.shape for value in values if isinstance(value, Tensor)), torch.Size())
        for example, tensor in zip(examples, tensors, strict=True):
            if tensor.shape != shape:
                raise DataError(
                    f"extra value {name!r}: item {example.id!r} has shape {tuple(tensor.shape)}, others of its batch "
                    f"{tuple(shape)}"
                )
        found[name] = torch.stack(tensors)
    return found


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some items of a batch as a batch of their own: their passages only, `num_items` their number."""
    chosen = list(rows)
    index = torch.tensor(chosen, dtype=torch.long)
    inputs: dict[str, Sequence[Text] | Tensor] = {}
    for role, values in batch.inputs.items():
        if role != "passage":
            inputs[role] = values[index] if isinstance(values, Tensor) else [values[row] for row in chosen]
    labels = None if batch.labels is None else batch.labels[index]
    part = replace(
        batch,
        ids=tuple(batch.ids[row] for row in chosen),
        num_items=float(len(chosen)),
        labels=labels,
        kinds=tuple(batch.kinds[row] for row in chosen) if batch.kinds else (),
        extras={name: value[index] for name, value in batch.extras.items()},
        inputs=inputs,
    )
    if batch.candidates is None:
        return part
    used, columns = torch.unique(batch.candidates[index], return_inverse=True)
    passages = batch.inputs["passage"]
    inputs["passage"] = passages[used] if isinstance(passages, Tensor) else [passages[place] for place in used.tolist()]
    return replace(
        part,
        inputs=inputs,
        candidates=columns,
        mask=None if batch.mask is None else batch.mask[index],
        passage_ids=tuple(batch.passage_ids[place] for place in used.tolist()),
        known_positives=None if batch.known_positives is None else batch.known_positives[index][:, used],
    )


def only(batch: Batch, chosen: Tensor) -> tuple[Batch, Tensor, Tensor]:
    """Some candidates of a batch as a batch of their own, and where they stand in the first one.

    Args:
        chosen: (Q, D) bool, at least one True, real candidates only.
    Returns: the batch of the R items with any; (R,) their items; (R, W) columns, to be read under the new mask.
    """
    assert batch.candidates is not None
    columns = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, : int(chosen.sum(1).max())]
    mask = chosen.gather(1, columns)
    candidates = batch.candidates.gather(1, columns)
    part = replace(
        batch,
        candidates=torch.where(mask, candidates, candidates[:, :1]),
        mask=mask,
        labels=None if batch.labels is None else batch.labels.gather(1, columns),
        kinds=(),
    )
    items = chosen.any(1).nonzero().flatten()
    return take(part, items.tolist()), items, columns[items]


def made_candidates(batch: Batch) -> Tensor:
    """(Q, D) bool: real candidates whose text was made on the fly."""
    assert batch.candidates is not None and batch.mask is not None
    passages = batch.inputs["passage"]
    assert not isinstance(passages, Tensor)
    made = torch.tensor([text.made is not None for text in passages])
    return made[batch.candidates] & batch.mask


def texts_of_batch(batch: Batch) -> tuple[list[str], list[list[str]], list[tuple[str, list[str]]]]:
    """Query texts, each query's candidate texts, and (query id, candidate ids): what `Teacher.score` is asked.

    Padding is left out. A text made on the fly has an empty id, since no stored score can belong to it.
    """
    assert batch.candidates is not None and batch.mask is not None
    passages = batch.inputs["passage"]
    assert not isinstance(passages, Tensor)
    texts = [str(text) for text in passages]
    names = ["" if text.made is not None else name for text, name in zip(passages, batch.passage_ids, strict=True)]
    queries = batch.inputs["query"]
    lists: list[list[str]] = []
    ids: list[tuple[str, list[str]]] = []
    for query, columns, real in zip(batch.ids, batch.candidates.tolist(), batch.mask.tolist(), strict=True):
        own = [place for place, keep in zip(columns, real, strict=True) if keep]
        lists.append([texts[place] for place in own])
        ids.append((query, [names[place] for place in own]))
    return [str(query) for query in queries], lists, ids


# ---------------------------------------------------------------- stored teacher scores


class StoredScores:
    """Teacher scores that an earlier stage wrote, looked up for the candidates of a batch.

    Lists stay memory-mapped; a lookup compares an item's few candidates with its own list, so memory does not grow
    with the number of stored pairs and a batch costs well under a millisecond per hundred candidates.
    """

    def __init__(self, ranking: Ranking, corpus: TextSource) -> None:
        """`ranking`: lists with the teacher's scores, NaN where it has none; `corpus`: what its rows are rows of."""
        self.ranking = ranking
        self.corpus = corpus
        self.missing = 0
        """Candidates asked for so far that have no score."""
        self._numbers = ranking.index()

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Teacher scores of the batch's candidates.

        Returns: (Q, D) float32, 0 where there is none, and (Q, D) bool, True where there is one. A text made on the
            fly has none, even if it goes by the id of a stored passage.
        """
        assert batch.candidates is not None
        passages = batch.inputs["passage"]
        assert not isinstance(passages, Tensor)
        rows = np.fromiter(
            (self._row(text, name) for text, name in zip(passages, batch.passage_ids, strict=True)),
            dtype=np.int64,
            count=len(passages),
        )
        wanted = rows[batch.candidates.numpy()]
        logits = np.full(wanted.shape, np.nan, dtype=np.float32)
        for place, query in enumerate(batch.ids):
            number = self._numbers.get(query)
            if number is None:
                continue
            stored, scores = self.ranking.of(number)
            if len(stored) == 0:
                continue
            same = np.asarray(stored)[None, :] == wanted[place][:, None]
            logits[place] = np.where(same.any(1), np.asarray(scores)[same.argmax(1)], np.nan)
        mask = np.isfinite(logits)
        real = np.ones_like(mask) if batch.mask is None else batch.mask.numpy()
        self.missing += int((real & ~mask).sum())
        mask &= real
        return torch.from_numpy(np.where(mask, logits, np.float32(0))), torch.from_numpy(mask)

    def _row(self, text: Text, name: str) -> int:
        if text.made is not None or text.source is None:
            return -1
        if text.source is self.corpus:
            return text.row
        try:
            return self.corpus.row(name)
        except KeyError:
            return -1


def teacher_logits(ranking: Ranking, corpus: TextSource, batch: Batch) -> tuple[Tensor, Tensor]:
    """Stored scores for one batch, as `StoredScores.logits`; for more than one batch keep a `StoredScores`."""
    return StoredScores(ranking, corpus).logits(batch)

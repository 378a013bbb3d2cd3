"""What every loss does before its formula: same precision, same alternatives, no gradient into the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from kdfw.errors import TrainingError
from kdfw.types import Batch, Signals


def wide(values: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays, so that gradients can be checked numerically."""
    return values if values.dtype == torch.float64 else values.float()


def divide(scores: Tensor, temperature: float | Tensor) -> Tensor:
    """Scores (Q, D) over a temperature: a number, or a tensor () or (Q,), whose gradient is kept."""
    if isinstance(temperature, Tensor) and temperature.dim() == 1:
        temperature = temperature[:, None]
    return scores / temperature


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """(Q, D) log-probabilities over the alternatives where `mask` is True; about -1e38 elsewhere, finite on purpose.

    A row without any real alternative comes out uniform, without gradient.
    """
    # half of the least number: subtracting the row's maximum must not reach -inf, since 0 * -inf is NaN
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2).log_softmax(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(Q,) mean of each row where `mask` is True; 0 for a row without any. `values` may hold anything elsewhere."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def signal_mask(signals: Signals, name: str) -> Tensor | None:
    """The mask of a signal: `mask` for `logits`, `mask/x` for `logits/x`, none for scores against the whole batch."""
    if name == "logits":
        return signals.mask
    if name == "batch_logits":
        return None
    own = signals.extra.get(f"mask/{name.partition('/')[2]}")
    if own is not None:
        return own.bool()
    return signals.mask if signals.mask is not None and signals.mask.shape == signals[name].shape else None


def labels_of(student: Signals, batch: Batch) -> Tensor:
    """The labels of the step, on the student's device: as the model filled them in, else those of the batch."""
    labels = batch.labels if student.labels is None else student.labels
    if labels is None:
        raise TrainingError("the loss needs labels and the batch has none; use a sampler or a split with labels")
    return labels if student.logits is None else labels.to(student.logits.device)


def compared(student: Signals, teacher: Signals, name: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Student scores, teacher scores and the alternatives that both have: each (Q, D), float32 or float64.

    The teacher is detached. An alternative without a finite teacher score is masked; where the alternatives are
    a closed set (classes, a vocabulary) a distribution with a hole means nothing, so the whole item is masked.
    Teacher scores are 0 where masked, and so are the student's in ranking.

    Raises: TrainingError when the two have different shapes.
    """
    ours, theirs = wide(student[name]), wide(teacher[name]).detach().to(student[name].device)
    if ours.shape != theirs.shape:
        raise TrainingError(
            f"signal {name!r}: the student has shape {tuple(ours.shape)} and the teacher {tuple(theirs.shape)}; "
            "both must score the same alternatives (classes, vocabulary or candidates)"
        )
    if batch.task in ("classification", "translation"):
        mask = theirs.isfinite().all(-1, keepdim=True).expand_as(theirs)
    else:
        mask = theirs.isfinite()
    for given in (signal_mask(student, name), signal_mask(teacher, name)):
        if given is not None:
            mask = mask & given.to(mask.device)
    # not `ours * mask`: what stands at padding may be NaN, and NaN * 0 is NaN
    return ours.masked_fill(~mask, 0.0), theirs.masked_fill(~mask, 0.0), mask


def signal_positives(student: Signals, batch: Batch, name: str) -> Tensor:
    """(Q, D) bool: which alternatives of the signal are labelled positives of their item (label > 0).

    For `batch_logits` the columns are the passages of the step: an item's own positives and every other passage
    known to be relevant to it.
    """
    labels = labels_of(student, batch).to(student[name].device)
    if labels.dtype == torch.long and labels.dim() == 1:
        width = student[name].shape[-1]
        return torch.nn.functional.one_hot(labels.clamp(min=0), width).bool() & (labels >= 0)[:, None]
    own = labels > 0
    if batch.mask is not None:
        own = own & batch.mask.to(own.device)
    if name != "batch_logits":
        return own
    known = own_columns(own, batch, student[name])
    return known if batch.known_positives is None else known | batch.known_positives.to(known.device)


def own_columns(chosen: Tensor, batch: Batch, batch_logits: Tensor) -> Tensor:
    """(Q, P) bool from (Q, D) bool: the columns of the step's passages that an item's chosen candidates stand for."""
    assert batch.candidates is not None, "in-batch losses are for tasks with candidates"
    counts = torch.zeros(batch_logits.shape, dtype=torch.long, device=chosen.device)
    # a passage may be drawn twice, and padding repeats column 0: count, never overwrite
    return counts.scatter_add(1, batch.candidates.to(chosen.device), chosen.long()) > 0


def contrasted(batch: Batch, like: Tensor, in_batch: bool = False) -> Tensor:
    """(Q, D), or (Q, P) with `in_batch`, bool, in the shape of the scores `like`: what may be told apart.

    A candidate of a kind of its own (one that an augmenter made, `Candidate.kind`) is neither positive nor negative:
    it is left out, and in the scores against the whole step for every query.
    """
    other = [[kind not in ("positive", "negative") for kind in kinds] for kinds in batch.kinds]
    if not any(map(any, other)):
        return torch.ones_like(like, dtype=torch.bool)
    width = like.shape[1] if batch.candidates is None else batch.candidates.shape[1]
    made = torch.tensor([row + [False] * (width - len(row)) for row in other], device=like.device)
    if not in_batch:
        return ~made
    return ~own_columns(made, batch, like).any(0).expand_as(like)


def scaled(scores: Tensor, mask: Tensor, how: str) -> Tensor:
    """(Q, D) scores of each item brought to a common scale over its real alternatives.

    `none`: unchanged; `min-max`: to [0, 1]; `z-score`: mean 0, standard deviation 1 (arXiv:2403.01993). A row whose
    scores are all equal becomes 0.
    """
    if how == "none":
        return scores
    tiny = 1e-9
    if how == "min-max":
        top = torch.finfo(scores.dtype).max
        low = scores.masked_fill(~mask, top).amin(-1, keepdim=True)
        high = scores.masked_fill(~mask, -top).amax(-1, keepdim=True)
        return ((scores - low) / (high - low).clamp(min=tiny)).masked_fill(~mask, 0.0)
    centred = scores - masked_mean(scores, mask)[:, None]
    spread = (masked_mean(centred**2, mask)[:, None] + tiny**2).sqrt()
    return (centred / spread).masked_fill(~mask, 0.0)

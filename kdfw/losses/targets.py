"""Losses that compare the student with a target, which may be a teacher or the labels."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdfw.losses.masking import labels_of, signal_mask
from kdfw.losses.options import Target
from kdfw.types import Batch, Needs, Signals


def target_needs(needs: Needs, target: Target) -> Needs:
    """The needs of a distillation loss when its target may be the labels: then no teacher is wanted."""
    if target == "teacher":
        return needs
    return replace(needs, teacher=frozenset(), teachers=(0, None), labels=True)


def labels_as_teacher(student: Signals, batch: Batch, signal: str) -> Signals:
    """The labels in a teacher's place, as scores in the shape of the student's signal.

    Relevance grades and gold scores are taken as they are (NaN: no label, masked); a class becomes one-hot, an
    unknown class (negative) a row of NaN, which is masked.
    """
    scores = student[signal]
    labels = labels_of(student, batch).to(scores.device)
    if labels.dim() == 1:
        known = (labels >= 0)[:, None]
        hot = torch.nn.functional.one_hot(labels.clamp(min=0), scores.shape[-1]).to(scores.dtype)
        values = hot.masked_fill(~known, float("nan"))
    else:
        values = labels.to(scores.dtype)
    return Signals(logits=values, mask=signal_mask(student, signal), extra={signal: values})

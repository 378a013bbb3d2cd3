"""TF-NKD: the student's own target probability, smoothed over the batch, is the soft weight. No teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdfw.components import Loss
from kdfw.losses.masking import labels_of, masked_log_softmax, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals
from kdfw_plugins.nkd.nkd import target_class


def smoothed_weights(probabilities: Tensor, values: Tensor | float = 1.0) -> Tensor:
    """w = p + v - mean(p) over the batch, 0 where the label value v is 0; constant.

    Args:
        probabilities: (Q,) the student's probability of the labelled class.
        values: label values, a number or (Q,); 1 for hard labels, and then the mean of w is 1.
    Returns: (Q,).
    """
    p = probabilities.detach()
    labelled = torch.as_tensor(values, dtype=p.dtype, device=p.device).expand_as(p)
    return torch.where(labelled == 0, torch.zeros_like(p), p + labelled - p.mean())


def teacher_free_terms(student: Tensor, labels: Tensor) -> Tensor:
    """-w log p of each labelled class.

    Args:
        student: (Q, C) logits.
        labels: (Q,) long; or (Q, C) soft labels, of which the two largest entries count.
    Returns: (1, Q) for hard labels, (2, Q) for soft ones; the loss is their sum over the first axis, mean over items.
    """
    log_p = student.log_softmax(-1)
    if labels.dim() == 1:
        picked = log_p.gather(1, labels[:, None])[:, 0]
        return (-smoothed_weights(picked.exp()) * picked)[None]
    values, classes = labels.topk(2, dim=-1)
    terms = []
    for value, column in zip(values.unbind(-1), classes.unbind(-1), strict=True):
        picked = log_p.gather(1, column[:, None])[:, 0]
        terms.append(-smoothed_weights(picked.exp(), value) * picked)
    return torch.stack(terms)


class TeacherFreeNKD(Loss):
    """Teacher-free NKD; added to the task loss. The batch mean is that of the whole step, over all processes.

    In ranking the first of the most relevant candidates is the hard label. Items without a label are left out of the
    batch mean.
    """

    paper = "arXiv:2208.10139, teacher-free form"

    @property
    def needs(self) -> Needs:
        return Needs(
            student=frozenset({"logits"}),
            labels=True,
            tasks=frozenset({"ranking", "classification"}),
            whole_batch=True,
        )

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        logits, labels = wide(student["logits"]), labels_of(student, batch)
        if student.mask is not None:
            logits = masked_log_softmax(logits, student.mask)
        if labels.dim() == 1 or batch.task == "ranking":
            labels, known = target_class(labels)
            logits, labels = logits[known], labels[known]
        return LossTerms(total=teacher_free_terms(logits, labels).sum() / batch.num_items)

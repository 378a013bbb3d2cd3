"""Selection of hard negatives, weights from the teacher's entropy, and the two terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from kdfw.components import Loss
from kdfw.losses.masking import compared
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals

Form = Literal["weighted", "batch-mean"]


def hardest(teacher: Tensor, num_negatives: int) -> Tensor:
    """(Q, 1 + h) columns: 0, then the h other columns the teacher scores best, in its order. `teacher` (Q, D)."""
    order = teacher[:, 1:].sort(dim=-1, descending=True, stable=True).indices[:, :num_negatives] + 1
    return torch.cat([torch.zeros_like(order[:, :1]), order], dim=1)


def entropy_shares(teacher: Tensor) -> Tensor:
    """u_b = H_b / sum H: each item's share of the teacher's entropy over its list (Q, 1 + h). Returns: (Q,)."""
    entropies = torch.special.entr(teacher.detach().softmax(-1)).sum(-1)
    return entropies / entropies.sum()


def certainty_weights(shares: Tensor) -> Tensor:
    """r = softmax over items of (1 - u)^2: the surer the teacher, the more it is imitated. (Q,) -> (Q,)."""
    return (1 - shares).square().softmax(0)


def task_values(student: Tensor) -> Tensor:
    """(Q,) mean over columns of the binary cross-entropy with (1, 0, ..., 0)."""
    target = torch.zeros_like(student)
    target[:, 0] = 1.0
    return binary_cross_entropy_with_logits(student, target, reduction="none").mean(-1)


def distillation_values(student: Tensor, teacher: Tensor) -> Tensor:
    """(Q,) mean over columns of the squared difference of raw scores; a temperature would cancel."""
    return (teacher.detach() - student).square().mean(-1)


def dynamic_terms(student: Tensor, teacher: Tensor, form: Form = "weighted") -> tuple[Tensor, Tensor]:
    """(distillation, task), scalars, of aligned scores (Q, 1 + h), positive in column 0.

    `batch-mean` averages the squared error over the step before weighting, which cancels the weights; the released
    code does that.
    """
    shares = entropy_shares(teacher)
    task = (shares * task_values(student)).sum()
    if form == "batch-mean":
        return distillation_values(student, teacher).mean(), task
    return (certainty_weights(shares) * distillation_values(student, teacher)).sum(), task


def focal_terms(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(distillation, task) of the variant that the released code holds but does not call.

    F_b = 1 - exp(-ce_student / (ce_teacher + 1e-7)) of column 0; the squared error is that of the whole step.
    """
    first = torch.zeros(len(student), dtype=torch.long, device=student.device)
    own = cross_entropy(student, first, reduction="none")
    other = cross_entropy(teacher, first, reduction="none")
    focal = 1 - (-(own.detach() / (other.detach() + 1e-7)).clamp(min=0)).exp()
    error = mse_loss(student / temperature, teacher.detach() / temperature)
    return temperature**2 * (focal * error).mean(), own.mean()


class DynamicDistillation(Loss):
    """alpha * distillation + (1 - alpha) * task on the teacher's hardest negatives, candidate 0 being the positive.

    Candidates that the teacher scores lower take no part, although the student has scored them too.

    Args:
        form: `weighted` as the formulas say; `batch-mean` as the released code computes it.
        aligned: compare scores of the same candidates; false sorts the teacher's scores as the released code does,
            which shifts the columns of items whose positive the teacher does not rank first.
    """

    paper = "arXiv:2207.01426"

    def __init__(
        self,
        *,
        distill_weight: Annotated[float, Field(ge=0, le=1, description="alpha")] = 0.2,
        num_negatives: Annotated[int, Field(ge=1, description="hard negatives kept (h)")] = 7,
        form: Form = "weighted",
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.distill_weight = distill_weight
        self.num_negatives = num_negatives
        self.form: Form = form
        self.aligned = aligned

    @property
    def needs(self) -> Needs:
        logits = frozenset({"logits"})
        return Needs(student=logits, teacher=logits, teachers=(1, 1), tasks=frozenset({"ranking"}), whole_batch=True)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        ours, theirs, mask = compared(student, teachers[0], "logits", batch)
        theirs = theirs.masked_fill(~mask, torch.finfo(theirs.dtype).min)
        columns = hardest(theirs, self.num_negatives)
        targets = theirs.gather(1, columns)
        if not self.aligned:
            targets = theirs.sort(dim=-1, descending=True).values[:, : columns.shape[1]]
        distill, task = dynamic_terms(ours.gather(1, columns), targets, self.form)
        total = self.distill_weight * distill + (1 - self.distill_weight) * task
        return LossTerms(total=total, parts={"distill": distill.detach(), "task": task.detach()})

"""The terms of LED: its own loss is a weighted core hinge; here are the recipe terms and what only LED's code has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdfw.components import DistillationLoss, Schedule, Weighting
from kdfw.losses.kl import kl_divergence
from kdfw.losses.margin_mse import all_pairs, differences
from kdfw.losses.masking import compared, divide, masked_log_softmax, signal_positives
from kdfw.types import Batch, Needs, Signals

Method = Literal["kl", "ranknet", "listnet", "margin-mse"]


def stage_losses(
    *, rank_weight: float = 1.0, margin: float = 0.0, min_gap: float = 0.0, with_positives: bool = True
) -> list[dict[str, Any]]:
    """L = L_con + w * L_rank in the language of recipes; teacher 0 is the lexicon-aware one.

    L_con finds the positive among all passages of the step; L_rank is a hinge on every pair of the query's own
    candidates in the teacher's order, averaged over the pairs of the whole step.
    """
    return [
        {"type": "info-nce", "name": "contrastive", "in_batch": True, "positives": "first"},
        {
            "type": "pairwise-hinge",
            "name": "rank",
            "weight": rank_weight,
            "teachers": [0],
            "margin": margin,
            "min_gap": min_gap,
            "with_positives": with_positives,
            "mean": "pairs",
        },
    ]


def ranker_kl(student: Tensor, ranker: Tensor, mask: Tensor, temperature: float | Tensor, eps: float = 1e-9) -> Tensor:
    """tau^2 * sum_j p_j (log p_j - g_j), p = softmax(ranker / tau) + eps, g = log softmax(student / tau) + eps.

    The small number is added to the log-probability too, as released. Arguments (Q, D), mask bool. Returns: (Q,).
    """
    p = masked_log_softmax(divide(ranker, temperature), mask).exp() + eps
    g = masked_log_softmax(divide(student, temperature), mask) + eps
    return temperature**2 * (p * (p.log() - g)).masked_fill(~mask, 0.0).sum(-1)


def weighted_ranknet(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """-(sum over columns a < b) of (t_a - t_b) * log sigmoid(s_a - s_b): raw teacher differences. Returns: (Q,)."""
    values = differences(teacher) * logsigmoid(differences(student))
    return -values.masked_fill(~all_pairs(mask), 0.0).sum((-2, -1))


def listnet(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of softmax(student) with softmax(teacher). Returns: (Q,)."""
    p = masked_log_softmax(teacher, mask).exp()
    return -(p * masked_log_softmax(student, mask)).masked_fill(~mask, 0.0).sum(-1)


def probability_margins(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Sum over all (a, b) of the squared difference between the margins of the two softmaxes. Returns: (Q,)."""
    p, q = (masked_log_softmax(scores, mask).exp() for scores in (student, teacher))
    return (differences(q - p) ** 2).masked_fill(~both(mask), 0.0).sum((-2, -1))


def both(mask: Tensor) -> Tensor:
    """(Q, D, D) bool: both are real; (a, a) and both orders of a pair count, as in the released mean."""
    return mask[:, :, None] & mask[:, None, :]


_ABLATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": kl_divergence,
    "ranknet": weighted_ranknet,
    "listnet": listnet,
    "margin-mse": probability_margins,
}


def ablation(method: Method, student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(Q,) values of an ablation loss and () what their sum is divided by.

    The reductions are those of the released code: a mean over queries (`kl`), sums (`ranknet`, `listnet`), a mean over
    all (query, a, b) of the step, a = b included (`margin-mse`).
    """
    values = _ABLATIONS[method](student, teacher, mask)
    if method == "kl":
        return values, mask.any(-1).sum().clamp(min=1)
    return values, both(mask).sum().clamp(min=1) if method == "margin-mse" else values.new_ones(())


class RankerKL(DistillationLoss):
    """KL to a cross-encoder as in LED with a ranker teacher, small offsets included."""

    paper = "arXiv:2208.13661, released code of the variant with a ranker"

    def __init__(
        self,
        *,
        temperature: Annotated[Schedule | float, Field(gt=0, description="divides both sides")] = 3.0,
        weighting: Annotated[
            Weighting | None, Field(description="weights of teachers and items; default: equal")
        ] = None,
        eps: Annotated[float, Field(ge=0, description="added to the probability and to the log-probability")] = 1e-9,
    ) -> None:
        super().__init__(temperature=temperature, weighting=weighting)
        self.eps = eps

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        return ranker_kl(ours, theirs, mask, teacher_temperature, self.eps)


class Ablation(DistillationLoss):
    """The losses LED was compared with, in the reductions of its code (some are sums: mind the weight)."""

    paper = "arXiv:2208.13661, ablations"
    compares = "order"

    def __init__(
        self,
        *,
        method: Annotated[Method, Field(description="which ablation loss of the released code")],
        with_positives: Annotated[bool, Field(description="whether labelled positives take part")] = True,
        weighting: Annotated[
            Weighting | None, Field(description="weights of teachers and items; default: equal")
        ] = None,
    ) -> None:
        super().__init__(weighting=weighting)
        self.method: Method = method
        self.with_positives = with_positives

    @property
    def needs(self) -> Needs:
        return super().needs | Needs(
            labels=not self.with_positives, tasks=frozenset({"ranking"}), whole_batch=self.method == "margin-mse"
        )

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs, mask = compared(student, teacher, self.signal, batch)
        if not self.with_positives:
            mask = mask & ~signal_positives(student, batch, self.signal)
        values, total = ablation(self.method, ours, theirs, mask)
        # the base class divides by num_items: undo it where the released code has another reduction
        return values if self.method == "kl" else values * (batch.num_items / total)

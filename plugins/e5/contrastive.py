"""In-batch contrastive loss, with the other three directions in one denominator (as in the authors' SimLM code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss, Schedule, as_schedule
from kdfw.losses.masking import labels_of, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def contrastive_scores(
    queries: Tensor, passages: Tensor, positives: Tensor, *, full: bool = True, left_out: Tensor | None = None
) -> Tensor:
    """Similarities of each query with everything it is told apart from; the positive is in its column `positives`.

    Args:
        queries: (Q, H), normalised where scores are to be cosines.
        passages: (P, H).
        positives: (Q,) long, the positive's row of `passages`.
        full: append positive-query, query-query and positive-positive similarities, own ones left out.
        left_out: (Q, P) bool, pairs that take no part (a query's own hard negatives).
    Returns: (Q, P) or (Q, P + 3 Q); -inf where left out.
    """
    scores = queries @ passages.T
    if left_out is not None:
        scores = scores.masked_fill(left_out, -torch.inf)
    if not full:
        return scores
    keys = passages[positives]
    itself = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    more = [(one @ other.T).masked_fill(itself, -torch.inf) for one, other in ((keys, queries), (queries, queries))]
    return torch.cat([scores, *more, (keys @ keys.T).masked_fill(itself, -torch.inf)], dim=1)


def stage_losses(
    *, temperature: float = 0.01, contrastive_weight: float = 0.2, full: bool = True, mask_hard_negatives: bool = False
) -> list[dict[str, Any]]:
    """KL(teacher || student) + alpha * L_cont in the language of recipes, for a student whose scores are cosines.

    The teacher's logits are not divided by the temperature, and there is no temperature squared.
    """
    return [
        {"type": "kl", "name": "distil", "student_temperature": temperature, "scale_by_temperature": False},
        {
            "type": "e5-contrastive",
            "name": "contrastive",
            "weight": contrastive_weight,
            "temperature": temperature,
            "full": full,
            "mask_hard_negatives": mask_hard_negatives,
        },
    ]


class FullContrastive(Loss):
    """Cross-entropy of the positive among all passages of the step, and optionally all queries and positives too.

    The model's vectors must be normalised (`similarity: cosine`) for the temperature to mean what it does in the
    paper. The first positive of each query counts; labelled positives of other queries are not masked, as released.
    """

    paper = "arXiv:2212.03533; arXiv:2207.02578 (full contrastive form)"

    def __init__(
        self,
        *,
        temperature: Annotated[Schedule | float, Field(gt=0, description="divides all similarities")] = 0.01,
        full: Annotated[bool, Field(description="also tell apart queries from queries and positives")] = True,
        mask_hard_negatives: Annotated[
            bool, Field(description="a query's own candidates other than the positive take no part")
        ] = False,
    ) -> None:
        super().__init__()
        self.temperature = as_schedule(temperature)
        self.full = full
        self.mask_hard_negatives = mask_hard_negatives

    @property
    def needs(self) -> Needs:
        return self.temperature.needs | Needs(
            student=frozenset({"query_embeddings", "passage_embeddings"}),
            labels=True,
            tasks=frozenset({"ranking"}),
            whole_batch=True,
        )

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        assert batch.candidates is not None
        queries, passages = wide(student["query_embeddings"]), wide(student["passage_embeddings"])
        candidates = batch.candidates.to(queries.device)
        labels = labels_of(student, batch).to(queries.device)
        positives = candidates.gather(1, labels.argmax(-1, keepdim=True))[:, 0]
        left_out = None
        if self.mask_hard_negatives:
            left_out = torch.zeros(len(queries), len(passages), dtype=torch.bool, device=queries.device)
            left_out = left_out.scatter(1, candidates, True).scatter(1, positives[:, None], False)
        scores = contrastive_scores(queries, passages, positives, full=self.full, left_out=left_out)
        cooled = scores / self.temperature.at(clock, student, teachers)
        values = torch.nn.functional.cross_entropy(cooled, positives, reduction="none")
        return LossTerms(total=values.sum() / batch.num_items)

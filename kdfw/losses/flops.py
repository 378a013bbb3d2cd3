"""The FLOPS regularizer of learned sparse retrieval (arXiv:2004.05665)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdfw.components import Loss, Schedule, as_schedule
from kdfw.losses.masking import wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals


def flops(weights: Tensor) -> Tensor:
    """Sum over the vocabulary of the squared mean weight of each term.

    Args:
        weights: (R, V) term weights of R texts.
    Returns: scalar: a smooth stand-in for the postings that a query and a passage have in common.
    """
    return (wide(weights).abs().mean(0) ** 2).sum()


class Flops(Loss):
    """Keeps term vectors sparse: the expected number of multiplications of a query with a passage.

    The mean is over the texts of the step, each distinct passage once. The weights are usually ramped up
    (`{type: linear, start: 0, end: 3.0e-4, power: 2}` is the quadratic ramp of arXiv:2109.10086).

    Args:
        query_weight: multiplies the term of the queries
        passage_weight: multiplies the term of the passages
    """

    paper = "arXiv:2004.05665"

    def __init__(
        self,
        *,
        query_weight: Annotated[Schedule | float, Field(ge=0)] = 1.0,
        passage_weight: Annotated[Schedule | float, Field(ge=0)] = 1.0,
    ) -> None:
        super().__init__()
        self.query_weight = as_schedule(query_weight)
        self.passage_weight = as_schedule(passage_weight)

    @property
    def needs(self) -> Needs:
        own = Needs(
            student=frozenset({"query_sparse", "passage_sparse"}), tasks=frozenset({"ranking"}), whole_batch=True
        )
        return own | self.query_weight.needs | self.passage_weight.needs

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        query, passage = flops(student["query_sparse"]), flops(student["passage_sparse"])
        total = self.query_weight.at(clock, student, teachers) * query
        total = total + self.passage_weight.at(clock, student, teachers) * passage
        return LossTerms(total=total, parts={"query": query.detach(), "passage": passage.detach()})

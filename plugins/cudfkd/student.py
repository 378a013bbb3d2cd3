"""The student's self-paced loss: what is already nearly learned weighs more, until the curriculum has grown up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdfw.components import Loss
from kdfw.losses.kl import kl_divergence
from kdfw.losses.masking import compared
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals
from kdfw_plugins.cudfkd.schedules import age

Distance = Literal["kl", "l1", "l2"]
Pace = Literal["log", "hard", "soft"]


def sample_losses(student: Tensor, teacher: Tensor, distance: Distance, temperature: float = 1.0) -> Tensor:
    """(Q,) loss of each sample: tau^2 KL, mean absolute or mean squared difference of logits (Q, C)."""
    if distance == "kl":
        everything = torch.ones_like(student, dtype=torch.bool)
        return temperature**2 * kl_divergence(student / temperature, teacher / temperature, everything)
    apart = student - teacher
    return apart.abs().mean(-1) if distance == "l1" else apart.square().mean(-1)


def pace_weights(losses: Tensor, growth: float, pace: Pace) -> Tensor:
    """v, constant, same shape as the losses: the minimiser of v * l + g(v; lambda).

    `log`: (1 + e^-lambda) / (1 + e^(l - lambda)); `hard`: l < lambda; `soft`: (1 - l / lambda) where l < lambda.
    """
    losses = losses.detach()
    if pace == "log":
        offset = torch.tensor(-growth, dtype=losses.dtype, device=losses.device)
        return (1 + offset.exp()) * torch.sigmoid(growth - losses)
    kept = (losses < growth).to(losses.dtype)
    return kept if pace == "hard" else kept * (1 - losses / growth)


def regulariser(weights: Tensor, growth: float, pace: Pace) -> Tensor:
    """g(v; lambda) that the weights minimise v * l + g over: for each sample (`log`), or summed (`hard`, `soft`)."""
    if pace == "log":
        offset = torch.tensor(-growth, dtype=weights.dtype, device=weights.device)
        rest = 1 + offset.exp() - weights
        return torch.special.xlogy(rest, rest) + torch.special.xlogy(weights, weights) - growth * weights
    if pace == "hard":
        return -growth * weights.sum()
    return 0.5 * growth * (weights.square() - 2 * weights).sum()


class SelfPacedDistillation(Loss):
    """mean of v_b * l_b, v from each sample's own loss and the age lambda = start + growth * step.

    Args:
        start: lambda at the first step (lambda_0).
        growth: added at each optimizer step (1e-4 for CIFAR-10, 2e-5 otherwise).
        per_batch: one weight from the batch's mean loss, as in the present released code.
    """

    paper = "arXiv:2208.13648"

    def __init__(
        self,
        *,
        distance: Annotated[Distance, Field(description="between teacher's and student's logits of a sample")] = "l1",
        temperature: Annotated[float, Field(gt=0, description="of the distance `kl`")] = 20.0,
        pace: Annotated[Pace, Field(description="form of the self-paced weights")] = "log",
        start: Annotated[float, Field(gt=0, description="lambda at the first student step")] = 2.0,
        growth: Annotated[float, Field(ge=0, description="what lambda grows by each student step")] = 1e-4,
        per_batch: Annotated[
            bool, Field(description="one weight for the whole batch, as some releases have it")
        ] = False,
    ) -> None:
        super().__init__()
        self.distance: Distance = distance
        self.temperature = temperature
        self.pace: Pace = pace
        self.start = start
        self.growth = growth
        self.per_batch = per_batch

    @property
    def needs(self) -> Needs:
        logits = frozenset({"logits"})
        return Needs(student=logits, teacher=logits, teachers=(1, 1), whole_batch=self.per_batch)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        ours, theirs, _ = compared(student, teachers[0], "logits", batch)
        losses = sample_losses(ours, theirs, self.distance, self.temperature)
        old = age(clock.step, self.start, self.growth)
        basis = losses.mean().expand_as(losses) if self.per_batch else losses
        weights = pace_weights(basis, old, self.pace)
        return LossTerms(total=(weights * losses).sum() / batch.num_items, parts={"mean_weight": weights.mean()})

"""Scores of single layers, which layers are paired, and what each pair weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdfw.losses.kl import kl_divergence

Choice = Literal["random", "last", "skip"]


def dot_scores(queries: Tensor, passages: Tensor) -> Tensor:
    """(N, Q, P) inner products layer by layer, of first-token states (Q, N, H) and (P, N, H)."""
    return torch.einsum("qnh,pnh->nqp", queries, passages)


def maxsim_scores(queries: Tensor, passages: Tensor, mask: Tensor) -> Tensor:
    """(Q, P) sum over query tokens of the best real passage token.

    Args:
        queries: (Q, L, H); every token counts.
        passages: (P, M, H).
        mask: (P, M) bool.
    """
    each = torch.einsum("qlh,pmh->qplm", queries, passages).masked_fill(~mask[None, :, None, :], -9e9)
    return each.amax(-1).sum(-1)


def draw_layers(num_layers: int, num_drawn: int, rng: np.random.Generator) -> list[int]:
    """`num_drawn` distinct layers, uniformly, in order; 0 is the first block."""
    return sorted(int(layer) for layer in rng.choice(num_layers, size=num_drawn, replace=False))


def choose_layers(
    choice: Choice, student: int, teacher: int, num_drawn: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Layers of student and teacher, paired in order; `student` and `teacher` are their numbers of layers."""
    if choice == "random":
        return draw_layers(student, num_drawn, rng), draw_layers(teacher, num_drawn, rng)
    own = list(range(student - num_drawn, student))
    step = 2 if choice == "skip" else 1
    return own, list(range(teacher - 1 - step * (num_drawn - 1), teacher, step))


def ranking_losses(scores: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """(..., Q) -log softmax of the positive; scores (..., Q, P), target (Q,) long, mask (Q, P) bool."""
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2)
    column = target.expand(scores.shape[:-1])[..., None]
    return -scores.log_softmax(-1).gather(-1, column)[..., 0]


def layer_weights(losses: Tensor, temperature: float) -> Tensor:
    """(K,) softmax of -h_k / temperature, constant: a teacher layer that ranks better counts more. `losses` (K,)."""
    return (-losses.detach() / temperature).softmax(0)


def towards(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student)), each (Q, P): the temperature is the target's alone.

    Neither side is detached: a teacher that trains gets gradient here too. Returns: (Q,).
    """
    return kl_divergence(student, teacher / temperature, mask)


def layer_values(
    student: Sequence[Tensor] | Tensor, teacher: Sequence[Tensor] | Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """(K, Q) divergence of each pair of layers, scores (K, Q, P) each."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([towards(own, other, mask, temperature) for own, other in pairs])

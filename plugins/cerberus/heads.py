"""A shared body with several heads, as plain modules, and how the heads' answers become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Block = Callable[[Tensor], Tensor]


def head_logits(
    hidden: Tensor, models: Sequence[Sequence[Block]], classifiers: Sequence[Block], num_shared: int
) -> Tensor:
    """(K, Q, C) logits of K heads over one body.

    The body is the first `num_shared` blocks of the first model, computed once; head k is the other blocks of model k
    and its classifier.

    Args:
        hidden: (Q, L, H) after the embeddings.
        models: K lists of blocks.
        classifiers: K functions of (Q, L, H).
    """
    for block in models[0][:num_shared]:
        hidden = block(hidden)
    found = []
    for blocks, classify in zip(models, classifiers, strict=True):
        state = hidden
        for block in blocks[num_shared:]:
            state = block(state)
        found.append(classify(state))
    return torch.stack(found)


def combine_heads(logits: Tensor, average: str = "softmax") -> Tensor:
    """(Q, C) from (K, Q, C): mean of the heads' probabilities (`softmax`, already probabilities), or of `logits`."""
    return logits.softmax(-1).mean(0) if average == "softmax" else logits.mean(0)


class FinalClassifier(nn.Module):
    """Optional: dense -> GELU -> linear over the first-token states of all heads, joined.

    Args:
        width: of the joined state, K * H.
    """

    def __init__(self, width: int, num_classes: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, num_classes)

    def forward(self, states: Tensor) -> Tensor:
        """(Q, width) -> (Q, C)."""
        inner = nn.functional.gelu(self.dense(self.dropout(states)))
        logits: Tensor = self.out_proj(self.dropout(inner))
        return logits

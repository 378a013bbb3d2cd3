"""How token states become one vector: the three forms of the authors' code."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["cls", "avg", "weightedavg", "last"]


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """(R, L, H) last hidden states -> (R, H), not normalised.

    Args:
        mask: (R, L) 0/1.
        how: `avg`: mean of real tokens; `weightedavg`: weights 1, 2, ... over the positions of real tokens; `last`:
            the last real token (the last position where every row ends in a real token: left padding); `cls`.
    """
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        ends = mask.sum(1) - 1 if not bool(mask[:, -1].all()) else torch.full_like(mask[:, 0], mask.shape[1] - 1)
        return hidden[torch.arange(len(hidden)), ends]
    weights = mask if how == "avg" else mask * mask.cumsum(1)
    weights = weights.to(hidden.dtype)
    return (hidden * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)

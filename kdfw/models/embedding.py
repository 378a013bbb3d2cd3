"""Token embeddings whose gradient costs what was looked up, not the whole vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGE = 1 << 20
"""Weights of a table from which on it is worth it."""


def prepare(model: nn.Module) -> bool:
    """Let the large token tables inside a model take the short way on a CPU; whether there is one.

    torch's own gradient of a lookup is a table of zeros with a few rows filled in, one for every micro-batch, added to
    the last one: 47 MB written and read twice for the 2,048 tokens of a micro-batch of a 30,522 x 384 table, a fifth
    of the time of a step of a two-layer student.
    """
    found = False
    for module in model.modules():
        if type(module) is not nn.Embedding or module.weight.numel() < LARGE:
            continue
        if module.max_norm is None and not module.scale_grad_by_freq and not module.sparse:
            module.__class__ = _Table
            found = True
    return found


class _Table(nn.Embedding):
    """An `nn.Embedding` in everything but the way its gradient is computed.

    While there is a `.grad` already, what is added to it is sparse: hooks on the weights see that, and
    `torch.autograd.grad` gives it.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        short = torch.is_grad_enabled() and weight.requires_grad and weight.device.type == "cpu"
        # weights that another tensor stands in for (`torch.func`, parametrizations) have no `.grad` to add to
        if not short or not isinstance(weight, nn.Parameter) or torch.compiler.is_compiling():
            return super().forward(input)
        found: Tensor = _Lookup.apply(weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
        return found


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding_idx = weight, padding_idx
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        weight: Tensor = ctx.weight
        if torch.is_grad_enabled():  # a gradient that is itself differentiated (`create_graph`): torch's own
            padding = -1 if ctx.padding_idx is None else ctx.padding_idx
            return torch.ops.aten.embedding_dense_backward(gradient, ids, len(weight), padding, False), None, None
        distinct, places = ids.long().unique(return_inverse=True)
        rows = torch.ops.aten.embedding_dense_backward(gradient, places, len(distinct), -1, False)
        if ctx.padding_idx is not None:
            rows.masked_fill_((distinct == ctx.padding_idx)[:, None], 0.0)
        if weight.grad is None:
            return torch.zeros_like(weight).index_copy_(0, distinct, rows), None, None
        # autograd adds a sparse gradient to a dense one in place
        sparse = torch.sparse_coo_tensor(distinct[None], rows, weight.shape, is_coalesced=True, check_invariants=False)
        return sparse, None, None

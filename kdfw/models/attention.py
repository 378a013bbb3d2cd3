"""Attention for short sequences on a CPU: three plain matrix steps, entered in transformers' registry.

torch's fused CPU kernel is slow on short sequences; product, softmax, product is exact and several times faster
there. It serves every transformers encoder that looks its attention up in the registry; where there is no registry,
or the model does not use it, nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "kdfw_plain"
MAX_LENGTH = 512
"""Longest key sequence computed in plain steps; longer ones go to the fused kernel, whose memory does not grow
with the square of the length."""
MAX_SCORES = 1 << 21
"""Attention scores computed at once: 8 MB in float32. Larger blocks are given back to the system after each use, and
zeroing them again page by page costs more than the arithmetic (8 rows of 256 tokens, forward and backward: 43 ms in
one block, 17 ms in blocks of this size, 48 ms fused)."""


def use_plain_attention(model: Any) -> bool:
    """Make a transformers model use it on a CPU; False (and nothing changed) when it cannot."""
    if not _register() or not hasattr(model, "set_attn_implementation"):
        return False
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, ImportError, KeyError, AttributeError):
        return False
    return True


def _register() -> bool:
    """Enter the function and its mask builder into the registries; False when transformers has none."""
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError:
        return False
    AttentionInterface.register(NAME, plain_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return True


def plain_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """softmax(query key^T scaling + mask) value.

    Args:
        query: (R, heads, L, width); key, value: (R, heads or fewer, K, width).
        attention_mask: (R, 1, L, K), bool with True where a key may be seen or float to be added; None: all seen.
        dropout: probability on the attention weights.
    Returns: (R, L, heads, width), None.
    """
    rows, heads, length, width = query.shape
    keys = key.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    unusual = (
        (causal and attention_mask is None and length > 1)
        or key.shape[1] != heads
        or rest.get("position_bias") is not None
    )
    if query.device.type != "cpu" or keys > MAX_LENGTH or unusual:
        return _fused(module, query, key, value, attention_mask, dropout, scaling, is_causal, rest)
    scale = width**-0.5 if scaling is None else scaling
    together = max(1, MAX_SCORES // (heads * length * keys))
    parts = []
    for begin in range(0, rows, together):
        some = slice(begin, begin + together)
        mask = None if attention_mask is None else attention_mask[some] if len(attention_mask) > 1 else attention_mask
        parts.append(_plain(query[some], key[some], value[some], mask, dropout, scale))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mixed.transpose(1, 2).contiguous(), None


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """(R, heads, L, width), as `plain_attention` before its transposition."""
    rows, heads, length, width = query.shape
    keys = key.shape[2]
    flat_query = (query * scale).reshape(rows * heads, length, width)
    flat_key = key.reshape(rows * heads, keys, width)
    scores = torch.bmm(flat_query, flat_key.transpose(1, 2))
    if mask is not None:
        scores = scores.view(rows, heads, length, keys)
        if mask.dtype == torch.bool:
            # a mask of padding is the same for every query position: then one line of it is enough
            seen = mask[:, :, :1] if mask.stride(2) == 0 else mask
            # the least finite number, not -inf: a row of padding only must not become NaN
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask.to(scores.dtype)
        scores = scores.view(rows * heads, length, keys)
    weights = scores.softmax(-1)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout, training=True)
    mixed = torch.bmm(weights.to(value.dtype), value.reshape(rows * heads, keys, -1))
    return mixed.view(rows, heads, length, -1)


def _fused(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    is_causal: bool | None,
    rest: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    from transformers import AttentionInterface

    fused = AttentionInterface()["sdpa"]
    output, weights = fused(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
    )
    return output, weights

"""Attention that suits short sequences of mixed lengths, entered in transformers' registry.

On a CPU: three plain matrix steps. torch's fused CPU kernel is slow on short sequences; product, softmax, product is
exact and several times faster there. On a GPU in half precision: padded rows are packed and go through a kernel for
varying lengths (flash attention), because a padding mask would send them to a slower one. Both serve every
transformers encoder that looks its attention up in the registry; where a model does not, nothing changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdfw.models.dropout import gain, kept

NAME = "kdfw_plain"
MAX_LENGTH = 512
"""Longest key sequence computed in plain steps; longer ones go to the fused kernel, whose memory does not grow
with the square of the length."""
MAX_SCORES = 1 << 21
"""Attention scores computed at once: 8 MB in float32. Larger blocks are given back to the system after each use, and
zeroing them again page by page costs more than the arithmetic (8 rows of 256 tokens, forward and backward: 43 ms in
one block, 17 ms in blocks of this size, 48 ms fused)."""
HALVES = (torch.bfloat16, torch.float16)
LANES = 16
"""In half precision keys are filled up to a multiple of this: the softmax of other widths takes three times as long
(22 rows of 93 tokens, 12 heads: 2.4 ms, filled up 0.8 ms)."""


def use_plain_attention(model: Any) -> bool:
    """Make a transformers model use it on a CPU; False (and nothing changed) when it cannot."""
    if not hasattr(model, "set_attn_implementation"):
        return False
    _register()
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, ImportError, KeyError, AttributeError):
        return False
    return True


def _register() -> None:
    """Enter the function and its mask builder into the registries."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, sdpa_mask

    def build_mask(*args: Any, **given: Any) -> Tensor | None:
        """(R, 1, L, K) as transformers builds it; one of padding alone as a view that says so (stride 0 along L)."""
        seen = given.get("attention_mask")
        plain = given.get("mask_function") is bidirectional_mask_function and not args
        if plain and seen is not None and seen.dim() == 2 and seen.shape[1] == given["kv_length"]:
            view: Tensor = seen.bool()[:, None, None, :].expand(-1, 1, int(given["q_length"]), -1)
            return view
        built: Tensor | None = sdpa_mask(*args, **given)
        return built

    AttentionInterface.register(NAME, plain_attention)
    AttentionMaskInterface.register(NAME, build_mask)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the real tokens of padded rows are; the same for every layer, so found once a forward."""

    places: Tensor
    """(T,) long: the real tokens, as places in the flattened (R x L) rows."""
    starts: Tensor
    """(R + 1,) int32: where each row begins among the real tokens, and where the last one ends."""
    length: int
    """L, which bounds the length of a row."""


def packing_of(transformer: Any, mask: Tensor | None) -> Packing | None:
    """The packing of padded rows, to be passed to `transformer` as `packing`; None where it could not be used.

    Args:
        mask: (R, L) bool, True at real tokens; None: nothing is padded (and nothing need be packed).
    """
    if mask is None or not _packs(mask.device) or not _passes_on(transformer):
        return None
    return packed(mask)


def packed(mask: Tensor) -> Packing:
    """The packing of a (R, L) mask, True at real tokens."""
    starts = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return Packing(places=mask.flatten().nonzero().squeeze(1), starts=starts, length=mask.shape[1])


def _packs(device: torch.device) -> bool:
    """Whether a kernel for varying lengths would be used: only a GPU has one, for half precision."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") in (torch.float16, torch.bfloat16)


def _varlen() -> Callable[..., Any]:
    """torch's flash attention over rows of varying lengths."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _passes_on(transformer: Any) -> bool:
    """Whether a model hands keywords that it does not know to its attention (those that would not are left alone)."""
    if getattr(transformer.config, "_attn_implementation", None) != NAME:
        return False
    given = inspect.signature(transformer.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in given)


def plain_attention(
    module: nn.Module,
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
        rest: `packing` (`Packing`), where the caller gave one to the model.
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
    packing = rest.pop("packing", None)
    # a mask of padding is the same for every query position; any other (a sliding window) says more than the packing
    padding = attention_mask is not None and attention_mask.dtype == torch.bool and attention_mask.stride(2) == 0
    if packing is not None and padding and not (unusual or causal or dropout) and length == keys == packing.length:
        return _packed(query, key, value, packing, scaling), None
    # the fused kernel has no dropout on a CPU: there it is a plain road too, in one block
    if query.device.type != "cpu" or (keys > MAX_LENGTH and not dropout) or unusual:
        return _fused(module, query, key, value, attention_mask, dropout, scaling, is_causal, rest)
    scale = width**-0.5 if scaling is None else scaling
    seen = mask = None
    if padding and attention_mask is not None:
        seen = attention_mask[:, 0, 0].expand(rows, -1)
    else:
        mask = attention_mask
    added = padding_of(query, keys, seen, masked=mask is not None)
    return attend(query * scale, key, value, added, mask, dropout), None


@dataclass(frozen=True, kw_only=True)
class Padding:
    """What is added to the scores because of padding; the same for every layer."""

    bias: Tensor | None
    """(R * heads, 1, K): 0 where a key is seen, elsewhere the least finite number; None: every key is seen."""
    missing: int
    """How many of the K keys are none: they fill up the last lanes."""


def padding_of(query: Tensor, keys: int, seen: Tensor | None, *, masked: bool = False) -> Padding:
    """The padding of some rows.

    Args:
        query: (R, heads, L, width), whose shape and type count.
        keys: how many there are.
        seen: (R, keys) bool; None: all.
        masked: a mask of another kind will be applied too, as wide as there are keys.
    """
    rows, heads = query.shape[:2]
    missing = -keys % LANES if query.dtype in HALVES and not masked else 0
    if missing and seen is None:
        seen = torch.ones(rows, keys, dtype=torch.bool, device=query.device)
    if seen is None:
        return Padding(bias=None, missing=0)
    seen = nn.functional.pad(seen, (0, missing))
    # not -inf: a row of padding only must not become NaN
    bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
    spread = bias[:, None].expand(rows, heads, keys + missing).reshape(rows * heads, 1, keys + missing)
    return Padding(bias=spread, missing=missing)


def attend(
    query: Tensor, key: Tensor, value: Tensor, padding: Padding, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """(R, L, heads, width): softmax(query key^T + padding + mask) value, a block of rows at a time.

    Args:
        query: (R, heads, L, width), already scaled; key, value: (R, heads, K, width).
        mask: of another kind than padding: (R or 1, 1, L, K), bool with True where a key may be seen or to be added.
    """
    rows, heads, length, _ = query.shape
    together = max(1, MAX_SCORES // (heads * length * key.shape[2]))
    left = None
    if dropout:  # drawn for all rows at once: which of them make a block must not matter
        left = kept((rows * heads, length, key.shape[2] + padding.missing), dropout, query.device)
    parts = []
    for begin in range(0, rows, together):
        some = slice(begin, begin + together)
        bias = None if padding.bias is None else padding.bias[begin * heads : (begin + together) * heads]
        own = mask if mask is None or len(mask) == 1 else mask[some]
        drawn = None if left is None else left[begin * heads : (begin + together) * heads]
        parts.append(_plain(query[some], key[some], value[some], bias, padding.missing, own, drawn))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    if dropout:
        mixed = mixed * gain(dropout)
    return mixed.transpose(1, 2).contiguous()


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    missing: int,
    mask: Tensor | None,
    left: Tensor | None,
) -> Tensor:
    """(R, heads, L, width), as `attend` before its transposition."""
    rows, heads, length, width = query.shape
    if missing:
        key, value = (nn.functional.pad(part, (0, 0, 0, missing)) for part in (key, value))
    keys = key.shape[2]
    flat_query = query.reshape(rows * heads, length, width)
    turned = key.reshape(rows * heads, keys, width).transpose(1, 2)
    # padding is added by the product itself, which costs a quarter of filling the scores afterwards
    scores = torch.bmm(flat_query, turned) if bias is None else torch.baddbmm(bias, flat_query, turned)
    if mask is not None:
        scores = scores.view(rows, heads, length, keys)
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask.to(scores.dtype)
        scores = scores.view(rows * heads, length, keys)
    weights = scores.softmax(-1)
    if left is not None:
        weights = weights * left
    mixed = torch.bmm(weights.to(value.dtype), value.reshape(rows * heads, keys, -1))
    return mixed.view(rows, heads, length, -1)


def _packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None) -> Tensor:
    """(R, L, heads, width), zero at padding: attention among the real tokens of each row."""
    kernel = _varlen()
    rows, heads, length, width = query.shape
    flat = [part.transpose(1, 2).reshape(rows * length, heads, -1)[packing.places] for part in (query, key, value)]
    mixed = kernel(*flat, packing.starts, packing.starts, packing.length, packing.length, scale=scaling)
    whole = mixed.new_zeros(rows * length, heads, width)
    result: Tensor = whole.index_copy(0, packing.places, mixed).view(rows, length, heads, width)
    return result


def _fused(
    module: nn.Module,
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

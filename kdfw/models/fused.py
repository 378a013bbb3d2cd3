"""The layers of BERT-like encoders with fewer and larger operators, for inference on a CPU.

transformers' own layers stay in place and are what trains, exports and compiles. Where no gradient is wanted, a
`fused()` region computes the same with one product for query, key and value, GELU and the residual sum inside the
products (oneDNN), weights laid out once in the order the processor wants, and in bf16 without a change of type between
operators. Everything around the layers (embeddings, pooler, heads) remains transformers'.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdfw.models.attention import MAX_LENGTH, Padding, attend, padding_of

_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("fused", default=False)

_LAYERS = frozenset({"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer"})
"""Layers of one shape: attention, residual, norm, two dense layers, residual, norm."""
_ACTIVATIONS = {"gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "gelu_pytorch_tanh": ("gelu", "tanh"),
                "relu": ("relu", "")}  # fmt: skip
"""By `hidden_act`: name and algorithm of the operator that the product can apply."""


@contextlib.contextmanager
def fused() -> Iterator[None]:
    """Inside, encoders prepared by `prepare` may take the short way; only their last hidden state is right there."""
    before = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(before)


def prepare(transformer: nn.Module) -> bool:
    """Let the encoder inside a transformer take the short way; False (nothing changed) when it has another shape."""
    if not _operators():
        return False
    found = False
    for module in list(transformer.modules()):
        if _fits(module):
            module.forward = _Encoder(module, module.forward)
            found = True
    return found


@functools.cache
def _operators() -> bool:
    """Whether this torch has the operators."""
    available: Any = torch.backends.mkldnn.is_available
    return bool(available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fits(module: Any) -> bool:
    layers = getattr(module, "layer", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers) or not hasattr(module, "config"):
        return False
    config = module.config
    return (
        all(type(layer).__name__ in _LAYERS for layer in layers)
        and config.hidden_act in _ACTIVATIONS
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "chunk_size_feed_forward", 0)
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
    )


def _watched(module: nn.Module) -> bool:
    """Whether hooks of others expect the layers to be called (transformers leaves its own, for hidden states)."""
    hooks = (
        hook
        for part in module.modules()
        for found in (part._forward_hooks, part._forward_pre_hooks)
        for hook in found.values()
    )
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """The weights of one layer as the products want them."""

    attention: tuple[Tensor, Tensor]
    """Query (times the scale), key and value, one below the other."""
    out: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    norms: tuple[nn.LayerNorm, nn.LayerNorm]


class _Encoder:
    """Stands for the `forward` of an encoder: the short way where it may be taken, its own otherwise."""

    def __init__(self, module: Any, own: Callable[..., Any]) -> None:
        self.module, self.own = module, own
        self.packed: dict[torch.dtype, tuple[tuple[Any, ...], list[_Packed]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": {}}  # tensors in the processor's layout cannot be copied

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # before anything that the compiler cannot follow
            return self.own(hidden_states, attention_mask, *args, **named)
        kind = self.kind(hidden_states, attention_mask)
        if kind is None:
            self.packed.clear()  # weights that learn would be packed again each time
            return self.own(hidden_states, attention_mask, *args, **named)
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        states = self.run(hidden_states.to(kind), attention_mask, kind)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)

    def kind(self, states: Tensor, mask: Tensor | None) -> torch.dtype | None:
        """The type to compute in; None: the short way cannot be taken."""
        if not _wanted.get() or torch.is_grad_enabled() or self.module.training or states.device.type != "cpu":
            return None
        # a mask of padding alone is a view that says so: see `attention._register`
        if mask is not None and (mask.dtype != torch.bool or mask.dim() != 4 or mask.stride(2) != 0):
            return None
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            usable = kind is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        else:
            kind = states.dtype
            # the route that `precision.numerics` chose, after it measured its error
            backend: Any = torch.backends.mkldnn
            usable = kind is torch.float32 and backend.matmul.fp32_precision == "bf16"
        if not usable or states.shape[1] > MAX_LENGTH or _watched(self.module):
            return None
        # weights made in inference mode do not say when they change
        return None if any(value.is_inference() for value in self.module.parameters()) else kind

    def run(self, states: Tensor, mask: Tensor | None, kind: torch.dtype) -> Tensor:
        """(R, L, H) -> (R, L, H), at padding something finite."""
        rows, length, width = states.shape
        seen = None if mask is None else mask[:, 0, 0].expand(rows, -1)
        heads = int(self.module.config.num_attention_heads)
        activation, algorithm = _ACTIVATIONS[self.module.config.hidden_act]
        padding: Padding | None = None
        product = torch.ops.mkldnn._linear_pointwise
        flat = states.reshape(rows * length, width)
        with torch.autocast("cpu", enabled=False):
            for layer in self.weights(kind):
                inputs = product(flat, *layer.attention, "none", [], "").view(rows, length, 3, heads, -1)
                query, key, value = inputs.permute(2, 0, 3, 1, 4)
                padding = padding or padding_of(query, length, seen)
                mixed = attend(query, key, value, padding).view(rows * length, -1)
                flat = _normed(product.binary(mixed, flat, *layer.out, "add"), layer.norms[0])
                inner = product(flat, *layer.up, activation, [], algorithm)
                flat = _normed(product.binary(inner, flat, *layer.down, "add"), layer.norms[1])
        return flat.view(rows, length, width)

    def weights(self, kind: torch.dtype) -> list[_Packed]:
        """Packed weights, made anew when a weight was replaced or written to."""
        state = tuple((value.data_ptr(), value._version) for value in self.module.parameters())
        known = self.packed.get(kind)
        if known is None or known[0] != state:
            known = self.packed[kind] = (state, [_pack(layer, kind) for layer in self.module.layer])
        return known[1]


def _pack(layer: Any, kind: torch.dtype) -> _Packed:
    own = layer.attention.self
    scale = float(own.attention_head_size) ** -0.5

    def packed(*parts: tuple[nn.Linear, float]) -> tuple[Tensor, Tensor]:
        weight = torch.cat([part.weight.detach() * factor for part, factor in parts]).to(kind)
        bias = torch.cat([part.bias.detach() * factor for part, factor in parts]).to(kind)
        return torch.ops.mkldnn._reorder_linear_weight(weight), bias

    return _Packed(
        attention=packed((own.query, scale), (own.key, 1.0), (own.value, 1.0)),
        out=packed((layer.attention.output.dense, 1.0)),
        up=packed((layer.intermediate.dense, 1.0)),
        down=packed((layer.output.dense, 1.0)),
        norms=(layer.attention.output.LayerNorm, layer.output.LayerNorm),
    )


def _normed(states: Tensor, norm: nn.LayerNorm) -> Tensor:
    return nn.functional.layer_norm(states, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

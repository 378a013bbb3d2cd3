"""Vectors of a document and of its parts, all from one pass over the whole document (reconstruction: mean pooling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Span = Sequence[int]
"""Half-open range of token positions [begin, end); position 0 is [CLS] and belongs to no unit."""


def unit_vectors(states: Tensor, spans: Mapping[str, Sequence[Span]]) -> dict[str, Tensor]:
    """`document`: the state of token 0, (H,). Each granularity: (units, H) means of the states of its ranges.

    Args:
        states: (L, H) last hidden states of one document.
        spans: granularity -> ranges.
    """
    found = {"document": states[0]}
    for name, ranges in spans.items():
        found[name] = torch.stack([states[begin:end].mean(0) for begin, end in ranges])
    return found


def cut_spans(spans: Sequence[Span], num_tokens: int, most: int | None = None) -> list[Span]:
    """The ranges that survive truncation whole (a cut unit's teacher score is about other text), at most `most`."""
    return [span for span in spans if span[1] <= num_tokens][:most]


def pack_sentences(lengths: Sequence[int], target: int = 128) -> list[tuple[int, int]]:
    """Passages as half-open ranges of sentences: consecutive ones up to `target` tokens, one at least."""
    passages: list[tuple[int, int]] = []
    begin, size = 0, 0
    for number, length in enumerate(lengths):
        if number > begin and size + length > target:
            passages.append((begin, number))
            begin, size = number, 0
        size += length
    return [*passages, (begin, len(lengths))] if lengths else []

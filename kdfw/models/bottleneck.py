"""Masked auto-encoding through one vector: what several pre-training methods for retrieval share.

An encoder reads a masked text and predicts its masked tokens; a shallow decoder reads a masked text too, but knows of
the other text only through the encoder's first-token vector, which stands in the decoder's first position. The
decoder is thrown away; what remains is an encoder whose first token has learned to hold the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the positions with a label; logits (R, L, V), labels (R, L) long, -100 where there is none.

    Returns: scalar in nats; 0 when no position has a label.
    """
    total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


def encode(language_model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(R, H) first-token vectors of the last layer and (R, L, V) predictions of a BERT-like masked language model."""
    states = language_model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return states[:, 0], language_model.cls(states)


def decode(language_model: Any, layers: Sequence[nn.Module], vector: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """(R, L, V) predictions of a decoder over masked ids, with an encoder's vector in the first position.

    Embeddings and prediction head are those of the language model; the embedding of position 0 has no effect.

    Args:
        layers: the decoder's own BERT layers.
        vector: (R, H), with gradient.
        ids: (R, L) long. mask: (R, L) 0/1, the padding of the decoder's text.
    """
    embedded = language_model.base_model.embeddings(ids)
    states = torch.cat([vector[:, None], embedded[:, 1:]], dim=1)
    floor = torch.finfo(states.dtype).min
    # added to the attention scores; every query position sees the same keys
    added = torch.zeros_like(mask, dtype=states.dtype).masked_fill(mask == 0, floor)[:, None, None, :]
    added = added.expand(-1, 1, states.shape[1], -1)
    for layer in layers:
        output = layer(states, attention_mask=added)
        states = output[0] if isinstance(output, tuple) else output
    predictions: Tensor = language_model.cls(states)
    return predictions


def word_groups(tokens: Sequence[str], special: frozenset[str] = frozenset({"[CLS]", "[SEP]"})) -> list[list[int]]:
    """Positions of each word: a piece that begins with `##` belongs to the word before it; special tokens to none."""
    groups: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in special:
            continue
        if groups and token.startswith("##"):
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def mask_words(num_tokens: int, groups: Sequence[Sequence[int]], order: Sequence[int], share: float) -> list[int]:
    """(L,) 0/1: whole words in the given order until max(1, round(num_tokens * share)) tokens are masked.

    A word that would exceed the number is skipped.
    """
    budget = max(1, round(num_tokens * share))
    masked = [0] * num_tokens
    used = 0
    for number in order:
        if used >= budget:
            break
        if used + len(groups[number]) > budget:
            continue
        for position in groups[number]:
            masked[position] = 1
        used += len(groups[number])
    return masked

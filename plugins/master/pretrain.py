"""The pre-training loss: three encoder passes, five decoder passes, eight terms added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdfw.models.bottleneck import decode, encode, masked_cross_entropy

DECODERS: Mapping[str, tuple[str, str]] = {
    "self": ("c_head", "main"),
    "query": ("query_head", "main"),
    "gpt": ("gpt_head", "main"),
    "next": ("next_head", "next"),
    "overlap": ("overlap_head", "overlap"),
}
"""Task -> (name of its decoder, encoder pass whose first-token vector it gets)."""

Masked = Mapping[str, Tensor]
"""A masked copy of some text: `ids` (R, L), `mask` (R, L) 0/1, `labels` (R, L), -100 where none."""


def pretraining_losses(
    language_model: Any, decoders: Mapping[str, nn.ModuleList], texts: Mapping[str, Masked], tasks: Mapping[str, Masked]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of the encoder passes and of the decoders, by name; their plain sum is minimised.

    Args:
        decoders: by the names in `DECODERS`.
        texts: `main`, and `next` and `overlap` where those tasks are used.
        tasks: what each decoder reads; a task that is left out drops its term.
    """
    vectors, encoder = {}, {}
    for name, text in texts.items():
        vectors[name], predictions = encode(language_model, text["ids"], text["mask"])
        encoder[name] = masked_cross_entropy(predictions, text["labels"])
    decoder = {}
    for task, text in tasks.items():
        head, source = DECODERS[task]
        predictions = decode(language_model, list(decoders[head]), vectors[source], text["ids"], text["mask"])
        decoder[task] = masked_cross_entropy(predictions, text["labels"])
    return encoder, decoder

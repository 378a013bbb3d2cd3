"""The pre-training loss of a batch of span pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdfw.models.bottleneck import decode, encode, masked_cross_entropy


def swap_pairs(rows: Sequence[Any]) -> list[Any]:
    """(A1, B1, A2, B2, ...) -> (B1, A1, B2, A2, ...): what the decoder reads beside each encoder row."""
    return [rows[number ^ 1] for number in range(len(rows))]


def pretraining_losses(
    language_model: Any,
    decoder: nn.ModuleList,
    ids: Tensor,
    mask: Tensor,
    labels: Tensor,
    decoder_ids: Tensor,
    decoder_mask: Tensor,
    decoder_labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """(encoder loss, decoder loss), each a mean over the masked positions of the batch.

    Row r of the decoder's text is the partner of row r of the encoder's; the decoder knows the latter by its
    first-token vector alone. All tensors (R, L).
    """
    vectors, predictions = encode(language_model, ids, mask)
    first = masked_cross_entropy(predictions, labels)
    reconstructed = decode(language_model, list(decoder), vectors, decoder_ids, decoder_mask)
    return first, masked_cross_entropy(reconstructed, decoder_labels)

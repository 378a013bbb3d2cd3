"""CoT-MAE."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tiny_bert import build, gradients

from kdfw.models.bottleneck import mask_words, word_groups
from kdfw_plugins.cot_mae.pretrain import pretraining_losses
from kdfw_plugins.cot_mae.spans import span_records

Item = TypeVar("Item")


def pretrain_loss_tiny_bert(case: Any) -> Mapping[str, Any]:
    model, decoders, named = build(case, "", ("c_head",))
    names = ("input_ids", "attention_mask", "labels")
    rows = [case.index(name) for name in names]
    others = [case.index(f"decoder_{name}") for name in names]
    encoder, decoder = pretraining_losses(model, decoders["c_head"], *rows, *others)
    decoder = case.params["head_mlm_coef"] * decoder
    loss = encoder + decoder
    return {
        "encoder_mlm_loss": encoder,
        "decoder_mlm_loss_times_coef": decoder,
        "loss": loss,
        "grads": gradients(case, loss, named),
    }


def whole_word_mask(case: Any) -> Mapping[str, Any]:
    tokens = case.inputs["tokens"]
    mask = mask_words(len(tokens), word_groups(tokens), case.inputs["group_order"], case.params["mask_ratio"])
    return {"mask": mask}


class Forced:
    """Every draw at its lower or upper end."""

    def __init__(self, lowest: bool) -> None:
        self.lowest = lowest

    def integer(self, low: int, high: int) -> int:
        return low if self.lowest else high

    def choice(self, items: Sequence[Item]) -> Item:
        return items[0 if self.lowest else -1]


def contextual_spans(case: Any) -> Mapping[str, Any]:
    draws = Forced("lower" in case.params["random_policy"])
    records = span_records(
        case.inputs["sentence_token_ids"],
        max_tokens=case.params["max_len"],
        window=case.params["window_size"],
        draws=draws,
    )
    return {"spans": records}


ADAPTERS = {
    "pretrain_loss_tiny_bert": pretrain_loss_tiny_bert,
    "whole_word_mask": whole_word_mask,
    "contextual_spans": contextual_spans,
}

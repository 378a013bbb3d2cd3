"""A tiny BERT with recorded weights, for the pre-training methods."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer


def build(case: Any, prefix: str, heads: tuple[str, ...]) -> tuple[Any, dict[str, nn.ModuleList], dict[str, Any]]:
    """Language model, decoders by name, and every parameter by its recorded name."""
    params, weights = case.params, case.inputs["weights"]
    config = BertConfig(
        vocab_size=params["vocab"],
        hidden_size=params["hidden"],
        num_hidden_layers=params["encoder_layers"],
        num_attention_heads=params["heads"],
        intermediate_size=params["intermediate"],
        max_position_embeddings=len(weights[f"{prefix}bert.embeddings.position_embeddings.weight"]),
        type_vocab_size=len(weights[f"{prefix}bert.embeddings.token_type_embeddings.weight"]),
        hidden_act="gelu",
        layer_norm_eps=params["layer_norm_eps"],
        hidden_dropout_prob=params["dropout"],
        attention_probs_dropout_prob=params["dropout"],
        attn_implementation="eager",
    )
    model = BertForMaskedLM(config)
    decoders = {head: nn.ModuleList(BertLayer(config) for _ in range(params["decoder_layers"])) for head in heads}
    named = {f"{prefix}{name}": value for name, value in model.named_parameters()}
    named |= {f"{head}.{name}": value for head in heads for name, value in decoders[head].named_parameters()}
    for module in (model, *decoders.values()):
        module.double().eval()
    missing = set(named) - set(weights) - {f"{prefix}cls.predictions.decoder.bias"}
    assert not missing and not set(weights) - set(named), (missing, set(weights) - set(named))
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(torch.tensor(value, dtype=torch.float64))
    return model, decoders, named


def gradients(case: Any, loss: torch.Tensor, named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Of the parameters whose gradients were recorded."""
    names = list(case.expected["grads"])
    return dict(zip(names, torch.autograd.grad(loss, [named[name] for name in names]), strict=True))

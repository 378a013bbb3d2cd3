"""MASTER."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from recipe_losses import CLOCK, embedded, list_batch, term_values
from tiny_bert import build, gradients

from kdfw.types import Signals
from kdfw_plugins.master.finetune import RankerDistillation
from kdfw_plugins.master.masking import complementary, keyword_weights, mask_keywords
from kdfw_plugins.master.pretrain import DECODERS, pretraining_losses


def pretrain_loss_tiny_bert(case: Any) -> Mapping[str, Any]:
    model, decoders, named = build(case, "lm.", tuple(head for head, _ in DECODERS.values()))

    def masked(ids: str, mask: str, labels: str) -> dict[str, Any]:
        return {"ids": case.index(ids), "mask": case.index(mask), "labels": case.index(labels)}

    main = "attention_mask"
    texts = {
        "main": masked("input_ids", main, "labels"),
        "next": masked("next_encoder_input_ids", "next_encoder_attention_mask", "next_encoder_labels"),
        "overlap": masked("overlap_encoder_input_ids", main, "overlap_encoder_labels"),
    }
    tasks = {
        "self": masked("decoder_input_ids", main, "decoder_labels"),
        "query": masked("query_input_ids", "query_attention_mask", "query_labels"),
        "gpt": masked("gpt_input_ids", "gpt_attention_mask", "gpt_labels"),
        "next": masked("next_decoder_input_ids", "next_decoder_attention_mask", "next_decoder_labels"),
        "overlap": masked("overlap_decoder_input_ids", main, "overlap_decoder_labels"),
    }
    encoder, decoder = pretraining_losses(model, decoders, texts, tasks)
    loss = sum(encoder.values()) + sum(decoder.values())
    return {
        "encoder_losses": encoder,
        "decoder_losses": decoder,
        "loss": loss,
        "grads": gradients(case, loss, named),
    }


def weights(case: Any) -> Mapping[str, Any]:
    groups, found = keyword_weights(case.inputs["tokens"], case.inputs["frequency"])
    return {"groups": groups, "sampling_weights": found}


def complementary_masks(case: Any) -> Mapping[str, Any]:
    first, second = complementary(case.inputs["tokens"], case.inputs["group_order"], case.params["mask_ratio"])
    return {"encoder_mask": first, "decoder_mask": second}


def keyword_mask_deterministic(case: Any) -> Mapping[str, Any]:
    number = case.params.get("draws_per_round", 10)

    def draw(words: Sequence[int], shares: Sequence[float]) -> Sequence[int]:
        order = sorted(range(len(words)), key=lambda place: -shares[place])
        return [words[order[turn % len(order)]] for turn in range(number)]

    mask = mask_keywords(case.inputs["tokens"], case.inputs["frequency"], case.params["mask_ratio"], draw)
    return {"mask": mask, "n_masked": sum(mask)}


def finetune_kd_loss(case: Any) -> Mapping[str, Any]:
    params = case.params
    student = embedded(case.leaf("query"), case.leaf("passage"))
    if params["scale_similarity_by_sqrt_dim"]:
        size = math.sqrt(len(case.inputs["query"][0]))
        everything = {"batch_logits": student["batch_logits"] / size}
        student = Signals(logits=student["logits"] / size, extra=everything)
    batch = list_batch(*student["logits"].shape)
    own = RankerDistillation(temperature=params["teacher_temperature"], eps=params["eps"])
    distil = own(student, [Signals(logits=case.tensor("reranker_logits"))], batch, CLOCK).total
    term = {"type": "info-nce", "in_batch": True, "positives": "first", "mask_known_positives": False}
    contrast = term_values([term], student, [], batch)["loss"]
    loss = distil + params["contrastive_weight"] * contrast
    return {"kd_loss": distil, "contrastive_loss": contrast, "loss": loss, **case.gradients(loss)}


ADAPTERS = {
    "pretrain_loss_tiny_bert": pretrain_loss_tiny_bert,
    "keyword_weights": weights,
    "complementary_masks": complementary_masks,
    "keyword_mask_deterministic": keyword_mask_deterministic,
    "finetune_kd_loss": finetune_kd_loss,
}

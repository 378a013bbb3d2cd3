"""E5 and the SimLM code it fine-tunes with."""

from collections.abc import Mapping
from typing import Any

import torch
from recipe_losses import CLOCK, embedded, list_batch, term_values
from torch import Tensor
from torch.nn.functional import normalize

from kdfw.types import Signals
from kdfw_plugins.e5.contrastive import FullContrastive, stage_losses
from kdfw_plugins.e5.data import consistency_ranks, group, trusted_positives
from kdfw_plugins.e5.pooling import pool
from kdfw_plugins.e5.ranker import r_drop_values, ranker_values
from kdfw_plugins.e5.temperature import score_scale


def contrastive_value(queries: Tensor, passages: Tensor, **options: Any) -> Tensor:
    signals = Signals(extra={"query_embeddings": queries, "passage_embeddings": passages})
    batch = list_batch(len(queries), len(passages) // len(queries))
    return FullContrastive(**options)(signals, [], batch, CLOCK).total


def vectors(case: Any, unit: bool = True) -> tuple[Tensor, Tensor]:
    queries, passages = case.leaf("query"), case.leaf("passage")
    return (normalize(queries, dim=-1), normalize(passages, dim=-1)) if unit else (queries, passages)


def contrastive_loss(case: Any) -> Mapping[str, Any]:
    params = case.params
    queries, passages = vectors(case, params["l2_normalize"])
    temperature = params["temperature"] if params["l2_normalize"] else 1.0
    loss = contrastive_value(queries, passages, temperature=temperature, full=params["full_contrastive"])
    labels = torch.arange(len(queries)) * params["group_size"]
    return {"loss": loss, "labels": labels, **case.gradients(loss)}


def kd_finetune_loss(case: Any) -> Mapping[str, Any]:
    params = case.params
    queries, passages = vectors(case, params.get("l2_normalize", True))
    teacher = case.tensor("teacher_logits")
    distil, contrast = stage_losses(
        temperature=params["temperature"],
        contrastive_weight=params["contrastive_weight"],
        full=params["full_contrastive"],
        mask_hard_negatives=params["mask_hard_negatives_in_contrastive"],
    )
    batch = list_batch(*teacher.shape)
    loss = term_values([distil], embedded(queries, passages), [Signals(logits=teacher)], batch)["loss"]
    options = {key: contrast[key] for key in ("temperature", "full", "mask_hard_negatives")}
    loss = loss + contrast["weight"] * contrastive_value(queries, passages, **options)
    return {"loss": loss, **case.gradients(loss)}


def temperature_warmup(case: Any) -> Mapping[str, Any]:
    params = case.params
    scale = score_scale(params["step"], params["temperature"], params["warmup_steps"])
    loss = contrastive_value(*vectors(case), temperature=1 / scale, full=params["full_contrastive"])
    return {"scale": scale, "loss": loss}


def pooled(case: Any) -> Mapping[str, Any]:
    embedding = pool(case.tensor("hidden"), case.index("attention_mask"), case.params["pool_type"])
    return {"embedding": embedding, "normalized": normalize(embedding, dim=-1)}


def group_doc_ids(case: Any) -> Mapping[str, Any]:
    shown: list[int] = []
    for own, others in zip(case.inputs["positives"], case.inputs["negatives"], strict=True):
        positives = own["doc_id"]
        if case.params.get("use_first_positive"):
            positives = trusted_positives(positives, own["score"], others["score"])
        ids = group(positives, others["doc_id"], case.params["negative_size"], case.params["offset"])
        shown += [int(id) for id in ids]
    return {"doc_ids": shown}


def reranker_teacher_loss(case: Any) -> Mapping[str, Any]:
    logits, positive = case.leaf("logits"), case.params.get("positive_index", 0)
    values = r_drop_values(*logits, positive) if case.params["rdrop"] else ranker_values(logits, positive)
    return {"loss": values.mean(), **case.gradients(values.mean())}


def consistency_filter(case: Any) -> Mapping[str, Any]:
    ranks = consistency_ranks(case.tensor("query"), case.tensor("passage"), case.tensor("pool"))
    return {"rank": ranks, "keep": (ranks <= case.params["k"]).long()}


ADAPTERS = {
    "contrastive_loss": contrastive_loss,
    "kd_finetune_loss": kd_finetune_loss,
    "temperature_warmup": temperature_warmup,
    "pool": pooled,
    "group_doc_ids": group_doc_ids,
    "reranker_teacher_loss": reranker_teacher_loss,
    "consistency_filter": consistency_filter,
}

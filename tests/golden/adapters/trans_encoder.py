"""Trans-Encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from kdfw.evaluation.tasks import spearman
from kdfw.losses.bce import binary_cross_entropy
from kdfw.losses.mse import score_mse
from kdfw_plugins.trans_encoder.pseudo_labels import labels_from_bi, labels_from_cross
from kdfw_plugins.trans_encoder.steps import learning_rate, stage_steps


def pseudo_labels_from_bi(case: Any) -> Mapping[str, Any]:
    return {"labels": labels_from_bi(case.tensor("emb_first"), case.tensor("emb_second"))}


def pseudo_labels_from_cross(case: Any) -> Mapping[str, Any]:
    return {"labels": labels_from_cross(case.tensor("logits"))}


def bi_to_cross_bce(case: Any) -> Mapping[str, Any]:
    logits, labels = case.leaf("logits")[:, None], case.tensor("labels")[:, None]
    loss = binary_cross_entropy(logits, labels, torch.ones_like(labels, dtype=torch.bool)).mean()
    return {"loss": loss, **case.gradients(loss)}


def cross_to_bi_mse(case: Any) -> Mapping[str, Any]:
    cosines, labels = cosine_similarity(case.leaf("u"), case.leaf("v"))[:, None], case.tensor("labels")[:, None]
    loss = score_mse(cosines, labels, torch.ones_like(labels, dtype=torch.bool)).mean()
    return {"loss": loss, **case.gradients(loss)}


def sts_spearman(case: Any) -> Mapping[str, Any]:
    scores = labels_from_bi(case.tensor("emb_first")[None], case.tensor("emb_second")[None])
    return {"spearman": spearman(scores.numpy(), case.tensor("gold").numpy()) / 100}


def stage_schedule(case: Any) -> Mapping[str, Any]:
    params = case.params
    total, warmup = stage_steps(
        params["n_pairs"], params["batch_size"], params["epochs"], cross=params["stage"] == "cross"
    )
    rates = [learning_rate(step, total, warmup, params["peak_lr"]) for step in case.inputs["steps"]]
    return {"total_steps": total, "warmup_steps": warmup, "lr": rates}


ADAPTERS = {
    "pseudo_labels_from_bi": pseudo_labels_from_bi,
    "pseudo_labels_from_cross": pseudo_labels_from_cross,
    "bi_to_cross_bce": bi_to_cross_bce,
    "cross_to_bi_mse": cross_to_bi_mse,
    "sts_spearman": sts_spearman,
    "stage_schedule": stage_schedule,
}

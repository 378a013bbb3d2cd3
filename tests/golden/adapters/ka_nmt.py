"""KA-NMT."""

from collections.abc import Mapping
from typing import Any

import torch

from kdfw.losses.cross_entropy import cross_entropy
from kdfw.losses.kl import kl_divergence
from kdfw_plugins.ka_nmt.losses import filtered, knows_better, smoothed_cross_entropy
from kdfw_plugins.ka_nmt.rate import learning_rate


def token_kd(case: Any) -> Mapping[str, Any]:
    student, weights = case.leaf("student_logits"), case.tensor("mask").flatten()
    values = kl_divergence(student, case.tensor("teacher_logits"), torch.ones_like(student, dtype=torch.bool))
    loss = (values * weights).sum() / weights.sum()
    return {"loss": loss, **case.gradients(loss)}


def smoothed(case: Any) -> Mapping[str, Any]:
    logits, labels, weights = case.leaf("logits"), case.index("labels"), case.tensor("mask")
    values = smoothed_cross_entropy(
        logits, labels.flatten(), case.params["smoothing"], case.params["normalize"]
    ).reshape(labels.shape)
    loss = (values * weights).sum() / weights.sum()
    return {"per_token": values, "loss": loss, **case.gradients(loss)}


def rate(case: Any) -> Mapping[str, Any]:
    peak, warmup = case.params["learning_rate"], case.params["warmup_steps"]
    return {"lr": [learning_rate(step, peak, warmup) for step in case.inputs["steps"]]}


def knowledge_filtration_mask(case: Any) -> Mapping[str, Any]:
    teacher, previous, labels = case.tensor("teacher_logits"), case.tensor("prev_student_logits"), case.index("labels")
    return {
        "teacher_ce": cross_entropy(teacher, labels),
        "prev_student_ce": cross_entropy(previous, labels),
        "positive": knows_better(teacher, previous, labels).long(),
    }


def ckd_total_loss(case: Any) -> Mapping[str, Any]:
    student, labels, params = case.leaf("student_logits"), case.index("labels"), case.params
    teacher, previous = case.tensor("teacher_logits"), case.tensor("prev_student_logits")
    ce = smoothed_cross_entropy(student, labels, params["smoothing"]).mean()
    kf = filtered(student, teacher, previous, labels, params["alpha"]).mean()
    ki = kl_divergence(student, previous, torch.ones_like(student, dtype=torch.bool)).mean()
    loss = ce + params["lambda"] * kf + (1 - params["lambda"]) * ki
    return {"ce": ce, "kf": kf, "ki": ki, "loss": loss, **case.gradients(loss)}


ADAPTERS = {
    "token_kd": token_kd,
    "smoothed_cross_entropy": smoothed,
    "linear_warmup_rsqrt_decay": rate,
    "knowledge_filtration_mask": knowledge_filtration_mask,
    "ckd_total_loss": ckd_total_loss,
}

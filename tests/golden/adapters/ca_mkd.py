"""CA-MKD. Arrays of teachers are stacked on the first axis."""

from collections.abc import Mapping
from typing import Any

import torch

from kdfw.losses.kl import kl_divergence
from kdfw_plugins.ca_mkd.features import feature_term, projection, resize
from kdfw_plugins.ca_mkd.weights import confidence_weights, label_cross_entropy


def logit_term(case: Any) -> Mapping[str, Any]:
    student, teachers, temperature = case.leaf("logits_student"), case.tensor("logits_teachers"), case.params["T"]
    weights = confidence_weights(label_cross_entropy(teachers, case.index("label")))
    everything = torch.ones_like(student, dtype=torch.bool)
    softened = [kl_divergence(student / temperature, teacher / temperature, everything) for teacher in teachers]
    values = temperature**2 * torch.stack(softened)
    paper = (weights * values).sum(0).mean()
    loss = paper / len(teachers)
    return {"weights": weights, "loss": loss, "loss_paper_scale": paper, **case.gradients(loss)}


def intermediate_term(case: Any) -> Mapping[str, Any]:
    own, logits = case.leaf("projected_student_features"), case.leaf("projected_logits")
    values, weights = feature_term(own, case.tensor("teacher_features"), logits, case.index("label"))
    loss = values.sum(0).mean()
    return {"weights": weights, "loss": loss, **case.gradients(loss)}


def intermediate_full(case: Any) -> Mapping[str, Any]:
    student, teachers = case.leaf("student_feature"), case.tensor("teacher_features")
    projected, logits = [], []
    for number, teacher in enumerate(teachers):
        weight = case.tensor("conv_weight")[number]
        project = projection(student.shape[1], len(weight)).double().train()
        project[0].load_state_dict({"weight": weight[..., None, None], "bias": case.tensor("conv_bias")[number]})
        projected.append(project(resize(student, teacher.shape[-1])))
        head = case.tensor("teacher_fc_weight")[number]
        logits.append(projected[-1].mean((2, 3)) @ head.T + case.tensor("teacher_fc_bias")[number])
    values, weights = feature_term(projected, list(teachers), torch.stack(logits), case.index("label"))
    loss = values.sum(0).mean()
    return {"projected_logits": torch.stack(logits), "weights": weights, "loss": loss, **case.gradients(loss)}


ADAPTERS = {
    "logit_term": logit_term,
    "intermediate_term": intermediate_term,
    "intermediate_full": intermediate_full,
}

"""LEAD."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdfw_plugins.lead.layers import (
    dot_scores,
    layer_values,
    layer_weights,
    maxsim_scores,
    ranking_losses,
    towards,
)


def layer_term(student: Tensor, teacher: Tensor, target: Tensor, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Layer scores (K, Q, P) of both, paired in order."""
    everything = torch.ones_like(student[0], dtype=torch.bool)
    values = layer_values(student, teacher, everything, params.get("temperature", 1.0)).mean(-1)
    weights = None
    if params["reweight"]:
        weights = layer_weights(ranking_losses(teacher, target).mean(-1), params["layer_temperature"])
    coefficient = params.get("coefficient", 1.0)
    return {
        "loss": (values * (coefficient if weights is None else weights)).sum(),
        "layer_kl": values,
        "layer_weights": weights,
    }


def layer_loss(case: Any) -> Mapping[str, Any]:
    student, teacher = case.leaf("student_layer_scores"), case.leaf("teacher_layer_scores")
    values = layer_term(student, teacher, case.index("target"), case.params)
    return {**values, **case.gradients(values["loss"])}


def total(case: Any, student: Tensor, teacher: Tensor, final: Tensor, target: Tensor, name: str) -> Mapping[str, Any]:
    """Layer scores (N, Q, P) of all layers, the teacher's final scores (Q, P); `name` as the recorded parts have it."""
    params, everything = case.params, torch.ones_like(final, dtype=torch.bool)
    own = ranking_losses(student[-1], target).mean()
    other = ranking_losses(final, target).mean()
    there = towards(student[-1], final, everything, params["temperature"]).mean()
    back = towards(final, student[-1], everything, params["temperature"]).mean()
    term = layer_term(student[params["student_layers"]], teacher[params["teacher_layers"]], target, params)
    loss = own + there + term["loss"]
    parts = {"loss_db": own, f"loss_{name}_db_dis": there, f"loss_db_{name}_dis": back}
    if params["train_teacher"]:
        loss = loss + other + back
        parts[{"de": "loss_dual", "col": "loss_col", "ce": "loss_ce"}[name]] = other
    parts |= {f"loss_score_layer_dis_{number}": value for number, value in enumerate(term["layer_kl"])}
    parts[f"loss_{name}_db_layer_dis"] = term["loss"]
    return {"loss": loss, "parts": parts, **case.gradients(loss)}


def total_loss_dual_encoder_teacher(case: Any) -> Mapping[str, Any]:
    student = dot_scores(case.leaf("student_q_cls"), case.leaf("student_d_cls"))
    teacher = dot_scores(case.leaf("teacher_q_cls"), case.leaf("teacher_d_cls"))
    target = torch.arange(case.params["Q"]) * case.params["M"]
    return total(case, student, teacher, teacher[-1], target, "de")


def total_loss_colbert_teacher(case: Any) -> Mapping[str, Any]:
    student = dot_scores(case.leaf("student_q_cls"), case.leaf("student_d_cls"))
    queries, passages = case.tensor("teacher_q_tokens"), case.tensor("teacher_d_tokens")
    mask = case.index("doc_mask").bool()
    layers = torch.stack(
        [maxsim_scores(queries[:, layer], passages[:, layer], mask) for layer in range(queries.shape[1])]
    )
    final = maxsim_scores(normalize(queries[:, -1], dim=-1), normalize(passages[:, -1], dim=-1), mask)
    target = torch.arange(case.params["Q"]) * case.params["M"]
    return total(case, student, layers, final, target, "col")


def total_loss_cross_encoder_teacher(case: Any) -> Mapping[str, Any]:
    everything = dot_scores(case.leaf("student_q_cls"), case.leaf("student_d_cls"))
    num_queries, length = case.params["Q"], case.params["M"]
    own = torch.arange(num_queries * length).reshape(num_queries, length).expand(len(everything), -1, -1)
    teacher = case.leaf("teacher_layer_scores")
    return total(case, everything.gather(-1, own), teacher, teacher[-1], torch.zeros(num_queries).long(), "ce")


ADAPTERS = {
    "layer_loss": layer_loss,
    "total_loss_dual_encoder_teacher": total_loss_dual_encoder_teacher,
    "total_loss_colbert_teacher": total_loss_colbert_teacher,
    "total_loss_cross_encoder_teacher": total_loss_cross_encoder_teacher,
}

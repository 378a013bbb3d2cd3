"""CTKD."""

from collections.abc import Mapping
from typing import Any

import torch

from kdfw.losses.kl import kl_divergence
from kdfw.losses.masking import divide
from kdfw_plugins.ctkd.curriculum import bounded_temperature, cosine_strength, linear_strength, reverse_gradient
from kdfw_plugins.ctkd.loss import offset_kl


def curve(strength: Any) -> Any:
    def adapter(case: Any) -> Mapping[str, Any]:
        first, last, ramp = (case.params[name] for name in ("max_value", "min_value", "num_loops"))
        return {"value": [strength(n, first=first, last=last, ramp_epochs=ramp) for n in case.inputs["epoch"]]}

    return adapter


def global_temperature_kd(case: Any) -> Mapping[str, Any]:
    raw = reverse_gradient(case.leaf("theta"), case.params["lambda"])
    temperature = bounded_temperature(raw, lowest=case.params["t_start"], span=case.params["t_range"])
    student, teacher = case.leaf("logits_student"), case.tensor("logits_teacher")
    everything = torch.ones_like(student, dtype=torch.bool)
    values = kl_divergence(divide(student, temperature[0]), divide(teacher, temperature[0]), everything)
    loss = (temperature**2 * values).mean()
    return {"T": temperature, "loss": loss, **case.gradients(loss)}


def gradient_reversal(case: Any) -> Mapping[str, Any]:
    x = case.leaf("x")
    y = reverse_gradient(x, case.params["lambda"])
    return {"y": y, **case.gradients((y * case.tensor("upstream_grad")).sum())}


def instance_temperature_kl(case: Any) -> Mapping[str, Any]:
    student, temperature = case.leaf("logits_student"), case.leaf("T")
    everything = torch.ones_like(student, dtype=torch.bool)
    values = offset_kl(student, case.tensor("logits_teacher"), everything, temperature, offset=case.params["eps"])
    loss = values.mean()
    return {"loss": loss, **case.gradients(loss)}


ADAPTERS = {
    "cosine_lambda_schedule": curve(cosine_strength),
    "linear_lambda_schedule": curve(linear_strength),
    "global_temperature_kd": global_temperature_kd,
    "gradient_reversal": gradient_reversal,
    "instance_temperature_kl": instance_temperature_kl,
}

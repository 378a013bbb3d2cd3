"""ADAM: values of this framework's reconstruction, through the component as recipes use it."""

from collections.abc import Mapping
from typing import Any

import torch

from kdfw.losses.kl import kl_divergence
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.adam.loss import DarkDistillation
from kdfw_plugins.adam.selection import confidence, threshold_at


def self_paced_dark_kd(case: Any) -> Mapping[str, Any]:
    student, teacher, params = case.leaf("student_scores"), case.tensor("teacher_scores"), case.params
    num_plain, num_dark, tau = params["num_plain"], params["num_dark"], params.get("temperature", 1.0)
    kinds = ("positive", *["negative"] * (num_plain - 1), *["dark"] * num_dark)
    batch = Batch(
        task="ranking",
        ids=tuple(f"q{row}" for row in range(len(student))),
        inputs={},
        num_items=len(student),
        kinds=(kinds,) * len(student),
    )
    clock = Clock(
        step=params["step"], total_steps=params["total_steps"], epoch=0, total_epochs=1, steps_per_epoch=1, seed=0
    )
    start, end = params["threshold_start"], params["threshold_end"]
    loss = DarkDistillation(
        temperature=tau,
        unselected=params.get("unselected", "skip"),
        start=start,
        end=end,
        scale_by_temperature=params.get("scale_tau2", False),
    )
    total = loss(Signals(logits=student), [Signals(logits=teacher)], batch, clock).total
    full = torch.ones_like(student, dtype=torch.bool)
    plain = full.clone()
    plain[:, num_plain:] = False
    sure = confidence(teacher, plain)
    level = threshold_at(params["step"], params["total_steps"], start, end)
    return {
        "confidence": sure,
        "threshold": level,
        "selected": (sure >= level).long(),
        "kl_full": kl_divergence(student / tau, teacher / tau, full),
        "kl_plain": kl_divergence(student / tau, teacher / tau, plain),
        "loss": total,
        **case.gradients(total),
    }


ADAPTERS = {"self_paced_dark_kd": self_paced_dark_kd}

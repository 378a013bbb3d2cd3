"""NKD and TF-NKD."""

from collections.abc import Mapping
from typing import Any

import torch

from kdfw_plugins.nkd.nkd import non_target_term, target_class, target_term
from kdfw_plugins.nkd.teacher_free import teacher_free_terms


def labels(case: Any) -> Any:
    soft = isinstance(case.inputs["label"][0], list)
    return case.tensor("label") if soft else case.index("label")


def nkd_loss(case: Any) -> Mapping[str, Any]:
    student, teacher = case.leaf("logits_student"), case.tensor("logits_teacher")
    target, _ = target_class(labels(case))
    everything = torch.ones_like(student, dtype=torch.bool)
    temperature, gamma = case.params["temp"], case.params["gamma"]
    first = target_term(student, teacher, everything, target).mean()
    second = gamma * temperature**2 * non_target_term(student, teacher, everything, target, temperature).mean()
    total = first + second
    return {"loss": total, "loss_target": first, "loss_non_target": second, **case.gradients(total)}


def tf_nkd_loss(case: Any) -> Mapping[str, Any]:
    student, label = case.leaf("logits_student"), labels(case)
    terms = teacher_free_terms(student, label).mean(-1)
    total = terms.sum()
    log_p = student.log_softmax(-1)
    picked = log_p.gather(1, label[:, None])[:, 0] if label.dim() == 1 else (label * log_p).sum(-1)
    parts = {f"loss_tf_nkd{number}": term for number, term in enumerate(terms)}
    return {"loss": total, "loss_plus_ce": total - picked.mean(), **parts, **case.gradients(total)}


ADAPTERS = {"nkd_loss": nkd_loss, "tf_nkd_loss": tf_nkd_loss}

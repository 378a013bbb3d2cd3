"""MTD."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recipe_losses import term_values

from kdfw.types import Batch, Signals
from kdfw_plugins.mtd.losses import mean_teacher_kl, stage_losses
from kdfw_plugins.mtd.selection import consensus, micro_scores, most_confident


def batch_of(logits: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    ids = tuple(map(str, range(len(logits))))
    return Batch(task="classification", ids=ids, inputs={}, num_items=len(ids), labels=labels)


def values(case: Any, student: torch.Tensor, teachers: torch.Tensor, labels: torch.Tensor | None) -> dict[str, Any]:
    terms = stage_losses(
        num_teachers=len(teachers),
        teacher_weight=case.params.get("teacher_weight", 1 / len(teachers)),
        temperature=case.params["T"],
    )
    signals = [Signals(logits=teacher) for teacher in teachers]
    chosen = terms if labels is not None else terms[1:]
    return term_values(chosen, Signals(logits=student), signals, batch_of(student, labels))


def distill_kl(case: Any) -> Mapping[str, Any]:
    loss = values(case, case.leaf("student_logits"), case.tensor("teacher_logits")[None], None)["loss"]
    return {"loss": loss, **case.gradients(loss)}


def distill_kl_mean_teacher(case: Any) -> Mapping[str, Any]:
    student = case.leaf("student_logits")
    mask = torch.ones_like(student, dtype=torch.bool)
    loss = mean_teacher_kl(student, list(case.tensor("teacher_logits")), mask, case.params["T"]).mean()
    return {"loss": loss, **case.gradients(loss)}


def student_loss_released_code(case: Any) -> Mapping[str, Any]:
    loss = values(case, case.leaf("student_logits"), case.tensor("teacher_logits"), case.index("labels"))["loss"]
    return {"loss": loss, **case.gradients(loss)}


def student_loss_split_sets(case: Any) -> Mapping[str, Any]:
    teachers = case.tensor("teacher_logits_difference")
    hard, difference = case.leaf("student_logits_hard"), case.leaf("student_logits_difference")
    terms = stage_losses(
        num_teachers=len(teachers), teacher_weight=case.params["teacher_weight"], temperature=case.params["T"]
    )
    labels = case.index("labels_hard")
    ce = term_values(terms[:1], Signals(logits=hard), [], batch_of(hard, labels))["loss"]
    signals = [Signals(logits=teacher) for teacher in teachers]
    soft = term_values(terms[1:], Signals(logits=difference), signals, batch_of(difference))
    loss = ce + soft["loss"]
    return {"ce": ce, "kd": soft["teachers"] * len(teachers), "loss": loss, **case.gradients(loss)}


def consensus_split(case: Any) -> Mapping[str, Any]:
    chosen, labels, rest = consensus(np.asarray(case.inputs["teacher_logits"]))
    return {"consensus_index": chosen, "consensus_label": labels, "difference_index": rest}


def self_training_select(case: Any) -> Mapping[str, Any]:
    ids, labels = np.asarray(case.inputs["id"]), np.asarray(case.inputs["pred"])
    order = np.argsort(ids)  # the recorded output is in pool order, which the ids give
    chosen = most_confident(np.asarray(case.inputs["confidence"])[order], case.params["k"])
    rest = np.setdiff1d(np.arange(len(ids)), chosen)
    return {
        "selected_id": ids[order][chosen],
        "selected_label": labels[order][chosen],
        "remaining_id": ids[order][rest],
    }


def micro_f1_no_relation_excluded(case: Any) -> Mapping[str, Any]:
    found = micro_scores(case.inputs["gold"], case.inputs["pred"], case.params["no_relation_id"])
    return dict(zip(("precision", "recall", "f1"), found, strict=True))


ADAPTERS = {
    "distill_kl": distill_kl,
    "distill_kl_mean_teacher": distill_kl_mean_teacher,
    "student_loss_released_code": student_loss_released_code,
    "student_loss_split_sets": student_loss_split_sets,
    "consensus_split": consensus_split,
    "self_training_select": self_training_select,
    "micro_f1_no_relation_excluded": micro_f1_no_relation_excluded,
}

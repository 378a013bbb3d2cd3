"""DCD: `official_*` as released (deviations included), `aligned_*` and `derived_*` as the formulas say."""

from collections.abc import Mapping
from typing import Any

from recipe_losses import CLOCK, list_batch
from torch import Tensor

from kdfw.types import Signals
from kdfw_plugins.dcd.loss import (
    DynamicDistillation,
    certainty_weights,
    dynamic_terms,
    entropy_shares,
    focal_terms,
    hardest,
)


def official(case: Any, student: Tensor, teacher: Tensor, aligned: bool) -> Mapping[str, Any]:
    loss = DynamicDistillation(
        distill_weight=case.params["alpha"],
        num_negatives=case.params["num_hard_negatives"],
        form="batch-mean",
        aligned=aligned,
    )
    terms = loss(Signals(logits=student), [Signals(logits=teacher)], list_batch(*student.shape), CLOCK)
    return {
        "official_total": terms.total,
        "official_distill": terms.parts["distill"],
        "official_task": terms.parts["task"],
        "official_grad_student_scores": case.gradients(terms.total)["grad_student_scores"],
    }


def mine_and_loss(case: Any) -> Mapping[str, Any]:
    student, teacher, alpha = case.leaf("student_scores"), case.tensor("teacher_scores"), case.params["alpha"]
    columns = hardest(teacher, case.params["num_hard_negatives"])
    ours, theirs = student.gather(1, columns), teacher.gather(1, columns)
    shares = entropy_shares(theirs)
    weighted, task = dynamic_terms(ours, theirs, "weighted")
    mean, _ = dynamic_terms(ours, theirs, "batch-mean")
    return {
        **official(case, student, teacher, aligned=False),
        "selected_indices": columns,
        "aligned_entropy_share": shares,
        "aligned_distill_weight": certainty_weights(shares),
        "aligned_distill_batch_mean": mean,
        "aligned_distill_weighted": weighted,
        "aligned_task": task,
        "aligned_total_batch_mean": alpha * mean + (1 - alpha) * task,
        "aligned_total_weighted": alpha * weighted + (1 - alpha) * task,
    }


def distillation_loss(case: Any) -> Mapping[str, Any]:
    student, teacher, alpha = case.leaf("student_scores"), case.tensor("teacher_scores"), case.params["alpha"]
    shares = entropy_shares(teacher)
    weighted, task = dynamic_terms(student, teacher, "weighted")
    mean, _ = dynamic_terms(student, teacher, "batch-mean")
    total = alpha * mean + (1 - alpha) * task
    return {
        "official_total": total,
        "official_distill": mean,
        "official_task": task,
        "official_grad_student_scores": case.gradients(total)["grad_student_scores"],
        "derived_entropy_share": shares,
        "derived_distill_weight": certainty_weights(shares),
        "derived_total_weighted": alpha * weighted + (1 - alpha) * task,
    }


def focal_variant(case: Any) -> Mapping[str, Any]:
    student = case.leaf("student_scores")
    distill, task = focal_terms(student, case.tensor("teacher_scores"), case.params["T"])
    total = case.params["alpha"] * distill + task
    return {
        "official_total": total,
        "official_distill": distill,
        "official_task": task,
        "official_grad_student_scores": case.gradients(total)["grad_student_scores"],
    }


ADAPTERS = {"mine_and_loss": mine_and_loss, "distillation_loss": distillation_loss, "focal_variant": focal_variant}

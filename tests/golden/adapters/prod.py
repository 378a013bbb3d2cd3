"""PROD: the stage losses are built from the recipe terms the method expands to, and run on signals."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from recipe_losses import embedded, list_batch, term_values
from torch import Tensor

from kdfw.types import Batch, Signals
from kdfw_plugins.prod.losses import stage_losses
from kdfw_plugins.prod.selection import (
    negative_pool,
    select_queries,
    teacher_ahead,
    teacher_right_student_nearly,
)


def total_loss(case: Any, batch: Batch, student: Signals, teachers: list[Signals], in_batch: bool) -> Tensor:
    params = case.params
    terms = stage_losses(
        ce_weight=params["ce_weight"],
        kd_weight=params["kd_weight"],
        reg_weight=params.get("lwf_weight"),
        temperature=params["temperature"],
        in_batch=in_batch,
        distance={"KD_softmax": "kl", "KD_logit": "logit"}[params["kd_type"]],
    )
    return term_values(terms, student, teachers, batch)["loss"]


def ce_teacher_loss_scores(case: Any) -> Mapping[str, Any]:
    student = case.leaf("student_scores")
    frozen = "frozen_student_scores"
    others = [case.tensor("teacher_scores"), *([case.tensor(frozen)] if case.inputs.get(frozen) is not None else [])]
    loss = total_loss(
        case, list_batch(*student.shape), Signals(logits=student), [Signals(logits=other) for other in others], False
    )
    return {"loss": loss, "num_correct": (student.argmax(-1) == 0).sum(), **case.gradients(loss)}


def ce_teacher_loss_embeddings(case: Any) -> Mapping[str, Any]:
    student = embedded(case.leaf("q"), case.leaf("ctx"))
    teachers = [Signals(logits=case.tensor("teacher_scores"))]
    if case.inputs.get("frozen_q") is not None:
        teachers.append(embedded(case.tensor("frozen_q"), case.tensor("frozen_ctx")))
    scores = student["logits"]
    loss = total_loss(case, list_batch(*scores.shape), student, teachers, False)
    return {"loss": loss, "num_correct": (scores.argmax(-1) == 0).sum(), **case.gradients(loss)}


def de_teacher_inbatch_loss(case: Any) -> Mapping[str, Any]:
    positives = case.index("positive_idx")
    student = embedded(case.leaf("q"), case.leaf("ctx"))
    teachers = [embedded(case.tensor("teacher_q"), case.tensor("teacher_ctx"))]
    if case.inputs.get("frozen_q") is not None:
        teachers.append(embedded(case.tensor("frozen_q"), case.tensor("frozen_ctx")))
    batch = list_batch(*student["logits"].shape, positives)
    loss = total_loss(case, batch, student, teachers, True)
    correct = student["batch_logits"].argmax(-1) == positives
    return {"loss": loss, "num_correct": correct.sum(), **case.gradients(loss)}


def dpd_select_marco(case: Any) -> Mapping[str, Any]:
    base = {"1-based": 0, "0-based": 1}[case.params.get("rank_base", "1-based")]
    keep = partial(
        teacher_right_student_nearly,
        student_from=case.params["student_rank_lo"] + base,
        student_to=case.params["student_rank_hi"] + base,
        teacher_at=case.params["teacher_rank"] + base,
    )
    kept = select_queries(
        case.inputs["student_ranking"],
        case.inputs["teacher_ranking"],
        lambda query: case.inputs["qrels"].get(query, ()),
        keep,
    )
    return {"selected_query_ids": sorted(int(query) for query in kept)}


def dpd_select_nq(case: Any) -> Mapping[str, Any]:
    student = dict(enumerate(case.inputs["student_hits"]))
    teacher = dict(enumerate(case.inputs["teacher_hits"]))

    def kept(below: int) -> list[int]:
        return select_queries(student, teacher, lambda query: {1}, partial(teacher_ahead, teacher_below=below))

    return {"selected": kept(case.params["teacher_rank_below"]), "selected_teacher_below_100": kept(100)}


def refresh_negative_pool(case: Any) -> Mapping[str, Any]:
    ranking, qrels = case.inputs["ranking"], case.inputs["qrels"]
    size = case.params["num_neg"]
    negatives = {query: negative_pool(ranked, qrels.get(query, ()), size) for query, ranked in ranking.items()}
    return {"negatives": negatives, "positives": qrels}


ADAPTERS = {
    "ce_teacher_loss_scores": ce_teacher_loss_scores,
    "ce_teacher_loss_embeddings": ce_teacher_loss_embeddings,
    "de_teacher_inbatch_loss": de_teacher_inbatch_loss,
    "dpd_select_marco": dpd_select_marco,
    "dpd_select_nq": dpd_select_nq,
    "refresh_negative_pool": refresh_negative_pool,
}

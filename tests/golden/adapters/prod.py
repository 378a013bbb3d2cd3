"""PROD: the stage losses are built from the recipe terms the method expands to, and run on signals."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdfw.components import Constant
from kdfw.errors import Problem
from kdfw.losses import LOSSES
from kdfw.options import check
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.prod.losses import stage_losses
from kdfw_plugins.prod.selection import (
    negative_pool,
    select_queries,
    teacher_ahead,
    teacher_right_student_nearly,
)


class Losses:
    """The engine's losses, as option checking asks for them."""

    known: Mapping[str, Mapping[str, Any]] = {"schedule": {"constant": Constant}, "loss": LOSSES}

    def names(self, kind: str) -> list[str]:
        return sorted(self.known[kind])

    def get(self, kind: str, name: str) -> Any:
        return self.known[kind][name]


CLOCK = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)


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
    total = torch.zeros((), dtype=torch.float64)
    for term in terms:
        problems: list[Problem] = []
        spec = check("loss", term, (), Losses(), str, problems)
        assert spec is not None, problems
        loss = spec.build()
        chosen = teachers if loss.settings.teachers is None else [teachers[i] for i in loss.settings.teachers]
        total = total + loss.settings.weight(CLOCK) * loss(student, chosen, batch, CLOCK).total
    return total


def list_batch(num_queries: int, length: int) -> Batch:
    """Each query has its own `length` passages, the positive first."""
    labels = torch.zeros(num_queries, length, dtype=torch.float64)
    labels[:, 0] = 1.0
    return Batch(
        task="ranking",
        ids=tuple(f"q{row}" for row in range(num_queries)),
        inputs={},
        num_items=num_queries,
        candidates=torch.arange(num_queries * length).reshape(num_queries, length),
        mask=torch.ones(num_queries, length, dtype=torch.bool),
        labels=labels,
    )


def ce_teacher_loss_scores(case: Any) -> Mapping[str, Any]:
    student = case.leaf("student_scores")
    frozen = "frozen_student_scores"
    others = [case.tensor("teacher_scores"), *([case.tensor(frozen)] if case.inputs.get(frozen) is not None else [])]
    loss = total_loss(
        case, list_batch(*student.shape), Signals(logits=student), [Signals(logits=other) for other in others], False
    )
    return {"loss": loss, "num_correct": (student.argmax(-1) == 0).sum(), **case.gradients(loss)}


def own_scores(queries: Tensor, passages: Tensor) -> Tensor:
    """(Q, M) inner products of each query with its own M passages of (Q * M, H)."""
    return torch.einsum("qh,qmh->qm", queries, passages.reshape(len(queries), -1, queries.shape[-1]))


def ce_teacher_loss_embeddings(case: Any) -> Mapping[str, Any]:
    student = own_scores(case.leaf("q"), case.leaf("ctx"))
    teachers = [Signals(logits=case.tensor("teacher_scores"))]
    if case.inputs.get("frozen_q") is not None:
        teachers.append(Signals(logits=own_scores(case.tensor("frozen_q"), case.tensor("frozen_ctx"))))
    loss = total_loss(case, list_batch(*student.shape), Signals(logits=student), teachers, False)
    return {"loss": loss, "num_correct": (student.argmax(-1) == 0).sum(), **case.gradients(loss)}


def de_teacher_inbatch_loss(case: Any) -> Mapping[str, Any]:
    scores = case.leaf("q") @ case.leaf("ctx").T
    positives = case.index("positive_idx")
    batch = list_batch(len(scores), scores.shape[1] // len(scores))
    assert batch.candidates is not None and batch.labels is not None
    labels = (batch.candidates == positives[:, None]).to(torch.float64)
    assert labels.sum() == len(scores)
    batch = Batch(
        task="ranking",
        ids=batch.ids,
        inputs={},
        num_items=len(scores),
        candidates=batch.candidates,
        mask=batch.mask,
        labels=labels,
    )
    teacher = case.tensor("teacher_q") @ case.tensor("teacher_ctx").T
    student = Signals(logits=scores.gather(1, batch.candidates), extra={"batch_logits": scores})
    teachers = [Signals(extra={"batch_logits": teacher})]
    if case.inputs.get("frozen_q") is not None:
        frozen = case.tensor("frozen_q") @ case.tensor("frozen_ctx").T
        teachers.append(Signals(extra={"batch_logits": frozen}))
    loss = total_loss(case, batch, student, teachers, True)
    return {"loss": loss, "num_correct": (scores.argmax(-1) == positives).sum(), **case.gradients(loss)}


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

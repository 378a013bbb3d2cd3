"""LED. Scores are inner products of the recorded embeddings."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from recipe_losses import embedded, list_batch, term_values
from torch import Tensor

from kdfw.losses.contrastive import contrastive
from kdfw.losses.flops import flops
from kdfw.losses.pairwise import ordered_pairs
from kdfw.types import Batch, Signals
from kdfw_plugins.led.lexicon import body_mask, fuse_runs, splade_vector
from kdfw_plugins.led.losses import Method, ablation, ranker_kl, stage_losses


def given(case: Any) -> tuple[Signals, Signals, Batch]:
    student = embedded(case.leaf("query_emb"), case.leaf("doc_emb").flatten(0, 1))
    teacher = embedded(case.tensor("teacher_query_emb"), case.tensor("teacher_doc_emb").flatten(0, 1))
    return student, teacher, list_batch(*student["logits"].shape)


def candidates(student: Signals, with_pos: bool) -> Tensor:
    mask = torch.ones_like(student["logits"], dtype=torch.bool)
    mask[:, 0] = with_pos
    return mask


def led_total_rank_regularised(case: Any) -> Mapping[str, Any]:
    student, teacher, batch = given(case)
    params = case.params
    terms = stage_losses(
        rank_weight=params["dst_loss_weight"],
        margin=params["rank_margin"],
        min_gap=params["tch_min_confidence"],
        with_positives=params["with_pos"],
    )
    values = term_values(terms, student, [teacher], batch)
    pairs = ordered_pairs(teacher["logits"], candidates(student, params["with_pos"]), params["tch_min_confidence"])
    return {
        "dense_xentropy_loss": values["contrastive"],
        "dst_rank_loss": values["rank"],
        "loss": values["loss"],
        "num_pairs": pairs.sum(),
        **case.gradients(values["loss"]),
    }


def led_ablation(method: Method, key: str) -> Callable[[Any], Mapping[str, Any]]:
    def adapter(case: Any) -> Mapping[str, Any]:
        student, teacher, batch = given(case)
        mask = candidates(student, case.params["with_pos"])
        values, total = ablation(method, student["logits"], teacher["logits"], mask)
        own = values.sum() / total
        first = term_values(stage_losses()[:1], student, [teacher], batch)["loss"]
        loss = first + case.params["dst_loss_weight"] * own
        return {"dense_xentropy_loss": first, key: own, "loss": loss, **case.gradients(loss)}

    return adapter


def led_with_ranker_teacher(case: Any) -> Mapping[str, Any]:
    student, teacher, batch = given(case)
    params = case.params
    terms = stage_losses(rank_weight=params["dst_loss_weight"], with_positives=params["with_pos"])
    values = term_values(terms, student, [teacher], batch)
    ranker, everything = case.tensor("cross_encoder_scores"), candidates(student, True)
    own = ranker_kl(student["logits"], ranker, everything, params["xe_tch_temp"], params["eps"]).mean()
    loss = values["rank"] * params["dst_loss_weight"] + params["xe_tch_dst_loss_weight"] * own
    if params.get("with_ce_loss", True):
        loss = loss + values["contrastive"]
    return {
        "dense_xentropy_loss": values["contrastive"],
        "dst_rank_loss": values["rank"],
        "xe_tch_dst_kl_loss": own,
        "loss": loss,
        **case.gradients(loss),
    }


def splade_pooler(case: Any) -> Mapping[str, Any]:
    mask = case.index("attention_mask")
    if not case.params["keep_special_tokens"]:
        mask = body_mask(mask)
    vectors = splade_vector(case.leaf("mlm_logits"), mask)
    gradient = case.gradients(vectors.sum())["grad_mlm_logits"]
    return {"effective_mask": mask, "sentence_embedding": vectors, "grad_mlm_logits_of_sum": gradient}


def splade_teacher_training_loss(case: Any) -> Mapping[str, Any]:
    queries, passages = case.leaf("query_emb"), case.leaf("doc_emb").flatten(0, 1)
    scores = (queries @ passages.T).clamp(max=10000)
    targets = torch.zeros_like(scores, dtype=torch.bool)
    targets[range(len(scores)), torch.arange(len(scores)) * (len(passages) // len(scores))] = True
    first = contrastive(scores, targets, ~targets).mean()
    of_passages, of_queries = flops(passages), flops(queries)
    loss = first + case.params["lambda_d"] * of_passages + case.params["lambda_q"] * of_queries
    return {
        "sparse_xentropy_loss": first,
        "flops_doc_loss": of_passages,
        "flops_query_loss": of_queries,
        "loss": loss,
        **case.gradients(loss),
    }


def led_minmax_sum_ensemble(case: Any) -> Mapping[str, Any]:
    pairs = zip(case.inputs["run_a_pid_score"], case.inputs["run_b_pid_score"], strict=True)
    fused = [fuse_runs(dict(first), dict(second)) for first, second in pairs]
    return {"fused_pid_score": [list(map(list, one.items())) for one in fused]}


ADAPTERS = {
    "led_total_rank_regularised": led_total_rank_regularised,
    "led_ablation_kl": led_ablation("kl", "dst_kl_loss"),
    "led_ablation_ranknet": led_ablation("ranknet", "dst_ranknet_loss"),
    "led_ablation_listnet": led_ablation("listnet", "dst_listnet_loss"),
    "led_ablation_margin_mse": led_ablation("margin-mse", "dst_margin_mse_loss"),
    "led_with_ranker_teacher": led_with_ranker_teacher,
    "splade_pooler": splade_pooler,
    "splade_teacher_training_loss": splade_teacher_training_loss,
    "led_minmax_sum_ensemble": led_minmax_sum_ensemble,
}

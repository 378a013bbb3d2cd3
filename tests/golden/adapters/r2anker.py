"""R2anker."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recipe_losses import list_batch, term_values

from kdfw.samplers.negatives import draw_from_lists
from kdfw.types import Signals
from kdfw_plugins.r2anker.pool import equal_share_probabilities, kept_list, pool_probabilities


def ranker_contrastive_loss(case: Any) -> Mapping[str, Any]:
    scores = case.leaf("scores")
    rows = torch.arange(len(scores)) * scores.shape[1] + case.params.get("positive_column", 0)
    batch = list_batch(*scores.shape, rows)
    loss = term_values([{"type": "localized-contrastive"}], Signals(logits=scores), [], batch)["loss"]
    return {"loss": loss, "probabilities": scores.softmax(-1), **case.gradients(loss)}


def joint_negative_distribution(case: Any) -> Mapping[str, Any]:
    depth, positives = case.params["top_k_per_generator"], case.inputs["positive_ids"]
    lists = [kept_list(ranked, positives, depth) for ranked in case.inputs["generator_ranked_ids"]]
    shares = equal_share_probabilities(lists, case.params.get("generator_weights"))
    return {
        "kept_per_generator": lists,
        "first_draw_probability_equal_share": sorted(shares.items()),
        "first_draw_probability_concatenated_pool": sorted(pool_probabilities(lists).items()),
    }


def equal_share_short_lists(case: Any) -> Mapping[str, Any]:
    lists = [(np.asarray(ids), np.zeros(len(ids))) for ids in case.inputs["generator_ids"]]
    drawn = draw_from_lists(lists, case.params["num_negatives"], "random", np.random.default_rng(0), mix="equal-share")
    return {"sampled": drawn}


def retriever_distillation_kl(case: Any) -> Mapping[str, Any]:
    student, teacher = case.leaf("retriever_scores"), case.tensor("ranker_scores")
    term = {
        "type": "kl",
        "temperature": case.params["temperature"],
        "scale_by_temperature": case.params["multiply_by_T_squared"],
    }
    batch = list_batch(*student.shape)
    loss = term_values([term], Signals(logits=student), [Signals(logits=teacher)], batch)["loss"]
    return {"loss": loss, **case.gradients(loss)}


ADAPTERS = {
    "r2anker_ranker_contrastive_loss": ranker_contrastive_loss,
    "r2anker_joint_negative_distribution": joint_negative_distribution,
    "r2anker_equal_share_short_lists": equal_share_short_lists,
    "r2anker_retriever_distillation_kl": retriever_distillation_kl,
}

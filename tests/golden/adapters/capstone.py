"""CAPSTONE."""

from collections.abc import Mapping
from typing import Any

from recipe_losses import embedded, list_batch, term_values

from kdfw_plugins.capstone.curriculum import kept_candidates, part_at, part_ranks, selectable
from kdfw_plugins.capstone.similarity import rouge_l
from kdfw_plugins.capstone.views import average_scores, best_scores


def part_schedule(case: Any) -> Mapping[str, Any]:
    params = case.params
    parts = [
        part_at(step, params["max_steps"], params["total_part"], params["mode"]) for step in case.inputs["global_step"]
    ]
    return {"part": parts, "gold_query_prob": [int(part == 0) for part in parts]}


def selectable_candidates(case: Any) -> Mapping[str, Any]:
    scores, parts = case.inputs["scores"], case.params["total_part"]
    kept = kept_candidates(scores, case.params["filter_threshold"])
    reach = {
        str(part): sorted(kept[rank] for rank in part_ranks(part, parts, len(scores), len(kept)))
        for part in range(1, parts + 1)
    }
    return {"selectable_index_by_part": reach}


def selectable_candidates_other(case: Any) -> Mapping[str, Any]:
    params = case.params
    return {"selectable_index": selectable(case.inputs["scores"], params["selector"], params["filter_threshold"])}


def contrastive_loss(case: Any) -> Mapping[str, Any]:
    student, positives = embedded(case.leaf("query_emb"), case.leaf("view_emb")), case.index("positive_index")
    term = {"type": "info-nce", "in_batch": True, "positives": "first", "mask_known_positives": False}
    loss = term_values([term], student, [], list_batch(*student["logits"].shape, positives))["loss"]
    correct = (student["batch_logits"].argmax(-1) == positives).sum()
    return {"loss": loss, "num_correct": correct, **case.gradients(loss)}


def rouge(case: Any) -> Mapping[str, Any]:
    assert case.params["metric"] == "rouge-l"
    return {"scores": [rouge_l(case.inputs["target"], text) for text in case.inputs["predictions"]]}


def multi_view_scores(case: Any) -> Mapping[str, Any]:
    queries, views = case.tensor("query_reps"), case.tensor("view_reps")
    return {
        "scores_average_representation": average_scores(queries, views),
        "scores_max_over_views": best_scores(queries, views),
    }


ADAPTERS = {
    "capstone_part_schedule": part_schedule,
    "capstone_selectable_candidates": selectable_candidates,
    "capstone_selectable_candidates_other": selectable_candidates_other,
    "capstone_contrastive_loss": contrastive_loss,
    "rouge_l_f": rouge,
    "capstone_multi_view_scores": multi_view_scores,
}

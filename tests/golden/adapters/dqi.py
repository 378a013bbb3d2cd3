"""DQI."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from recipe_losses import embedded, list_batch, term_values

from kdfw_plugins.dqi.views import best_views, corpus_views, view_tokens


def dqi_contrastive_loss(case: Any) -> Mapping[str, Any]:
    student = embedded(case.leaf("query_hidden_states")[:, 0], case.leaf("view_hidden_states")[:, 0])
    term = {"type": "info-nce", "in_batch": True, "positives": "first"}
    loss = term_values([term], student, [], list_batch(*student["logits"].shape))["loss"]
    return {"scores": student["batch_logits"], "loss": loss, **case.gradients(loss)}


def dqi_max_over_views_retrieval(case: Any) -> Mapping[str, Any]:
    queries, views = np.asarray(case.inputs["query_reps"]), np.asarray(case.inputs["view_reps"])
    depth, search_depth = case.params["depth"], case.params["search_depth"]
    found = [best_views(scores, case.inputs["view_doc_ids"], depth, search_depth) for scores in queries @ views.T]
    return {"doc_ids": [ids for ids, _ in found], "scores": [scores for _, scores in found]}


def dqi_corpus_views(case: Any) -> Mapping[str, Any]:
    params = case.params
    views = corpus_views(
        case.inputs["queries"],
        case.inputs["title"],
        case.inputs["text"],
        num_views=params["num_query"],
        separator=params["sep_token_id"],
        max_tokens=params["text_max_length"],
    )
    return {"views": views}


def dqi_training_views(case: Any) -> Mapping[str, Any]:
    params, query = case.params, case.inputs["query"]

    def views(side: str) -> list[list[int]]:
        pairs = zip(case.inputs[f"{side}_titles"], case.inputs[f"{side}_texts"], strict=True)
        cut = (params["sep_token_id"], params["text_max_length"])
        return [view_tokens(query, title, text, *cut) for title, text in pairs]

    short = query[: params["query_max_length"]]
    return {"query": short, "positives": views("positive"), "negatives": views("negative")}


ADAPTERS = {
    "dqi_contrastive_loss": dqi_contrastive_loss,
    "dqi_max_over_views_retrieval": dqi_max_over_views_retrieval,
    "dqi_corpus_views": dqi_corpus_views,
    "dqi_training_views": dqi_training_views,
}

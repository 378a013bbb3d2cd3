"""AR2 and the sampling weights of SimANS."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from recipe_losses import embedded, list_batch, term_values
from torch import Tensor

from kdfw.types import Batch, Signals
from kdfw_plugins.ar2.loss import RetrieverLoss, reward
from kdfw_plugins.ar2.phases import laplace_weights, phase_runs, probabilities, quadratic_weights


def retriever(case: Any, scores: Tensor) -> Mapping[str, Any]:
    params, ranker = case.params, case.tensor("ranker_scores")
    loss = RetrieverLoss(
        adversarial_weight=params["adv_lambda"], temperature=params["temperature_normal"], eps=params["eps"]
    )
    batch: Batch = list_batch(*scores.shape)
    terms = loss(Signals(logits=scores), [Signals(logits=ranker)], batch, None)
    return {
        "loss": terms.total,
        "distill_loss": terms.parts["distill"],
        "adversarial_loss": terms.parts["adversarial"],
        "reward": reward(ranker, params["eps"]),
        **case.gradients(terms.total),
    }


def retriever_loss_scores(case: Any) -> Mapping[str, Any]:
    return retriever(case, case.leaf("retriever_scores"))


def retriever_loss_embeddings(case: Any) -> Mapping[str, Any]:
    scores = embedded(case.leaf("q"), case.leaf("ctx"))["logits"]
    return retriever(case, scores / math.sqrt(len(case.inputs["q"][0])) if case.params["scale_by_sqrt_dim"] else scores)


def ranker_loss(case: Any) -> Mapping[str, Any]:
    scores = case.leaf("ranker_scores")
    terms = [{"type": "localized-contrastive"}]
    loss = term_values(terms, Signals(logits=scores), [], list_batch(*scores.shape))["loss"]
    return {"loss": loss, **case.gradients(loss)}


def phase_schedule(case: Any) -> Mapping[str, Any]:
    names = ("total_steps", "iteration_step", "iteration_reranker_step")
    return {"runs": phase_runs(*(case.params[name] for name in names))}


def simans_sampling_weights(case: Any) -> Mapping[str, Any]:
    negatives, positive = np.asarray(case.inputs["neg_scores"]), case.inputs["pos_score"]
    if case.params["kind"] == "quadratic":
        weights = quadratic_weights(negatives, positive, case.params["a"], case.params["b"])
    else:
        weights = laplace_weights(negatives, positive, case.params["tau"])
    return {"weights": weights, "probabilities": probabilities(weights)}


ADAPTERS = {
    "retriever_loss_scores": retriever_loss_scores,
    "retriever_loss_embeddings": retriever_loss_embeddings,
    "ranker_loss": ranker_loss,
    "phase_schedule": phase_schedule,
    "simans_sampling_weights": simans_sampling_weights,
}

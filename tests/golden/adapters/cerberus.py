"""CERBERUS. Blocks are the recorded stubs tanh(h W^T + b)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdfw_plugins.cerberus.heads import FinalClassifier, combine_heads, head_logits
from kdfw_plugins.cerberus.loss import head_values


def combine(case: Any) -> Mapping[str, Any]:
    average = "softmax" if case.params["uses_softmax_avg"] else "logits"
    output = combine_heads(case.tensor("head_logits"), average)
    return {"output": output, "ranking_by_last_class": output[:, -1].argsort(descending=True)}


def block(weight: Any, bias: Any) -> Callable[[Tensor], Tensor]:
    matrix, shift = torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
    return lambda hidden: torch.tanh(hidden @ matrix.T + shift)


def classifier(weight: Any, bias: Any) -> Callable[[Tensor], Tensor]:
    matrix, shift = torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
    return lambda hidden: hidden[:, 0] @ matrix.T + shift


def shared_body_and_heads(case: Any) -> Mapping[str, Any]:
    models = case.inputs["models"]
    blocks = [[block(*pair) for pair in zip(one["block_W"], one["block_b"], strict=True)] for one in models]
    classifiers = [classifier(one["cls_W"], one["cls_b"]) for one in models]
    logits = head_logits(case.tensor("hidden"), blocks, classifiers, case.params["num_shared_blocks"])
    average = "softmax" if case.params.get("uses_softmax_avg", True) else "logits"
    return {"head_logits": logits, "output": combine_heads(logits, average)}


def final_classifier(case: Any) -> Mapping[str, Any]:
    states = case.tensor("x")
    module = FinalClassifier(states.shape[1], len(case.inputs["out_proj.weight"])).double().eval()
    module.load_state_dict({name: case.tensor(name) for name in case.inputs if name != "x"})
    return {"output": module(states)}


def multi_head_kd_loss(case: Any) -> Mapping[str, Any]:
    values = head_values(
        case.leaf("student_head_logits"),
        case.tensor("teacher_logits"),
        case.index("labels"),
        case.params["temperature"],
        case.params["alpha"],
    ).mean(-1)
    gradient = case.gradients(values.sum())["grad_student_head_logits"]
    return {
        "per_head": values,
        "loss_sum": values.sum(),
        "loss_mean": values.mean(),
        "grad_student_head_logits_of_sum": gradient,
    }


ADAPTERS = {
    "combine_heads": combine,
    "shared_body_and_heads": shared_body_and_heads,
    "final_classifier": final_classifier,
    "multi_head_kd_loss": multi_head_kd_loss,
}

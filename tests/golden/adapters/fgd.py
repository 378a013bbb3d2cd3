"""FGD: values of this framework's reconstruction."""

from collections.abc import Mapping
from typing import Any

import torch
from recipe_losses import CLOCK, list_batch, term_values
from torch import Tensor

from kdfw.types import Signals
from kdfw_plugins.fgd.loss import Granular
from kdfw_plugins.fgd.units import unit_vectors


def fgd_granularity_embeddings(case: Any) -> Mapping[str, Any]:
    return unit_vectors(case.tensor("token_states"), case.inputs["spans"])


def padded(rows: Any) -> tuple[Tensor, Tensor]:
    """(Q, U) scores and mask from lists that may differ in length."""
    width = max(len(row) for row in rows)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64), mask


def signals_of(scores: Mapping[str, tuple[Tensor, Tensor]]) -> Signals:
    logits, mask = scores["document"]
    extra = {f"logits/{name}": values for name, (values, _) in scores.items() if name != "document"}
    extra |= {f"mask/{name}": own for name, (_, own) in scores.items() if name != "document"}
    return Signals(logits=logits, mask=mask, extra=extra)


def fgd_multi_granular_loss(case: Any) -> Mapping[str, Any]:
    params = case.params
    ours = {name: padded(rows) for name, rows in case.inputs["student"].items()}
    theirs = {name: padded(rows) for name, rows in case.inputs["teacher"].items()}
    for scores, _ in ours.values():
        scores.requires_grad_()
    student, batch = signals_of(ours), list_batch(*ours["document"][0].shape)
    loss = Granular(weights=params["granularity_weights"], temperature=params["temperature"])
    terms = loss(student, [signals_of(theirs)], batch, CLOCK)
    contrast = term_values([{"type": "localized-contrastive"}], student, [], batch)["loss"]
    total = params["contrastive_weight"] * contrast + terms.total
    found: dict[str, Any] = {"loss": total}
    found["components"] = {"contrastive": contrast} | {f"kl_{name}": part for name, part in terms.parts.items()}
    gradients = torch.autograd.grad(total, [scores for scores, _ in ours.values()])
    for (name, (_, mask)), gradient in zip(ours.items(), gradients, strict=True):
        rows = [row[own].tolist() for row, own in zip(gradient, mask, strict=True)]
        found[f"grad_{name}_scores"] = rows
    return found


ADAPTERS = {
    "fgd_granularity_embeddings": fgd_granularity_embeddings,
    "fgd_multi_granular_loss": fgd_multi_granular_loss,
}

"""The losses of PROD's stages, in the language of recipes: they are weighted core losses.

    L_I  = w_ce * L_hard + w_kd * KL_tau(T || S)
    L_II = w_ce * L_hard + w_kd * KL_tau(T || S) + w_reg * KL_tau(F || S)

L_hard is at temperature 1; KL_tau has the factor tau squared; F is the student as it was when the stage began.
"""

from __future__ import annotations

from typing import Any, Literal

Term = dict[str, Any]
Distance = Literal["kl", "logit"]


def stage_losses(
    *,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
    reg_weight: float | None = None,
    temperature: float = 4.0,
    in_batch: bool = False,
    distance: Distance = "kl",
) -> list[Term]:
    """Loss terms of one stage; teacher 0 is the stage's teacher, teacher 1 the frozen student.

    Args:
        reg_weight: None for L_I, a number for L_II.
        in_batch: every passage of the step is a candidate of every query (the dual-encoder teacher); else the query's
            own list.
        distance: `kl`, or `logit` for the ablation 0.5 * mean squared difference of scores, without temperature.
    """
    # first: the released code takes the first labelled positive; other passages of the step count as negatives
    hard: Term = {
        "type": "info-nce",
        "name": "hard",
        "weight": ce_weight,
        "in_batch": in_batch,
        "positives": "first",
        "mask_known_positives": False,
    }
    terms = [hard, _distil("teacher", kd_weight, 0, temperature, in_batch, distance)]
    if reg_weight is not None:
        terms.append(_distil("stay", reg_weight, 1, temperature, in_batch, distance))
    return terms


def _distil(name: str, weight: float, teacher: int, temperature: float, in_batch: bool, distance: Distance) -> Term:
    signal = "batch_logits" if in_batch else "logits"
    common = {"name": name, "teachers": [teacher], "signal": signal}
    if distance == "logit":
        return {"type": "mse", "weight": 0.5 * weight, **common}
    return {"type": "kl", "weight": weight, "temperature": temperature, **common}

"""The losses of PROD's stages, in the language of recipes: they are weighted core losses.

    L_I  = w_ce * L_hard + w_kd * KL_tau(T || S)
    L_II = w_ce * L_hard + w_kd * KL_tau(T || S) + w_reg * KL_tau(F || S)

L_hard is at temperature 1; KL_tau has the factor tau squared; F is the student as it was when the stage began.
"""

from __future__ import annotations

from typing import Any, Literal

Term = dict[str, Any]
Distance = Literal["kl", "logit"]
Temperature = float | str | dict[str, Any]
"""A number, or a schedule as recipes write it (`{type: ctkd}`)."""


def hard_loss(*, in_batch: bool, weight: float = 1.0) -> Term:
    """L_hard: cross-entropy of the first labelled positive, at temperature 1.

    Args:
        in_batch: every passage of the step is a candidate of every query; else the query's own list.
    """
    # as the released code: other passages of the step count as negatives, known positives among them
    return {
        "type": "info-nce",
        "name": "hard",
        "weight": weight,
        "in_batch": in_batch,
        "positives": "first",
        "mask_known_positives": False,
    }


def stage_losses(
    *,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
    reg_weight: float | None = None,
    temperature: Temperature = 4.0,
    reg_temperature: float | None = None,
    in_batch: bool = False,
    distance: Distance = "kl",
) -> list[Term]:
    """Loss terms of one stage; teacher 0 is the stage's teacher, teacher 1 the frozen student.

    Args:
        reg_weight: None for L_I, a number for L_II.
        temperature: tau, of the teacher's term.
        reg_temperature: of the frozen student's term; None: `temperature`, which must be a number then. A trained
            temperature would be built once for each term, and the frozen student's is none to train.
        in_batch: the candidates are those of `hard_loss`.
        distance: `kl`, or `logit` for the ablation 0.5 * mean squared difference of scores, without temperature.
    """
    terms = [
        hard_loss(in_batch=in_batch, weight=ce_weight),
        _distil("teacher", kd_weight, 0, temperature, in_batch, distance),
    ]
    if reg_weight is not None:
        tau = temperature if reg_temperature is None else reg_temperature
        terms.append(_distil("stay", reg_weight, 1, tau, in_batch, distance))
    return terms


def _distil(
    name: str, weight: float, teacher: int, temperature: Temperature, in_batch: bool, distance: Distance
) -> Term:
    signal = "batch_logits" if in_batch else "logits"
    common = {"name": name, "teachers": [teacher], "signal": signal}
    if distance == "logit":
        return {"type": "mse", "weight": 0.5 * weight, **common}
    return {"type": "kl", "weight": weight, "temperature": temperature, "scale_by_temperature": True, **common}

"""CuDFKD."""

from collections.abc import Mapping
from typing import Any

import torch

from kdfw.losses.kl import kl_divergence
from kdfw_plugins.cudfkd.generator import Generator, generator_loss, js_divergence, statistics_loss
from kdfw_plugins.cudfkd.schedules import adversarial_weight, age
from kdfw_plugins.cudfkd.student import pace_weights, regulariser, sample_losses


def self_paced_weight(case: Any) -> Mapping[str, Any]:
    losses, growth, kind = case.tensor("loss_per_sample"), case.params["lambda"], case.params["kind"]
    weights = pace_weights(losses, growth, kind)
    return {
        "v": weights,
        "regulariser": regulariser(weights, growth, kind),
        "student_loss_mean": (weights * losses).mean(),
    }


def lambda_schedule(case: Any) -> Mapping[str, Any]:
    params = case.params
    ages = [age(step, params["lambda_0"], params["alpha"], params["iter_cap"]) for step in case.inputs["iteration"]]
    return {"lambda": ages}


def adversarial_weight_schedule(case: Any) -> Mapping[str, Any]:
    names = ("epochs", "begin_fraction", "end_fraction", "adv_0", "grad_adv")
    params = [case.params[name] for name in names]
    return {"adv": [adversarial_weight(epoch, *params) for epoch in case.inputs["epoch"]]}


def divergences(case: Any) -> Mapping[str, Any]:
    student, teacher, temperature = case.leaf("logits_student"), case.tensor("logits_teacher"), case.params["T"]
    everything = torch.ones_like(student, dtype=torch.bool)
    each = temperature**2 * kl_divergence(student / temperature, teacher / temperature, everything)
    both = js_divergence(student, teacher, temperature)
    return {
        "kldiv": each.mean(),
        "kldiv_per_sample": each,
        "jsdiv": both,
        "grad_kldiv": case.gradients(each.mean())["grad_logits_student"],
        "grad_jsdiv": case.gradients(both)["grad_logits_student"],
    }


def bn_statistics_loss(case: Any) -> Mapping[str, Any]:
    loss = statistics_loss(case.leaf("input"), case.tensor("running_mean"), case.tensor("running_var"))
    return {"loss": loss, **case.gradients(loss)}


def generator_terms(case: Any) -> Mapping[str, Any]:
    params = case.params
    teacher, student = case.leaf("logits_teacher"), case.leaf("logits_student")
    statistics = statistics_loss(case.tensor("bn_input"), case.tensor("bn_running_mean"), case.tensor("bn_running_var"))
    found: dict[str, Any] = {}
    for form, loss_name, grad_name in (
        ("plain", "loss_plain", "plain"),
        ("agreement", "loss_agreement_masked", "masked"),
    ):
        loss = generator_loss(
            student,
            teacher,
            case.tensor("teacher_features"),
            statistics,
            temperature=params["T"],
            adversarial_weight=params["adv_weight"],
            adversarial=params["adv_type"],
            adversarial_temperature=params["adv_T"],
            entropy_weight=params["entropy_weight"],
            own_class_weight=params["onehot_weight"],
            activation_weight=params["activation_weight"],
            statistics_weight=params["bn_weight"],
            form=form,  # type: ignore[arg-type]
        )
        found[loss_name] = loss
        found |= {f"{name}_{grad_name}": value for name, value in case.gradients(loss).items()}
    return found


def generator_architecture(case: Any) -> Mapping[str, Any]:
    params = case.params
    torch.manual_seed(0)
    module = Generator(
        latent=params["nz"],
        width=params["ngf"],
        side=params["img_size"],
        depth=params["depth"],
        channels=params["nc"],
    )
    with torch.no_grad():
        images = module(torch.randn(case.inputs["batch"], params["nz"]))
    return {
        "output_shape": list(images.shape),
        "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "parameter_shapes": [list(parameter.shape) for parameter in module.parameters()],
        "num_batchnorm": sum(isinstance(one, torch.nn.BatchNorm2d) for one in module.modules()),
    }


def student_loss(case: Any) -> Mapping[str, Any]:
    params = case.params
    losses = sample_losses(case.leaf("logits_student"), case.tensor("logits_teacher"), params["loss"], params["T"])
    weights = pace_weights(losses, params["lambda"], params["kind"])
    loss = (weights * losses).mean()
    return {"loss_per_sample": losses, "v": weights, "loss": loss, **case.gradients(loss)}


ADAPTERS = {
    "self_paced_weight": self_paced_weight,
    "lambda_schedule": lambda_schedule,
    "adversarial_weight_schedule": adversarial_weight_schedule,
    "divergences": divergences,
    "bn_statistics_loss": bn_statistics_loss,
    "generator_loss": generator_terms,
    "generator_architecture": generator_architecture,
    "student_loss": student_loss,
}

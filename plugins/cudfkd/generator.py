"""The generator network and the terms it is trained by."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kdfw.losses.kl import kl_divergence

Form = Literal["plain", "agreement"]


class Generator(nn.Module):
    """Latent vectors (Q, latent) -> images (Q, channels, side, side) in (0, 1).

    Args:
        depth: number of doublings: 2 for side 32, 3 for side 64.
    """

    def __init__(
        self, *, latent: int = 512, width: int = 64, side: int = 32, depth: int = 2, channels: int = 3
    ) -> None:
        super().__init__()
        self.latent = latent
        self.first = (width * 2**depth, side // 2**depth, side // 2**depth)
        self.project = nn.Linear(latent, width * 2**depth * (side // 2**depth) ** 2)
        layers: list[nn.Module] = [nn.BatchNorm2d(width * 2**depth), nn.Upsample(scale_factor=2)]
        for step in range(depth, 1, -1):
            before, after = width * 2**step, width * 2 ** (step - 1)
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
                nn.Upsample(scale_factor=2),
            ]
        layers += [
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Sigmoid(),
        ]
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, latent: Tensor) -> Tensor:
        images: Tensor = self.layers(self.project(latent).view(len(latent), *self.first))
        return images


def class_entropy(teacher: Tensor, temperature: float) -> Tensor:
    """() entropy of the batch's mean class distribution, logits (Q, C); at most log C."""
    return torch.special.entr((teacher / temperature).softmax(-1).mean(0)).sum()


def own_class_loss(teacher: Tensor) -> Tensor:
    """() cross-entropy of the teacher with its own decision, temperature 1."""
    return nn.functional.cross_entropy(teacher, teacher.argmax(-1))


def statistics_loss(inputs: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """() distance of a batch-norm layer's input statistics from its running ones: two norms, not squared.

    Args:
        inputs: (Q, C, h, w); the variance is the biased one.
    """
    mean = inputs.mean((0, 2, 3))
    variance = inputs.var((0, 2, 3), unbiased=False)
    return (running_var - variance).norm() + (running_mean - mean).norm()


def js_divergence(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """() as released: mean over samples of half of sum M (log M - log P) plus half of the same with Q.

    P, Q and their mean M are clipped to [0.01, 0.99]; no temperature squared. Logits (Q, C).
    """
    p, q = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    middle = (0.5 * (p + q)).clamp(0.01, 0.99)
    p, q = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99)
    terms = [middle * (middle.log() - one.log()) for one in (p, q)]
    return 0.5 * (terms[0].sum() + terms[1].sum()) / len(student)


def adversarial_loss(
    student: Tensor, teacher: Tensor, kind: Literal["kl", "js"], form: Form = "plain", temperature: float = 3.0
) -> Tensor:
    """() what makes images hard for the student: minus its divergence from the teacher.

    `agreement` is the released form of 2022: KL counts only where both decide alike, JS becomes 1 - clip(JS, 0, 1).
    """
    if kind == "js":
        value = js_divergence(student, teacher, temperature)
        return -value if form == "plain" else 1 - value.clamp(0.0, 1.0)
    everything = torch.ones_like(student, dtype=torch.bool)
    each = temperature**2 * kl_divergence(student / temperature, teacher / temperature, everything)
    if form == "agreement":
        each = each * (student.argmax(-1) == teacher.argmax(-1))
    return -each.mean()


def generator_loss(
    student: Tensor,
    teacher: Tensor,
    features: Tensor,
    statistics: Tensor,
    *,
    temperature: float,
    adversarial_weight: float,
    adversarial: Literal["kl", "js"] = "kl",
    adversarial_temperature: float = 3.0,
    entropy_weight: float = -20.0,
    own_class_weight: float = 1.0,
    activation_weight: float = 0.0,
    statistics_weight: float = 1.0,
    form: Form = "plain",
) -> Tensor:
    """() sum of the generator's terms; the entropy weight is negative, because entropy is to grow.

    Args:
        student, teacher: (Q, C) logits, with graphs to the images.
        features: (Q, H) last features of the teacher.
        statistics: () sum of `statistics_loss` over the teacher's batch-norm layers.
    """
    loss = entropy_weight * class_entropy(teacher, temperature)
    loss = loss + own_class_weight * own_class_loss(teacher) - activation_weight * features.abs().mean()
    loss = loss + statistics_weight * statistics
    if adversarial_weight > 0:
        against = adversarial_loss(student, teacher, adversarial, form, adversarial_temperature)
        loss = loss + adversarial_weight * against
    return loss

"""The feature term: the student's last feature map, projected into each teacher's space and judged by its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdfw.components import Loss, Model, Teacher
from kdfw.errors import ConfigError, TrainingError
from kdfw.losses.masking import labels_of, wide
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals
from kdfw_plugins.ca_mkd.weights import confidence_weights, label_cross_entropy

Activation = Literal["relu", "none"]


def as_map(features: Tensor) -> Tensor:
    """(Q, C, h, w) maps in float32 or wider; vectors (Q, C) become maps of one place.

    Raises: TrainingError for other shapes.
    """
    if features.dim() == 2:
        features = features[:, :, None, None]
    if features.dim() != 4:
        raise TrainingError(
            f"loss ca-mkd-features: features of shape {tuple(features.shape)}; it compares maps (Q, C, height, width) "
            "or vectors (Q, C)"
        )
    return wide(features)


def resize(features: Tensor, side: int) -> Tensor:
    """(Q, C, h, w) -> (Q, C, side, side): averaged when the map shrinks or keeps its size, else bilinear."""
    if features.shape[-1] >= side:
        return functional.adaptive_avg_pool2d(features, (side, side))
    return functional.interpolate(features, (side, side), mode="bilinear", align_corners=False)


def feature_term(
    projected: Sequence[Tensor], teacher: Sequence[Tensor], logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """v[k, b] * mean over channels and positions of (A_k[b] - F_k[b])^2 / K, and the weights v.

    The weights are not detached, as in the authors' code: their gradient reaches the projection and the student.

    Args:
        projected: for each teacher (Q, C_k, h_k, w_k), the student's map in that teacher's space. A list or a stack.
        teacher: the same shapes, constant.
        logits: (K, Q, D) of each teacher's head over the projected map.
        labels: (Q,) long.
    Returns: (K, Q) values, to be summed and divided by the number of items; (K, Q) weights.
    """
    weights = confidence_weights(label_cross_entropy(logits, labels))
    pairs = zip(projected, teacher, strict=True)
    distances = torch.stack([(own - other.detach()).square().flatten(1).mean(-1) for own, other in pairs])
    return weights * distances / len(distances), weights


def projection(
    student_channels: int, teacher_channels: int, bottleneck: bool = False, activation: Activation = "relu"
) -> nn.Sequential:
    """1x1 convolution with bias, batch norm, ReLU; or 1x1 -> 3x3 -> 1x1 at half width, each with norm and ReLU.

    `activation: none` leaves out the last ReLU.
    """

    def block(before: int, after: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    if bottleneck:
        middle = max(1, teacher_channels // 2)
        layers = block(student_channels, middle, 1) + block(middle, middle, 3) + block(middle, teacher_channels, 1)
    else:
        layers = block(student_channels, teacher_channels, 1)
    return nn.Sequential(*(layers if activation == "relu" else layers[:-1]))


class ConfidenceFeatures(Loss):
    """Squared distance to each teacher's last features, weighted by what the teacher's head makes of the student's.

    Feature maps of image nets, as published, or vectors such as a text classifier's. Every teacher's map is compared
    with the student's original one; the released code passes an already resized map on to the next teacher, which
    differs only where teachers have maps of different size.

    Args:
        first_epoch: epochs counted from 1; before it the term is 0 (2 in the released code).
        bottleneck: three convolutions instead of one.
        activation: end of the projection; `none` for features of either sign, as a text classifier has.
    """

    version = 2
    paper = "arXiv:2201.00007"

    def __init__(
        self,
        *,
        first_epoch: Annotated[int, Field(ge=1)] = 2,
        bottleneck: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.first_epoch = first_epoch
        self.bottleneck = bottleneck
        self.activation: Activation = activation
        self.projections = nn.ModuleList()
        self._teachers: list[Model] = []  # a plain list: their weights are not this loss's parameters

    @property
    def needs(self) -> Needs:
        return Needs(
            student=frozenset({"features"}),
            teacher=frozenset({"features"}),
            labels=True,
            teachers=(2, None),
            tasks=frozenset({"classification"}),
            whole_batch=True,  # batch statistics of the projections
        )

    def setup(self, student: Model, teachers: Sequence[Model | Teacher]) -> None:
        self._teachers = []
        for number, teacher in enumerate(teachers):
            if not isinstance(teacher, Model):
                raise ConfigError(f"loss ca-mkd-features: teacher {number} is not a model and has no features")
            self._teachers.append(teacher)
        own = student.width("features")
        self.projections = nn.ModuleList(
            projection(own, teacher.width("features"), self.bottleneck, self.activation) for teacher in self._teachers
        )

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        own = as_map(student["features"])
        targets = [as_map(teacher["features"]) for teacher in teachers]
        # one value a channel has no batch statistics; the released code leaves out all incomplete batches
        alone = len(own) == 1 and any(target.shape[-1] == 1 for target in targets)
        if alone or clock.epoch + 1 < self.first_epoch:
            return LossTerms(total=own.sum() * 0.0)  # keeps a graph where this is the only loss
        pairs = zip(self.projections, targets, strict=True)
        projected = [project(resize(own, target.shape[-1])) for project, target in pairs]
        judged = zip(self._teachers, projected, strict=True)
        logits = torch.stack([teacher.head(features) for teacher, features in judged])
        values, _ = feature_term(projected, targets, logits, labels_of(student, batch))
        return LossTerms(total=values.sum() / batch.num_items)

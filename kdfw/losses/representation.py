"""Losses on what models compute before their scores: embeddings and hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdfw.components import Loss, Model, Teacher, Weighting
from kdfw.errors import ConfigError, PluginError, TrainingError
from kdfw.losses.masking import masked_mean, wide
from kdfw.losses.options import Teachers
from kdfw.types import Batch, Clock, LossTerms, Needs, Signals

Distance = Literal["mse", "cosine"]


def distance(student: Tensor, teacher: Tensor, kind: Distance) -> Tensor:
    """Distance of vectors along the last dimension: (..., H) and (..., H) to (...).

    `mse`: mean of squared differences; `cosine`: 1 - cosine similarity, in [0, 2].
    """
    if kind == "cosine":
        return 1.0 - nn.functional.cosine_similarity(student, teacher, dim=-1)
    return ((student - teacher) ** 2).mean(-1)


def signal_width(model: Model | Teacher, name: str) -> int:
    """Last dimension of a model's signal, which a projection has to know before training: `model.width(name)`.

    Raises: PluginError when the model does not tell.
    """
    tell = getattr(model, "width", None)
    if not callable(tell):
        raise PluginError(
            f"{type(model).__module__}.{type(model).__qualname__} has no method `width(signal) -> int`, which a loss "
            f"with a projection of {name!r} asks for; add it, or turn the projection off"
        )
    return int(tell(name))


def build_projections(student: Model, teachers: Sequence[Model | Teacher], name: str) -> nn.ModuleList:
    """One bias-free linear map for each teacher, from the student's width of a signal to the teacher's."""
    ours = signal_width(student, name)
    return nn.ModuleList(nn.Linear(ours, signal_width(teacher, name), bias=False) for teacher in teachers)


def check_shapes(student: Tensor, teacher: Tensor, name: str) -> None:
    """Raises TrainingError where the two signals do not have one shape."""
    if student.shape != teacher.shape:
        raise TrainingError(
            f"signal {name!r}: the student has shape {tuple(student.shape)} and the teacher {tuple(teacher.shape)}; "
            "for widths that differ set projection: true; the number of rows must be the same for both models"
        )


def layer_pairs(how: str | list[tuple[int, int]], ours: int, theirs: int) -> list[tuple[int, int]]:
    """(student layer, teacher layer) pairs, 0-based.

    `uniform` pairs student layer i of n with teacher layer (i + 1) * N / n - 1, rounded down (arXiv:1909.10351);
    `last` pairs the last n layers of both; a list is taken as it stands, negative numbers count from the end.

    Raises: TrainingError for a layer that a model does not have.
    """
    if how == "uniform":
        if ours > theirs:
            return [(a, b) for b, a in layer_pairs("uniform", theirs, ours)]
        return [(layer, (layer + 1) * theirs // ours - 1) for layer in range(ours)]
    if how == "last":
        count = min(ours, theirs)
        return [(ours - count + k, theirs - count + k) for k in range(count)]
    assert isinstance(how, list)
    for a, b in how:
        if not (-ours <= a < ours and -theirs <= b < theirs):
            raise TrainingError(
                f"layers: no pair [{a}, {b}]: the student has {ours} layers and the teacher {theirs}, counted from 0"
            )
    return [(a % ours, b % theirs) for a, b in how]


def reduce(
    values: Tensor,
    weighting: Weighting | None,
    student: Signals,
    teachers: Sequence[Signals],
    batch: Batch,
    clock: Clock,
) -> Tensor:
    """The term from (K, Q) values of each teacher and item: a mean, or the sum under a weighting."""
    if weighting is None:
        return values.sum() / (len(teachers) * batch.num_items)
    return (weighting.weights(student, teachers, batch, clock) * values).sum()


class EmbeddingMSE(Loss):
    """Distance between the embeddings of student and teacher (arXiv:2004.09813).

    Signals with one row per passage (`passage_embeddings`) are averaged over each item's candidates, all others have
    one row per item; an item's value is the mean over the chosen signals. With `projection: true` the student's
    embeddings go through a learned linear map into the teacher's space, one for each signal and teacher; it is
    thrown away after training, so the student's own scores do not depend on it.
    """

    paper = "arXiv:2004.09813"

    def __init__(
        self,
        *,
        weighting: Teachers = None,
        of: Annotated[
            list[str] | None, Field(description="signals compared; default: query and passage embeddings")
        ] = None,
        distance: Annotated[Distance, Field(description="mean squared error, or 1 - cosine")] = "mse",
        projection: Annotated[bool, Field(description="learn a linear map from student to teacher space")] = False,
    ) -> None:
        super().__init__()
        if of is not None and not of:
            raise ConfigError("embedding-mse: `of` names no signal; leave it out or name one, such as query_embeddings")
        self.weighting = weighting
        self.of = ["query_embeddings", "passage_embeddings"] if of is None else list(of)
        self.distance: Distance = distance
        self.projection = projection
        self.projections = nn.ModuleDict()

    @property
    def needs(self) -> Needs:
        own = Needs(
            student=frozenset(self.of),
            teacher=frozenset(self.of),
            teachers=(1, None),
            tasks=frozenset({"ranking", "pairs", "classification"}),
        )
        return own if self.weighting is None else own | self.weighting.needs

    def setup(self, student: Model, teachers: Sequence[Model | Teacher]) -> None:
        if self.projection:
            self.projections = nn.ModuleDict({name: build_projections(student, teachers, name) for name in self.of})

    def per_teacher(self, student: Signals, teacher: Signals, number: int, batch: Batch) -> Tensor:
        """(Q,) values for one teacher."""
        parts = []
        for name in self.of:
            ours, theirs = wide(student[name]), wide(teacher[name]).detach()
            if self.projection:
                ours = self.projections[name][number](ours)  # type: ignore[index]
            check_shapes(ours, theirs, name)
            apart = distance(ours, theirs, self.distance)
            if name == "passage_embeddings":
                assert batch.candidates is not None
                columns = batch.candidates.to(apart.device)
                mask = torch.ones_like(columns, dtype=torch.bool) if batch.mask is None else batch.mask
                apart = masked_mean(apart[columns], mask.to(apart.device))
            parts.append(apart)
        return torch.stack(parts).mean(0)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        values = torch.stack([self.per_teacher(student, teacher, k, batch) for k, teacher in enumerate(teachers)])
        return LossTerms(total=reduce(values, self.weighting, student, teachers, batch, clock))


class HiddenMSE(Loss):
    """Distance between hidden states of paired layers (arXiv:1908.09355, arXiv:1909.10351).

    The signal is (rows, N, H), or (Q, D, N, H) of a cross-encoder: one vector for each row and layer, the embedding
    output not counted. Both models must read the same texts; the value is the mean over pairs of layers and rows, of a
    cross-encoder over its real candidates. With `projection: true` one linear map for each teacher, shared by its
    layers, takes the student's width to the teacher's.
    """

    paper = "arXiv:1908.09355"

    def __init__(
        self,
        *,
        layers: Annotated[
            Literal["uniform", "last"] | list[tuple[int, int]],
            Field(description="pairs [student layer, teacher layer] from 0; or spread evenly; or the last ones"),
        ] = "uniform",
        distance: Annotated[Distance, Field(description="mean squared error, or 1 - cosine")] = "mse",
        normalise: Annotated[bool, Field(description="compare vectors of unit length")] = False,
        projection: Annotated[bool, Field(description="learn a linear map from student to teacher space")] = False,
        signal: Annotated[str, Field(description="the signal of both sides that is compared")] = "hidden",
    ) -> None:
        super().__init__()
        if isinstance(layers, list) and not layers:
            raise ConfigError("hidden-mse: `layers` is empty; write pairs [student layer, teacher layer], or uniform")
        self.layers = layers
        self.distance: Distance = distance
        self.normalise = normalise
        self.projection = projection
        self.signal = signal
        self.projections = nn.ModuleList()

    @property
    def needs(self) -> Needs:
        return Needs(
            student=frozenset({self.signal}),
            teacher=frozenset({self.signal}),
            teachers=(1, None),
            tasks=frozenset({"ranking", "pairs", "classification"}),
            whole_batch=True,
        )

    def setup(self, student: Model, teachers: Sequence[Model | Teacher]) -> None:
        if self.projection:
            self.projections = build_projections(student, teachers, self.signal)

    def forward(self, student: Signals, teachers: Sequence[Signals], batch: Batch, clock: Clock) -> LossTerms:
        values = []
        for number, teacher in enumerate(teachers):
            ours, theirs = wide(student[self.signal]), wide(teacher[self.signal]).detach()
            pairs = layer_pairs(self.layers, ours.shape[-2], theirs.shape[-2])
            ours = ours[..., [a for a, _ in pairs], :]
            theirs = theirs[..., [b for _, b in pairs], :]
            if self.projection:
                ours = self.projections[number](ours)
            check_shapes(ours, theirs, self.signal)
            if self.normalise:
                ours, theirs = nn.functional.normalize(ours, dim=-1), nn.functional.normalize(theirs, dim=-1)
            apart = distance(ours, theirs, self.distance).mean(-1)
            if apart.dim() == 2 and batch.mask is not None:
                apart = apart[batch.mask.to(apart.device)]
            values.append(apart.mean())
        return LossTerms(total=torch.stack(values).mean())

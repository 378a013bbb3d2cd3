"""The `train` settings of a training stage."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdfw.memory import machine_memory

if TYPE_CHECKING:
    import torch


Pattern = Annotated[str, Field(min_length=1)]
OWN_SETTINGS = {"adamw": {"betas", "eps"}, "sgd": {"momentum", "nesterov"}}
"""Settings that only one update rule has."""


class OptimizerSettings(BaseModel):
    """How the weights of one model move."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: float = Field(default=2e-5, ge=0, description="peak learning rate")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="update rule")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled for adamw, L2 for sgd")
    decay_all: bool = Field(
        default=False, description="also decay biases and normalisation weights (most recipes do not)"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="adamw's two averages")
    eps: float = Field(default=1e-8, gt=0, description="adamw's denominator")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd's momentum")
    nesterov: bool = Field(default=False, description="sgd with Nesterov momentum")
    warmup: float = Field(
        default=0.1, ge=0, description="linear warm-up: a share of the steps below 1, a number of steps from 1 on"
    )
    decay: Literal["linear", "cosine", "constant", "rsqrt", "milestones"] = Field(
        default="linear", description="how the rate falls after the warm-up"
    )
    milestones: tuple[float, ...] = Field(
        default=(), description="epochs (0-based) at which the rate is multiplied by `gamma`, for decay: milestones"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="factor at each milestone")
    groups: dict[Pattern, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="factor on the rate of parameters whose name contains the key"
    )
    freeze: tuple[Pattern, ...] = Field(
        default=(), description="parameters whose name contains one of these do not train"
    )
    clip: float | None = Field(default=1.0, gt=0, description="greatest norm of the gradient; null: no clipping")

    @model_validator(mode="after")
    def _have_an_effect(self) -> OptimizerSettings:
        if (self.decay == "milestones") != bool(self.milestones):
            raise ValueError("`decay: milestones` and a list of `milestones` go together")
        if self.decay != "milestones" and "gamma" in self.model_fields_set:
            raise ValueError("`gamma` is for `decay: milestones`")
        other = {"adamw": "sgd", "sgd": "adamw"}[self.optimizer]
        idle = sorted(self.model_fields_set & OWN_SETTINGS[other])
        if idle:
            raise ValueError(f"`{'`, `'.join(idle)}` {'is' if len(idle) == 1 else 'are'} for `optimizer: {other}`")
        return self

    def doubt(self, total_steps: int) -> str:
        """What is odd about these settings for a training of so many steps; empty where nothing is."""
        if self.warmup_steps(total_steps) <= total_steps:
            return ""
        return (
            f"a `warmup` of {self.warmup:g} steps is longer than the training, which has {total_steps}: the rate never "
            "gets to `lr`; a number below 1 is a share of it"
        )

    def warmup_steps(self, total_steps: int) -> int:
        """Steps of the warm-up; a share of the steps is rounded up, as in transformers."""
        return math.ceil(self.warmup * total_steps) if self.warmup < 1 else round(self.warmup)


class TrainSettings(OptimizerSettings):
    """How long, in which portions and with which arithmetic a stage trains."""

    epochs: int | None = Field(default=None, ge=1, description="passes over the items; give this or `steps`; default 1")
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; give this or `epochs`")
    batch_size: int = Field(
        default=32, ge=1, description="items (queries, pairs, texts) per optimizer step, over all processes"
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="parts of a step whose losses are computed apart and averaged (fewer in-batch items)",
    )
    precision: Literal["auto", "fp32", "fp32-strict", "bf16"] = Field(
        default="auto", description="auto: bf16 where the hardware has it natively, else fp32"
    )
    token_budget: int = Field(
        default=2048, ge=16, description="tokens per forward, padding included; memory grows with it, results do not"
    )
    max_rows: int = Field(default=1024, ge=1, description="rows (texts or images) per forward")
    gradient_cache: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="encode twice so that memory does not grow with the batch; auto: only what `keep_gb` does not hold",
    )
    keep_gb: float | None = Field(
        default=None,
        ge=0,
        description="gradient_cache auto: gigabytes of activations that a process keeps for the backward pass; "
        "default: half of a GPU's memory, a quarter of the machine's without one",
    )
    dropout: bool = Field(default=True, description="false: no dropout anywhere, losses repeat exactly")
    checkpoint_every: int | None = Field(default=None, ge=1, description="steps between checkpoints; default: by time")
    checkpoint_seconds: float = Field(default=300, gt=0, description="seconds between checkpoints")
    log_every: int = Field(default=10, ge=1, description="steps between lines of metrics.jsonl")
    on_nan: Literal["stop", "skip"] = Field(
        default="stop", description="a loss that is not finite: stop with the batch saved, or skip the step"
    )
    compile: bool = Field(default=False, description="torch.compile on the encoders")
    activation_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")
    models: dict[str, Annotated[OptimizerSettings, Field()]] = Field(
        default_factory=dict, description="settings of other trained models, by name; unnamed ones use these"
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give `epochs` or `steps`, not both")
        if self.batch_size % self.accumulate:
            raise ValueError("`accumulate` must divide `batch_size`")
        return self

    def optimizer_of(self, model: str) -> OptimizerSettings:
        """The settings of one trained model."""
        return self.models.get(model, self)


def activations_to_keep(settings: TrainSettings, device: torch.device) -> float:
    """Bytes of activations that a process keeps for the backward pass.

    They depend on the size of the memory, not on what is free: the same machine computes the same.
    """
    if settings.gradient_cache != "auto":
        return 0.0 if settings.gradient_cache == "always" else math.inf
    if settings.keep_gb is not None:
        return settings.keep_gb * 1e9
    if device.type == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(device).total_memory) / 2
    return machine_memory() / 4 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

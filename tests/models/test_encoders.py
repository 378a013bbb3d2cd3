"""A model takes over the transformer of another: all of its weights, and nothing of its head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdfw.components import Model
from kdfw.errors import ConfigError
from kdfw.models.encoders import encoders_of, take_encoder
from kdfw.types import Batch

Build = Callable[..., tuple[Model, Batch]]


def disturbed(model: Model) -> Model:
    """The same model with other weights everywhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))) * 0.1)
    return model


def body(model: Model, number: int = 0) -> dict[str, Any]:
    return {key: value.clone() for key, value in encoders_of(model)[number].state_dict().items()}


@pytest.mark.parametrize(("to", "options"), [("cross-encoder", {}), ("bi-encoder", {"towers": "two"}), ("sparse", {})])
def test_the_transformer_goes_over_and_the_head_stays(
    to: str, options: dict[str, Any], build: Build, ranking_batch: Batch
) -> None:
    source = disturbed(build("bi-encoder", ranking_batch)[0])
    target = build(to, ranking_batch, **options)[0]
    own = set(map(id, [p for part in encoders_of(target) for p in part.parameters()]))
    heads = {name: value.detach().clone() for name, value in target.named_parameters() if id(value) not in own}
    take_encoder(target, source, "source")
    assert len(encoders_of(target)) == (2 if options else 1)
    for number in range(len(encoders_of(target))):
        found = body(target, number)
        assert found.keys() >= {key for key in body(source) if not key.startswith("pooler.")}
        assert all(torch.equal(value, body(source)[key]) for key, value in found.items() if key in body(source))
    for name, value in target.named_parameters():
        if id(value) not in own:
            assert torch.equal(value, heads[name]), name


def test_there_and_back_is_the_same_bi_encoder(build: Build, ranking_batch: Batch) -> None:
    first, cross = disturbed(build("bi-encoder", ranking_batch)[0]), build("cross-encoder", ranking_batch)[0]
    last = build("bi-encoder", ranking_batch)[0]
    take_encoder(cross, first, "first")
    take_encoder(last, cross, "cross")
    expected = {key: value for key, value in body(first).items() if not key.startswith("pooler.")}
    assert all(torch.equal(body(last)[key], value) for key, value in expected.items())


def test_another_architecture_and_two_towers_are_refused(build: Build, ranking_batch: Batch) -> None:
    whole, cut = build("bi-encoder", ranking_batch)[0], build("cross-encoder", ranking_batch, layers=1)[0]
    with pytest.raises(ConfigError, match=r"of 'whole' is another one than the student's.*encoder.layer"):
        take_encoder(cut, whole, "whole")
    towers = build("bi-encoder", ranking_batch, towers="two")[0]
    with pytest.raises(ConfigError, match="found 2 transformers"):
        take_encoder(whole, towers, "towers")
    with pytest.raises(ConfigError, match="a student without one"):
        take_encoder(torch.nn.Linear(2, 2), whole, "whole")

"""The pretrained transformers inside a model, without heads, and how one model takes them over from another."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdfw.errors import ConfigError


def encoders_of(model: nn.Module) -> list[nn.Module]:
    """The transformers of a model without their heads: one, or one for each tower."""
    return [part for part in model.modules() if getattr(part, "base_model", None) is part]


def take_encoder(model: nn.Module, source: nn.Module, name: str) -> None:
    """Give a model the transformer weights of another; heads, poolings and projections stay as they are.

    So a cross-encoder may go on from a bi-encoder, and the other way. A pooler that only one of the two has is left
    alone.

    Args:
        name: of the source, for errors.
    Raises: ConfigError when the transformers are not of one architecture and size.
    """
    own, theirs = encoders_of(model), encoders_of(source)
    if not own or len(theirs) != 1:
        found = f"{len(theirs)} transformers" if own else "a student without one"
        raise ConfigError(f"encoder_from: {name!r}: found {found}; both models need a transformer, the source just one")
    weights: dict[str, Any] = theirs[0].state_dict()
    for body in own:
        wanted: dict[str, Any] = body.state_dict()
        common = {key: weights[key] for key in wanted if key in weights and weights[key].shape == wanted[key].shape}
        other = [key for key in {*wanted, *weights} - set(common) if not key.startswith("pooler.")]
        if other:
            raise ConfigError(
                f"encoder_from: the transformer of {name!r} is another one than the student's; {len(other)} weights "
                f"differ in name or shape, such as {min(other)!r}"
            )
        body.load_state_dict(common, strict=False)

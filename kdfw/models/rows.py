"""Rows: the unit of model work. A row is one token sequence (or one image); equal rows are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Rows that go through the same encoder: `query`, `passage`, `pair`, `text`, `image`, `translation`.

    `signals` receives the representations of a group in the order of its rows. Rows must be distinct; a model that
    meets a text twice lists it once and gathers in `signals`.
    """

    name: str
    ids: Sequence[np.ndarray] = ()
    """R arrays of token ids, special tokens included, already truncated."""
    type_ids: Sequence[np.ndarray] | None = None
    """R arrays of segment ids, where the model has them."""
    targets: Sequence[np.ndarray] | None = None
    """R arrays of target token ids (translation)."""
    tensor: Tensor | None = None
    """(R, ...) inputs that are not tokens: images, possibly with a graph."""
    truncated: int = 0
    """How many rows were cut at the length limit, for `kdfw check`."""

    def __len__(self) -> int:
        return len(self.ids) if self.tensor is None else len(self.tensor)

    def lengths(self) -> np.ndarray:
        """(R,) cost of each row in tokens; 1 for images."""
        if self.tensor is not None:
            return np.ones(len(self.tensor), dtype=np.int64)
        lengths = np.asarray([len(row) for row in self.ids], dtype=np.int64)
        if self.targets is not None:
            lengths = lengths + np.asarray([len(row) for row in self.targets], dtype=np.int64)
        return lengths


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Some rows of one group, padded and on the model's device: what `Model.encode` sees."""

    group: str
    ids: Tensor | None = None
    """(R, L) long."""
    mask: Tensor | None = None
    """(R, L) bool, True at real tokens; None when no row is padded."""
    type_ids: Tensor | None = None
    """(R, L) long."""
    lengths: Tensor | None = None
    """(R,) long."""
    targets: Tensor | None = None
    """(R, T) long, -100 at padding."""
    tensor: Tensor | None = None
    """(R, ...)."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One computation of a model as `kdfw export --onnx` writes it: `Model.encode` of the rows of one group."""

    name: str
    """Of the file, without its ending."""
    group: str
    """Name of the rows it takes; further groups that are computed alike need no graph of their own."""
    finish: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    """From what `encode` gives to the outputs by name. Names must differ from those of torch's functions."""
    image: tuple[int, int, int] = (0, 0, 0)
    """Channels, height and width of images to try, where rows are images."""

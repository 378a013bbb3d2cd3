"""Rows: the unit of model work. A row is one token sequence (or one image); equal rows are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from kdfw.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from kdfw.types import Text

PIXELS_PER_TOKEN = 1024
"""Pixels of an image that count as one token where rows are cut into micro-batches: 32 x 32."""
LENGTH_STEP = 8
"""Rows of tokens are padded to a multiple of this. A CPU's matrix products are compiled for every shape they meet and
kept in memory: with rows of every length an epoch over 4,832 queries meets three times as many (164 shapes against 54,
for 1 % more tokens), and memory grows with them. GPUs prefer such widths too."""


class Pictures:
    """Images of stored sources, read when a micro-batch is assembled."""

    def __init__(self, texts: Sequence[Text]) -> None:
        """Raises: DataError when one of the texts is no row of an `ImageSource`."""
        self.texts = texts
        other = next((text for text in texts if not is_image(text)), None)
        if other is not None:
            raise DataError(f"a text among images: {str(other)[:80]!r}")

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), channels, height, width) uint8."""
        chosen: list[Any] = [self.texts[row] for row in rows]
        images = [text.source.image(text.row) for text in chosen]
        return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))

    def cost(self) -> int:
        """Tokens that one of them counts as."""
        if not self.texts:
            return 1
        pixels = int(np.prod(self.read(np.zeros(1, dtype=np.int64)).shape[2:]))
        return max(1, pixels // PIXELS_PER_TOKEN)


def is_image(text: Text) -> bool:
    """Whether a text is a row of an `ImageSource`."""
    return getattr(text.source, "image", None) is not None


class Joined(Sequence[np.ndarray]):
    """Rows that are put together from their parts when they are asked for.

    Every process cuts a step into shares by the lengths of its rows; the tokens it looks at are those of its own share.
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, ...]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> Joined: ...
    def __getitem__(self, row: int | slice) -> np.ndarray | Joined:
        return Joined(self._parts[row]) if isinstance(row, slice) else np.concatenate(self._parts[row])

    def length(self, row: int) -> int:
        """Tokens of a row, without putting it together."""
        return sum(map(len, self._parts[row]))

    def lengths(self) -> np.ndarray:
        """(R,) tokens of each row."""
        return np.asarray([sum(map(len, parts)) for parts in self._parts], dtype=np.int64)


def padded_length(lengths: np.ndarray | int, max_tokens: int) -> Any:
    """To how many tokens rows of some lengths are padded: the next multiple of `LENGTH_STEP`, at most `max_tokens`.

    Args:
        max_tokens: the most that the model takes; 0: not known, and lengths stay.
    """
    if not max_tokens:
        return lengths
    stepped = -(-np.asarray(lengths) // LENGTH_STEP) * LENGTH_STEP
    return np.maximum(np.minimum(stepped, max_tokens), lengths)


def lengths_of(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(R,) tokens of each row."""
    return rows.lengths() if isinstance(rows, Joined) else np.asarray([len(row) for row in rows], dtype=np.int64)


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
    pictures: Pictures | None = None
    """R stored images."""
    max_tokens: int = 0
    """The most tokens a row may have; 0 where that is not known."""
    truncated: int = 0
    """How many rows were cut at the length limit, for `kdfw check`."""

    def __len__(self) -> int:
        if self.pictures is not None:
            return len(self.pictures)
        return len(self.ids) if self.tensor is None else len(self.tensor)

    def lengths(self) -> np.ndarray:
        """(R,) cost of each row in tokens; 1 for made images."""
        if self.pictures is not None:
            return np.full(len(self), self.pictures.cost(), dtype=np.int64)
        if self.tensor is not None:
            return np.ones(len(self.tensor), dtype=np.int64)
        lengths = lengths_of(self.ids)
        return lengths if self.targets is None else lengths + lengths_of(self.targets)

    def widths(self) -> np.ndarray:
        """(R,) cost of each row in tokens, padding to `LENGTH_STEP` included: by these rows are put together."""
        if self.pictures is not None or self.tensor is not None:
            return self.lengths()
        widths: np.ndarray = padded_length(lengths_of(self.ids), self.max_tokens)
        return widths if self.targets is None else widths + lengths_of(self.targets)


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
    """(R, ...); stored images are (R, channels, height, width) uint8."""
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

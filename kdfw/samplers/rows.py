"""Samplers that go through the rows of a split: sentence pairs, labelled texts and images, translations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdfw.amounts import Amount, Sizes
from kdfw.components import Sampler
from kdfw.errors import DataError, one_of
from kdfw.types import Candidate, Clock, Example, Text

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import Data

Kind = TypeVar("Kind")


def rows_of(data: Data, split: str, kind: type[Kind], sampler: str) -> Kind:
    """The rows of a split; raises DataError for data of another task, or a split that is not there."""
    splits = getattr(data, "splits", {})
    if split not in splits:
        raise DataError(f"data {data.name!r} has no split {split!r}; {one_of(split, splits)}")
    found = splits[split]
    if not isinstance(found, kind):
        raise DataError(f"sampler {sampler!r} cannot draw from {data.task} data ({data.name!r})")
    return found


class Pairs(Sampler):
    """Sentence pairs, in both orders with `symmetric: true`.

    The reversed pair keeps the pair's id, so that a score stored for the pair serves both orders (arXiv:2109.13059).
    Without gold scores the label is NaN, which losses leave out.
    """

    tasks = frozenset({"pairs"})
    draws_positives = False
    num_candidates = 1
    labels_of_data = True

    def __init__(
        self, *, symmetric: Annotated[bool, Field(description="each pair also as (right, left)")] = False
    ) -> None:
        self.symmetric = symmetric

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        from kdfw.data.sets import Pairs as PairRows

        self.rows = rows_of(data, split, PairRows, "pairs")
        self.ids = list(self.rows.ids) * (2 if self.symmetric else 1)

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return sizes.of(sizes.items, split) * (2 if self.symmetric else 1)

    def items(self) -> Sequence[str]:
        return self.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        backwards, row = divmod(item, len(self.rows.ids))
        left, right = Text(source=self.rows.left, row=row), Text(source=self.rows.right, row=row)
        if backwards:
            left, right = right, left
        gold = math.nan if self.rows.gold is None else float(self.rows.gold[row])
        own = Candidate(id=self.ids[item], text=right, label=gold, kind="pair")
        return Example(id=self.ids[item], text=left, candidates=(own,))


def prepare_image(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(height, width, channels) uint8 to (channels, height, width) float32, normalised per channel."""
    # a copy: stored images are a read-only map, which torch warns about
    values = torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255.0
    if len(mean):
        values = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return values


def augment_image(image: np.ndarray, padding: int, flip: bool, rng: np.random.Generator) -> np.ndarray:
    """A random crop of the image after padding it with black on every side, and a mirror image half of the time."""
    if padding:
        height, width = image.shape[:2]
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        top, left = (int(offset) for offset in rng.integers(0, 2 * padding + 1, size=2))
        image = padded[top : top + height, left : left + width]
    if flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return image


class Labelled(Sampler):
    """Texts or images with their classes. Images are normalised with the data set's mean and deviation.

    `crop_padding: 4` with `flip: true` is the usual augmentation of small photographs; leave both off for digits.
    """

    tasks = frozenset({"classification"})
    labels_of_data = True

    def __init__(
        self,
        *,
        crop_padding: Annotated[int, Field(ge=0, description="pixels of black around an image before a crop")] = 0,
        flip: Annotated[bool, Field(description="mirror an image half of the time")] = False,
    ) -> None:
        self.crop_padding = crop_padding
        self.flip = flip

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        from kdfw.data.sets import Labelled as LabelledRows
        from kdfw.data.sets import LabelledData

        self.rows = rows_of(data, split, LabelledRows, "labelled")
        assert isinstance(data, LabelledData)
        self.mean, self.std = data.image_mean, data.image_std
        if self.rows.images is None and (self.crop_padding or self.flip):
            context.log.warning("labelled: crop_padding and flip have no effect on texts")

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return sizes.of(sizes.items, split)

    def items(self) -> Sequence[str]:
        return self.rows.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        label = int(self.rows.labels[item])
        if self.rows.images is None:
            assert self.rows.texts is not None
            return Example(id=self.rows.ids[item], text=Text(source=self.rows.texts, row=item), label=label)
        image = augment_image(np.asarray(self.rows.images[item]), self.crop_padding, self.flip, rng)
        return Example(id=self.rows.ids[item], image=prepare_image(image, self.mean, self.std), label=label)


class Parallel(Sampler):
    """Sentences with their translations."""

    tasks = frozenset({"translation"})

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        from kdfw.data.sets import Parallel as ParallelRows

        self.rows = rows_of(data, split, ParallelRows, "parallel")
        self.ids = self.rows.source.ids()

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return sizes.of(sizes.items, split)

    def items(self) -> Sequence[str]:
        return self.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        return Example(
            id=self.ids[item],
            text=Text(source=self.rows.source, row=item),
            target=Text(source=self.rows.target, row=item),
        )

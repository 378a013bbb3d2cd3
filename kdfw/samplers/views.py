"""Two views of one text: examples for contrastive learning without labels, and what makes the views differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, overload

import numpy as np
from pydantic import Field

from kdfw.amounts import UNREAD, Amount, Sizes, unknown
from kdfw.components import Augmenter, Sampler
from kdfw.data.table import TextTable, hash_id
from kdfw.errors import ConfigError, DataError, one_of
from kdfw.types import Candidate, Clock, Example, Text

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import Data


def texts_of(data: Data, split: str, which: str) -> list[TextTable]:
    """The columns whose texts are viewed: both sentences of a split's pairs, or a ranking's passages or queries.

    Raises: DataError for data of another task, or a split that is not there.
    """
    from kdfw.data.sets import PairData, RankingData

    if isinstance(data, RankingData) and which == "passages":
        return [data.corpus]
    splits = data.queries if isinstance(data, RankingData) else data.splits if isinstance(data, PairData) else None
    if splits is None:
        raise DataError(f"sampler 'views' cannot draw from {data.task} data ({data.name!r})")
    if split not in splits:
        raise DataError(f"data {data.name!r} has no split {split!r}; {one_of(split, splits)}")
    if isinstance(data, RankingData):
        return [data.queries[split]]
    assert isinstance(data, PairData)
    return [data.splits[split].left, data.splits[split].right]


def first_places(sources: Sequence[TextTable]) -> np.ndarray:
    """(N,) int64: the first place of each distinct text, ascending; columns are counted one after another."""
    hashes = np.fromiter(
        (hash_id(text.encode("utf-8", "surrogatepass")) for source in sources for _, text in source.iterate()),
        dtype=np.uint64,
        count=sum(len(source) for source in sources),
    )
    return np.sort(np.unique(hashes, return_index=True)[1])


class _Ids(Sequence[str]):
    """Ids of places, made when they are asked for: a corpus may have millions."""

    def __init__(self, sources: Sequence[TextTable], places: np.ndarray) -> None:
        self.sources, self.places = sources, places
        self.starts = np.cumsum([0, *(len(source) for source in sources)])

    def __len__(self) -> int:
        return len(self.places)

    def place(self, item: int) -> tuple[int, int]:
        """(column, row) of an item."""
        column = int(np.searchsorted(self.starts, self.places[item], side="right")) - 1
        return column, int(self.places[item] - self.starts[column])

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[str]: ...
    def __getitem__(self, item: int | slice) -> str | Sequence[str]:
        if isinstance(item, slice):
            return [self[number] for number in range(*item.indices(len(self)))]
        column, row = self.place(item)
        return f"view {column}: {self.sources[column].id(row)}"  # no query's id: judgements are not of views


class Views(Sampler):
    """Each text twice, as query and as its one positive: for contrastive learning without labels (arXiv:2104.08821).

    Encoded twice, a text has two vectors as long as there is dropout; an augmenter (`distort`) makes the views differ
    more. With `info-nce` and `in_batch: true` the other texts of the step are the negatives. Each distinct text is
    drawn once an epoch: of sentence pairs both sentences, of a ranking the passages or the split's queries.
    """

    paper = "arXiv:2104.08821"
    tasks = frozenset({"pairs", "ranking"})
    num_candidates = 1

    def __init__(
        self,
        *,
        texts: Annotated[
            Literal["passages", "queries"], Field(description="of a ranking: which texts; pairs have one kind")
        ] = "passages",
    ) -> None:
        self.texts = texts

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        self.sources = texts_of(data, split, self.texts)
        self.ids = _Ids(self.sources, first_places(self.sources))

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        if split not in sizes.items:
            return unknown(UNREAD)
        ranking = sizes.passages.value is not None
        items = sizes.passages if ranking and self.texts == "passages" else sizes.of(sizes.items, split)
        return (items if ranking else items * 2).at_most()

    def items(self) -> Sequence[str]:
        return self.ids

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        column, row = self.ids.place(item)
        text, name = Text(source=self.sources[column], row=row), self.ids[item]
        return Example(id=name, text=text, candidates=(Candidate(id=name, text=text, label=1.0, kind="positive"),))


# ---------------------------------------------------------------- views that differ


def cropped(words: Sequence[str], share: float, rng: np.random.Generator) -> list[str]:
    """A random piece of consecutive words: that share of them, at least one."""
    kept = min(len(words), max(1, round(share * len(words))))
    begin = int(rng.integers(len(words) - kept + 1))
    return list(words[begin : begin + kept])


def erased(words: Sequence[str], share: float, rng: np.random.Generator) -> list[str]:
    """The words without each with probability `share`; one of them stays in any case."""
    keep = rng.random(len(words)) >= share
    keep[int(rng.integers(len(words)))] = True
    return [word for word, stays in zip(words, keep.tolist(), strict=True) if stays]


def span_masked(text: str, characters: int, mask: str, rng: np.random.Generator) -> str:
    """The text with one random span of characters replaced by the mask token, between spaces (arXiv:2104.08027)."""
    begin = int(rng.integers(max(1, len(text) - characters)))
    return f"{text[:begin]} {mask} {text[begin + characters :]}"


class Distort(Augmenter):
    """Another view of a text: a piece of it, with words left out, with a span masked (arXiv:2104.08027).

    In this order, each anew in every epoch. For contrastive learning (sampler `views`), and to train against noise.
    """

    paper = "arXiv:2104.08027"
    tasks = frozenset({"pairs", "ranking"})
    makes_texts = True

    def __init__(
        self,
        *,
        crop: Annotated[
            float, Field(gt=0, le=1, description="least share of the words that a random piece has; 1: the whole text")
        ] = 1.0,
        erase: Annotated[float, Field(ge=0, lt=1, description="probability of each word to be left out")] = 0.0,
        mask_characters: Annotated[int, Field(ge=0, description="length of the span that is masked; 0: none")] = 0,
        min_characters: Annotated[int, Field(ge=0, description="shorter texts have no span masked")] = 30,
        mask_token: Annotated[
            str, Field(min_length=1, description="what a masked span reads as: the tokenizer's mask token")
        ] = "[MASK]",
        sides: Annotated[
            Literal["passages", "queries", "both"], Field(description="which texts of an example are changed")
        ] = "passages",
    ) -> None:
        if crop == 1.0 and not erase and not mask_characters:
            raise ConfigError("augmenter distort: nothing is changed; set crop, erase or mask_characters")
        self.crop = crop
        self.erase = erase
        self.mask_characters = mask_characters
        self.min_characters = min_characters
        self.mask_token = mask_token
        self.sides = sides

    def apply(self, example: Example, clock: Clock, rng: np.random.Generator) -> Example:
        text, candidates = example.text, example.candidates
        if self.sides != "passages" and text is not None:
            text = self._view(text, rng)
        if self.sides != "queries":
            candidates = tuple(replace(one, text=self._view(one.text, rng)) for one in candidates)
        return replace(example, text=text, candidates=candidates)

    def _view(self, text: Text, rng: np.random.Generator) -> Text:
        before = str(text)
        words = re.findall(r"\S+", before)
        if not words:
            return text
        if self.crop < 1.0:
            words = cropped(words, float(rng.uniform(self.crop, 1.0)), rng)
        if self.erase:
            words = erased(words, self.erase, rng)
        view = " ".join(words)
        if self.mask_characters and len(view) > max(self.mask_characters, self.min_characters - 1):
            view = span_masked(view, self.mask_characters, self.mask_token, rng)
        return text if view == before else Text(source=None, made=view)

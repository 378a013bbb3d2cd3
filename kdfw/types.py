"""What the parts of kdfw pass each other. Imports nothing heavy: engine and plugins both stand on it.

The alphabet of shapes used in every docstring:

    Q  items of a batch: queries, sentence pairs, texts, images, or target tokens of a translation
    D  alternatives of an item: candidate passages, classes, or the vocabulary
    P  unique passages of a batch            R  rows (token sequences) given to a model
    L  tokens of a row                       H  hidden width or embedding width
    V  vocabulary                            K  teachers        N  layers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Qrels = dict[str, dict[str, int]]
"""Judgements: query id -> passage id -> grade."""

Run = dict[str, dict[str, float]]
"""Results: query id -> passage id -> score; a higher score is a better rank."""

TASKS = ("ranking", "pairs", "classification", "translation")


@runtime_checkable
class TextSource(Protocol):
    """An ordered column of texts that stays on disk: a corpus, a set of queries, the sources of a translation."""

    fingerprint: str
    """Hash of the ids and the bytes of every text, in order."""

    def __len__(self) -> int: ...

    def text(self, row: int) -> str:
        """The text of row `row`; raises IndexError outside `0 <= row < len`."""
        ...

    def id(self, row: int) -> str:
        """The id of row `row`."""
        ...

    def row(self, id: str) -> int:
        """The row of an id; KeyError when the source has no such id."""
        ...


class ImageSource(TextSource, Protocol):
    """An ordered column of images. The text of a row names the image and holds a hash of its pixels."""

    mean: Sequence[float]
    """(channels,) of values in [0, 1], over the training images."""
    std: Sequence[float]

    def image(self, row: int) -> np.ndarray:
        """(height, width, channels) uint8; all of one size."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a batch: a row of a stored source, or a text made on the fly (`source` None, `made` the text).

    Where the source is an `ImageSource` the row is an image, which a model that reads images takes from there.
    """

    source: TextSource | None
    row: int = -1
    made: str | None = None

    def __str__(self) -> str:
        if self.made is not None:
            return self.made
        assert self.source is not None
        return self.source.text(self.row)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate passage of an example."""

    id: str
    text: Text
    label: float = 0.0
    """Relevance; positives are > 0. For sentence pairs the gold (or pseudo) score, NaN when there is none."""
    kind: str = "negative"
    """`positive`, `negative`, or what an augmenter calls its own (`dark`). Losses may select by it."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training item as a sampler draws it, before it becomes part of a `Batch`.

    Ranking: `text` is the query, `candidates` its passages, positives first. Sentence pairs: `text` is the left
    sentence and the one candidate the right one. Classification: `text` (or `image`) and `label`.
    Translation: `text` is the source and `target` the reference.
    """

    id: str
    text: Text | None = None
    candidates: tuple[Candidate, ...] = ()
    label: int | None = None
    image: Tensor | None = None
    """(channels, height, width), float, normalised."""
    target: Text | None = None
    extras: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Per-item values by name; stacked into `Batch.extras`."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The items of one optimizer step, over all processes, without reference to any model's tokens.

    Every process holds the same batch; a model encodes only its process's share of the rows and the
    representations are gathered, so a loss always sees the whole step (see docs/design.md, "One step").
    """

    task: str
    ids: tuple[str, ...]
    """Q item ids (query ids, pair ids, row ids)."""
    inputs: Mapping[str, Sequence[Text] | Tensor]
    """By role. Ranking and pairs: `query` (Q texts) and `passage` (P unique texts). Classification: `text`
    (Q texts) or `image` (Q, C, height, width). Translation: `source` and `target` (B sentences each)."""
    num_items: float
    """What a mean over items divides by: Q, or the number of target tokens of the whole step."""
    candidates: Tensor | None = None
    """(Q, D) long: row of `inputs['passage']` for every candidate; padding repeats column 0 and is masked."""
    mask: Tensor | None = None
    """(Q, D) bool, True where the candidate is real."""
    labels: Tensor | None = None
    """Ranking, pairs: (Q, D) float relevance. Classification: (Q,) long. Translation: filled in by the model
    as (Q,) long, the reference token of every target position (`Signals.labels`)."""
    passage_ids: tuple[str, ...] = ()
    """P ids, aligned with `inputs['passage']`."""
    kinds: tuple[tuple[str, ...], ...] = ()
    """Q tuples of `Candidate.kind`, unpadded."""
    known_positives: Tensor | None = None
    """(Q, P) bool: passage p is a labelled positive of query q. In-batch losses mask these as false negatives."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What a model says about a batch: the one currency between models and losses.

    `logits` (Q, D) are scores over the alternatives of each item. Everything else is there only when a loss
    asked for it by name (`Needs`).
    """

    logits: Tensor | None = None
    mask: Tensor | None = None
    """(Q, D) bool; None means that every alternative is real."""
    labels: Tensor | None = None
    """The batch's labels in the shape of `logits`' items: (Q, D) float for ranking, (Q,) long for classes or tokens."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """By name. Known names: `query_embeddings` (Q, H), `passage_embeddings` (P, H), `batch_logits` (Q, P) scores of
    every query against every passage of the step, `hidden` (Q, N, H), (R, N, H), or (Q, D, N, H) of a cross-encoder,
    `features` (Q, C, height, width) maps or (Q, C) vectors before the last layer, `head_logits` (heads, Q, D),
    `regularizer` (). A granularity or head has its own name with a slash: `logits/passage`."""

    def __getitem__(self, name: str) -> Tensor:
        """The signal `name`; KeyError with the names that exist, which means that a `Needs` declaration is missing."""
        value = self.logits if name == "logits" else self.extra.get(name)
        if value is None:
            have = sorted(self.extra) + (["logits"] if self.logits is not None else [])
            raise KeyError(f"no signal {name!r} here; present: {', '.join(have)}. Is it declared in `needs`?")
        return value

    def __contains__(self, name: object) -> bool:
        return (name == "logits" and self.logits is not None) or name in self.extra

    def detached(self) -> Signals:
        """The same values without a graph: what a frozen teacher hands over."""
        return replace(
            self,
            logits=None if self.logits is None else self.logits.detach(),
            extra={name: value.detach() for name, value in self.extra.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a loss, weighting or schedule needs; checked against what models provide before anything loads."""

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()
    """Needed of every teacher the loss uses. Empty: the loss works without a teacher."""
    labels: bool = False
    teachers: tuple[int, int | None] = (0, None)
    """Least and greatest number of teachers; None is no upper bound."""
    tasks: frozenset[str] = frozenset(TASKS)
    alternatives: int = 1
    """Least number of an item's candidates that the loss can tell apart: with fewer it is constant."""
    whole_batch: bool = False
    """True when the value depends on other items of the step (in-batch negatives, batch statistics); such a
    loss cannot be used where a task computes its signals share by share (translation)."""

    def __or__(self, other: Needs) -> Needs:
        """What is needed when both are used."""
        lower = max(self.teachers[0], other.teachers[0])
        uppers = [upper for upper in (self.teachers[1], other.teachers[1]) if upper is not None]
        return Needs(
            student=self.student | other.student,
            teacher=self.teacher | other.teacher,
            labels=self.labels or other.labels,
            teachers=(lower, min(uppers) if uppers else None),
            tasks=self.tasks & other.tasks,
            alternatives=max(self.alternatives, other.alternatives),
            whole_batch=self.whole_batch or other.whole_batch,
        )


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Where training stands. Schedules, samplers and random draws are pure functions of it."""

    step: int
    """Optimizer steps done before this one, 0-based."""
    total_steps: int
    epoch: int
    """0-based."""
    total_epochs: int
    steps_per_epoch: int
    seed: int

    @property
    def progress(self) -> float:
        """Share of the steps that are done, in [0, 1)."""
        return self.step / self.total_steps if self.total_steps else 0.0


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What a loss returns: the scalar to minimise and, for the log, its parts by name, detached.

    A part is a scalar, or (K,): a value for each of the loss's teachers, logged with their names.

    Parts of a step computed in shares are added up, so a mean over items divides by `batch.num_items` there, too.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Corpus(TextSource, Protocol):
    """A text source that can also be walked in order without holding it in memory."""

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str]]:
        """(id, text) of rows `start` to `stop`."""
        ...

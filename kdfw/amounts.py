"""How much there is of something, as far as it is known before anything runs: what `kdfw plan` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

Sure = Literal["exactly", "up to", "about"]
_ORDER: tuple[Sure, ...] = ("exactly", "up to", "about")
"""From the surest: what is computed from several numbers is as sure as the least sure of them."""
UNREAD = "the data is read"
BYTES_PER_TOKEN = 4.5
"""Of English texts and vocabularies of 30,000 subwords: from 4.0 (STS-B) to 4.7 (queries of MS MARCO)."""
SPECIAL_TOKENS = 2
"""Around a text."""


@dataclass(frozen=True)
class Amount:
    """A number of things, a bound, a rough figure, or a number that nobody knows yet."""

    value: float | None
    """None: not known."""
    sure: Sure = "exactly"
    until: str = ""
    """Of a number that is not known: when it will be (`the data is read`)."""

    def __add__(self, other: Amount | float) -> Amount:
        return self._with(other, lambda a, b: a + b)

    def __mul__(self, other: Amount | float) -> Amount:
        return self._with(other, lambda a, b: a * b)

    def within(self, other: Amount | float) -> Amount:
        """The smaller of both; where only one is known, at most that."""
        bound = other if isinstance(other, Amount) else Amount(other)
        for known, unknown in ((self, bound), (bound, self)):
            if unknown.value is None and known.value is not None:
                return known.at_most()
        return self._with(bound, min)

    def larger(self, other: Amount) -> Amount:
        """The larger of both."""
        return self._with(other, max)

    def at_most(self) -> Amount:
        """The same as an upper bound."""
        return replace(self, sure="up to") if self.sure == "exactly" and self.value is not None else self

    def about(self) -> Amount:
        """The same as a rough figure."""
        return self if self.value is None else replace(self, sure="about")

    def in_portions_of(self, size: int) -> Amount:
        """How many portions of that size it takes."""
        return self if self.value is None else replace(self, value=float(math.ceil(self.value / size)))

    def _with(self, other: Amount | float, combine: Any) -> Amount:
        other = other if isinstance(other, Amount) else Amount(other)
        if self.value is None or other.value is None:
            return self if self.value is None else other
        return Amount(float(combine(self.value, other.value)), max(self.sure, other.sure, key=_ORDER.index))


def unknown(until: str) -> Amount:
    """A number that is not known until something has happened."""
    return Amount(None, until=until)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a stage has to do: amounts by what they count (`queries`, `FLOP`, `bytes of embeddings`)."""

    amounts: Mapping[str, Amount] = field(default_factory=dict)
    note: str = ""
    """What else there is to say: requests and money."""

    def __add__(self, other: Workload) -> Workload:
        """Both: amounts of the same things are added up."""
        total = dict(self.amounts)
        for name, amount in other.amounts.items():
            total[name] = total[name] + amount if name in total else amount
        return Workload(amounts=total, note="; ".join(note for note in (self.note, other.note) if note))

    def with_backward(self) -> Workload:
        """The same with gradients: a backward pass costs twice a forward pass."""
        return replace(self, amounts={name: each * (3 if name == "FLOP" else 1) for name, each in self.amounts.items()})

    def __str__(self) -> str:
        said = [_said(name, amount) for name, amount in self.amounts.items() if amount.value is not None]
        later: dict[str, list[str]] = {}
        for name, amount in self.amounts.items():
            if amount.value is None:
                later.setdefault(amount.until, []).append(name)
        text = ", ".join(said)
        for until, names in later.items():
            text += f"{'; ' if text else ''}{', '.join(names)}: unknown until {until}"
        return f"{text}{'; ' if text and self.note else ''}{self.note}"

    def plain(self) -> dict[str, dict[str, Any]]:
        """For JSON: `{"queries": {"value": 809, "sure": "exactly"}}`, or `{"value": null, "until": "..."}`."""
        return {
            name: {"value": None, "until": amount.until}
            if amount.value is None
            else {"value": int(amount.value), "sure": amount.sure}
            for name, amount in self.amounts.items()
        }


def _said(name: str, amount: Amount) -> str:
    assert amount.value is not None
    sure = "" if amount.sure == "exactly" else f"{amount.sure} "
    digits, unit = _scaled(amount.value)
    if name == "FLOP":
        return f"{sure}{digits} {unit}FLOP"
    if name.startswith("bytes"):
        return f"{sure}{digits} {unit}B{name.removeprefix('bytes')}"
    return f"{sure}{f'{digits}{unit}' if amount.sure == 'about' else f'{amount.value:,.0f}'} {name}"


def _scaled(value: float) -> tuple[str, str]:
    """Three digits and a unit: `1.23`, `M`."""
    unit = ""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or unit == "P":
            break
        value /= 1000
    return (f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"), unit


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What there is of everything. What is not there is not known."""

    passages: Amount = unknown(UNREAD)
    items: Mapping[str, Amount] = field(default_factory=dict)
    """By split: queries, pairs, texts, images, or pairs of sentences."""
    judged: Mapping[str, Amount] = field(default_factory=dict)
    """By split: queries with a labelled positive."""
    positives: Mapping[str, Amount] = field(default_factory=dict)
    """By split: labelled positives."""
    triples: Mapping[str, Amount] = field(default_factory=dict)
    """By split."""
    rankings: Mapping[str, tuple[Amount, Amount]] = field(default_factory=dict)
    """Queries and candidates of the lists that came with the data, by name."""
    passage_bytes: np.ndarray | None = None
    """(at most 10,000,) bytes of some passages."""
    item_bytes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By split: (at most 10,000,) bytes of the texts of some items."""

    def of(self, what: Mapping[str, Amount], split: str) -> Amount:
        """An amount of a split, known or not."""
        return what.get(split, unknown(UNREAD))

    def passage_tokens(self, limit: int) -> Amount:
        """Tokens of a passage on average, cut at `limit`."""
        return _tokens(self.passage_bytes, limit)

    def item_tokens(self, split: str, limit: int) -> Amount:
        """Tokens of an item's texts on average, cut at `limit`."""
        return _tokens(self.item_bytes.get(split), limit)

    def at_most(self) -> Sizes:
        """The same as upper bounds: some lines may be left out."""

        def bounds(amounts: Mapping[str, Amount]) -> dict[str, Amount]:
            return {split: amount.at_most() for split, amount in amounts.items()}

        return replace(
            self,
            passages=self.passages.at_most(),
            items=bounds(self.items),
            judged=bounds(self.judged),
            positives=bounds(self.positives),
            triples=bounds(self.triples),
        )

    def with_dev(self, share: float) -> Sizes:
        """With `dev` carved out of train; by how many ids fall into the share, so only about."""
        if not share:
            return self
        return replace(
            self,
            items=_carved(self.items, share),
            judged=_carved(self.judged, share),
            positives=_carved(self.positives, share),
        )


def _carved(amounts: Mapping[str, Amount], share: float) -> dict[str, Amount]:
    if "train" not in amounts:
        return dict(amounts)
    train = amounts["train"]
    return {**amounts, "train": (train * (1 - share)).about(), "dev": (train * share).about()}


def _tokens(lengths: np.ndarray | None, limit: int) -> Amount:
    if lengths is None:
        return unknown(UNREAD)
    tokens = np.minimum(lengths / BYTES_PER_TOKEN + SPECIAL_TOKENS, limit)
    return Amount(float(tokens.mean()) if len(tokens) else 0.0, "about")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model's configuration says of its cost, before it is loaded."""

    flop_per_token: Amount
    """Of a forward pass; a backward pass is twice as much."""
    width: Amount
    """Numbers of a vector."""
    limits: Mapping[str, int]
    """Longest rows in tokens: `query` and `passage`, or `pair`, or `text`."""

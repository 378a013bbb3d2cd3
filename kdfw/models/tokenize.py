"""From the token ids of texts to the rows a model reads: special tokens, truncation, pairs.

A text is tokenized once, without special tokens (`kdfw.data.tokens`). What a tokenizer adds around one text or a pair
is learned from the tokenizer itself (`Template`), so rows equal those of `tokenizer(...)` for any tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdfw.errors import ConfigError
from kdfw.models.rows import Joined
from kdfw.types import Text

Truncation = Literal["longest_first", "only_second"]
FIRST_TOKENS = """\
def first_tokens(text, count):
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: max((end for _, end in places[:count]), default=0)]
"""
"""Python that cuts a text after some of its tokens, for those who read texts without kdfw. What stays has the same
tokens: word pieces, merges and unigrams do not depend on what follows the end of one of them."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """The tokens a tokenizer puts before, between and after the texts it is given, and their segment ids."""

    prefix: np.ndarray
    middle: np.ndarray
    """Empty for a single text."""
    suffix: np.ndarray
    prefix_types: np.ndarray
    middle_types: np.ndarray
    suffix_types: np.ndarray
    body_types: tuple[int, int]
    """Segment id of the first and of the second text."""

    @property
    def added(self) -> int:
        """How many tokens of a row are not text."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @property
    def has_types(self) -> bool:
        """Whether any segment id differs from 0."""
        parts = (self.prefix_types, self.middle_types, self.suffix_types)
        return any(bool(part.any()) for part in parts) or any(self.body_types)


_PROBES = (("one small house", "two green apples"), ("water under bridges", "a letter to you"))


def template_of(tokenizer: Any, pair: bool = False) -> Template:
    """The special tokens `tokenizer` adds to a text (or to a pair), found by asking it.

    Raises: ConfigError when they depend on the text, so that no template exists.
    """
    found = [_probe(tokenizer, first, second if pair else None) for first, second in _PROBES]
    same = (
        all(np.array_equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True)) and found[0][1] == found[1][1]
    )
    if not same:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ConfigError(f"tokenizer {name!r} adds other special tokens to other texts; kdfw cannot build its rows")
    (prefix, middle, suffix, prefix_types, middle_types, suffix_types), bodies = found[0]
    return Template(
        prefix=prefix,
        middle=middle,
        suffix=suffix,
        prefix_types=prefix_types,
        middle_types=middle_types,
        suffix_types=suffix_types,
        body_types=bodies,
    )


def _probe(tokenizer: Any, first: str, second: str | None) -> tuple[list[np.ndarray], tuple[int, int]]:
    """(prefix, middle, suffix and their segment ids), (segment ids of the two bodies)."""
    texts = (first,) if second is None else (first, second)
    whole = tokenizer(*texts, add_special_tokens=True, truncation=False, padding=False)
    ids = np.asarray(whole["input_ids"], dtype=np.int64)
    # a tokenizer may know segments although its model does not (DistilBERT)
    known = "token_type_ids" in tokenizer.model_input_names
    types = np.asarray(whole["token_type_ids"] if known else np.zeros(len(ids)), dtype=np.int64)
    cuts = []
    at = 0
    for text in texts:
        body = np.asarray(
            tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"], dtype=np.int64
        )
        begin = next(
            (i for i in range(at, len(ids) - len(body) + 1) if np.array_equal(ids[i : i + len(body)], body)), -1
        )
        if begin < 0 or not len(body):
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise ConfigError(f"tokenizer {name!r} tokenizes {text!r} differently with and without special tokens")
        at = begin + len(body)
        cuts.append((begin, at))
    begin, end = cuts[0]
    second_begin, second_end = cuts[-1]
    middle = slice(end, second_begin) if second is not None else slice(0, 0)
    parts = [ids[:begin], ids[middle], ids[second_end:], types[:begin], types[middle], types[second_end:]]
    return parts, (int(types[begin]), int(types[second_begin]))


def cut_pair(first: int, second: int, room: int, rule: Truncation) -> tuple[int, int]:
    """How many tokens of two texts stay when `room` tokens are free, by the rules of the `tokenizers` library.

    `longest_first` shortens the longer text until both are equally long, then both. `only_second` shortens the second
    text; where that is not enough (the library raises an error) the first text is shortened too.
    """
    room = max(room, 0)
    if first + second <= room:
        return first, second
    if rule == "only_second":
        kept = min(first, room)
        return kept, room - kept
    short, long = min(first, second), max(first, second)
    long = room - short if room - short >= short else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def single_rows(
    bodies: Sequence[np.ndarray], template: Template, max_tokens: int, side: str = "right"
) -> tuple[Joined, int]:
    """Rows of single texts, special tokens included, and how many texts were cut to fit `max_tokens`."""
    room = max(max_tokens - template.added, 0)
    truncated = 0
    parts: list[tuple[np.ndarray, ...]] = []
    for body in bodies:
        if len(body) > room:
            truncated += 1
            body = _keep(body, room, side)
        parts.append((template.prefix, body, template.suffix))
    return Joined(parts), truncated


def pair_rows(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    template: Template,
    max_tokens: int,
    rule: Truncation = "longest_first",
    side: str = "right",
) -> tuple[Joined, list[np.ndarray] | None, int]:
    """Rows of pairs, their segment ids (None when the model knows only one), and how many pairs were cut."""
    room = max_tokens - template.added
    truncated = 0
    parts: list[tuple[np.ndarray, ...]] = []
    types: list[np.ndarray] | None = [] if template.has_types else None
    for left, right in zip(first, second, strict=True):
        if len(left) + len(right) > room:
            truncated += 1
            keep_left, keep_right = cut_pair(len(left), len(right), room, rule)
            left, right = _keep(left, keep_left, side), _keep(right, keep_right, side)
        parts.append((template.prefix, left, template.middle, right, template.suffix))
        if types is not None:
            sizes = (len(template.prefix), len(left), len(template.middle), len(right), len(template.suffix))
            row = np.empty(sum(sizes), dtype=np.int64)
            begin = 0
            values: tuple[np.ndarray | int, ...] = (
                template.prefix_types,
                template.body_types[0],
                template.middle_types,
                template.body_types[1],
                template.suffix_types,
            )
            for size, value in zip(sizes, values, strict=True):
                row[begin : begin + size] = value
                begin += size
            types.append(row)
    return Joined(parts), types, truncated


def _keep(body: np.ndarray, count: int, side: str) -> np.ndarray:
    if side == "left":
        return body[len(body) - count :]
    return body[:count]


def unique_texts(texts: Sequence[Text]) -> tuple[list[Text], np.ndarray]:
    """Each distinct text once, in order of first appearance, and (len(texts),) where each text went."""
    seen: dict[object, int] = {}
    unique: list[Text] = []
    inverse = np.empty(len(texts), dtype=np.int64)
    for number, text in enumerate(texts):
        key: object = text.made if text.made is not None else (id(text.source), text.row)
        if key not in seen:
            seen[key] = len(unique)
            unique.append(text)
        inverse[number] = seen[key]
    return unique, inverse

"""Spans of a document, and the partners from which a span's vector has to help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Tokens = list[int]


class Draws(Protocol):
    """Where chance comes from."""

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both included."""
        ...

    def choice(self, items: Sequence[Item]) -> Item: ...


def spans_of(sentences: Sequence[Tokens], target: int) -> list[list[Tokens]]:
    """Whole sentences until the length exceeds `target`; what is left over is a last span."""
    spans: list[list[Tokens]] = []
    current: list[Tokens] = []
    for sentence in sentences:
        current.append(sentence)
        if sum(map(len, current)) > target:
            spans.append(current)
            current = []
    return [*spans, current] if current else spans


def overlapping(spans: Sequence[Sequence[Tokens]], number: int, max_tokens: int, draws: Draws) -> Tokens:
    """Some sentences of a span and those that follow it, up to `max_tokens` (the one that crosses is kept).

    Of the last span: some of its first sentences, and those before it.
    """
    span = spans[number]
    half = len(span) // 2
    count = 1 if half < 2 else draws.integer(1, half)
    last = number == len(spans) - 1
    taken = list(span[:count] if last else span[-count:])
    before = [sentence for other in spans[:number] for sentence in other][::-1]
    after = [sentence for other in spans[number + 1 :] for sentence in other]
    left = max_tokens - sum(map(len, taken))
    for sentence in before if last else after:
        if left <= 0:
            break
        taken = [sentence, *taken] if last else [*taken, sentence]
        left -= len(sentence)
    return [token for sentence in taken for token in sentence]


def span_records(
    sentences: Sequence[Tokens], *, max_tokens: int, window: int, draws: Draws, target: int | None = None
) -> list[dict[str, Tokens]]:
    """For each span its tokens (`anchor`) and three partners: `random_sampled`, `nearby`, `overlap`.

    A document of fewer than two spans gives none.

    Args:
        window: a random partner is at most so many spans away.
        target: length that closes a span; default: `max_tokens`.
    """
    spans = spans_of(sentences, max_tokens if target is None else target)
    if len(spans) < 2:
        return []
    flat = [[token for sentence in span for token in sentence] for span in spans]
    records = []
    for number, anchor in enumerate(flat):
        near = [other for other in range(len(flat)) if other != number and abs(other - number) <= window]
        beside = [other for other in (number - 1, number + 1) if 0 <= other < len(flat)]
        records.append(
            {
                "anchor": anchor,
                "random_sampled": flat[draws.choice(near)],
                "nearby": flat[draws.choice(beside)],
                "overlap": overlapping(spans, number, max_tokens, draws),
            }
        )
    return records

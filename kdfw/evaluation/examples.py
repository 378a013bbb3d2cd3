"""Items kept with their texts and what each system made of them, for people to look at (`examples.jsonl`).

A run folder is read without its data, so texts that the report shows are stored where systems are measured; bounded, so
that a report stays a file that can be sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdfw.data.sets import LabelledData, PairData, ParallelData
from kdfw.files import write_lines

if TYPE_CHECKING:
    from kdfw.data.sets import Data, RankingData
    from kdfw.evaluation.agreement import Lists
    from kdfw.evaluation.tasks import TaskValues
    from kdfw.types import Qrels, TextSource

FILE = "examples.jsonl"
MAX_ITEMS = 200
"""Items kept: all, or the best and the worst of each comparison."""
TOP = 5
"""Passages kept of each system's list."""
RELEVANT = 3
"""Relevant passages whose texts are kept whether a system found them or not."""
TEXT = 400
"""Characters of a text that are kept."""


def choose(values: Mapping[str, Mapping[str, float]], systems: Sequence[str], limit: int = MAX_ITEMS) -> list[str]:
    """Items to keep: all of few; else the best and the worst of each of `systems` against each other system.

    Args:
        values: system -> item -> value of one measure.
    Returns: item ids in the order of `values`, `limit` at most.
    """
    everything = list(next(iter(values.values()), {}))
    if len(everything) <= limit:
        return everything
    orders = []
    for ours, theirs in [(ours, theirs) for ours in systems for theirs in values if theirs != ours]:
        gains = {item: value - values[theirs].get(item, 0.0) for item, value in values[ours].items()}
        orders.append(sorted(gains, key=lambda item: (-gains[item], item)))
    chosen: set[str] = set()
    for place in range(len(everything) if orders else 0):
        more = chosen | {item for order in orders for item in (order[place], order[-1 - place])}
        if len(more) > limit:
            break
        chosen = more
    return [item for item in everything if item in chosen]


def spaced(items: Sequence[str], limit: int = MAX_ITEMS) -> list[str]:
    """At most `limit` of the items, evenly spaced, for a task without a value of each item."""
    return list(items[:: max(1, -(-len(items) // limit))])


def write_ranking(
    folder: Path, data: RankingData, split: str, qrels: Qrels, lists: Lists, chosen: Sequence[str]
) -> None:
    """One line a query: its text, the first passages of each system with scores, the passages' texts and grades."""
    queries = data.queries[split]

    def lines() -> Iterator[str]:
        for query in chosen:
            first = {system: lists.first(system, query, TOP) for system in lists.systems}
            grades = qrels.get(query, {})
            relevant = lists.relevant(query)[:RELEVANT]
            shown = dict.fromkeys([*relevant, *(id for found in first.values() for id, _ in found)])
            yield _line(
                query=query,
                text=_text(queries, query),
                lists=first,
                passages={id: _text(data.corpus, id) for id in shown},
                grades={id: grades[id] for id in shown if id in grades},
                relevant={id: lists.ranks(query, id) for id in relevant},
                relevant_in_all=len(lists.relevant(query)),
            )

    write_lines(folder / FILE, lines())


def answers_of(values: TaskValues, data: Data) -> dict[str, str]:
    """Item -> what a model answered, in words: a class, a score, a translation."""
    if isinstance(data, LabelledData):
        said = [data.classes[int(number)] for number in values.per_item["predicted"]]
    elif isinstance(data, PairData):
        said = [f"{score:.3f}" for score in values.per_item["score"]]
    else:
        said = list(values.answers)
    return dict(zip(values.ids, said, strict=False))


def write_answers(
    folder: Path, data: Data, split: str, answers: Mapping[str, Mapping[str, str]], chosen: Sequence[str]
) -> None:
    """One line an item: its text, what is right, and the answer of each system.

    Args:
        answers: system -> item -> answer.
    """

    def lines() -> Iterator[str]:
        for item, (text, gold) in _texts(data, split, set(chosen)):
            given = {system: _cut(found[item]) for system, found in answers.items() if item in found}
            yield _line(query=item, text=_cut(text), gold=_cut(gold), answers=given)

    write_lines(folder / FILE, lines())


def _texts(data: Data, split: str, wanted: set[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(item, (its text, what is right)) of the wanted items, in stored order."""
    rows: Any = data.splits[split]  # type: ignore[union-attr]
    ids = rows.source.ids() if isinstance(data, ParallelData) else rows.ids
    for row, item in enumerate(ids):
        if item not in wanted:
            continue
        if isinstance(data, ParallelData):
            yield item, (rows.source.text(row), rows.target.text(row))
        elif isinstance(data, PairData):
            gold = "" if rows.gold is None else f"{rows.gold[row]:g}"
            yield item, (f"{rows.left.text(row)} | {rows.right.text(row)}", gold)
        elif isinstance(data, LabelledData):
            label = int(rows.labels[row])
            yield item, ("" if rows.texts is None else rows.texts.text(row), data.classes[label] if label >= 0 else "")


def _line(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _text(source: TextSource, id: str) -> str:
    try:
        return _cut(source.text(source.row(id)))
    except KeyError:
        return ""


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT else line[: TEXT - 1] + "…"

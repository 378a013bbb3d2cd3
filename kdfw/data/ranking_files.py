"""Readers of the files of a retrieval collection: passages, queries, triples, candidate lists in JSON.

Each is a generator over one file that holds one line at a time. The first number of every row is its line.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdfw.data.lines import BadLines, Fields, read_json, read_lines, show
from kdfw.data.table import word_fault
from kdfw.errors import did_you_mean

log = logging.getLogger(__name__)

BEIR_QRELS_HEADER = ("query-id", "corpus-id", "score")


def read_id_text(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of `id TAB text`: MS MARCO collections and queries. Tabs after the first belong to the text."""
    for line, content in read_lines(path, bad):
        id, tab, text = content.partition("\t")
        fault = "no tab" if not tab else word_fault(id)
        if fault:
            bad.report(path, line, f"{fault} in {show(content)}", "each line is `id TAB text`")
            continue
        yield line, id, text


def read_beir_texts(
    path: Path, bad: BadLines, title: bool = True, separator: str = " "
) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of a BEIR `corpus.jsonl` or `queries.jsonl`.

    Args:
        title: put the title before the text, with `separator` between when neither is empty.
    """
    for line, value in read_json(path, bad):
        fields = Fields(value)
        id = fields.id("_id" if "_id" in value or "id" not in value else "id")
        text = fields.text("text")
        heading = fields.text("title", "") if title and value.get("title") is not None else ""
        fault = fields.fault or word_fault(id)
        if fault:
            bad.report(path, line, fault, 'each line is {"_id": ..., "title": ..., "text": ...}')
            continue
        yield line, id, f"{heading}{separator}{text}" if heading and text else heading or text


def read_texts(path: Path, bad: BadLines, title: bool = True, separator: str = " ") -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of a TSV file or, by its name (`.jsonl`, `.json`), a BEIR one."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if suffixes & {".jsonl", ".json", ".ndjson"}:
        return read_beir_texts(path, bad, title, separator)
    return read_id_text(path, bad)


def read_triples(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, str]]:
    """(line, query, positive, negative) of `a TAB b TAB c`: texts, or ids in MS MARCO's qidpidtriples."""
    for line, content in read_lines(path, bad):
        fields = content.split("\t")
        if len(fields) != 3 or not all(fields):
            found = "an empty column" if len(fields) == 3 else f"{len(fields)} columns"
            bad.report(path, line, f"{found} in {show(content)}", "each line is `query TAB positive TAB negative`")
            continue
        yield line, fields[0], fields[1], fields[2]


@dataclass(frozen=True, kw_only=True)
class RankingRecord:
    """One line of a JSONL training file: a query with its passages, as texts."""

    line: int
    id: str
    query: str
    positives: Sequence[str]
    negatives: Sequence[str]
    positive_scores: Sequence[float] | None
    negative_scores: Sequence[float] | None


_QUERY = ("query", "question", "anchor", "sentence1")
_POSITIVES = ("pos", "positives", "positive", "positive_passages")
_NEGATIVES = ("neg", "negatives", "negative", "negative_passages")
_ID = ("qid", "query_id", "_id", "id")
_UNREAD = 20
"""After so many keys that are not read no more of them are named."""
_KEYS = frozenset({*_QUERY, *_POSITIVES, *_NEGATIVES, *_ID, "pos_scores", "neg_scores"})


def read_ranking_records(path: Path, bad: BadLines) -> Iterator[RankingRecord]:
    """Lines `{"query": text, "pos": [text], "neg": [text], "pos_scores": [number], "neg_scores": [number]}`.

    `neg` and the scores may be missing; longer names (`positives`, `negatives`, ...), single texts instead of lists
    and passages of `{"title": ..., "text": ...}` are understood. Without a `qid` the id is made from the query's text
    (`content_id`). Keys that are not read are named in the log, each once.
    """
    unread: set[str] = set()
    for line, value in read_json(path, bad):
        for key in sorted(value.keys() - _KEYS - unread) if len(unread) < _UNREAD else ():
            unread.add(key)
            log.warning("%s:%d: the key %s is not read. %s", path, line, show(key), did_you_mean(key, _KEYS))
        record, fault = ranking_record(value, line)
        if record is None:
            bad.report(path, line, fault, 'each line is {"query": ..., "pos": [...], "neg": [...]}')
        else:
            yield record


def ranking_record(value: dict[str, object], line: int) -> tuple[RankingRecord | None, str]:
    """A record from one JSON object or table row, or what is wrong with it."""
    positive_key, negative_key = _first(value, _POSITIVES), _first(value, _NEGATIVES)
    fields = Fields({**value, **{key: _joined(value[key]) for key in (positive_key, negative_key) if key in value}})
    query = fields.text(_first(value, _QUERY))
    positives = fields.texts(positive_key, required=True)
    negatives = fields.texts(negative_key)
    positive_scores, negative_scores = fields.numbers("pos_scores"), fields.numbers("neg_scores")
    id_key = _first(value, _ID)
    id = fields.id(id_key) if value.get(id_key) is not None else content_id(query)
    fault = fields.fault or word_fault(id)
    if not fault and not query.strip():
        fault = "an empty query"
    if not fault and not (positives or negatives):
        fault = "neither positives nor negatives"
    for name, texts, scores in (("pos", positives, positive_scores), ("neg", negatives, negative_scores)):
        if not fault and scores is not None and len(scores) != len(texts):
            fault = f"{len(scores)} numbers in {name}_scores for {len(texts)} passages in {name}"
    if fault:
        return None, fault
    return RankingRecord(
        line=line,
        id=id,
        query=query,
        positives=positives,
        negatives=negatives,
        positive_scores=positive_scores,
        negative_scores=negative_scores,
    ), ""  # fmt: skip


def _joined(passages: object) -> object:
    """Passages with their parts joined: Tevatron's files hold `{"docid": ..., "title": ..., "text": ...}`."""
    if not isinstance(passages, list):
        return passages
    return [
        _text_of(item) if isinstance(item, dict) and isinstance(item.get("text"), str) else item for item in passages
    ]


def _text_of(passage: dict[str, object]) -> str:
    title, text = passage.get("title"), str(passage["text"])
    return f"{title} {text}" if isinstance(title, str) and title else text


def _first(value: dict[str, object], names: Sequence[str]) -> str:
    return next((name for name in names if name in value), names[0])


def content_id(text: str) -> str:
    """The id of a text that came without one: 24 hex digits of its hash (safe for lone surrogates)."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """One line of a hard-negative file: ids only."""

    line: int
    query: str
    positives: Sequence[str]
    negatives: dict[str, Sequence[str]]
    """By the system that found them, best first."""


def read_hard_negatives(path: Path, bad: BadLines) -> Iterator[HardNegatives]:
    """Lines `{"qid": ..., "pos": [pid], "neg": {system: [pid]}}`; ids may be numbers."""
    for line, value in read_json(path, bad):
        fields = Fields(value)
        query = fields.id(_first(value, _ID))
        positives = fields.ids("pos")
        systems = value.get("neg")
        negatives: dict[str, Sequence[str]] = {}
        if not isinstance(systems, dict):
            fields.fault = fields.fault or f"`neg` is {show(systems)} instead of lists by system"
        else:
            inner = Fields(systems)
            negatives = {system: inner.ids(system) for system in systems}
            fields.fault = fields.fault or inner.fault
        fault = fields.fault or word_fault(query)
        if fault:
            bad.report(path, line, fault, 'each line is {"qid": ..., "pos": [...], "neg": {"bm25": [...]}}')
            continue
        yield HardNegatives(line=line, query=query, positives=positives, negatives=negatives)

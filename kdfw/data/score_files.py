"""Teacher score files in the layouts people publish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdfw.data.lines import BadLines, Fields, parse_float, read_json, read_lines, show
from kdfw.data.ranking_files import content_id, ranking_record
from kdfw.data.runs import read_run, read_run_lines
from kdfw.data.table import id_fault
from kdfw.errors import DataError

Layout = Literal["auto", "tsv", "margin", "jsonl", "trec"]


@dataclass(frozen=True, kw_only=True)
class TeacherScores:
    """What a score file says."""

    layout: str
    scores: dict[str, dict[str, float]]
    """Query id -> passage id -> score."""
    triples: list[tuple[str, str, str]] = field(default_factory=list)
    """(query id, positive id, negative id) of a margin file, in its order; both scores are in `scores`."""

    def margin(self, query: str, positive: str, negative: str) -> float:
        """The teacher's score of the positive minus that of the negative."""
        return self.scores[query][positive] - self.scores[query][negative]


def read_scores(path: Path, layout: Layout = "auto", bad: BadLines | None = None) -> TeacherScores:
    """Read a teacher score file.

    Layouts, told apart by the first line unless named:
        tsv     `qid TAB pid TAB score`
        margin  `positive_score TAB negative_score TAB qid TAB positive_id TAB negative_id`
        trec    `qid Q0 pid rank score tag`
        jsonl   `{"qid": ..., "pids": [...], "scores": [...]}`, `{"qid": ..., "scores": {pid: number}}`, or texts:
                `{"query": ..., "pos": [...], "neg": [...], "pos_scores": [...], "neg_scores": [...]}`, whose ids are
                made from the texts exactly as the `jsonl` data set makes them
    Raises: DataError with file and line, also for a pair that stands twice with different scores.
    """
    bad = bad or BadLines()
    if layout == "auto":
        layout = _guess(path)
    if layout == "trec":
        return TeacherScores(layout=layout, scores=read_run(path, bad, format="trec"))
    scores: dict[str, dict[str, float]] = {}
    triples: list[tuple[str, str, str]] = []
    if layout == "margin":
        for line, query, positive, negative, high, low in _margins(path, bad):
            good = _put(scores, query, positive, high, path, line, bad)
            good = _put(scores, query, negative, low, path, line, bad) and good
            if good:
                triples.append((query, positive, negative))
    else:
        rows = read_run_lines(path, bad, format="scores") if layout == "tsv" else _jsonl(path, bad)
        for line, query, passage, score in rows:
            _put(scores, query, passage, score, path, line, bad)
    if not scores:
        raise DataError(f"{path}: no scores in it (read as layout {layout!r})")
    return TeacherScores(layout=layout, scores=scores, triples=triples)


def _put(
    scores: dict[str, dict[str, float]], query: str, passage: str, score: float, path: Path, line: int, bad: BadLines
) -> bool:
    known = scores.setdefault(query, {}).setdefault(passage, score)
    if known != score:
        found = f"query {query!r}, passage {passage!r}: score {score} after {known} in an earlier line"
        bad.report(path, line, found, "keep one of the two")
    return known == score


def _guess(path: Path) -> Layout:
    bad = BadLines()
    for line, content in read_lines(path, bad):
        if not content.strip():
            continue
        if content.lstrip().startswith("{"):
            return "jsonl"
        tabs = content.count("\t")
        fields = content.split("\t") if tabs in (2, 4) else content.split()
        if tabs == 4 and parse_float(fields[0]) is not None and parse_float(fields[1]) is not None:
            return "margin"
        if len(fields) >= 5:
            return "trec"
        if len(fields) == 3:
            return "tsv"
        known = "3 (qid pid score), 5 between tabs (margin), 5 or 6 (TREC run) or JSON objects"
        raise DataError(f"{path}:{line}: {len(fields)} columns in {show(content)}; known: {known}")
    raise DataError(f"{path}: no scores in it: the file is empty")


def _margins(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, str, float, float]]:
    for line, content in read_lines(path, bad):
        fields = content.split("\t") if content.count("\t") == 4 else content.split()
        if len(fields) != 5:
            bad.report(path, line, f"{len(fields)} columns in {show(content)}, expected 5")
            continue
        high, low = parse_float(fields[0]), parse_float(fields[1])
        fault = id_fault(fields[2]) or id_fault(fields[3]) or id_fault(fields[4])
        if high is None or low is None or fault:
            bad.report(path, line, fault or f"the scores {fields[0]!r}, {fields[1]!r} are no finite numbers")
            continue
        yield line, fields[2], fields[3], fields[4], high, low


def _jsonl(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, float]]:
    for line, value in read_json(path, bad):
        if "scores" not in value:
            record, fault = ranking_record(value, line)
            if record is not None and record.positive_scores is None and record.negative_scores is None:
                fault = "no scores in it"
            if record is None or fault:
                bad.report(path, line, fault)
                continue
            for texts, numbers in (
                (record.positives, record.positive_scores),
                (record.negatives, record.negative_scores),
            ):
                for text, number in zip(texts, numbers or (), strict=False):
                    yield line, record.id, content_id(text), number
            continue
        fields = Fields(value)
        query = fields.id(next((key for key in ("qid", "query_id", "_id", "id") if key in value), "qid"))
        if isinstance(value["scores"], dict):
            passages = list(value["scores"])
            fields.value = {"scores": list(value["scores"].values())}
        else:
            passages = fields.ids(
                next((key for key in ("pids", "passage_ids", "docids") if key in value), "pids"), True
            )
        found = fields.numbers("scores")
        fault = fields.fault or id_fault(query) or next((f for f in map(id_fault, passages) if f), "")
        if not fault and len(found or ()) != len(passages):
            fault = f"{len(found or ())} scores for {len(passages)} passages"
        if fault:
            bad.report(path, line, fault)
            continue
        for passage, score in zip(passages, found or (), strict=True):
            yield line, query, passage, score

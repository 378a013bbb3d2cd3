"""Run files: TREC's six columns and MS MARCO's three."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kdfw.data.lines import BadLines, parse_float, parse_int, read_lines, show
from kdfw.data.table import id_fault
from kdfw.errors import DataError
from kdfw.types import Run


def read_run(path: Path, bad: BadLines | None = None, order: Literal["score", "rank"] = "score") -> Run:
    """Query id -> passage id -> score, queries and passages in the order of the file; gzip is unpacked.

    Layouts, told apart by the first line: TREC `qid Q0 pid rank score tag` (blanks or tabs; the second column may hold
    anything) and MS MARCO `qid pid rank` (ranks from 0 or 1). TREC runs are ordered by their scores, as trec_eval
    does, unless `order` is `rank`. Where the rank decides, the score of a passage is `-rank`, so that sorting by score
    gives back exactly that order.
    Raises: DataError with file and line: wrong columns, a score that is no finite number, a passage that stands twice
    for a query, and where ranks decide a rank that stands twice.
    """
    bad = bad or BadLines()
    run: Run = {}
    ranks: dict[str, set[int]] = {}
    columns = 0
    for line, content in read_lines(path, bad):
        fields = content.split("\t") if content.count("\t") == 2 else content.split(None, 5)
        if not fields:
            continue
        if len(fields) not in (3, 6) or (columns and len(fields) != columns):
            expected = str(columns) if columns else "6 (TREC) or 3 (MS MARCO)"
            bad.report(path, line, f"{len(fields)} columns in {show(content)}, expected {expected}")
            continue
        query, passage = (fields[0], fields[2]) if len(fields) == 6 else (fields[0], fields[1])
        fault = id_fault(query) or id_fault(passage)
        by_rank = len(fields) == 3 or order == "rank"
        score = 0.0
        if by_rank:
            text = fields[3] if len(fields) == 6 else fields[2].strip()
            rank = parse_int(text)
            if rank is None or rank < 0:
                what = (
                    "no rank; with scores in the third column this is a score file" if len(fields) == 3 else "no rank"
                )
                fault = fault or f"{show(text)} is {what}"
            elif rank in ranks.setdefault(query, set()):
                fault = fault or f"rank {rank} stands twice for query {query!r}"
            else:
                score = -float(rank)
        else:
            parsed = parse_float(fields[4])
            if parsed is None:
                fault = fault or f"the score {show(fields[4])} is no finite number"
            else:
                score = parsed
        if not fault and passage in run.get(query, {}):
            fault = f"passage {passage!r} stands twice for query {query!r}"
        if fault:
            bad.report(path, line, fault)
            continue
        columns = len(fields)
        if by_rank:
            ranks[query].add(int(-score))
        run.setdefault(query, {})[passage] = score
    if not run:
        raise DataError(f"{path}: no results in it; a run is lines of `qid Q0 pid rank score tag` or `qid pid rank`")
    return run

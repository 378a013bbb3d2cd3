"""Run files and judgements (qrels), in the layouts people have. The one reader of both; files may be gzipped.

Columns are separated by tabs or by ASCII white space, and only by these: an id may hold a no-break space, and in a file
with tabs a blank. A passage that a query lists twice is a fault: which of the two ranks counts is not defined.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from kdfw.data.lines import BadLines, open_bytes, parse_float, parse_int, read_lines, show
from kdfw.data.table import id_fault
from kdfw.errors import DataError
from kdfw.types import Qrels, Run

RunFormat = Literal["auto", "trec", "msmarco", "scores", "json"]
"""`trec`: `qid Q0 pid rank score tag`. `msmarco`: `qid pid rank`. `scores`: `qid pid score`. `json`: one object."""
RUN_FORMATS: tuple[RunFormat, ...] = ("auto", "trec", "msmarco", "scores", "json")

_HEADERS = {"query-id", "query_id", "qid", "topic", "query"}
_GRADE_HEADERS = {"score", "grade"}
_BLANK = " \t\n\r\x0b\x0c"
_BLANKS = re.compile(f"[{_BLANK}]+")
_LARGEST = 2**31


def read_run(
    path: Path,
    bad: BadLines | None = None,
    *,
    format: RunFormat = "auto",
    order: Literal["score", "rank"] = "score",
    finite: bool = True,
) -> Run:
    """Query id -> passage id -> score, higher is better; queries and passages in the order of the file.

    What lines are read, and the arguments: see `read_run_lines`.
    Raises: DataError with file and line: wrong columns, a score that is no number, a passage that stands twice for a
        query, where ranks decide a rank that stands twice; and DataError for a file without results.
    """
    bad = bad or BadLines()
    run: Run = {}
    for line, query, passage, score in read_run_lines(path, bad, format=format, order=order, finite=finite):
        results = run.setdefault(query, {})
        if passage in results:
            bad.report(path, line, f"passage {passage!r} stands twice for query {query!r}", "keep one line")
            continue
        results[passage] = score
    if not run:
        raise DataError(f"{path}: no results in it; a run is lines of `qid Q0 pid rank score tag` or `qid pid rank`")
    return run


def read_run_lines(
    path: Path,
    bad: BadLines,
    *,
    format: RunFormat = "auto",
    order: Literal["score", "rank"] = "score",
    finite: bool = True,
) -> Iterator[tuple[int, str, str, float]]:
    """(line, query id, passage id, score) of a run file, held one line at a time (JSON: whole).

    TREC lines have six columns, or five without the tag; the second may hold anything. MS MARCO's three have no score:
    it is minus the rank (from 0 or 1), so that sorting by score gives back exactly that order. `qid pid score` looks
    the same with other numbers and is read only when asked for. JSON is `{qid: {pid: score}}`, or `{qid: [pid, ...]}`
    best first; all its lines are 1.

    Args:
        format: `auto` tells the layouts apart by the first line.
        order: `rank`: TREC runs too are ordered by their ranks, not by their scores as trec_eval does.
        finite: refuse infinite scores. NaN is always refused.
    """
    if format == "json" or (format == "auto" and _starts_with_brace(path)):
        yield from ((1, *result) for result in _json_run(path, finite))
        return
    kind = None if format == "auto" else format
    ranks: dict[str, set[int]] = {}
    for line, content in read_lines(path, bad):
        fields = _columns(content, (2, 4, 5), most=6)
        if not fields:
            continue
        wide = len(fields) in (5, 6)
        if kind is None and len(fields) == 3 and fields[0].lower() in _HEADERS and parse_int(fields[2]) is None:
            kind = "msmarco"
            continue
        if not (wide and kind in (None, "trec")) and not (len(fields) == 3 and kind != "trec"):
            expected = {None: "6 (TREC) or 3 (MS MARCO)", "trec": "6: `qid Q0 pid rank score tag`"}.get(kind, "3")
            bad.report(path, line, f"{len(fields)} columns in {show(content)}, expected {expected}")
            continue
        query, passage = fields[0], fields[2 if wide else 1]
        fault = id_fault(query) or id_fault(passage)
        if order == "rank" if wide else kind != "scores":
            rank = parse_int(fields[3 if wide else 2])
            score = -float(rank or 0)
            if rank is None or not 0 <= rank < _LARGEST:
                fault = fault or f"{show(fields[3 if wide else 2])} is no rank" + (
                    "" if wide or rank is not None else "; with scores in the third column name the format: `scores`"
                )
            elif rank in ranks.setdefault(query, set()):
                fault = fault or f"rank {rank} stands twice for query {query!r}"
            elif not fault:
                ranks[query].add(rank)
        else:
            parsed = _score(fields[4 if wide else 2], finite)
            score = parsed or 0.0
            if parsed is None:
                what = "finite number" if finite else "number"
                fault = fault or f"the score {show(fields[4 if wide else 2])} is no {what}"
        if fault:
            bad.report(path, line, fault)
            continue
        kind = kind or ("trec" if wide else "msmarco")
        yield line, query, passage, score


def read_qrels(path: Path, bad: BadLines | None = None, *, may_be_empty: bool = False) -> Qrels:
    """Query id -> passage id -> grade, from the layouts of `read_judgements`.

    A judgement may stand there twice when both agree.
    Raises: DataError with file and line; and for a file without judgements, unless it `may_be_empty`.
    """
    bad = bad or BadLines()
    qrels: Qrels = {}
    for line, query, passage, grade in read_judgements(path, bad):
        known = qrels.setdefault(query, {}).setdefault(passage, grade)
        if known != grade:
            found = f"query {query!r}, passage {passage!r}: grade {grade} after {known} in an earlier line"
            bad.report(path, line, found, "keep one of the two")
    if not qrels and not may_be_empty:
        raise DataError(f"{path}: no judgements in it; a qrels file is lines of `qid 0 pid grade`")
    return qrels


def read_judgements(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, int]]:
    """(line, query id, passage id, grade) of a file of judgements.

    Layouts: TREC `qid 0 pid grade` (blanks or tabs; MS MARCO's own files are this with tabs), BEIR
    `qid TAB pid TAB grade` with or without its header line, and JSON `{qid: {pid: grade}}`, all of whose lines are 1.
    Grades are whole numbers and may be negative.
    """
    if _starts_with_brace(path):
        yield from ((1, *judgement) for judgement in _json_qrels(path))
        return
    columns = 0
    for line, content in read_lines(path, bad):
        fields = _columns(content, (2, 3))
        if not fields:
            continue
        grade = _grade(fields[-1])
        if not columns and grade is None and (
            fields[0].lower() in _HEADERS or len(fields) == 3 and fields[2].lower() in _GRADE_HEADERS
        ):  # fmt: skip
            columns = len(fields)
            continue
        blanks = len(fields) == 3 and "\t" not in content  # a TREC line that has lost a column
        if len(fields) not in (3, 4) or (columns and len(fields) != columns) or blanks:
            expected = "4; three are read between tabs only" if blanks else str(columns or "3 between tabs, or 4")
            bad.report(
                path, line, f"{len(fields)} columns in {show(content)}, expected {expected}",
                "judgements are `qid 0 pid grade`, or `qid TAB pid TAB grade`",
            )  # fmt: skip
            continue
        fault = id_fault(fields[0]) or id_fault(fields[-2])
        if fault or grade is None:
            bad.report(path, line, fault or f"the grade {show(fields[-1])} is no integer")
            continue
        columns = len(fields)
        yield line, fields[0], fields[-2], grade


def _columns(content: str, tabs: tuple[int, ...], most: int = 0) -> list[str]:
    """Fields at tabs when the line has so many of them, else at blanks (`most`: the last takes the rest)."""
    if content.count("\t") in tabs:
        return [field.strip(_BLANK) for field in content.split("\t")] if not content.isspace() else []
    if content.isascii():  # the fast way; without such letters it splits where the expression does
        return content.split(None, most - 1)
    stripped = content.strip(_BLANK)
    return _BLANKS.split(stripped, maxsplit=max(0, most - 1)) if stripped else []


def _score(text: str, finite: bool) -> float | None:
    """A score, or None."""
    value = parse_float(text)
    if value is None and not finite:
        try:
            value = float(text)
        except ValueError:
            return None
        return value if math.isinf(value) else None
    return value


def _grade(text: str) -> int | None:
    """A whole number, also as `1.0`, or None."""
    value = parse_float(text)
    return int(value) if value is not None and value.is_integer() and abs(value) < _LARGEST else None


# ---------------------------------------------------------------- JSON


def _starts_with_brace(path: Path) -> bool:
    try:
        with open_bytes(path) as file:
            return file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged or cut off: {error}; download it again")


def _json_run(path: Path, finite: bool) -> Iterator[tuple[str, str, float]]:
    for query, results in _json(path).items():
        if isinstance(results, list) and all(isinstance(passage, str) for passage in results):
            if len(set(results)) != len(results):
                twice = next(passage for passage in results if results.count(passage) > 1)
                raise DataError(f"{path}: passage {twice!r} stands twice for query {query!r}; keep one")
            results = {passage: -rank for rank, passage in enumerate(results, start=1)}
        if not isinstance(results, dict):
            found = type(results).__name__
            raise DataError(f"{path}: query {query!r} holds a {found}; expected {{pid: score}} or [pid, ...]")
        for passage, score in results.items():
            value = _json_number(score)
            if value is None or (finite and math.isinf(value)):
                raise DataError(f"{path}: query {query!r}, passage {passage!r}: {score!r:.60} is not a score")
            _check_ids(path, query, passage)
            yield query, passage, value


def _json_qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    for query, grades in _json(path).items():
        if not isinstance(grades, dict):
            raise DataError(f"{path}: query {query!r} holds a {type(grades).__name__}; expected {{pid: grade}}")
        for passage, grade in grades.items():
            value = _json_number(grade)
            if value is None or not value.is_integer() or abs(value) >= _LARGEST:
                raise DataError(f"{path}: query {query!r}, passage {passage!r}: {grade!r:.60} is not a whole grade")
            _check_ids(path, query, passage)
            yield query, passage, int(value)


def _json_number(value: object) -> float | None:
    """A number other than NaN that fits a float, or None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def _check_ids(path: Path, query: str, passage: str) -> None:
    fault = id_fault(query) or id_fault(passage)
    if fault:
        raise DataError(f"{path}: query {query!r:.60}, passage {passage!r:.60}: {fault}")


class _Twice(Exception):
    """A JSON object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Twice(key)
            seen.add(key)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        with open_bytes(path) as file:
            value = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    except _Twice as error:
        raise DataError(f"{path}: the key {str(error)!r} stands twice in one object; keep one") from None
    except RecursionError:
        raise DataError(f"{path}: JSON nested too deeply; expected {{qid: {{pid: number}}}}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}: {error}") from None
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: an empty object; expected {{qid: {{pid: number}}}}")
    return value

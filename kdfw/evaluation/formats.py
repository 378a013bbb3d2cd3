"""Run files and qrels in the layouts people have: reading, and writing what leaderboards take.

Files may be gzipped (told by their first bytes, not by their name), have a byte order mark or Windows line ends. Every
error names file and line. A passage that a query lists twice is an error: which of the two ranks counts is not defined.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kdfw.data.lines import open_bytes
from kdfw.errors import DataError
from kdfw.evaluation.order import is_score, trec_order
from kdfw.types import Qrels, Run

RunFormat = Literal["auto", "trec", "msmarco", "scores", "json"]
"""`trec`: `qid Q0 pid rank score tag`. `msmarco`: `qid pid rank`. `scores`: `qid pid score`. `json`: one object."""

_HEADERS = {b"query-id", b"query_id", b"qid", b"topic", b"query"}


def read_run(path: str | Path, format: RunFormat = "auto") -> Run:
    """Read a run file: query id -> passage id -> score, higher is better.

    TREC lines may be separated by spaces or tabs, the second column is not looked at, ranks are not used (trec_eval
    ranks by score), the tag may be absent. MS MARCO's three columns have no score: it is minus the rank. `qid pid
    score` looks the same with other numbers, so it is read only when asked for (`format="scores"`). JSON is
    `{qid: {pid: score}}`, or `{qid: [pid, ...]}` best first.

    Raises: DataError naming file and line.
    """
    path = Path(path)
    if format == "json" or (format == "auto" and _starts_with_brace(path)):
        return _run_from_json(path)
    run: Run = {}
    lines = _lines(path)
    kind: str | None = None if format == "auto" else format
    for number, line in lines:
        fields = line.split(b"\t") if line.count(b"\t") in (2, 4, 5) else line.split(None, 5)
        if kind is None:
            if len(fields) == 3 and fields[0].strip().lower() in _HEADERS:
                continue
            kind = _run_kind(path, number, fields)
        if kind == "trec":
            if len(fields) not in (5, 6):
                raise _bad(path, number, f"{len(fields)} columns", "a TREC run line is `qid Q0 pid rank score tag`")
            query, passage, value = fields[0], fields[2], fields[4]
        else:
            if len(fields) != 3:
                raise _bad(path, number, f"{len(fields)} columns", f"a line here has 3: `qid pid {_third(kind)}`")
            query, passage, value = fields
        if kind == "msmarco":
            score = float(-_whole(path, number, value, "rank"))
        else:
            score = _real(path, number, value)
        _add(run, _text(path, number, query), _text(path, number, passage), score, path, number)
    if not run:
        raise DataError(f"{path}: no results; a run file has lines like `qid Q0 pid rank score tag` or `qid pid rank`")
    return run


def read_qrels(path: str | Path) -> Qrels:
    """Read judgements: query id -> passage id -> grade.

    TREC and MS MARCO (`qid 0 pid grade`), BEIR (`query-id corpus-id score` with a header), the same without header,
    and JSON `{qid: {pid: grade}}`. A judgement may stand there twice when both agree.

    Raises: DataError naming file and line.
    """
    path = Path(path)
    if _starts_with_brace(path):
        return _qrels_from_json(path)
    qrels: Qrels = {}
    columns = 0
    for number, line in _lines(path):
        fields = line.split(b"\t") if line.count(b"\t") in (2, 3) else line.split()
        if not columns:
            if fields[0].strip().lower() in _HEADERS:
                continue
            if len(fields) not in (3, 4):
                found = f"{len(fields)} columns"
                raise _bad(path, number, found, "judgements are `qid 0 pid grade` or `query-id corpus-id score`")
            columns = len(fields)
        if len(fields) != columns:
            raise _bad(path, number, f"{len(fields)} columns", f"the lines before have {columns}")
        query, passage = _text(path, number, fields[0]), _text(path, number, fields[-2])
        grade = _grade(path, number, fields[-1])
        known = qrels.setdefault(query, {}).setdefault(passage, grade)
        if known != grade:
            found = f"query {query!r}, passage {passage!r} judged {grade}, but {known} on an earlier line"
            raise _bad(path, number, found, "keep one of the two")
    if not qrels:
        raise DataError(f"{path}: no judgements; a qrels file has lines like `qid 0 pid grade`")
    return qrels


def write_trec(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str, depth: int | None = None) -> None:
    """Write a TREC run, `qid Q0 pid rank score tag`: ranks from 1, in trec_eval's order.

    Args:
        tag: name of the system; no spaces.
        depth: write only the best so many of each query.
    Raises: DataError for an id or tag that would not survive the format (empty, or with white space).
    """
    _check_word(tag, "run tag")

    def lines() -> Iterator[str]:
        for query, results in run.items():
            _check_word(query, "query id")
            for rank, passage in enumerate(trec_order(results, query)[:depth], start=1):
                _check_word(passage, "passage id")
                yield f"{query} Q0 {passage} {rank} {float(results[passage])!r} {tag}\n"

    _write(path, lines())


def write_msmarco(run: Mapping[str, Mapping[str, float]], path: str | Path, depth: int | None = 1000) -> None:
    """Write a submission to the MS MARCO leaderboards: `qid TAB pid TAB rank`, ranks from 1.

    Raises: DataError for ids with white space.
    """

    def lines() -> Iterator[str]:
        for query, results in run.items():
            _check_word(query, "query id")
            for rank, passage in enumerate(trec_order(results, query)[:depth], start=1):
                _check_word(passage, "passage id")
                yield f"{query}\t{passage}\t{rank}\n"

    _write(path, lines())


def write_beir(run: Mapping[str, Mapping[str, float]], path: str | Path, depth: int | None = None) -> None:
    """Write results as BEIR and ranx store them: `{qid: {pid: score}}`, best first."""

    def lines() -> Iterator[str]:
        yield "{"
        for number, (query, results) in enumerate(run.items()):
            ranked = {passage: float(results[passage]) for passage in trec_order(results, query)[:depth]}
            yield f"{',' if number else ''}\n{json.dumps(query)}: {json.dumps(ranked)}"
        yield "\n}\n"

    _write(path, lines())


def write_mteb(
    path: str | Path,
    task: str,
    scores: Mapping[str, float],
    *,
    main: str = "ndcg_at_10",
    split: str = "test",
    language: str = "eng-Latn",
) -> None:
    """Write the measures of one task as MTEB's result files have them.

    Args:
        task: MTEB's name of the task, such as `SciFact`.
        scores: values by name, as kdfw writes names (`nDCG@10`); they are renamed (`ndcg_at_10`).
        main: which of them, by MTEB's name, is `main_score`.
    Raises: DataError when `main` is not among the scores.
    """
    from kdfw import __version__

    renamed = {mteb_name(name): float(value) for name, value in scores.items()}
    if main not in renamed:
        raise DataError(f"{path}: the main score {main!r} is not among the measures ({', '.join(sorted(renamed))})")
    entry = {**renamed, "main_score": renamed[main], "hf_subset": "default", "languages": [language]}
    result = {"task_name": task, "evaluated_with": f"kdfw {__version__}", "scores": {split: [entry]}}
    _write(path, [json.dumps(result, indent=2), "\n"])


def mteb_name(name: str) -> str:
    """MTEB's name of a measure: `nDCG@10` is `ndcg_at_10`, `RR@10` is `mrr_at_10`."""
    head, _, cutoff = name.partition("@")
    head = {"rr": "mrr", "ap": "map", "r": "recall", "p": "precision", "success": "hit_rate"}.get(
        head.lower(), head.lower()
    )
    return f"{head}_at_{cutoff}" if cutoff else head


# ---------------------------------------------------------------- reading


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of lines that are not blank.

    As bytes, because only ASCII white space separates columns: an id may hold a no-break space.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):  # noqa: B007
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                line = line.rstrip(b"\r\n")
                if line and not line.isspace():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read on: {error}; is the file complete?") from error


def _starts_with_brace(path: Path) -> bool:
    try:
        with open_bytes(path) as file:
            return file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; is the file complete?") from error


def _run_kind(path: Path, number: int, fields: Sequence[bytes]) -> str:
    if len(fields) in (5, 6):
        return "trec"
    if len(fields) == 3:
        try:
            int(fields[2])
        except ValueError:
            found = f"the third column is {_show(fields[2])}, not a rank"
            fix = "for `qid pid score` lines pass format 'scores' (--run-format scores)"
            raise _bad(path, number, found, fix) from None
        return "msmarco"
    raise _bad(path, number, f"{len(fields)} columns", "runs are `qid Q0 pid rank score tag` or `qid pid rank`")


def _third(kind: str) -> str:
    return "rank" if kind == "msmarco" else "score"


def _bad(path: Path, number: int, found: str, fix: str = "") -> DataError:
    return DataError(f"{path}:{number}: {found}" + (f"; {fix}" if fix else ""))


def _show(field: bytes) -> str:
    text = field[:60].decode("utf-8", "backslashreplace")
    return repr(text)


def _text(path: Path, number: int, field: bytes) -> str:
    try:
        text = field.strip().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(path, number, f"{_show(field)} is not UTF-8 ({error.reason})") from None
    if not text:
        raise _bad(path, number, "an empty id")
    return text


def _number(path: Path, number: int, field: bytes, convert: Callable[[bytes], float], what: str) -> float:
    try:
        if b"_" in field:  # Python would read 1_0 as 10
            raise ValueError
        return convert(field)
    except ValueError:
        raise _bad(path, number, f"{_show(field)} is not a {what}") from None


def _real(path: Path, number: int, field: bytes) -> float:
    value = _number(path, number, field, float, "number")
    if value != value:
        raise _bad(path, number, "the score is not a number (NaN)", "a passage without a score has no rank")
    return value


def _whole(path: Path, number: int, field: bytes, what: str) -> int:
    value = int(_number(path, number, field, int, f"whole number, as a {what} must be"))
    if not 0 <= value < 2**31:
        raise _bad(path, number, f"{what} {value} is out of range")
    return value


def _grade(path: Path, number: int, field: bytes) -> int:
    value = _number(path, number, field, float, "grade")
    if not value.is_integer() or abs(value) >= 2**31:
        raise _bad(path, number, f"grade {_show(field)}", "grades are whole numbers")
    return int(value)


def _add(run: Run, query: str, passage: str, score: float, path: Path, number: int) -> None:
    results = run.get(query)
    if results is None:
        run[query] = {passage: score}
        return
    if passage in results:
        raise _bad(path, number, f"query {query!r} lists passage {passage!r} twice", "keep one line")
    results[passage] = score


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
            text = file.read().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _bad(path, error.lineno, f"not JSON: {error.msg} (column {error.colno})") from None
    except _Twice as error:
        raise DataError(f"{path}: the key {str(error)!r} stands twice in one object; keep one") from None
    except RecursionError:
        raise DataError(f"{path}: JSON nested too deeply; a run is {{qid: {{pid: score}}}}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; is the file complete?") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}: {error}") from None
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: an empty object; expected {{qid: {{pid: number}}}}")
    return value


def _run_from_json(path: Path) -> Run:
    run: Run = {}
    for query, results in _json(path).items():
        if isinstance(results, list) and all(isinstance(passage, str) for passage in results):
            ranked = {passage: -float(rank) for rank, passage in enumerate(results, start=1)}
            if len(ranked) != len(results):
                twice = next(passage for passage in ranked if results.count(passage) > 1)
                raise DataError(f"{path}: query {query!r} lists passage {twice!r} twice; keep one")
            run[query] = ranked
            continue
        if not isinstance(results, dict):
            found = type(results).__name__
            raise DataError(f"{path}: query {query!r} holds a {found}; expected {{pid: score}} or [pid, ...]")
        for passage, score in results.items():
            if not is_score(score):
                raise DataError(f"{path}: query {query!r}, passage {passage!r}: {score!r:.60} is not a score")
        try:
            run[query] = {passage: float(score) for passage, score in results.items()}
        except OverflowError:
            raise DataError(f"{path}: query {query!r}: a score too large for a number") from None
    return run


def _qrels_from_json(path: Path) -> Qrels:
    qrels: Qrels = {}
    for query, grades in _json(path).items():
        if not isinstance(grades, dict):
            raise DataError(f"{path}: query {query!r} holds a {type(grades).__name__}; expected {{pid: grade}}")
        for passage, grade in grades.items():
            if not is_score(grade) or not float(min(max(grade, -(2**31)), 2**31)).is_integer() or abs(grade) >= 2**31:
                raise DataError(f"{path}: query {query!r}, passage {passage!r}: {grade!r:.60} is not a whole grade")
        qrels[query] = {passage: int(grade) for passage, grade in grades.items()}
    return qrels


# ---------------------------------------------------------------- writing


def _check_word(word: str, what: str) -> None:
    if not word or word.split() != [word]:
        raise DataError(f"{what} {word!r} is empty or has white space in it, which a run file cannot hold")


def _write(path: str | Path, lines: Iterator[str] | Sequence[str]) -> None:
    """Write a text file under a temporary name and move it into place; gzipped when the name ends in `.gz`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw:
            if path.suffix == ".gz":
                # no name, no time: the same run gives the same bytes
                with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
                    packed.writelines(line.encode("utf-8") for line in lines)
            else:
                raw.writelines(line.encode("utf-8") for line in lines)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Lines of text files, plain or gzip, with file and line in every complaint."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

from kdfw.data.sets import SkippedLines
from kdfw.data.store import missing_file
from kdfw.errors import DataError

OnError = Literal["raise", "skip"]
MAX_LINE_BYTES = 1 << 26
"""A longer line means that the file is not what it is taken for; it is refused before it fills the memory."""
_FIRST = 20
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


class BadLines:
    """What becomes of a line that cannot be read: an error, or (`skip`) a count with the first few as examples."""

    def __init__(self, on_error: OnError = "raise") -> None:
        self.on_error = on_error
        self._counts: dict[Path, int] = {}
        self._first: dict[Path, list[tuple[int, str]]] = {}

    def report(self, file: Path, line: int, found: str, fix: str = "") -> None:
        """Raise DataError naming file and line, or count the line."""
        if self.on_error == "raise":
            raise DataError(f"{file}:{line}: {found}" + (f"; {fix}" if fix else ""))
        self._counts[file] = self._counts.get(file, 0) + 1
        if len(self._first.setdefault(file, [])) < _FIRST:
            self._first[file].append((line, found))

    @property
    def skipped(self) -> tuple[SkippedLines, ...]:
        """What was skipped, by file."""
        return tuple(
            SkippedLines(file=file, count=count, first=tuple(self._first[file])) for file, count in self._counts.items()
        )


def open_bytes(path: Path) -> IO[bytes]:
    """A file for reading, unpacked when it starts like gzip. Raises DataError when it is not there."""
    try:
        with path.open("rb") as probe:
            magic = probe.read(2)
        if magic == b"\x1f\x8b":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        if path.suffix == ".gz":
            raise DataError(f"{path}: not a gzip file, for all its name; unpack it or download it again")
        return path.open("rb")
    except FileNotFoundError:
        raise missing_file(path, "file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_lines(path: Path, bad: BadLines, keep_empty: bool = False) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its end) of a UTF-8 file.

    Lines end at LF or CRLF and nowhere else: a form feed or a Unicode line separator is text. Empty lines are left out
    unless `keep_empty`. A line that is not UTF-8 or holds a NUL goes to `bad`; with `keep_empty` (files whose lines
    are numbered against another file) it then stands as an empty line.
    Raises: DataError for a missing file, damaged gzip data, or a line of more than 64 MiB.
    """
    number = 0
    with open_bytes(path) as stream:
        while True:
            try:
                raw = stream.readline(MAX_LINE_BYTES)
            except (EOFError, OSError, zlib.error) as error:
                raise DataError(f"{path}:{number + 1}: damaged or cut off: {error}; download it again") from error
            if not raw:
                return
            number += 1
            if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
                limit = MAX_LINE_BYTES >> 20
                raise DataError(f"{path}:{number}: a line of more than {limit} MiB; is this a text file?")
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            if raw.endswith(b"\n"):
                raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}"
                bad.report(path, number, found, "convert the file to UTF-8")
                text = ""
            if "\x00" in text:
                bad.report(path, number, "a NUL character", "is this a text file?")
                text = ""
            if text or keep_empty:
                yield number, text


def read_json(path: Path, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file; lines that hold no JSON object go to `bad`."""
    for number, line in read_lines(path, bad):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except RecursionError:
            bad.report(path, number, "JSON nested too deeply")
            continue
        except ValueError as error:
            bad.report(path, number, f"not valid JSON: {error}")
            continue
        if not isinstance(value, dict):
            bad.report(path, number, f"a JSON {type(value).__name__}", "each line is one JSON object {...}")
            continue
        yield number, value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def parse_float(text: str) -> float | None:
    """A finite decimal number, or None: no `nan`, `inf`, underscores or foreign digits."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def parse_int(text: str) -> int | None:
    """A decimal integer of up to 18 digits, or None."""
    return int(text) if _INTEGER.fullmatch(text) else None


def show(text: object) -> str:
    """A value for an error message, shortened."""
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


class Fields:
    """Reads keys of one JSON object, or explains what is wrong with them. Faults are collected, first one wins."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.fault = ""

    def _fail(self, fault: str) -> None:
        self.fault = self.fault or fault

    def text(self, key: str, default: str | None = None) -> str:
        """A string without NUL and lone surrogates."""
        found = self.value.get(key, default)
        if not isinstance(found, str):
            self._fail(f"no text under {key!r}; found {show(found)}, keys: {', '.join(map(str, self.value))[:100]}")
            return ""
        return self._clean(found, key)

    def id(self, key: str) -> str:
        """A string or an integer, as a string."""
        return self._id(self.value.get(key), key)

    def _id(self, found: object, key: str) -> str:
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found) if abs(found) < 10**30 else self._wrong_id(found, key)
        if not isinstance(found, str) or not found:
            return self._wrong_id(found, key)
        return self._clean(found, key)

    def _wrong_id(self, found: object, key: str) -> str:
        self._fail(f"no id under {key!r}; found {show(found)}")
        return ""

    def _clean(self, text: str, key: str) -> str:
        if "\x00" in text:
            self._fail(f"a NUL character under {key!r}")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self._fail(f"half of a surrogate pair under {key!r}")
        return text

    def texts(self, key: str, required: bool = False) -> list[str]:
        """A list of strings (or one string), empty when the key is missing or null."""
        found = self._list(key, required)
        for item in found:
            if not isinstance(item, str):
                self._fail(f"{key!r} holds {show(item)} instead of a text")
                return []
            self._clean(item, key)
        return found

    def ids(self, key: str, required: bool = False) -> list[str]:
        """A list of ids, empty when the key is missing or null."""
        return [self._id(item, key) for item in self._list(key, required)]

    def numbers(self, key: str) -> list[float] | None:
        """A list of finite numbers, None when the key is missing or null."""
        if self.value.get(key) is None:
            return None
        found = self._list(key, True)
        for item in found:
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                self._fail(f"{key!r} holds {show(item)} instead of a number")
                return None
            if isinstance(item, int) and abs(item) > 10**30 or not math.isfinite(item):
                self._fail(f"{key!r} holds a number that is not finite")
                return None
        return [float(item) for item in found]

    def _list(self, key: str, required: bool) -> list[Any]:
        found = self.value.get(key)
        if isinstance(found, str):
            return [found]
        if found is None and not required:
            return []
        if not isinstance(found, list):
            self._fail(f"no list under {key!r}; found {show(found)}")
            return []
        return found

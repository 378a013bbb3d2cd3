"""YAML with line numbers: every value of a recipe knows the file and line it came from.

Safe by construction: nodes are composed by PyYAML's safe loader and turned into plain values here, so no tag can
build an object; aliases may not blow a small file up into a large value.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kdfw.errors import ConfigError, Problem, one_of

RecipePath = tuple[str | int, ...]
COMMAND_LINE = "command line"
MAX_NODES = 100_000
MAX_DEPTH = 60
_CONTAINERS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """The safe loader, except that `1e-5` is a number (YAML 1.1 wants `1.0e-5`)."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+.0123456789":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).append(
        ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"))
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part of the full recipe that a short form or a method stands for is written."""

    path: RecipePath
    part: str = ""
    """What of it is meant (`stage distill`), where its keys are no keys of the file."""


@dataclass(frozen=True)
class Source:
    """A recipe as plain values, with the place each came from."""

    value: dict[str, Any]
    lines: dict[RecipePath, tuple[str, int]] = field(default_factory=dict)
    """(file, line) of every key and list item; what the command line set has `command line` and 0."""
    file: str = ""
    places: dict[RecipePath, Place] = field(default_factory=dict)
    """Of the full recipe what is written elsewhere; a path below one of these is below its place."""

    def where(self, path: RecipePath) -> str:
        """`file:line: key.path` of a path, or of the nearest parent that stands in the file."""
        written, part = self.written(path)
        name = dotted(written)
        if part:
            name = f"{name} ({part})" if name else part
        file, line = self._nearest(written)
        place = f"{file}:{line}" if line else file
        return f"{place}: {name}" if name else place

    def where_set(self, path: RecipePath) -> str:
        """As `where`, of a value whose parts do not go together: what the command line set of it, if anything."""
        written, part = self.written(path)
        if not part:
            for known, (file, line) in self.lines.items():
                if not line and known[: len(written)] == written and len(known) > len(written):
                    return f"{file}: {dotted(written)}"
        return self.where(path)

    def set_by_command(self, path: RecipePath) -> bool:
        """Whether the command line gave the value of a path."""
        written, part = self.written(path)
        return not part and self._nearest(written)[0].startswith(COMMAND_LINE)

    def written(self, path: RecipePath) -> tuple[RecipePath, str]:
        """The path as it stands in the file, and what of it is meant where the file has no key for that."""
        for length in range(len(path), 0, -1):
            place = self.places.get(path[:length])
            if place is None:
                continue
            rest = path[length:]
            if place.part:
                return place.path, f"{place.part}: {dotted(rest)}" if rest else place.part
            return self.written((*place.path, *rest))
        return path, ""

    def _nearest(self, path: RecipePath) -> tuple[str, int]:
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return self.file, 0


def dotted(path: RecipePath) -> str:
    """`stages[2].losses[0].weight`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def load(path: Path) -> Source:
    """Read a recipe file. Raises ConfigError with file and line for anything that is not a mapping of plain values."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(Problem(where=str(path), found="no such file", fix="give the path of a recipe")) from None
    except IsADirectoryError:
        raise ConfigError(Problem(where=str(path), found="a folder", fix="give the path of a recipe file")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(where=str(path), found=f"not UTF-8 text: {error}")) from None
    except OSError as error:
        raise ConfigError(Problem(where=str(path), found=f"cannot be read: {error.strerror}")) from None
    return parse(text, str(path))


def parse(text: str, file: str = "<text>") -> Source:
    """Like `load`, from a string."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        reason = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise ConfigError(Problem(where=where, found=f"not valid YAML: {reason}")) from None
    except (RecursionError, ValueError) as error:
        # PyYAML lets a few of its own failures on odd input through
        raise ConfigError(Problem(where=file, found=f"not valid YAML: {type(error).__name__}")) from None
    if node is None:
        raise ConfigError(Problem(where=file, found="an empty file", fix="a recipe has at least `data` and `student`"))
    lines: dict[RecipePath, tuple[str, int]] = {(): (file, 1)}
    builder = _Builder(file, lines)
    value = builder.build(node, (), 0)
    if builder.problems:
        raise ConfigError(builder.problems)
    if not isinstance(value, dict):
        found = f"a {type(value).__name__}"
        raise ConfigError(Problem(where=file, found=found, fix="a recipe is a mapping of keys"))
    return Source(value=value, lines=lines, file=file)


class _Builder:
    def __init__(self, file: str, lines: dict[RecipePath, tuple[str, int]]) -> None:
        self.file = file
        self.lines = lines
        self.problems: list[Problem] = []
        self.nodes = 0

    def build(self, node: Any, path: RecipePath, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            found = f"more than {MAX_NODES} values" if self.nodes > MAX_NODES else f"nested deeper than {MAX_DEPTH}"
            raise ConfigError(Problem(where=self._at(node), found=found, fix="a recipe is small; aliases count too"))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _CONTAINERS:
            self._refuse_tag(node)
            return None
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    self.problems.append(
                        Problem(where=self._at(key_node), found="a merge key `<<`", fix="write the keys out")
                    )
                    continue
                if not isinstance(key_node, yaml.ScalarNode):
                    self.problems.append(Problem(where=self._at(key_node), found="a key that is not text"))
                    continue
                key = key_node.value
                if key in result:
                    first = self.lines[path + (key,)][1]
                    self.problems.append(
                        Problem(where=self._at(key_node), found=f"key {key!r} again", fix=f"first at line {first}")
                    )
                    continue
                self.lines[path + (key,)] = (self.file, key_node.start_mark.line + 1)
                result[key] = self.build(value_node, (*path, key), depth + 1)
            return result
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.lines[path + (index,)] = (self.file, item.start_mark.line + 1)
                items.append(self.build(item, (*path, index), depth + 1))
            return items
        return self._scalar(node)

    def _scalar(self, node: Any) -> Any:
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        text = node.value
        try:
            if tag == "null":
                return None
            if tag == "bool":
                return text.lower() in ("true", "yes", "on")
            if tag == "int":
                number = int(text.replace("_", ""), 0) if not re.match(r"^[-+]?0\d", text) else int(text)
                if not -(1 << 63) <= number < 1 << 63:
                    problem = Problem(
                        where=self._at(node), found="a whole number beyond 64 bits", fix="write a smaller one"
                    )
                    self.problems.append(problem)
                return number
            if tag == "float":
                lowered = text.lower().replace("_", "")
                if lowered.lstrip("+-") in (".inf", ".nan"):
                    return float(lowered.replace(".", ""))
                return float(lowered)
        except ValueError:
            return text
        if tag in ("str", "timestamp"):
            return text
        self._refuse_tag(node)
        return None

    def _refuse_tag(self, node: Any) -> None:
        self.problems.append(
            Problem(where=self._at(node), found=f"the tag {node.tag}", fix="recipes hold plain values only")
        )

    def _at(self, node: Any) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"


def override(source: Source, assignments: Sequence[str]) -> Source:
    """Apply `key.path=value` settings from the command line.

    A part of the path is a key, the number of a list item, or the `name` of a list item (`stages.distill.train.lr`),
    also of a stage in a repeated block. Keys that do not exist yet are created; list items are not.

    Raises: ConfigError naming each setting that does not fit.
    """
    value = copy.deepcopy(source.value)
    lines = dict(source.lines)
    problems: list[Problem] = []
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        where = f"command line: {assignment!r}"
        if not sign or not key:
            problems.append(Problem(where=where, found="not a setting", fix="write key.path=value"))
            continue
        try:
            parsed = parse(f"value: {text}", "command line").value["value"] if text.strip() else ""
        except ConfigError as error:
            problems.append(Problem(where=where, found=str(error.problems[0].found)))
            continue
        here: Any = value
        path: RecipePath = ()
        parts = key.split(".")
        failed = False
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            step: Any = part
            if isinstance(here, list):
                found = _list_steps(here, part)
                if found is None:
                    fix = one_of(part, _names(here))
                    problems.append(Problem(where=where, found=f"no item {part!r} in {dotted(path)}", fix=fix))
                    failed = True
                    break
                step = found[-1]
                inner: Any
                for inner in found[:-1]:
                    here, path = here[inner], (*path, inner)  # into a repeated block
            elif not isinstance(here, dict):
                problems.append(
                    Problem(where=where, found=f"{dotted(path)} is {here!r}", fix="it has no keys below it")
                )
                failed = True
                break
            path = (*path, step)
            if last:
                here[step] = parsed
            else:
                if isinstance(here, dict) and (step not in here or here[step] is None):
                    here[step] = {}
                here = here[step]
        if not failed:
            for known in [known for known in lines if known[: len(path)] == path]:
                del lines[known]
            lines[path] = (f"{COMMAND_LINE} ({assignment})", 0)
    if problems:
        raise ConfigError(problems)
    return replace(source, value=value, lines=lines)


def _list_steps(items: list[Any], part: str) -> RecipePath | None:
    """The way to an item: its number; for a stage of a repeated block `(number of the block, "stages", number)`."""
    if re.fullmatch(r"\d+", part) and int(part) < len(items):
        return (int(part),)
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return (index,)
    for index, item in enumerate(items):
        if isinstance(item, dict) and isinstance(item.get("stages"), list):
            for inner, stage in enumerate(item["stages"]):
                if isinstance(stage, dict) and stage.get("name") == part:
                    return (index, "stages", inner)
    return None


def _names(items: list[Any]) -> list[str]:
    """What items may be called, those of repeated blocks included."""
    names = []
    for index, item in enumerate(items):
        if isinstance(item, dict):
            names.append(str(item.get("name", index)))
            inner = item.get("stages")
            names += (
                [str(s["name"]) for s in inner if isinstance(s, dict) and "name" in s]
                if isinstance(inner, list)
                else []
            )
    return names

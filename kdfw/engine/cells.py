"""The cells of a sweep: every combination of some values of a recipe's keys, and several seeds, each planned."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdfw.engine.api import plan
from kdfw.errors import ConfigError, Problem
from kdfw.fingerprint import fingerprint
from kdfw.plugins import registry
from kdfw.recipe.plan import Plan
from kdfw.recipe.recipe import read
from kdfw.recipe.source import parse

MAX_CELLS = 1000
"""A sweep runs every cell; a grid beyond this is a slip of the pen."""
_OPEN, _CLOSE = "[{(", "]})"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A key of the recipe and the values it takes, as they would be written on the command line."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep."""

    group: str
    """Names the values: `temperature=2`; cells that differ in the seed alone share it."""
    seed: int
    settings: tuple[str, ...]
    """`key=value` texts, those of the whole sweep first."""
    plan: Plan
    folder: Path

    @property
    def name(self) -> str:
        """Of the run folder."""
        return self.folder.name


def axes_of(grid: Sequence[str] | Mapping[str, Sequence[Any]]) -> tuple[Axis, ...]:
    """Axes from `key.path=v1,v2` texts, or from values by key. Raises ConfigError with every fault."""
    problems: list[Problem] = []
    if isinstance(grid, Mapping):
        axes = [Axis(key=key, values=tuple(map(_text, values))) for key, values in grid.items()]
    else:
        axes = [_axis(text, problems) for text in grid]
    seen: set[str] = set()
    for axis in axes:
        where = f"grid {axis.key!r}"
        if axis.key in seen:
            problems.append(Problem(where=where, found="the key again", fix="give all its values at once, as v1,v2"))
        if axis.key == "seed":
            problems.append(Problem(where=where, found="seeds in the grid", fix="write --seeds"))
        if len(set(axis.values)) < len(axis.values):
            problems.append(Problem(where=where, found="a value twice", fix="each value is one run"))
        seen.add(axis.key)
    if problems:
        raise ConfigError(problems)
    return tuple(axes)


def _axis(text: str, problems: list[Problem]) -> Axis:
    key, sign, rest = text.partition("=")
    values = tuple(_split(rest))
    if not sign or not key or not values or not all(values):
        fix = "write key.path=value,value; a value with a comma in quotes or brackets"
        problems.append(Problem(where=f"grid {text!r}", found="not a key with values", fix=fix))
    return Axis(key=key, values=values)


def _split(text: str) -> list[str]:
    """Values between the commas that stand outside of brackets and quotes."""
    parts, depth, quote, begin = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _OPEN + _CLOSE:
            depth += 1 if character in _OPEN else -1
        elif character == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()]


def _text(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, str):
        try:
            plain = parse(f"value: {value}").value["value"] == value
        except ConfigError:
            plain = False
        return value if plain else json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else "-.inf" if value < 0 else ".inf"
    return json.dumps(value)


def seeds_of(text: str) -> int | tuple[int, ...]:
    """`3`: that many seeds from the recipe's on; `1,2,7`: these. Raises ConfigError for anything else."""
    if re.fullmatch(r"\d+", text) and int(text) > 0:
        return int(text)
    if re.fullmatch(r"(\d+,)+\d*", text):
        return tuple(int(part) for part in text.rstrip(",").split(","))
    raise ConfigError(Problem(where=f"--seeds {text}", found="no seeds", fix="a number of seeds, or seeds as 1,2,3"))


def cells_of(
    recipe: Path,
    settings: Sequence[str],
    axes: Sequence[Axis],
    seeds: int | Sequence[int] | None,
    out: Path | None = None,
) -> tuple[Path, list[Cell]]:
    """(folder of the sweep, every cell, planned, in the order of the axes, seeds innermost).

    Args:
        seeds: how many from the recipe's seed on, or which; None: the recipe's.
        out: the folder; default `runs/<name>-sweep`.
    Raises: ConfigError with the faults of all cells, each once.
    """
    base = read(recipe, registry(), settings)
    out = out or Path("runs") / f"{base.name}-sweep"
    chosen = list(range(base.seed, base.seed + seeds)) if isinstance(seeds, int) else list(seeds or [base.seed])
    if len(set(chosen)) < len(chosen):
        raise ConfigError(Problem(where="seeds", found=f"found {chosen}", fix="each seed once"))
    if not axes and seeds is None:
        fix = "add --grid key.path=v1,v2 or --seeds N"
        raise ConfigError(Problem(where="command line", found="a sweep of one run", fix=fix))
    for axis in axes:
        if any(setting.partition("=")[0] == axis.key for setting in settings):
            raise ConfigError(Problem(where=f"grid {axis.key!r}", found="set for the whole sweep as well"))
    size = math.prod(len(axis.values) for axis in axes) * len(chosen)
    if size > MAX_CELLS:
        found = f"{size} runs"
        raise ConfigError(Problem(where="grid", found=found, fix=f"a sweep has at most {MAX_CELLS}"))
    faults: dict[str, tuple[Problem, set[str]]] = {}
    cells: list[Cell] = []
    names = _short_names([axis.key for axis in axes])
    for values in itertools.product(*(axis.values for axis in axes)):
        group = "_".join(f"{name}={_slug(value)}" for name, value in zip(names, values, strict=True))
        for seed in chosen:
            own = [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
            # a seed that the recipe itself gives is not repeated, so that a fault in it keeps its line
            with_seed = [*settings, *own, *([] if seeds is None else [f"seed={seed}"])]
            try:
                planned = plan(recipe, with_seed)
            except ConfigError as error:
                for problem in error.problems or (Problem(where=str(recipe), found=str(error)),):
                    faults.setdefault(str(problem), (problem, set(own)))[1].intersection_update(own)
                continue
            name = "_".join(filter(None, [group, f"seed{seed}" if len(chosen) > 1 or not group else ""]))
            cells.append(
                Cell(group=group, seed=planned.recipe.seed, settings=tuple(with_seed), plan=planned, folder=out / name)
            )
    if faults:
        raise ConfigError([_blamed(problem, own) for problem, own in faults.values()])
    _check_distinct(cells)
    return out, cells


def _blamed(problem: Problem, own: set[str]) -> Problem:
    """The fault with the values of the grid that all cells with it share, unless its place says so already."""
    if not own or any(setting in problem.where for setting in own):
        return problem
    return replace(problem, where=f"{problem.where} (grid: {', '.join(sorted(own))})")


def _short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key, with as many before it as make all of them different."""
    parts = [key.split(".") for key in keys]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = [".".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(keys)


def _slug(value: str) -> str:
    """A value as part of a folder's name; what does not fit into one leaves a hash."""
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-.")[:40]
    return plain if plain == value else f"{plain}-{fingerprint(value)[:6]}".lstrip("-")


def _check_distinct(cells: Sequence[Cell]) -> None:
    """A key that changes nothing, or two ways to write one value, would run the same thing twice."""
    seen: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        stages = tuple(stage.fingerprint for stage in cell.plan.stages)
        other = seen.setdefault(stages, cell)
        if other is not cell:
            found = f"{other.name} and {cell.name} are the same run"
            raise ConfigError(Problem(where="grid", found=found, fix="leave one of them out"))

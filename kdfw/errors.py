"""Errors a person can act on: each says where, what was found, and what would do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class KdfwError(Exception):
    """Base of every error kdfw raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fault in a recipe: `where` is `file:line: key`, `found` what stands there, `fix` what would do."""

    where: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.found}" + (f"; {self.fix}" if self.fix else "")


class ConfigError(KdfwError):
    """A recipe or an option is wrong. Carries every problem found, not only the first."""

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            self.problems: tuple[Problem, ...] = ()
            super().__init__(problems)
            return
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(KdfwError):
    """Data cannot be read or does not fit; names file and line, or query and passage."""


class PluginError(KdfwError):
    """A plugin cannot be loaded, or breaks the contract in `kdfw/hookspecs.py`."""


class ArtifactError(KdfwError):
    """A stored artifact is damaged, or cannot be written."""


class TrainingError(KdfwError):
    """Training cannot go on: a loss that is not finite, a teacher row that cannot be learned from."""


class MissingDependencyError(KdfwError):
    """An optional package is not installed; the message gives the command that installs it."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        command = f"pip install 'kdfw[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed; run: {command}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest known name, or an empty string when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def one_of(name: str, known: Iterable[str]) -> str:
    """The help that follows an unknown name: the nearest one, then all of them."""
    names = sorted(known)
    nearest = did_you_mean(name, names)
    return f"{nearest} Known: {', '.join(names) or '(none)'}".strip()

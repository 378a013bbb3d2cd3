"""What a run folder holds, read so that a missing, torn or strange file never breaks the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdfw.files import plain_yaml
from kdfw.report.numbers import as_number

MAX_LINES = 200_000
"""Lines of a metrics file that are read; a longer one is cut, and the report says so."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One evaluated system."""

    name: str
    measures: Mapping[str, float]
    against: Mapping[str, Mapping[str, Any]]
    """Comparison with the baseline by measure."""
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluate stage."""

    task: str
    split: str
    queries: float | None
    measures: tuple[str, ...]
    baseline: str
    systems: tuple[System, ...]
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]]
    """System -> query -> measure -> value."""

    def system(self, name: str) -> System | None:
        """By name."""
        return next((system for system in self.systems if system.name == name), None)


@dataclass(frozen=True, kw_only=True)
class StageView:
    """One stage of a run."""

    name: str
    type: str
    folder: Path
    inputs: tuple[str, ...]
    data: str
    seconds: float | None
    cached: bool | None
    """None: it has not run yet."""
    summary: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    evaluation: Evaluation | None
    examples: tuple[Mapping[str, Any], ...]
    """Items of an evaluation with their texts and what each system made of them."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run folder."""

    folder: Path
    name: str
    manifest: Mapping[str, Any]
    recipe: Mapping[str, Any]
    recipe_text: str
    stages: tuple[StageView, ...]
    diagnosis: Mapping[str, Any]
    """Of the teachers, as `kdfw diagnose --json` prints it; empty where there is none."""
    notes: tuple[str, ...] = field(default=())
    """What could not be read, in words."""

    @property
    def evaluations(self) -> list[StageView]:
        """Stages with measures."""
        return [stage for stage in self.stages if stage.evaluation is not None]


def read_run(folder: Path) -> RunView:
    """Everything the report shows of a run folder; whatever cannot be read is left out and named in `notes`."""
    reader = _Reader(folder)
    return reader.run()


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def run(self) -> RunView:
        manifest = mapping(self._json(self.folder / "manifest.json"))
        plan = mapping(self._json(self.folder / "plan.json"))
        text = self._text(self.folder / "recipe.yaml") or ""
        try:
            recipe = mapping(plain_yaml(text))
        except ValueError:
            recipe = {}
            self.notes.append("recipe.yaml is not valid YAML")
        records = {str(record.get("name")): record for record in mappings(manifest.get("stages"))}
        planned = mappings(plan.get("stages")) or [
            {"name": name, "type": record.get("type"), "folder": f"{number:02d}-{name.replace('#', '-')}"}
            for number, (name, record) in enumerate(records.items(), start=1)
        ]
        stages = [self._stage(entry, records.get(str(entry.get("name")), {})) for entry in planned]
        name = manifest.get("name")
        return RunView(
            folder=self.folder,
            name=name if isinstance(name, str) and name else self.folder.resolve().name,
            manifest=manifest,
            recipe=recipe,
            recipe_text=text,
            stages=tuple(stages),
            diagnosis=mapping(self._json(self.folder / "diagnosis.json", expected=False)),
            notes=tuple(self.notes),
        )

    def _stage(self, entry: Mapping[str, Any], record: Mapping[str, Any]) -> StageView:
        # the name comes from a file: only its last part is used, so that it cannot point outside the run folder
        folder = self.folder / "stages" / (Path(str(entry.get("folder", ""))).name or "missing")
        cached = record.get("cached")
        inputs = entry.get("inputs")
        artifact = mapping(self._json(folder / "artifact.json", expected=bool(record)))
        return StageView(
            name=str(entry.get("name", "")),
            type=str(entry.get("type", "")),
            folder=folder,
            inputs=tuple(str(item) for item in inputs) if isinstance(inputs, list) else (),
            data=str(entry.get("data", "")),
            seconds=as_number(record.get("seconds")),
            cached=cached if isinstance(cached, bool) else None,
            summary=mapping(record.get("summary")) or mapping(artifact.get("summary")),
            metrics=tuple(self._lines(folder / "metrics.jsonl")),
            evaluation=self._evaluation(folder),
            examples=tuple(
                line for line in self._lines(folder / "examples.jsonl") if isinstance(line.get("query"), str)
            ),
        )

    def _evaluation(self, folder: Path) -> Evaluation | None:
        value = mapping(self._json(folder / "measures.json", expected=False))
        systems = mapping(value.get("systems"))
        if not systems:
            return None
        timing = mapping(self._json(folder / "timing.json", expected=False))
        order = [name for name in strings(value.get("order")) if name in systems]
        found = []
        for name in dict.fromkeys([*order, *systems]):
            facts = {**mapping(systems[name]), **mapping(timing.get(name))}
            found.append(
                System(
                    name=name,
                    measures=numbers(facts.get("measures")),
                    against={key: mapping(item) for key, item in mapping(facts.get("against_baseline")).items()},
                    facts={key: item for key, item in facts.items() if key not in ("measures", "against_baseline")},
                )
            )
        measures = strings(value.get("measures")) or list(dict.fromkeys(m for s in found for m in s.measures))
        per_query: dict[str, dict[str, dict[str, float]]] = {}
        for line in self._lines(folder / "per_query.jsonl"):
            query, system = line.get("query"), line.get("system")
            if isinstance(query, str) and isinstance(system, str):
                per_query.setdefault(system, {})[query] = numbers(line)
        return Evaluation(
            task=str(value.get("task", "")),
            split=str(value.get("split", "")),
            queries=as_number(value.get("queries")),
            measures=tuple(measures),
            baseline=str(value.get("baseline", "")),
            systems=tuple(found),
            per_query=per_query,
        )

    def _text(self, path: Path, expected: bool = True) -> str | None:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if expected:
                self.notes.append(f"{path.relative_to(self.folder)} is missing")
        except OSError as error:
            self.notes.append(f"{path.relative_to(self.folder)} cannot be read: {error.strerror}")
        return None

    def _json(self, path: Path, expected: bool = True) -> Any:
        text = self._text(path, expected)
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            self.notes.append(f"{path.relative_to(self.folder)} is not valid JSON")
            return None

    def _lines(self, path: Path) -> Iterator[Mapping[str, Any]]:
        """The JSON mappings of a file of lines; torn or strange lines are left out and counted."""
        bad = 0
        try:
            with path.open(encoding="utf-8", errors="replace") as stream:
                for number, line in enumerate(stream):
                    if number >= MAX_LINES:
                        self.notes.append(
                            f"{path.relative_to(self.folder)}: only the first {MAX_LINES} lines are shown"
                        )
                        break
                    try:
                        value = json.loads(line)
                    except (ValueError, RecursionError):
                        value = None
                    if isinstance(value, dict):
                        yield value
                    elif line.strip():
                        bad += 1
        except FileNotFoundError:
            return
        except OSError as error:
            self.notes.append(f"{path.relative_to(self.folder)} cannot be read: {error.strerror}")
        if bad:
            self.notes.append(f"{path.relative_to(self.folder)}: {bad} lines are not JSON mappings")


def written_stages(recipe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The stages of a recipe, those in repeated blocks once."""
    for stage in mappings(recipe.get("stages")):
        yield stage
        yield from written_stages(stage)


def mapping(value: Any) -> dict[str, Any]:
    """The value when it is a mapping, with its keys as text; else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def mappings(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list."""
    return [mapping(item) for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def strings(value: Any) -> list[str]:
    """The texts of a list."""
    return (
        [item for item in value if isinstance(item, str)]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else []
    )


def numbers(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping."""
    return {key: number for key, item in mapping(value).items() if (number := as_number(item)) is not None}

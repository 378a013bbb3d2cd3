"""What is installed, in words: `kdfw plugins`, `kdfw explain`, `kdfw doctor`.

`describe` gathers the facts about one component; the command line, the reference in `docs/recipes.md` and the JSON
schema all read them from there, so that they cannot disagree.
"""

from __future__ import annotations

import enum
import importlib.metadata
import inspect
import json
import os
import platform
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdfw.components import KINDS, Component, Loss, Schedule, Weighting
from kdfw.errors import KdfwError, PluginError, one_of
from kdfw.options import Option, options_of
from kdfw.plugins import PluginInfo, Registry, registry
from kdfw.types import TASKS, Needs

LIBRARIES = (
    "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "scipy", "pydantic", "pluggy",
    "faiss-cpu", "faiss-gpu", "bm25s", "ranx", "sentence-transformers", "datasets",
)  # fmt: skip
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
WIDTH = 110
"""Columns of the text; output that depends on the terminal cannot be compared or pasted."""


# ---------------------------------------------------------------- facts


@dataclass(frozen=True, kw_only=True)
class OptionRow:
    """One option as people read it."""

    name: str
    """With a dot for a setting inside another option: `train.lr`."""
    type: str
    default: str
    """`required` when there is none."""
    range: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything worth saying about one component."""

    kind: str
    name: str
    cls: type[Component]
    plugin: PluginInfo
    summary: str
    """First sentence or paragraph of the docstring, on one line."""
    details: str
    """The rest of the docstring, without its `Args:`; may be empty."""
    options: tuple[OptionRow, ...]
    common: tuple[OptionRow, ...]
    """Options that every component of the kind has."""
    facts: tuple[tuple[str, str], ...]
    """What it needs and provides: (label, words)."""
    paper: str

    @property
    def required(self) -> tuple[str, ...]:
        """Names of options a recipe must give."""
        return tuple(row.name for row in self.options if row.default == "required")


def describe(kind: str, name: str, components: Registry | None = None) -> Description:
    """The facts about one component.

    Args:
        components: where to look it up; default: everything installed.
    Raises: PluginError naming the nearest known kind or name.
    """
    components = components or registry()
    _known_kind(kind)
    cls = components.get(kind, name)
    origin = components.origins[kind, name]
    plugin = next(info for info in components.plugins if info.name == origin)
    summary, details = docstring(cls)
    own = options_of(cls)
    common = () if cls.common is None else tuple(option_rows(cls.common, leave_out=own))
    return Description(
        kind=kind,
        name=name,
        cls=cls,
        plugin=plugin,
        summary=summary,
        details=details,
        options=tuple(option_rows(cls)),
        common=common,
        facts=tuple(_facts(cls)),
        paper=cls.paper,
    )


def docstring(cls: type) -> tuple[str, str]:
    """(first paragraph on one line, the paragraphs after it up to `Args:`) of a class; empty without a docstring."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    text = re.split(r"^(?:Args|Returns|Raises):", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
    first, _, rest = text.partition("\n\n")
    return " ".join(first.split()), rest.strip()


def option_rows(cls: type, leave_out: typing.Container[str] = ()) -> Iterator[OptionRow]:
    """The options of a class, each followed by the settings inside it when its type is a pydantic model."""
    for name, option in options_of(cls).items():
        if name in leave_out:
            continue
        yield OptionRow(
            name=name,
            type=type_text(option),
            default="required" if option.required else _value_text(option.default),
            range=option.range_text,
            description=option.description,
        )
        if option.form == "plain":
            for model in nested_models(option.annotation):
                yield from _settings_rows(model, name, seen=())


NAME_OF = {
    "model": "name of a model",
    "teacher": "name of a teacher",
    "candidates": "name of a stage with candidates",
    "scores": "name of a stage with scores",
    "data": "name of a data set",
    "stage": "name of a stage",
    "system": "name of a model, stage or retriever",
}
"""What a reference may point to, in words."""


def type_text(option: Option) -> str:
    """The type of an option for people: `number or schedule`, `list of loss`, `name of a model or null`."""
    if option.form == "plain":
        return option.type_text
    if option.ref is not None and option.form == "reference":
        words = NAME_OF.get(option.ref.to, f"name of a {option.ref.to}")
    elif option.annotation is Schedule:
        words = "number or schedule"
    else:
        words = next((kind for kind, base in KINDS.items() if base is option.annotation), option.annotation.__name__)
    wrapped = {"one": "{}", "optional": "{} or null", "list": "list of {}", "dict": "{} by name"}
    if option.container == "list" and option.form == "reference":
        return f"list: {words}"
    return wrapped[option.container].format(words)


def nested_models(annotation: Any) -> list[type[BaseModel]]:
    """Pydantic models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in nested_models(part)]


def _settings_rows(model: type[BaseModel], prefix: str, seen: tuple[type[BaseModel], ...]) -> Iterator[OptionRow]:
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _value_text(field.get_default(call_default_factory=True))
        stand_in = Option(
            name=name,
            annotation=field.annotation,
            form="plain",
            container="one",
            default=None,
            required=field.is_required(),
            description=field.description or "",
            field=(field.annotation, field),
        )
        yield OptionRow(
            name=f"{prefix}.{name}",
            type=stand_in.type_text,
            default=default,
            range=stand_in.range_text,
            description=field.description or ("chooses among the kinds of these settings" if name == "type" else ""),
        )
        for nested in nested_models(field.annotation):
            # settings by name repeat those of the model around them; listing them once is enough
            if nested not in seen and not issubclass(model, nested):
                yield from _settings_rows(nested, f"{prefix}.{name}", (*seen, model))


def _value_text(value: Any) -> str:
    if isinstance(value, FieldInfo):
        return "required" if value.is_required() else _value_text(value.get_default(call_default_factory=True))
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, Component):
        return type(value).__name__
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, (tuple, frozenset, set)):
        value = list(value)
    if value is None or isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, default=str)
    return str(value) or '""'


def _facts(cls: type[Component]) -> Iterator[tuple[str, str]]:
    if issubclass(cls, (Loss, Weighting, Schedule)):
        needs = _needs(cls)
        if needs is None:
            yield "needs", "depends on its options"
        else:
            yield from _needs_facts(needs)
    for attribute, label in (("provides", "provides"), ("tasks", "tasks"), ("produces", "writes")):
        value = getattr(cls, attribute, None)
        if isinstance(value, (set, frozenset)) and value:
            yield label, ", ".join(sorted(str(item) for item in value))
    task = getattr(cls, "task", None)
    if isinstance(task, str):
        yield "task", task
    search = getattr(cls, "search", None)
    if isinstance(search, str) and "ranking" in getattr(cls, "tasks", ()):
        yield "corpus search", search or "not possible; it scores given pairs"
    if isinstance(getattr(cls, "cacheable", None), bool):
        yield "scores can be stored", "yes" if getattr(cls, "cacheable") else "no"  # noqa: B009
        yield "scores texts made on the fly", "yes" if getattr(cls, "made_texts") else "no"  # noqa: B009


def _needs(cls: type[Component]) -> Needs | None:
    """What it needs with its default options; None when it cannot be built without options, or needs vary."""
    declared = inspect.getattr_static(cls, "needs", None)
    if isinstance(declared, Needs):
        return declared
    try:
        needs = getattr(cls(), "needs", None)
    except Exception:  # a required option, or any check of its own: the plugin's code, so anything may come
        return None
    return needs if isinstance(needs, Needs) else None


def _needs_facts(needs: Needs) -> Iterator[tuple[str, str]]:
    if needs.student:
        yield "needs of the student", ", ".join(sorted(needs.student))
    if needs.teacher:
        yield "needs of each teacher", ", ".join(sorted(needs.teacher))
    least, most = needs.teachers
    if (least, most) != (0, None):
        count = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        yield "teachers", count
    if needs.labels:
        yield "labels", "needed"
    if needs.whole_batch:
        yield "other items of the step", "needed (not for models that compute signals in shares)"
    if needs.tasks != frozenset(TASKS):
        yield "tasks", ", ".join(sorted(needs.tasks))


def _known_kind(kind: str) -> None:
    if kind not in KINDS:
        raise PluginError(f"no kind of component {kind!r}; {one_of(kind, KINDS)}")


# ---------------------------------------------------------------- kdfw plugins


def plugins_text(as_json: bool = False) -> str:
    """Every plugin with version, distribution, origin module and components by kind."""
    infos = registry().plugins
    if as_json:
        value = [
            {
                "name": info.name,
                "distribution": info.distribution,
                "version": info.version,
                "module": info.module,
                "components": {kind: list(names) for kind, names in info.components.items() if names},
            }
            for info in infos
        ]
        return json.dumps(value, indent=2, ensure_ascii=False)
    lines = []
    for info in infos:
        lines.append(f"{info.name}  ({info.distribution} {info.version}, module {info.module})")
        for kind, names in info.components.items():
            if names:
                label = f"  {kind:<10} "
                lines += textwrap.wrap(
                    ", ".join(names), WIDTH, initial_indent=label, subsequent_indent=" " * 13, break_on_hyphens=False
                )
    lines.append("\n`kdfw explain KIND NAME` prints options, needs and paper of a component.")
    return "\n".join(lines)


# ---------------------------------------------------------------- kdfw explain


def explain_text(kind: str, name: str | None = None) -> str:
    """One component with its options, or without a name every component of the kind on a line each.

    Raises: PluginError naming the nearest known kind or name.
    """
    _known_kind(kind)
    if name is None:
        names = registry().names(kind)
        if not names:
            return f"no {kind} is installed"
        width = max(len(known) for known in names)
        room = max(WIDTH - width - 2, 40)
        summaries = {known: docstring(registry().get(kind, known))[0] for known in names}
        return "\n".join(
            f"{known:<{width}}  {textwrap.shorten(summary, room, placeholder=' ...')}".rstrip()
            for known, summary in summaries.items()
        )
    found = describe(kind, name)
    origin = f"{found.cls.__module__}.{found.cls.__qualname__}"
    lines = [
        f"{kind} {name}",
        f"from plugin {found.plugin.name} ({found.plugin.distribution} {found.plugin.version}), {origin}",
    ]
    if found.summary:
        lines += ["", *textwrap.wrap(found.summary, WIDTH)]
    if found.details:
        lines += ["", found.details]
    facts = [*([("paper", found.paper)] if found.paper else []), *found.facts]
    if facts:
        lines.append("")
        lines += [f"{label}: {words}" for label, words in facts]
    lines += ["", "options:" if found.options else "options: none of its own"]
    lines += _option_lines(found.options)
    if found.common:
        lines += ["", f"options that every {kind} has:", *_option_lines(found.common)]
    lines += ["", f"in a recipe: {{{', '.join([f'type: {name}', *(f'{key}: ...' for key in found.required)])}}}"]
    return "\n".join(lines)


def _option_lines(rows: Sequence[OptionRow]) -> list[str]:
    lines = []
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        default = row.default if row.default in ("required", "see below") else f"default {row.default}"
        lines.append(f"  {row.name:<{width}}  " + ", ".join(part for part in (row.type, default, row.range) if part))
        indent = " " * (width + 4)
        lines += textwrap.wrap(row.description, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


# ---------------------------------------------------------------- kdfw doctor


def doctor_text() -> str:
    """Versions, devices, precision, memory and disk of this machine, and what is missing with the command for it."""
    sections = [
        ("versions", _versions()),
        ("devices", list(_devices())),
        ("machine", list(_machine())),
        ("plugins", _plugin_state()),
        ("optional packages", _optional()),
    ]
    lines = []
    for title, rows in sections:
        lines.append(title)
        width = max((len(label) for label, _ in rows), default=0)
        lines += [f"  {label:<{width}}  {words}".rstrip() for label, words in rows]
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def _versions() -> list[tuple[str, str]]:
    from kdfw import __version__

    rows = [("kdfw", __version__), ("python", f"{platform.python_version()} ({sys.executable})")]
    for name in LIBRARIES:
        version = _version(name)
        if version is not None:
            rows.append((name, version))
    if not {"faiss-cpu", "faiss-gpu"} & {name for name, _ in rows}:
        rows.append(("faiss", "missing: pip install faiss-cpu"))
    return rows


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    from kdfw.models.precision import resolve

    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = properties.total_memory / 2**30
        yield (
            f"cuda:{number}",
            f"{properties.name}, {memory:.0f} GiB, precision auto is {resolve('auto', f'cuda:{number}')}",
        )
    if not torch.cuda.device_count():
        yield "cuda", "no device"
    yield "cpu", f"precision auto is {resolve('auto', 'cpu')}, torch uses {torch.get_num_threads()} threads"
    flags = _cpu_flags()
    yield "cpu features", ", ".join(flag for flag in CPU_FLAGS if flag in flags) or "none known to matter"


def _cpu_flags() -> frozenset[str]:
    for line in _lines("/proc/cpuinfo"):
        label, _, words = line.partition(":")
        if label.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()


def _machine() -> Iterator[tuple[str, str]]:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    yield "system", f"{platform.system()} {platform.machine()}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", f"{usable} usable of {os.cpu_count()}" + (f", {model}" if model else "")
    memory = {line.split(":")[0]: line.split()[1] for line in _lines("/proc/meminfo") if line.count(":") == 1}
    if "MemTotal" in memory and "MemAvailable" in memory:
        total, free = (int(memory[key]) / 2**20 for key in ("MemTotal", "MemAvailable"))
        yield "memory", f"{free:.1f} GiB free of {total:.1f} GiB"
    named = os.environ.get("KDFW_CACHE")
    places = [("disk here", Path.cwd()), *([("disk at KDFW_CACHE", Path(named).expanduser())] if named else [])]
    for label, place in places:
        yield label, _free_disk(place)
    if not named:
        yield "cache", "beside the runs (.kdfw-cache); set KDFW_CACHE to share it between projects"


def _free_disk(place: Path) -> str:
    existing = next((folder for folder in (place, *place.parents) if folder.exists()), Path("/"))
    try:
        usage = shutil.disk_usage(existing)
    except OSError as error:
        return f"{place}: cannot be read: {error.strerror}"
    note = "" if os.access(existing, os.W_OK) else ", cannot be written"
    return f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f} GiB ({place}{note})"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _plugin_state() -> list[tuple[str, str]]:
    try:
        infos = registry().plugins
    except KdfwError as error:  # a broken plugin is what a doctor is asked about
        return [("broken", str(error))]
    others = [info for info in infos if info.distribution != "kdfw"]
    components = sum(len(names) for info in infos for names in info.components.values())
    rows = [("shipped", f"{len(infos) - len(others)}, with others {components} components; `kdfw plugins` lists them")]
    return rows + [(info.name, f"{info.distribution} {info.version}") for info in others]


def _optional() -> list[tuple[str, str]]:
    """By extra of the distribution: installed, or the command that installs what is missing."""
    rows = []
    for extra, packages in extras().items():
        missing = [package for package in packages if _version(package) is None]
        if missing:
            rows.append((extra, f"missing {', '.join(missing)}: pip install 'kdfw[{extra}]'"))
        else:
            rows.append((extra, "installed"))
    return rows


def extras(distribution: str = "kdfw") -> dict[str, list[str]]:
    """Optional packages by extra, as the installed distribution declares them."""
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"^([A-Za-z0-9._-]+).*;.*\bextra == ['\"]([^'\"]+)['\"]", requirement)
        if match:
            found.setdefault(match.group(2), []).append(match.group(1))
    return found

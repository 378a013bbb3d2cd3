"""Options of components: read from the constructor's typed signature, checked before anything is built.

A component's options are the keyword-only parameters of its `__init__`. Plain parameters are checked by pydantic
(`Annotated[float, Field(gt=0, description="...")]`). A parameter annotated with a component class (`Schedule`,
`Retriever`, also `X | None`, `list[X]`, `dict[str, X]`) takes a nested component: `{type: NAME, ...}`, or just
`NAME`, or for a schedule a number. A parameter annotated with a reference (`ModelRef`, `CandidatesRef`, ...) names
something else in the recipe and is resolved by the planner.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from kdfw.annotations import listed, metadata_of, plain_type, range_text_of, type_text_of
from kdfw.components import KINDS, Component, Constant
from kdfw.errors import ConfigError, KdfwError, PluginError, Problem, did_you_mean
from kdfw.option_faults import Path, Where, problems_of, shown
from kdfw.references import Ref

"""Turns a path inside a recipe into `file:line: key`."""


class Registry(Protocol):
    """What option checking needs of `kdfw.plugins.Registry`."""

    def names(self, kind: str) -> list[str]: ...
    def get(self, kind: str, name: str) -> type[Component]: ...


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A name in a recipe that stands for something defined elsewhere in it."""

    ref: Ref
    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A checked component of a recipe, not built yet."""

    kind: str
    name: str
    cls: type[Component]
    options: Mapping[str, Any]
    """Plain values, nested `Spec`s, or lists and dicts of them; defaults are left out."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """Options that every component of the kind has (a loss's weight)."""
    references: tuple[Reference, ...] = ()
    """Its own and those of nested components."""
    path: Path = ()

    def build(self, parts: Mapping[Path, Any] | None = None) -> Any:
        """The component, with its nested components.

        Args:
            parts: nested components that are built already, by their paths.
        """
        given = {name: _build(value, parts) for name, value in self.options.items()}
        try:
            built = self.cls(**given)
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            # each value was checked by itself; what a constructor makes of them is no fault of the engine's
            reason = str(error).split("\n")[0][:200]
            raise ConfigError(f"{self.kind} {self.name!r} cannot be built from these options: {reason}") from error
        built.recipe_name = self.name
        if self.cls.common is not None:
            built.settings = self.cls.common(**{name: _build(value, parts) for name, value in self.common.items()})
        return built

    def build_parts(self, fault: Callable[[Path, str], None]) -> dict[Path, Any]:
        """The component and everything nested in it, by path; what cannot be built is told to `fault`, all of it.

        A component is left out when it, or something in it, cannot be built.
        """
        parts: dict[Path, Any] = {}
        for nested in nested_specs(self):
            parts |= nested.build_parts(fault)
        if all(nested.path in parts for nested in nested_specs(self)):
            try:
                parts[self.path] = self.build(parts)
            except (KdfwError, ValueError) as error:
                fault(self.path, str(error))
        return parts

    def canonical(self, resolve: Callable[[Reference], Any] | None = None) -> dict[str, Any]:
        """A JSON value that changes exactly when the component would behave differently.

        `resolve` replaces a reference by the fingerprint of what it points to; without it the name stays.
        """
        by_path = {reference.path: reference for reference in self.references}

        def walk(value: Any, path: Path) -> Any:
            if isinstance(value, Spec):
                # a number and a constant schedule of that number are the same thing
                return float(value.options["value"]) if value.cls is Constant else value.canonical(resolve)
            if path in by_path and resolve is not None:
                return resolve(by_path[path])
            if isinstance(value, BaseModel):
                return value.model_dump(mode="json", exclude_unset=False)
            if isinstance(value, Mapping):
                return {str(key): walk(item, (*path, key)) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [walk(item, (*path, index)) for index, item in enumerate(value)]
            return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

        known = {name: option.default for name, option in options_of(self.cls).items() if not option.required}
        merged = {**known, **self.options}
        body = {name: walk(value, (*self.path, name)) for name, value in sorted(merged.items())}
        if self.cls.common is not None:
            shared = {n: o.default for n, o in options_of(self.cls.common).items() if not o.required}
            body |= {n: walk(v, (*self.path, n)) for n, v in sorted({**shared, **self.common}.items())}
        return {"kind": self.kind, "type": self.name, "version": self.cls.version, "options": body}


def _build(value: Any, parts: Mapping[Path, Any] | None = None) -> Any:
    if isinstance(value, Spec):
        return value.build() if parts is None else parts[value.path]
    if isinstance(value, list):
        return [_build(item, parts) for item in value]
    if isinstance(value, dict):
        return {key: _build(item, parts) for key, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class Option:
    """One constructor parameter, as `kdfw explain` prints it."""

    name: str
    annotation: Any
    """Without `Annotated` and without the container: the plain type, the component class, or `str` for a reference."""
    form: Literal["plain", "component", "reference"]
    container: Literal["one", "optional", "list", "dict"]
    default: Any
    required: bool
    description: str
    ref: Ref | None = None
    field: Any = None
    """(annotation, default or FieldInfo) for pydantic."""

    @property
    def type_text(self) -> str:
        """How the type is written for people."""
        if self.form == "component":
            text = next((kind for kind, base in KINDS.items() if base is self.annotation), self.annotation.__name__)
        elif self.form == "reference":
            assert self.ref is not None
            text = f"name of a {self.ref.to}"
        else:
            text = type_text_of(self.annotation)
        wrapped = {"one": text, "optional": f"{text} or null", "list": f"list of {text}", "dict": f"{text} by name"}
        return wrapped[self.container]

    @property
    def range_text(self) -> str:
        """`> 0, <= 1`, or an empty string."""
        return range_text_of(metadata_of(self.field))


def _split(annotation: Any) -> tuple[str, Any, Any]:
    """(container, inner annotation with its `Annotated`, stripped inner type)."""
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(parts) == 1:
        # Python 3.10 turns `Annotated[X | None, ...] = None` into `Optional[Annotated[X | None, ...]]`
        inside = typing.get_args(parts[0])[0] if typing.get_origin(parts[0]) is Annotated else None
        annotation = parts[0] if type(None) in typing.get_args(inside) else annotation
    outer = typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    origin = typing.get_origin(outer)
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(outer) if part is not type(None)]
        # a schedule may be written `Schedule | float`; the number is only shorthand
        components = [part for part in parts if _is_component(plain_type(part))]
        if components:
            parts = components
        if len(parts) == 1 and (len(typing.get_args(outer)) > len(parts)):
            optional = type(None) in typing.get_args(outer)
            return ("optional" if optional else "one"), parts[0], plain_type(parts[0])
        return "one", annotation, outer
    if origin in (list, tuple, Sequence):
        inner = typing.get_args(outer)[0]
        return "list", inner, plain_type(inner)
    if origin in (dict, Mapping):
        inner = typing.get_args(outer)[1]
        return "dict", inner, plain_type(inner)
    return "one", annotation, outer


def _ref(annotation: Any) -> Ref | None:
    if typing.get_origin(annotation) is Annotated:
        return next((meta for meta in typing.get_args(annotation)[1:] if isinstance(meta, Ref)), None)
    return None


def _is_component(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Component)


def options_of(cls: type) -> dict[str, Option]:
    """The options of a component class by name, in the order of the constructor.

    Raises PluginError when the constructor has positional or untyped parameters.
    """
    return _options_of(cls)


@functools.cache
def _options_of(cls: Hashable) -> dict[str, Option]:
    assert isinstance(cls, type)
    constructor = cls.__dict__.get("__init__") or getattr(cls, "__init__")  # noqa: B009
    if constructor is object.__init__ or not inspect.isfunction(constructor):
        return {}
    try:
        hints = typing.get_type_hints(constructor, include_extras=True)
    except NameError as error:
        raise PluginError(f"{cls.__module__}.{cls.__qualname__}: cannot resolve an annotation: {error}") from error
    documented = _documented_arguments(cls)
    found: dict[str, Option] = {}
    for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                continue
            raise PluginError(f"{cls.__module__}.{cls.__qualname__}: option {name!r} must be keyword-only")
        if name not in hints:
            raise PluginError(f"{cls.__module__}.{cls.__qualname__}: option {name!r} has no type")
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        container, inner, stripped = _split(hints[name])
        ref = _ref(inner) or _ref(hints[name])
        form: Literal["plain", "component", "reference"] = "plain"
        if _is_component(stripped):
            form = "component"
        elif ref is not None:
            form = "reference"
        description = documented.get(name, "")
        for meta in typing.get_args(hints[name])[1:] if typing.get_origin(hints[name]) is Annotated else ():
            if isinstance(meta, FieldInfo) and meta.description:
                description = meta.description
        found[name] = Option(
            name=name,
            annotation=stripped if form != "plain" else hints[name],
            form=form,
            container=container if form != "plain" else "one",  # type: ignore[arg-type]
            default=default,
            required=required,
            description=description,
            ref=ref,
            field=(hints[name], ... if required else default),
        )
    return found


def _documented_arguments(cls: type) -> dict[str, str]:
    """Descriptions from the `Args:` section of the class or constructor docstring."""
    found: dict[str, str] = {}
    for doc in (cls.__doc__, getattr(cls, "__init__").__doc__):  # noqa: B009
        section = re.search(
            r"Args:\n(.*?)(?:\n\s*\n|\n\s*(?:Returns|Raises|Shapes|Source)|\Z)", inspect.cleandoc(doc or ""), re.S
        )
        if section:
            for match in re.finditer(r"^\s+(\w+):\s+(.+(?:\n\s{8,}.+)*)$", section.group(1), re.M):
                found[match.group(1)] = " ".join(match.group(2).split())
    return found


def plain_model(cls: type) -> type[BaseModel]:
    """A pydantic model of the plain options of a class; nested components and references are left to `check`."""
    return _plain_model(cls)


@functools.cache
def _plain_model(cls: Hashable) -> type[BaseModel]:
    assert isinstance(cls, type)
    fields: dict[str, Any] = {}
    for name, option in options_of(cls).items():
        if option.form == "plain":
            fields[name] = option.field
        else:
            fields[name] = (Any, ... if option.required else option.default)
    return create_model(
        f"{cls.__name__}Options",
        __config__=ConfigDict(
            extra="forbid",
            arbitrary_types_allowed=True,
            strict=False,
            protected_namespaces=(),
            allow_inf_nan=False,
        ),
        **fields,
    )


def check(kind: str, raw: Any, path: Path, registry: Registry, where: Where, problems: list[Problem]) -> Spec | None:
    """Check one component as it stands in a recipe; append what is wrong to `problems` and return None then."""
    if kind == "schedule" and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        raw = {"type": "constant", "value": raw}
    if isinstance(raw, str):
        raw = {"type": raw}
    if not isinstance(raw, Mapping):
        problems.append(
            Problem(where=where(path), found=f"found {shown(raw)}", fix=f"write a {kind}: {{type: NAME, ...}}")
        )
        return None
    if "type" not in raw:
        names = ", ".join(registry.names(kind))
        problems.append(Problem(where=where(path), found=f"a {kind} without `type`", fix=f"known types: {names}"))
        return None
    name = raw["type"]
    if name not in registry.names(kind):
        known = registry.names(kind)
        help_text = f"{did_you_mean(str(name), known)} known: {', '.join(known)}".strip()
        problems.append(Problem(where=where((*path, "type")), found=f"no {kind} {name!r}", fix=help_text))
        return None
    cls = registry.get(kind, name)
    given = {key: value for key, value in raw.items() if key != "type"}
    shared: dict[str, Any] = {}
    common_references: tuple[Reference, ...] = ()
    before = len(problems)
    if cls.common is not None:
        own = options_of(cls)
        mine = {key: value for key, value in given.items() if key in options_of(cls.common) and key not in own}
        given = {key: value for key, value in given.items() if key not in mine}
        shared, common_references = _check_options(cls.common, mine, path, registry, where, problems, ())
    known_names = tuple(options_of(cls.common)) if cls.common is not None else ()
    options, references = _check_options(cls, given, path, registry, where, problems, known_names)
    if len(problems) > before:
        return None
    return Spec(
        kind=kind,
        name=name,
        cls=cls,
        options=options,
        common=shared,
        references=references + common_references,
        path=path,
    )


def _check_options(
    cls: type,
    given: Mapping[str, Any],
    path: Path,
    registry: Registry,
    where: Where,
    problems: list[Problem],
    also_known: tuple[str, ...],
) -> tuple[dict[str, Any], tuple[Reference, ...]]:
    declared = options_of(cls)
    values: dict[str, Any] = {}
    references: list[Reference] = []
    try:
        plain = {
            str(key): listed(declared[key].annotation, value)
            if key in declared and declared[key].form == "plain"
            else value
            for key, value in given.items()
        }
        model = plain_model(cls)(**plain)
        for name in given:
            if declared[name].form == "plain":
                values[name] = _expand(getattr(model, name), (*path, name), where, problems)
    except ValidationError as error:
        annotations = {name: option.annotation for name, option in declared.items()}
        problems.extend(problems_of(error, annotations, given, path, where, also_known))
    for name, option in declared.items():
        if name not in given or option.form == "plain":
            continue
        raw, at = given[name], (*path, name)
        if raw is None and (option.container == "optional" or option.default is None and not option.required):
            values[name] = None
            continue
        items: list[tuple[Any, Path]]
        if option.container == "list":
            if not isinstance(raw, list):
                raw = [raw]
                items = [(raw[0], at)]
            else:
                items = [(item, (*at, index)) for index, item in enumerate(raw)]
        elif option.container == "dict":
            if not isinstance(raw, Mapping):
                problems.append(Problem(where=where(at), found=f"found {shown(raw)}", fix="write names and values"))
                continue
            items = [(item, (*at, key)) for key, item in raw.items()]
        else:
            items = [(raw, at)]
        checked: list[Any] = []
        for item, item_path in items:
            if option.form == "reference":
                assert option.ref is not None
                if not isinstance(item, str):
                    fix = f"write the name of a {option.ref.to}"
                    problems.append(Problem(where=where(item_path), found=f"found {shown(item)}", fix=fix))
                    continue
                references.append(Reference(ref=option.ref, name=item, path=item_path))
                checked.append(item)
            else:
                kind = next(kind for kind, base in KINDS.items() if base is option.annotation)
                nested = check(kind, item, item_path, registry, where, problems)
                outside = "" if nested is None else _out_of_range(nested, option)
                if outside:
                    problems.append(Problem(where=where(item_path), found=outside, fix=f"must be {option.range_text}"))
                if nested is not None:
                    references.extend(nested.references)
                    checked.append(nested)
        if option.container == "list":
            values[name] = checked
        elif option.container == "dict":
            values[name] = dict(zip(given[name], checked, strict=False))
        elif checked:
            values[name] = checked[0]
    return values, tuple(references)


def _out_of_range(spec: Spec, option: Option) -> str:
    """Which values a schedule comes to, where the option does not take them; else an empty string."""
    if not option.range_text or spec.kind != "schedule":
        return ""
    try:
        bounds = spec.build().bounds
    except ConfigError:
        return ""  # reported where the component is built
    if bounds is None:
        return ""
    holds = {"Gt": operator.gt, "Ge": operator.ge, "Lt": operator.lt, "Le": operator.le}
    named = [(type(meta).__name__, meta) for meta in metadata_of(option.field)]
    limits = [(holds[name], getattr(meta, name.lower())) for name, meta in named if name in holds]
    low, high = bounds
    if all(fits(value, limit) for fits, limit in limits for value in bounds):
        return ""
    return f"the value {low:g}" if low == high else f"values from {low:g} to {high:g}"


def _expand(value: Any, at: Path, where: Where, problems: list[Problem]) -> Any:
    """The value with `~` and `$NAME` filled in in each path. Only paths: nothing else of the environment gets in."""
    if isinstance(value, dict):
        return {key: _expand(item, (*at, str(key)), where, problems) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_expand(item, (*at, index), where, problems) for index, item in enumerate(value))
    if not isinstance(value, FilePath):
        return value
    secret = re.search(r"\$\{?(\w*(?:KEY|TOKEN|SECRET|PASSW|CREDENTIAL)\w*)", str(value), re.IGNORECASE)
    if secret:  # paths are shown in errors and kept in run folders
        fix = "a path may not hold a secret; rename the variable if it is none"
        problems.append(Problem(where=where(at), found=f"the environment variable {secret[1]} in a path", fix=fix))
        return value
    text = os.path.expandvars(os.path.expanduser(str(value)))
    missing = re.search(r"\$\{?(\w+)\}?", text)
    if missing:
        fix = f"set it: export {missing[1]}=..."
        problems.append(Problem(where=where(at), found=f"the environment variable {missing[1]} is not set", fix=fix))
    try:
        FilePath(text).exists()
    except OSError as error:  # too long, or in a folder that may not be looked into
        problems.append(
            Problem(where=where(at), found=f"the path {text[:100]!r}", fix=f"it cannot be: {error.strerror}")
        )
    return FilePath(text)


def iterate_specs(spec: Spec) -> Iterator[Spec]:
    """The component and everything nested in it."""
    yield spec
    for nested in nested_specs(spec):
        yield from iterate_specs(nested)


def nested_specs(spec: Spec) -> Iterator[Spec]:
    """The components among the options of a component."""
    for value in [*spec.options.values(), *spec.common.values()]:
        items = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
        yield from (item for item in items if isinstance(item, Spec))


def with_options(spec: Spec, **changes: Any) -> Spec:
    """The same component with other plain options (already checked values)."""
    return replace(spec, options={**spec.options, **changes})

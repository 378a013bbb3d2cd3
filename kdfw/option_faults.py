"""What pydantic finds wrong in the options of a component, said of what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kdfw.annotations import (
    fits,
    fixed_length,
    has_tag,
    in_words,
    item_type,
    members_of,
    tag_of,
    tags_text,
)
from kdfw.errors import Problem, did_you_mean

Path = tuple[str | int, ...]
Where = Callable[[Path], str]


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """What pydantic finds wrong, without the places that only pydantic knows of (members of unions, validators)."""

    at: Path
    kind: str
    found: Any
    wanted: str
    known: tuple[str, ...] = ()
    """Keys of the mapping the fault is in."""


def problems_of(
    error: ValidationError,
    annotations: Mapping[str, Any],
    given: Mapping[str, Any],
    path: Path,
    where: Where,
    also_known: Sequence[str],
) -> Iterator[Problem]:
    """One problem for each place that is wrong.

    Args:
        annotations: of the options by name.
        given: the options as they were written, below `path`.
        also_known: keys that may stand beside the options.
    """
    by_option: dict[Any, list[Any]] = {}
    for fault in error.errors():
        by_option.setdefault(fault["loc"][0], []).append(fault)
    for name, faults in by_option.items():
        annotation = annotations.get(name, Any)
        known = (*annotations, *also_known)
        for found in _faults(annotation, [(fault["loc"][1:], fault) for fault in faults], given.get(name), (name,)):
            at, last = (*path, *found.at), found.at[-1]
            if found.kind == "extra_forbidden":
                names = found.known if len(found.at) > 1 else known
                fix = f"{did_you_mean(str(last), names)} known keys: {', '.join(names) or '(none)'}".strip()
                yield Problem(where=where(at), found=f"unknown key {str(last)!r}", fix=fix)
            elif found.kind == "missing":
                yield Problem(where=where(at[:-1]), found=f"missing key {last!r}", fix="add it")
            else:
                yield Problem(where=where(at), found=f"found {shown(found.found)}", fix=found.wanted)


def _faults(
    annotation: Any, faults: Sequence[tuple[Path, Any]], value: Any, at: Path, known: tuple[str, ...] = ()
) -> Iterator[_Fault]:
    """Faults of one value of a type, one for each place that is wrong.

    Args:
        faults: pydantic's, each with the rest of its location below the value.
        value: as it was written.
        known: keys of the mapping the value is in.
    """
    faults = [(_without_validators(rest), fault) for rest, fault in faults]
    members = members_of(annotation)
    tag = tag_of(annotation)
    if len(members) > 1 and not tag and any(rest for rest, _ in faults):
        # pydantic reports what keeps each member from being meant, in their order
        groups: dict[Any, list[tuple[Path, Any]]] = {}
        for rest, fault in faults:
            groups.setdefault(rest[0] if rest else None, []).append((rest[1:], fault))
        meant = [
            (member, group)
            for member, group in zip(members, groups.values(), strict=False)
            if len(groups) == len(members) and fits(member, value)
        ]
        if len(meant) == 1:
            yield from _faults(*meant[0], value, at, known)
        else:
            yield _Fault(at=at, kind="union", found=value, wanted=f"write {in_words(annotation)}")
        return
    if tag:
        faults = [(rest[1:], fault) for rest, fault in faults]
        chosen = [member for member in members if isinstance(value, Mapping) and has_tag(member, tag, value.get(tag))]
        members = chosen or members
    member = members[0] if members else annotation
    below: dict[Any, list[tuple[Path, Any]]] = {}
    for rest, fault in faults:
        if rest:
            below.setdefault(rest[0], []).append((rest[1:], fault))
            continue
        wanted = _lower(str(fault["msg"]).removeprefix("Value error, "))
        if fault["type"] in ("list_type", "tuple_type", "sequence_str", "too_short") or (
            fault["type"] == "missing" and at and isinstance(at[-1], int)
        ):
            wanted = f"write {in_words(member)}"
        elif fault["type"] in ("dict_type", "model_type", "model_attributes_type", "union_tag_not_found"):
            wanted = f"write options by name{tags_text(members, tag)}"
        elif fault["type"] == "union_tag_invalid":
            inside, name = (*at, tag), value.get(tag) if isinstance(value, Mapping) else value
            yield _Fault(at=inside, kind=fault["type"], found=name, wanted=f"write options{tags_text(members, tag)}")
            continue
        yield _Fault(at=at, kind=fault["type"], found=fault.get("input"), wanted=wanted, known=known)
    fixed = fixed_length(member)
    if fixed and any(fault["type"] in ("missing", "too_long") for group in below.values() for _, fault in group):
        yield _Fault(at=at, kind="length", found=value, wanted=f"write {in_words(member)}")
        return
    for part, group in below.items():
        inner, keys = item_type(member, part)
        alone = isinstance(part, int) and not isinstance(value, (list, tuple))  # a list of one without its brackets
        yield from _faults(inner, group, value if alone else _item(value, part), at if alone else (*at, part), keys)


def _without_validators(rest: Path) -> Path:
    return tuple(part for part in rest if not (isinstance(part, str) and part.startswith("function-")))


def _item(value: Any, part: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def shown(value: Any) -> str:
    """A value as it was written, or its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""What the annotation of an option says: its members, items and limits, and how they are written for people."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def plain_type(annotation: Any) -> Any:
    """The type without what `Annotated` says of it."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def range_text_of(metadata: Sequence[Any]) -> str:
    """`> 0, <= 1`, or an empty string."""
    signs = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}
    named = [(signs.get(type(meta).__name__), meta) for meta in metadata]
    return ", ".join(f"{sign} {getattr(meta, type(meta).__name__.lower())}" for sign, meta in named if sign)


def type_text_of(annotation: Any) -> str:
    """How a type is written for people."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return type_text_of(typing.get_args(annotation)[0])
    if origin is Literal:
        return " | ".join(str(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text_of(part) for part in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    if origin is not None:
        inside = ", ".join(type_text_of(part) for part in typing.get_args(annotation) if part is not Ellipsis)
        return f"{getattr(origin, '__name__', origin)}[{inside}]"
    return getattr(annotation, "__name__", str(annotation))


def metadata_of(field_definition: Any) -> list[Any]:
    """Constraints of an (annotation, default or FieldInfo) as pydantic takes them."""
    if field_definition is None:
        return []
    annotation, default = field_definition
    found: list[Any] = []
    if typing.get_origin(annotation) is Annotated:
        for meta in typing.get_args(annotation)[1:]:
            found.extend(meta.metadata if isinstance(meta, FieldInfo) else [meta])
    if isinstance(default, FieldInfo):
        found.extend(default.metadata)
    return found


def members_of(annotation: Any) -> list[Any]:
    """The types a value may have, None left out; a single one for a type that is no union."""
    plain = plain_type(annotation)
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        found: list[Any] = []
        for part in typing.get_args(plain):
            if part is not type(None):
                found.extend(members_of(part) if not tag_of(part) and _metadata_free(part) else [part])
        return found
    return [annotation]


def _metadata_free(annotation: Any) -> bool:
    return typing.get_origin(annotation) is not Annotated


def tag_of(annotation: Any) -> str:
    """The key that says which member of a union is meant, or an empty string."""
    if typing.get_origin(annotation) is not Annotated:
        return ""
    found = (getattr(meta, "discriminator", None) for meta in typing.get_args(annotation)[1:])
    return next((name for name in found if isinstance(name, str)), "")


def has_tag(member: Any, tag: str, value: Any) -> bool:
    """Whether a member of a union is the one that its tag means by a value."""
    model = plain_type(member)
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or tag not in model.model_fields:
        return False
    return value in typing.get_args(model.model_fields[tag].annotation)


def tags_text(members: Sequence[Any], tag: str) -> str:
    """Which values the key may have that says which member of a union is meant."""
    models = [model for model in map(model_of, members) if model is not None and tag in model.model_fields]
    names = [name for model in models for name in typing.get_args(model.model_fields[tag].annotation)]
    return f", with `{tag}` one of: {', '.join(map(str, names))}" if names else ""


def list_item(annotation: Any) -> Any:
    """The type of the items of a list of any length; None for what is none."""
    plain = plain_type(annotation)
    arguments = typing.get_args(plain)
    origin = typing.get_origin(plain)
    if origin is tuple:
        return arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
    return arguments[0] if origin in (list, Sequence, set, frozenset) and arguments else None


def fixed_length(annotation: Any) -> bool:
    """Whether it is a tuple with a type for each item."""
    return typing.get_origin(plain_type(annotation)) is tuple and list_item(annotation) is None


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that it is, if it is one."""
    plain = plain_type(annotation)
    return plain if isinstance(plain, type) and issubclass(plain, BaseModel) else None


def field_type(definition: FieldInfo) -> Any:
    """The annotation of a field of a pydantic model with its constraints and discriminator."""
    found: Any = definition.annotation
    if definition.discriminator is not None:
        return Annotated[found, FieldInfo(discriminator=definition.discriminator)]
    for meta in definition.metadata:
        found = Annotated[found, meta]
    return found


def item_type(annotation: Any, part: Any) -> tuple[Any, tuple[str, ...]]:
    """The type of an item of a value of a type, and the keys known beside it."""
    model = model_of(annotation)
    if model is not None:
        field_of = model.model_fields.get(part)
        return (Any if field_of is None else field_type(field_of)), tuple(model.model_fields)
    item = list_item(annotation)
    plain = plain_type(annotation)
    arguments = typing.get_args(plain)
    if item is not None:
        return item, ()
    if typing.get_origin(plain) in (dict, Mapping) and len(arguments) == 2:
        return arguments[1], ()
    if typing.get_origin(plain) is tuple and isinstance(part, int) and part < len(arguments):
        return arguments[part], ()
    return Any, ()


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value has the shape of a type: a mapping, a list, or neither."""
    is_list = list_item(annotation) is not None or fixed_length(annotation)
    is_mapping = model_of(annotation) is not None or typing.get_origin(plain_type(annotation)) in (dict, Mapping)
    if isinstance(value, Mapping) or is_mapping:
        return isinstance(value, Mapping) and is_mapping
    return isinstance(value, (list, tuple)) == is_list


def listed(annotation: Any, value: Any) -> Any:
    """The value with brackets around what stands for a list of one; also inside lists, mappings and settings."""
    members = members_of(annotation)
    if value is None or len(members) != 1:
        return value
    member = members[0]
    item = list_item(member)
    if item is not None:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [listed(item, each) for each in items]
    if isinstance(value, Mapping):
        return {key: listed(item_type(member, key)[0], each) for key, each in value.items()}
    return value


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def in_words(annotation: Any) -> str:
    """What may be written for a type, in words."""
    members = members_of(annotation)
    if len(members) > 1:
        return " or ".join(in_words(member) for member in members)
    member = members[0]
    plain = plain_type(member)
    item = list_item(member)
    if item is not None:
        inner = in_words(item)
        return f"a list, each {inner}" if " or " in inner else f"a list of: {inner}"
    if fixed_length(member):
        return f"[{', '.join(in_words(part) for part in typing.get_args(plain))}]"
    if typing.get_origin(plain) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(plain))
    if typing.get_origin(plain) in (dict, Mapping) or model_of(plain) is not None:
        return "keys with values"
    text = _WORDS.get(plain) or type_text_of(plain)
    limits = range_text_of(metadata_of((member, ...)))
    return f"{text} {limits}".strip()

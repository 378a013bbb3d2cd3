"""The JSON schema of recipes (draft 2020-12), for editors: completion, descriptions, ranges, red lines.

Made from the registry and the options of the components, so it knows whatever is installed. It is a little stricter
than kdfw in form (no numbers written as text) and knows less: whether a name refers to something is checked by
`kdfw plan`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from kdfw.components import KINDS, Schedule
from kdfw.describe import docstring
from kdfw.models.precision import PRECISIONS
from kdfw.options import Option, Registry, options_of
from kdfw.plugins import registry as installed
from kdfw.recipe.recipe import FORMAT, MAX_CYCLES, TOP_KEYS
from kdfw.tracking import TRACKERS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAME = "^[A-Za-z0-9][A-Za-z0-9_-]*$"
RUN_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Schema = dict[str, Any]


def recipe_schema(components: Registry | None = None) -> Schema:
    """The schema as a JSON value.

    Args:
        components: what recipes may name; default: everything installed.
    """
    return _Writer(components or installed()).schema()


class _Writer:
    def __init__(self, components: Registry) -> None:
        self.components = components
        self.definitions: Schema = {}

    def schema(self) -> Schema:
        for kind in KINDS:
            self._kind(kind)
        self._models()
        self._stages()
        properties = {key: self._top(key) | {"description": text} for key, text in TOP_KEYS.items()}
        return {
            "$schema": DIALECT,
            "title": "kdfw recipe",
            "type": "object",
            "properties": properties,
            "required": ["data"],
            "anyOf": [{"required": ["student"]}, {"required": ["stages"]}, {"required": ["method"]}],
            "not": {"required": ["stages", "method"]},
            "additionalProperties": False,
            "$defs": dict(sorted(self.definitions.items())),
        }

    # ------------------------------------------------------------ components

    def _kind(self, kind: str) -> None:
        """`loss.kl` for each component, and `loss` for any of them in every form it may be written."""
        names = self.components.names(kind)
        for name in names:
            self.definitions[f"{kind}.{name}"] = self._component(kind, name)
        self.definitions[kind] = self._by_type([(kind, name) for name in names], number=kind == "schedule")

    def _by_type(self, members: Sequence[tuple[str, str]], *, number: bool = False, short: bool = True) -> Schema:
        """A mapping whose `type` chooses its schema, or just a name where nothing else is required, or a number.

        Chosen by `if` and `then` rather than by `oneOf`, so that an editor reports the faults of what is meant and
        not those of all the others.
        """
        if not members:
            return {"not": {}, "description": "nothing of this kind is installed"}
        chosen = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"$ref": _ref(f"{kind}.{name}")},
            }
            for kind, name in members
        ]
        mapping = {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": [name for _, name in members], "description": "which one"}},
            "allOf": chosen,
        }
        bare = [name for kind, name in members if self.definitions[f"{kind}.{name}"]["required"] == ["type"]]
        others: list[Schema] = [{"type": "number"}] if number else []
        others += [{"enum": bare}] if bare and short else []
        if not others:
            return mapping
        rest = others[0] if len(others) == 1 else {"anyOf": others}
        return {"if": {"type": "object"}, "then": mapping, "else": rest}

    def _component(self, kind: str, name: str) -> Schema:
        cls = self.components.get(kind, name)
        own = options_of(cls)
        shared = options_of(cls.common) if cls.common is not None else {}
        options = {**{key: option for key, option in shared.items() if key not in own}, **own}
        properties: Schema = {"type": {"const": name}}
        for key, option in options.items():
            properties[key] = self._option(option)
        if kind == "stage":
            properties["name"] = {
                "type": "string",
                "pattern": NAME,
                "description": "name of the stage; default: its type",
            }
        summary, _ = docstring(cls)
        text = f"{summary} {cls.paper}".strip()
        return {
            "type": "object",
            "description": text,
            "properties": properties,
            "required": ["type", *(key for key, option in own.items() if option.required)],
            "additionalProperties": False,
        }

    def _option(self, option: Option) -> Schema:
        if option.form == "component":
            kind = next((kind for kind, base in KINDS.items() if base is option.annotation), "")
            inner: Schema = {"$ref": _ref(kind)} if kind else {}
            schema = _contained(inner, option)
        elif option.form == "reference":
            assert option.ref is not None
            what = "model, teacher or score stage" if option.ref.to == "teacher" else option.ref.to
            text = (
                f"name of a {what} of this recipe; `a | b` takes b where there is no a yet, `name#2` the second cycle's"
            )
            schema = _contained({"type": "string", "minLength": 1, "description": text}, option)
        else:
            schema = self._plain(option)
        if option.description:
            schema = {**schema, "description": option.description}
        default = _json_default(option.default)
        if not option.required and default is not None:
            schema = {**schema, "default": default}
        return schema

    def _plain(self, option: Option) -> Schema:
        annotation, default = option.field
        if isinstance(default, FieldInfo) and default.metadata:
            for meta in default.metadata:
                annotation = _annotated(annotation, meta)
        try:
            schema: Schema = TypeAdapter(annotation).json_schema(ref_template="#/$defs/{model}")
        except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
            return {}  # a type of the plugin's own: kdfw checks it, an editor cannot
        for name, definition in schema.pop("$defs", {}).items():
            self._define(name, _bare_lists(definition))
        schema = _bare_lists(schema)
        if schema.get("type") == "object" and "title" in schema and "properties" in schema:
            name = schema["title"]
            self._define(name, schema)
            return {"$ref": _ref(name)}
        return schema

    def _define(self, name: str, definition: Schema) -> None:
        known = self.definitions.get(name)
        assert known is None or known == definition, f"two settings classes are called {name!r}"
        self.definitions[name] = definition

    # ------------------------------------------------------------ the recipe around them

    def _models(self) -> None:
        members = [(kind, name) for kind in ("student", "teacher") for name in self.components.names(kind)]
        self.definitions["model"] = self._by_type(members)
        self.definitions["model-or-name"] = {
            "if": {"type": "string"},
            "then": {"pattern": NAME, "description": "a name under `models`, or a type"},
            "else": {"$ref": _ref("model")},
        }

    def _stages(self) -> None:
        block = {
            "type": "object",
            "description": "stages that run several times; a name means its latest earlier occurrence",
            "properties": {
                "repeat": {"type": "integer", "minimum": 1, "maximum": MAX_CYCLES, "description": "number of cycles"},
                "name": {"type": "string", "description": "for people"},
                "stages": {"type": "array", "minItems": 1, "items": {"$ref": _ref("stage-entry")}},
            },
            "required": ["repeat", "stages"],
            "additionalProperties": False,
        }
        self.definitions["repeat-block"] = block
        # a stage written as a bare name has no options, and no stage works without any
        members = [("stage", name) for name in self.components.names("stage")]
        self.definitions["stage-entry"] = self._by_type(members, short=False)
        self.definitions["method-entry"] = {
            "type": "object",
            "description": "a published method, written out into its stages at this place",
            "properties": {"method": {"$ref": _ref("method")}},
            "required": ["method"],
            "additionalProperties": False,
        }
        self.definitions["stage-or-block"] = {
            "if": {"type": "object", "required": ["repeat"]},
            "then": {"$ref": _ref("repeat-block")},
            "else": {
                "if": {"type": "object", "required": ["method"]},
                "then": {"$ref": _ref("method-entry")},
                "else": {"$ref": _ref("stage-entry")},
            },
        }

    def _top(self, key: str) -> Schema:
        one: dict[str, Schema] = {
            "kdfw": {"const": FORMAT},
            "name": {"type": "string", "pattern": RUN_NAME},
            "description": {"type": "string"},
            "license": {"type": "string"},
            "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 13},
            "precision": {"enum": list(PRECISIONS), "default": "auto"},
            "trackers": _bare_lists({"type": "array", "items": {"enum": list(TRACKERS)}}),
            "data": {
                "if": {"type": "object", "not": {"required": ["type"]}},
                "then": {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": _ref("dataset")}},
                "else": {"$ref": _ref("dataset")},
            },
            "models": {
                "type": "object",
                "propertyNames": {"pattern": NAME},
                "additionalProperties": {"$ref": _ref("model")},
            },
            "stages": {"type": "array", "minItems": 1, "items": {"$ref": _ref("stage-or-block")}},
            "method": {"$ref": _ref("method")},
            "train": self._train(),
            "student": {"$ref": _ref("model-or-name")},
            "teacher": {"$ref": _ref("model-or-name")},
            "teachers": _bare_lists({"type": "array", "items": {"$ref": _ref("model-or-name")}}),
            "loss": {"$ref": _ref("loss")},
            "losses": _bare_lists({"type": "array", "minItems": 1, "items": {"$ref": _ref("loss")}}),
            "sampler": {"$ref": _ref("sampler")},
            "candidates": self._part_of_stage("mine"),
            "evaluate": self._part_of_stage("evaluate"),
        }
        return one.get(key, {})

    def _train(self) -> Schema:
        definition = self.definitions.get("stage.train", {})
        setting: Schema = definition.get("properties", {}).get("train", {"type": "object"})
        return {key: value for key, value in setting.items() if key not in ("description", "default")}

    def _part_of_stage(self, name: str) -> Schema:
        """Some options of a stage that the short form writes out; none is required, since it fills the others in."""
        definition = self.definitions.get(f"stage.{name}")
        if definition is None:
            return {"type": "object"}
        properties = {key: value for key, value in definition["properties"].items() if key != "type"}
        return {"type": "object", "properties": properties, "additionalProperties": False}


def _bare_lists(schema: Any) -> Any:
    """The schema with every list of any length written also as its one item, as kdfw reads it."""
    if isinstance(schema, list):
        return [_bare_lists(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value if key in ("default", "enum", "const") else _bare_lists(value) for key, value in schema.items()}
    if found.get("type") != "array" or "prefixItems" in found or "items" not in found:
        return found
    about = {key: found.pop(key) for key in ("title", "description", "default") if key in found}
    return {**about, "if": {"type": "array"}, "then": found, "else": found["items"]}


def _ref(name: str) -> str:
    return f"#/$defs/{name}"


def _annotated(annotation: Any, meta: Any) -> Any:
    from typing import Annotated

    return Annotated[annotation, meta]


def _contained(inner: Schema, option: Option) -> Schema:
    if option.container == "list":
        # one item may stand without its list
        schema: Schema = {"if": {"type": "array"}, "then": {"items": inner}, "else": inner}
    elif option.container == "dict":
        schema = {"type": "object", "additionalProperties": inner}
    else:
        schema = inner
    nullable = option.container == "optional" or (option.default is None and not option.required)
    return {"if": {"not": {"type": "null"}}, "then": schema} if nullable else schema


def _json_default(default: Any) -> Any:
    """The default as a JSON value; None where there is none worth showing."""
    if isinstance(default, FieldInfo):
        default = None if default.is_required() else default.get_default(call_default_factory=True)
    if isinstance(default, (BaseModel, Schedule)) or default is None:
        return None
    if isinstance(default, (tuple, set, frozenset)):
        default = list(default)
    try:
        return json.loads(json.dumps(default))
    except (TypeError, ValueError):
        return None

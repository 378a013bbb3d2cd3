"""Discovery of plugins by entry point, and the registry of what they offer.

The engine's own components come through the same hooks (`kdfw/builtin.py`), so that the hooks are proven by use.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from kdfw import hookspecs
from kdfw.components import KINDS, Component
from kdfw.errors import PluginError, one_of

GROUP = "kdfw"
_NAME = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """A loaded plugin: what `kdfw plugins` lists."""

    name: str
    distribution: str
    version: str
    module: str
    components: Mapping[str, tuple[str, ...]]
    """Component names by kind."""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Every component by kind and name, and the plugin it came from."""

    components: Mapping[str, Mapping[str, type[Component]]]
    origins: Mapping[tuple[str, str], str]
    plugins: tuple[PluginInfo, ...] = field(default=())

    def names(self, kind: str) -> list[str]:
        """Names of one kind, sorted."""
        return sorted(self.components[kind])

    def get(self, kind: str, name: str) -> type[Component]:
        """The class; raises PluginError naming the nearest known one."""
        try:
            return self.components[kind][name]
        except KeyError:
            raise PluginError(f"no {kind} {name!r}; {one_of(name, self.components.get(kind, {}))}") from None


def hook_name(kind: str) -> str:
    """The hook that collects components of a kind."""
    return f"kdfw_{kind}{'es' if kind.endswith('s') else 's'}"


def build_registry(plugins: Iterable[tuple[str, Any, str, str]]) -> Registry:
    """Check plugins against the hook specifications and collect what they offer.

    Args:
        plugins: (name, module or object, distribution, version).
    Raises: PluginError for a misspelled hook, a wrong answer, or a name offered twice.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    known_hooks = [hook_name(kind) for kind in KINDS]
    components: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
    origins: dict[tuple[str, str], str] = {}
    infos = []
    for name, plugin, distribution, version in plugins:
        for attribute in dir(plugin):
            if attribute.startswith("kdfw_") and attribute not in known_hooks and callable(getattr(plugin, attribute)):
                raise PluginError(f"plugin {name!r}: no hook {attribute!r}; {one_of(attribute, known_hooks)}")
            marked = hasattr(getattr(plugin, attribute, None), f"{hookspecs.PROJECT}_impl")
            if attribute in known_hooks and not marked and plugin is not hookspecs:
                raise PluginError(f"plugin {name!r}: {attribute} lacks the decorator @hookimpl")
        try:
            manager.register(plugin, name=name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {name!r}: {error}") from error
        offered: dict[str, tuple[str, ...]] = {}
        for kind, base in KINDS.items():
            answer = getattr(plugin, hook_name(kind), None)
            if answer is None:
                continue
            found = answer()
            if not isinstance(found, Mapping):
                raise PluginError(f"plugin {name!r}: {hook_name(kind)} must return a mapping of names to classes")
            for component, cls in found.items():
                _check_class(name, kind, component, cls, base)
                clash = origins.get((kind, component)) or (
                    origins.get(({"student": "teacher", "teacher": "student"}.get(kind, ""), component))
                )
                if clash:
                    raise PluginError(f"plugins {clash!r} and {name!r} both offer the {kind} {component!r}")
                components[kind][component] = cls
                origins[kind, component] = name
            offered[kind] = tuple(sorted(found))
        module = getattr(plugin, "__name__", type(plugin).__qualname__)
        infos.append(
            PluginInfo(name=name, distribution=distribution, version=version, module=module, components=offered)
        )
    return Registry(components=components, origins=origins, plugins=tuple(infos))


def _check_class(plugin: str, kind: str, name: Any, cls: Any, base: type[Component]) -> None:
    if not isinstance(name, str) or not _NAME.match(name):
        raise PluginError(f"plugin {plugin!r}: {kind} name {name!r} must be lower-case words joined by hyphens")
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PluginError(f"plugin {plugin!r}: {kind} {name!r} is not a subclass of kdfw.components.{base.__name__}")


def installed_plugins() -> list[tuple[str, Any, str, str]]:
    """The engine's own components, then every entry point of the group, by name."""
    from kdfw import __version__, builtin

    found: list[tuple[str, Any, str, str]] = [("kdfw", builtin, "kdfw", __version__)]
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"
        try:
            plugin = entry.load()
        except Exception as error:  # a plugin may fail in any way; say which one and stop
            raise PluginError(
                f"plugin {entry.name!r} of {distribution} {version} cannot be imported: "
                f"{type(error).__name__}: {error}; mend it or uninstall it: pip uninstall {distribution}"
            ) from error
        found.append((entry.name, plugin, distribution, version))
    return found


@functools.cache
def registry() -> Registry:
    """The registry of everything installed; built once a process."""
    return build_registry(installed_plugins())

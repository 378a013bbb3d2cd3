"""The registry: what plugins may offer, and how each fault is named."""

from __future__ import annotations

import importlib.metadata
import types
from collections.abc import Callable
from typing import Any

import pytest

from kdfw import hookspecs, plugins
from kdfw.components import KINDS, Component, Loss, Model, Schedule, Teacher
from kdfw.errors import PluginError
from kdfw.hookspecs import hookimpl
from kdfw.plugins import build_registry, hook_name, installed_plugins


class Half(Schedule):
    """Always one half."""

    def __call__(self, clock: Any) -> float:
        return 0.5


def plugin(name: str, version: str = "1.0", **hooks: Callable[[], Any]) -> tuple[str, Any, str, str]:
    """A plugin module with these hook implementations, decorated."""
    module = types.ModuleType(f"{name}_module")
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    return name, module, f"dist-{name}", version


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_component_is_collected_by_its_hook(kind: str) -> None:
    cls = type("Offered", (KINDS[kind],), {})
    found = build_registry([plugin("one", **{hook_name(kind): lambda: {"offered": cls}})])
    assert hasattr(hookspecs, hook_name(kind))
    assert found.get(kind, "offered") is cls
    assert found.names(kind) == ["offered"]
    assert found.origins == {(kind, "offered"): "one"}
    info = found.plugins[0]
    assert (info.name, info.distribution, info.version, info.module) == ("one", "dist-one", "1.0", "one_module")
    assert info.components == {kind: ("offered",)}


def test_there_is_a_hook_for_every_kind_and_a_kind_for_every_hook() -> None:
    assert {name for name in vars(hookspecs) if name.startswith("kdfw_")} == {hook_name(kind) for kind in KINDS}


def test_a_name_offered_twice_is_refused_naming_both_plugins() -> None:
    both = [plugin(name, kdfw_schedules=lambda: {"half": Half}) for name in ("first", "second")]
    with pytest.raises(PluginError, match="plugins 'first' and 'second' both offer the schedule 'half'"):
        build_registry(both)


def test_students_and_teachers_share_one_namespace() -> None:
    student, teacher = type("S", (Model,), {}), type("T", (Teacher,), {})
    one = plugin("one", kdfw_students=lambda: {"judge": student})
    two = plugin("two", kdfw_teachers=lambda: {"judge": teacher})
    for order in ([one, two], [two, one]):
        with pytest.raises(PluginError, match="'one'.*'judge'|'two'.*'judge'"):
            build_registry(order)


def test_a_misspelled_hook_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(PluginError, match="plugin 'typo': no hook 'kdfw_loses'; did you mean 'kdfw_losses'"):
        build_registry([plugin("typo", kdfw_loses=lambda: {})])


def test_a_hook_without_its_decorator_is_refused() -> None:
    module = types.ModuleType("forgot")
    module.kdfw_schedules = lambda: {"half": Half}  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="plugin 'forgot': kdfw_schedules lacks the decorator @hookimpl"):
        build_registry([("forgot", module, "dist", "1")])


def test_an_argument_the_hook_does_not_have_is_refused() -> None:
    def kdfw_schedules(registry: Any) -> dict[str, type[Component]]:
        return {"half": Half}

    with pytest.raises(PluginError, match=r"(?s)plugin 'curious'.*registry"):
        build_registry([plugin("curious", kdfw_schedules=kdfw_schedules)])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: [Half], "kdfw_schedules must return a mapping of names to classes"),
        (lambda: {"Half": Half}, "schedule name 'Half' must be lower-case words joined by hyphens"),
        (lambda: {"a_half": Half}, "schedule name 'a_half' must be lower-case words joined by hyphens"),
        (lambda: {1: Half}, "schedule name 1 must be lower-case words joined by hyphens"),
        (lambda: {"half": Half()}, "schedule 'half' is not a subclass of kdfw.components.Schedule"),
        (lambda: {"half": Loss}, "schedule 'half' is not a subclass of kdfw.components.Schedule"),
    ],
)
def test_a_wrong_answer_is_refused(answer: Callable[[], Any], message: str) -> None:
    with pytest.raises(PluginError, match=f"plugin 'odd': .*{message}"):
        build_registry([plugin("odd", kdfw_schedules=answer)])


def test_an_unknown_component_is_named_with_the_nearest() -> None:
    found = build_registry([plugin("one", kdfw_schedules=lambda: {"half": Half})])
    with pytest.raises(PluginError, match="no schedule 'halv'; did you mean 'half'"):
        found.get("schedule", "halv")
    with pytest.raises(PluginError, match="no losse 'half'"):
        found.get("losse", "half")


class FakeEntry:
    """An entry point of an installed distribution."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self.load = load
        self.dist = types.SimpleNamespace(name=f"kdfw-{name}", version="2.5")


def entry_points(monkeypatch: pytest.MonkeyPatch, *entries: FakeEntry) -> None:
    def found(*, group: str) -> list[FakeEntry]:
        return list(entries) if group == "kdfw" else []  # libraries ask for groups of their own

    monkeypatch.setattr(importlib.metadata, "entry_points", found)


def test_plugins_are_found_by_entry_point_with_their_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: types.ModuleType(name) for name in ("zeta", "alpha")}
    entry_points(monkeypatch, *(FakeEntry(name, lambda name=name: modules[name]) for name in modules))
    found = installed_plugins()
    assert [row[0] for row in found] == ["kdfw", "alpha", "zeta"]  # the engine's own, then by name
    assert found[1] == ("alpha", modules["alpha"], "kdfw-alpha", "2.5")


@pytest.mark.parametrize("fault", [ImportError("No module named 'gone'"), RuntimeError("boom"), SyntaxError("bad")])
def test_a_plugin_that_cannot_be_imported_is_named_with_how_to_remove_it(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def load() -> Any:
        raise fault

    entry_points(monkeypatch, FakeEntry("broken", load))
    with pytest.raises(PluginError) as caught:
        installed_plugins()
    message = str(caught.value)
    assert "plugin 'broken' of kdfw-broken 2.5 cannot be imported" in message
    assert type(fault).__name__ in message and str(fault) in message
    assert "pip uninstall kdfw-broken" in message


def test_what_is_installed_forms_one_registry() -> None:
    found = plugins.registry()
    assert found.plugins[0].name == "kdfw"
    assert {"kl", "info-nce", "margin-mse"} <= set(found.names("loss"))
    assert found.origins["schedule", "constant"] == "kdfw"

"""Imports go one way, as docs/design.md says: every import statement of the tree is read, none is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    (
        "types errors amounts references fingerprint files memory components context hookspecs annotations "
        "option_faults options processes schedules tracking"
    ),
    ("data losses models samplers retrieval teachers evaluation report"),
    ("plugins describe recipe scaffold"),
    ("engine builtin"),
    ("cli __main__"),
)
"""From the bottom up. A layer imports itself and what is below."""
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
PARTS = {
    "data": "",
    "losses": "",
    "models": "data",
    "samplers": "data",
    "retrieval": "data models",
    "teachers": "data models retrieval",
    "evaluation": "data models samplers retrieval teachers",
    "report": "data",
}
"""Which parts of the second layer each of them may import."""
UPWARD = {
    ("kdfw.plugins", "kdfw.builtin"): "the engine's own components are offered through the hooks of plugins",
    ("kdfw.models.checkpoint", "kdfw.plugins"): "a saved model of a plugin's type is looked up when one is opened",
}
"""Imports against the direction, inside functions only."""
PLUGIN_LIBRARIES = {"torch", "numpy", "pydantic"}
LAZY_PLUGIN_LIBRARIES = {"transformers"}


@dataclass(frozen=True)
class Import:
    """One imported module; `lazy`: inside a function."""

    module: str
    name: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


def modules(folder: str, package: str) -> dict[str, str]:
    """Source by module name."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        found[name] = path.read_text(encoding="utf-8")
    return found


KDFW = modules("kdfw", "kdfw")
PLUGINS = modules("plugins", "kdfw_plugins")


def imports(sources: Mapping[str, str]) -> list[Import]:
    """Every import but those for type checkers. `from a import b` counts as `a.b` where that is a module."""
    return [found for module, text in sources.items() for found in _walk(module, ast.parse(text), False)]


def _walk(module: str, node: ast.AST, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from _walk(module, child, lazy)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module, alias.name, node.lineno, lazy)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{module}:{node.lineno}: a relative import"
        for name in dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names):
            whole = name in KDFW or name in PLUGINS
            yield Import(module, name if whole else str(node.module), node.lineno, lazy)
    else:
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from _walk(module, child, inside)


def against_the_direction(found: list[Import]) -> list[str]:
    """What a module of kdfw imports although it is above it, or a part beside it that it may not know."""
    wrong = []
    for one in found:
        if not one.name.startswith("kdfw.") or one.module == "kdfw":
            continue
        own, other = one.module.split(".")[1], one.name.split(".")[1]
        if one.lazy and (one.module, one.name) in UPWARD:
            continue
        beside = own in PARTS and other in PARTS and other not in (own, *PARTS[own].split())
        if LEVELS[other] > LEVELS[own] or beside:
            wrong.append(str(one))
    return wrong


def cycle(found: list[Import]) -> list[str]:
    """A cycle of imports that run when a module is imported, or nothing. A package runs before what is in it."""
    runs: dict[str, set[str]] = {}
    for one in found:
        if one.lazy:
            continue
        parts = one.name.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            if not f"{one.module}.".startswith(f"{name}."):
                runs.setdefault(one.module, set()).add(name)
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for name in sorted(runs.get(module, ())):
            if around := visit(name, [*path, module]):
                return around
        done.add(module)
        return []

    return next((around for module in sorted(runs) if (around := visit(module, []))), [])


def strange_to_plugins(found: list[Import]) -> list[str]:
    """What a plugin imports although it is another plugin's, the engine's own business, or a library too many."""
    wrong = []
    for one in found:
        top, own = one.name.split(".")[0], one.module.split(".")[:2]
        if top == "kdfw_plugins":
            good = one.name.split(".")[:2] == own
        elif top == "kdfw":
            good = one.name == "kdfw" or LEVELS[one.name.split(".")[1]] <= 1
        else:
            allowed = PLUGIN_LIBRARIES | (LAZY_PLUGIN_LIBRARIES if one.lazy else set())
            good = top in sys.stdlib_module_names or top in allowed
        if not good:
            wrong.append(str(one))
    return wrong


def test_every_module_has_a_layer() -> None:
    names = {module.split(".")[1] for module in KDFW if "." in module}
    assert names == set(LEVELS)


def test_imports_go_one_way() -> None:
    found = imports(KDFW)
    assert len(found) > 500  # the walk sees the tree
    assert against_the_direction(found) == []
    used = {(one.module, one.name) for one in found if one.lazy}
    assert set(UPWARD) <= used  # no exception outlives its reason


def test_nothing_is_imported_in_a_circle() -> None:
    assert cycle(imports(KDFW)) == []
    assert cycle(imports(PLUGINS)) == []


def test_kdfw_knows_no_plugin() -> None:
    assert [str(one) for one in imports(KDFW) if one.name.split(".")[0] == "kdfw_plugins"] == []


def test_plugins_import_kdfw_and_no_sibling() -> None:
    assert strange_to_plugins(imports(PLUGINS)) == []


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("kdfw.losses.kl", "import kdfw.engine.run", True),
        ("kdfw.losses.kl", "def f():\n    from kdfw.data.runs import read_run", True),
        ("kdfw.teachers.llm", "from kdfw.data import runs", False),
        ("kdfw.files", "from kdfw.models.rows import RowGroup", True),
        ("kdfw.files", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import kdfw.models.rows", False),
        ("kdfw.plugins", "import kdfw.builtin", True),
        ("kdfw.plugins", "def f():\n    import kdfw.builtin", False),
    ],
)
def test_the_walk_would_see_it(module: str, line: str, wrong: bool) -> None:
    assert bool(against_the_direction(imports({module: line}))) is wrong


def test_the_walk_would_see_a_circle_and_a_sibling() -> None:
    circle = {"kdfw.a": "import kdfw.b", "kdfw.b": "from kdfw.c import x", "kdfw.c": "class C:\n    import kdfw.a"}
    assert cycle(imports(circle)) == ["kdfw.a", "kdfw.b", "kdfw.c", "kdfw.a"]
    assert cycle(imports({**circle, "kdfw.c": "def f():\n    import kdfw.a"})) == []
    for line in ("import kdfw_plugins.nkd", "import kdfw.engine.run", "import scipy", "import transformers"):
        assert strange_to_plugins(imports({"kdfw_plugins.mine.part": line})), line
    assert strange_to_plugins(imports({"kdfw_plugins.mine.part": "import kdfw_plugins.mine, json, torch.nn"})) == []

"""Every hook has a section in docs/hooks.md with its exact signature and an example, and a test."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from kdfw import hookspecs
from kdfw.components import KINDS
from kdfw.plugins import hook_name

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
HOOKS = sorted(
    name for name, value in vars(hookspecs).items() if name.startswith("kdfw_") and inspect.isfunction(value)
)


def section(hook: str) -> str:
    found = re.search(rf"^## {hook}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/hooks.md has no section '## {hook}'"
    return found.group(1)


def test_there_are_hooks_and_no_section_is_of_another() -> None:
    assert len(HOOKS) == len(KINDS) >= 11
    assert sorted(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_a_section_with_its_exact_signature_and_an_example(hook: str) -> None:
    text = section(hook)
    signature = f"def {hook}{inspect.signature(getattr(hookspecs, hook))}".replace("'", "")
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert blocks and blocks[0].strip() == signature
    assert len(blocks) >= 2, "no example"
    kind = next(kind for kind in KINDS if hook_name(kind) == hook)
    for block in blocks[1:]:
        tree = ast.parse(block)
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
        assert KINDS[kind].__name__ in bases or (kind == "loss" and "DistillationLoss" in bases)
        for node in classes:  # an example may not implement what its base class does not have
            own = [part.name for part in node.body if isinstance(part, ast.FunctionDef) and part.name != "__init__"]
            assert all(hasattr(KINDS[kind], name) or name == "per_item" for name in own)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_what_it_is_for_and_where_recipes_use_it(hook: str) -> None:
    assert len(inspect.getdoc(getattr(hookspecs, hook)) or "") > 40
    assert re.search(r"[Uu]sed\s(under|as|wherever)", section(hook))


def test_every_hook_is_tested() -> None:
    tests = (ROOT / "tests" / "test_plugins.py").read_text(encoding="utf-8")
    # one test, over every kind of component, goes through every hook
    assert '@pytest.mark.parametrize("kind", KINDS)' in tests and "hook_name(kind): lambda" in tests

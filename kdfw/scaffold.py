"""`kdfw new-plugin NAME`: a working plugin package with one loss and a test, to start from."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from kdfw import __version__
from kdfw.errors import PluginError
from kdfw.files import write_atomic
from kdfw.plugins import registry

_NAME = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
MAX_NAME = 60


def write_plugin(name: str, into: Path) -> Path:
    """Write the package `<into>/<name>` and return its folder.

    Args:
        name: lower-case words joined by hyphens; names the distribution, the loss and (with underscores) the module.
        into: an existing folder, or one to create.
    Raises: PluginError for a name that cannot be used, or a folder that exists.
    """
    module = _module_name(name)
    known = registry()
    if name in known.names("loss") or any(plugin.name == name for plugin in known.plugins):
        raise PluginError(f"plugin name {name!r}: a loss or a plugin of that name is installed; choose another")
    folder = into / name
    if folder.exists() or folder.is_symlink():
        raise PluginError(f"{folder} exists; choose another name, or another folder with --into")
    values = {
        "name": name,
        "module": module,
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "function": f"{module}_loss",
        "kdfw": ".".join(__version__.split(".")[:2]),
    }
    for path, text in _files(values).items():
        write_atomic(folder / path, text)
    return folder


def _module_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.match(name) or len(name) > MAX_NAME:
        raise PluginError(
            f"plugin name {name!r}: lower-case letters and digits, words joined by hyphens, beginning with a letter, "
            f"at most {MAX_NAME} characters, as in 'my-loss'"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in _taken_modules():
        raise PluginError(f"plugin name {name!r}: the module {module!r} would hide one of Python's or kdfw's own")
    return module


def _taken_modules() -> frozenset[str]:
    import sys

    return frozenset(sys.stdlib_module_names) | {
        "kdfw",
        "kdfw_plugins",
        "kdfw_recipes",
        "torch",
        "transformers",
        "test",
        "tests",
    }


def _files(values: Mapping[str, str]) -> dict[str, str]:
    """Text of each file by its path in the package."""
    templates = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{values['module']}/__init__.py": _INIT,
        f"{values['module']}/loss.py": _LOSS,
        "tests/test_loss.py": _TEST,
    }
    return {path: Template(text).substitute(values) for path, text in templates.items()}


_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "A loss for kdfw"
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["kdfw>=$kdfw"]

[project.optional-dependencies]
test = ["pytest>=8"]

# how kdfw finds the plugin: a name of its own, and the module that answers the hooks
[project.entry-points.kdfw]
$name = "$module"

[tool.setuptools]
packages = ["$module"]

[tool.pytest.ini_options]
testpaths = ["tests"]
filterwarnings = ["error"]

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["E", "F", "W", "I", "UP", "B"]
"""

_README = """\
# $name

A plugin for kdfw with one loss, `$name`.

    pip install -e '.[test]'     # install
    pytest                       # its test
    kdfw plugins                 # kdfw sees it
    kdfw explain loss $name      # its options

In a recipe:

    losses:
      - {type: $name, power: 2.0, temperature: 1.0}

Where to go on: the formula and the component are in `$module/loss.py`, what the plugin offers is in
`$module/__init__.py`. Other kinds of components have a hook each: see `kdfw/hookspecs.py`.
"""

_INIT = '''\
"""What this plugin offers to kdfw: hook implementations only."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Loss
from kdfw.hookspecs import hookimpl

from $module.loss import $cls


@hookimpl
def kdfw_losses() -> Mapping[str, type[Loss]]:
    return {"$name": $cls}
'''

_LOSS = '''\
"""Distance between the softened distributions of teacher and student."""

from __future__ import annotations

from typing import Annotated

import torch
from kdfw.components import DistillationLoss, Schedule
from kdfw.types import Batch, Signals
from pydantic import Field
from torch import Tensor


def $function(student: Tensor, teacher: Tensor, mask: Tensor, power: float = 2.0) -> Tensor:
    """Sum over alternatives of |p - q|**power, with p and q the softmax of teacher and student.

    Args:
        student: (Q, D) scores, already divided by their temperature; gradients flow here.
        teacher: (Q, D) scores, likewise; constant.
        mask: (Q, D) bool, True where the alternative is real; at least one per row.
        power: exponent of the distance; 1 is the total variation times two, 2 the Brier distance.
    Returns: (Q,), >= 0; 0 where the two distributions are equal.
    """
    floor = torch.finfo(student.dtype).min
    p = teacher.detach().masked_fill(~mask, floor).softmax(-1)
    q = student.masked_fill(~mask, floor).softmax(-1)
    return (p - q).abs().pow(power).sum(-1)


class $cls(DistillationLoss):
    """Distance between the softened distributions of teacher and student.

    Replace this formula by yours. The first line of this text is what `kdfw explain loss` prints.
    """

    paper = ""  # arXiv id of the paper, e.g. "arXiv:1503.02531"
    version = 1  # raise it when the loss gives other values for the same options

    def __init__(
        self,
        *,
        temperature: Annotated[Schedule | float, Field(gt=0, description="divides teacher and student scores")] = 1.0,
        power: Annotated[float, Field(ge=1, description="exponent of the distance")] = 2.0,
    ) -> None:
        super().__init__(temperature=temperature)
        self.power = power

    def per_item(
        self,
        student: Signals,
        teacher: Signals,
        batch: Batch,
        teacher_temperature: float | Tensor,
        student_temperature: float | Tensor,
    ) -> Tensor:
        ours, theirs = student["logits"], teacher["logits"]
        mask = torch.ones_like(ours, dtype=torch.bool) if student.mask is None else student.mask
        return $function(ours / student_temperature, theirs / teacher_temperature, mask, self.power)
'''

_TEST = '''\
"""The loss by hand, and how kdfw sees it."""

from __future__ import annotations

import pytest
import torch
from kdfw.components import Loss
from kdfw.plugins import registry
from kdfw.types import Batch, Clock, Signals

from $module.loss import $cls, $function

CLOCK = Clock(step=0, total_steps=1, epoch=0, total_epochs=1, steps_per_epoch=1, seed=0)


def test_the_formula_by_hand() -> None:
    teacher = torch.tensor([[3.0, 1.0]]).log()  # p = (3/4, 1/4); the student's q = (1/2, 1/2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    squared = $function(torch.zeros(1, 2), teacher, mask, power=2.0)
    absolute = $function(torch.zeros(1, 2), teacher, mask, power=1.0)
    assert squared.item() == pytest.approx(2 * 0.25**2, abs=1e-6)
    assert absolute.item() == pytest.approx(2 * 0.25, abs=1e-6)


def test_padding_does_not_count() -> None:
    teacher = torch.tensor([[3.0, 1.0, 50.0]]).log()
    mask = torch.tensor([[True, True, False]])
    found = $function(torch.tensor([[0.0, 0.0, 9.0]]), teacher, mask)
    assert found.item() == pytest.approx(2 * 0.25**2, abs=1e-6)


def test_the_temperature_divides_both_sides_and_items_are_averaged() -> None:
    # at temperature 2 the first teacher softens to (3/4, 1/4); the second item is equal on both sides
    teacher = Signals(logits=torch.stack([2 * torch.tensor([3.0, 1.0]).log(), torch.zeros(2)]))
    student = Signals(logits=torch.zeros(2, 2))
    batch = Batch(task="ranking", ids=("a", "b"), inputs={}, num_items=2.0)
    terms = $cls(temperature=2.0)(student, [teacher], batch, CLOCK)
    assert terms.total.item() == pytest.approx(2 * 0.25**2 / 2, abs=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0]], requires_grad=True)
    $function(student, teacher, torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert teacher.grad is None and student.grad is not None and student.grad.abs().sum() > 0


def test_kdfw_finds_it_by_its_entry_point() -> None:
    found = registry().get("loss", "$name")
    assert found is $cls and issubclass(found, Loss)
    assert registry().origins["loss", "$name"] == "$name"
'''

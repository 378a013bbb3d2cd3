"""Compare the plugins with values recorded from the authors' code: `python tests/golden/run.py [DIR] [--methods a,b]`.

A golden file is a JSON list of groups {method, function, source, params, cases}; a case has `params`, `inputs` and
`expected`. An adapter (`adapters/<method>.py`) turns the inputs of one function into tensors, calls the plugin's public
functions and names the results as the file does. Everything is computed in float64; the tolerance is that of the
arithmetic the recorded value came from.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
DTYPE = torch.float64


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded call: what an adapter gets."""

    method: str
    function: str
    number: int
    params: Mapping[str, Any]
    """Those of the group, overridden by those of the case."""
    inputs: Mapping[str, Any]
    expected: Mapping[str, Any]
    dtype: str
    """What the recorded values were computed in, in the words of the file."""
    source: str
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """An input as float64, without gradient."""
        return torch.tensor(self.inputs[name], dtype=DTYPE)

    def leaf(self, name: str) -> Tensor:
        """An input as float64 that collects a gradient; the same tensor each time."""
        if name not in self.leaves:
            self.leaves[name] = self.tensor(name).requires_grad_()
        return self.leaves[name]

    def index(self, name: str) -> Tensor:
        """An input as whole numbers."""
        return torch.tensor(self.inputs[name], dtype=torch.long)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """`grad_<name>` of every leaf asked for so far; zeros for a leaf that the loss does not depend on."""
        grads = torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True, retain_graph=True)
        return {
            f"grad_{name}": torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(self.leaves.items(), grads, strict=True)
        }


Adapter = Callable[[Case], Mapping[str, Any]]


@dataclass(kw_only=True)
class Outcome:
    """The cases of one function."""

    method: str
    function: str
    passed: int = 0
    failed: int = 0
    missing: int = 0
    messages: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"golden {self.method} {self.function} passed={self.passed} failed={self.failed} missing={self.missing}"


def golden_folder() -> Path:
    """`KDFW_GOLDEN`, else the copies beside this file."""
    return Path(os.environ.get("KDFW_GOLDEN") or HERE)


def read_cases(folder: Path, methods: set[str] | None = None) -> Iterator[Case]:
    """Every case of every JSON file of a folder; of some methods only when they are named."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise SystemExit(f"{folder}: no golden file (*.json) here")
    for file in files:
        groups = json.loads(file.read_text(encoding="utf-8"))
        for group in groups if isinstance(groups, list) else [groups]:
            if methods is not None and group["method"] not in methods:
                continue
            for number, case in enumerate(group["cases"]):
                params = {**group.get("params", {}), **case.get("params", {})}
                yield Case(
                    method=group["method"],
                    function=group["function"],
                    number=number,
                    params=params,
                    inputs=case["inputs"],
                    expected=case["expected"],
                    dtype=str(params.get("dtype") or case.get("dtype") or group.get("dtype") or "float64"),
                    source=str(group.get("source", "")),
                )


def plugin_folder(method: str) -> Path:
    """Where the plugin of a method lives."""
    return HERE.parents[1] / "plugins" / method.replace("-", "_")


def load_adapters(method: str) -> Mapping[str, Adapter]:
    """The `ADAPTERS` of a method's adapter file; empty when there is none."""
    file = HERE / "adapters" / f"{method.replace('-', '_')}.py"
    if not re.fullmatch(r"[a-z0-9-]+", method) or not file.exists():
        return {}
    spec = importlib.util.spec_from_file_location(f"kdfw_golden_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    if str(HERE) not in sys.path:  # adapters share modules of this folder
        sys.path.append(str(HERE))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    adapters: Mapping[str, Adapter] = module.ADAPTERS
    return adapters


def tolerance(key: str, dtype: str, stated: float = 0.0) -> tuple[float, float]:
    """(relative, share of the largest value that is allowed absolutely) for one expected value.

    `dtype` is a plain name, or says it by name of the value: `float32 for official_*, float64 for derived_*`.
    `stated` is what a case says of its own values (mixed precision inside the source); it may only loosen, and not
    what is said to be float64.
    """
    single = "float32" in dtype
    named = {prefix: name for name, prefix in re.findall(r"(float\d\d) for (\w+?)_?\*", dtype)}
    for prefix, name in named.items():
        if key.startswith(prefix):
            single = name == "float32"
            stated = stated if single else 0.0
    relative, share = (1e-4, 1e-6) if single else (1e-6, 1e-12)
    return max(relative, stated), max(share, stated)


def plain(value: Any) -> Any:
    """Tensors, arrays and scalars as JSON would hold them."""
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def numbers(value: Any) -> Iterator[float]:
    """Every finite number inside nested lists."""
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)) and math.isfinite(value):
        yield float(value)


def difference(got: Any, expected: Any, relative: float, absolute: float, path: str = "") -> str | None:
    """What is different, as `path: got ..., expected ...`; None when the values agree. `got` is plain already."""
    here = path or "value"
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or set(got) != set(expected):
            keys = sorted(got) if isinstance(got, Mapping) else got
            return f"{here}: got keys {keys}, expected {sorted(expected)}"
        found = (difference(got[key], expected[key], relative, absolute, f"{path}.{key}") for key in expected)
        return next((text for text in found if text), None)
    if isinstance(expected, list):
        if isinstance(got, (int, float)) and len(expected) == 1:  # a scalar recorded from a parameter of shape (1,)
            got = [got]
        if not isinstance(got, list) or len(got) != len(expected):
            return f"{here}: got {_short(got)}, expected {_short(expected)} (length {len(expected)})"
        pairs = enumerate(zip(got, expected, strict=True))
        found = (difference(a, b, relative, absolute, f"{path}[{i}]") for i, (a, b) in pairs)
        return next((text for text in found if text), None)
    if isinstance(got, list) and len(got) == 1 and isinstance(expected, (int, float)):
        got = got[0]
    if isinstance(expected, (int, float)) and isinstance(got, (int, float)):
        if math.isnan(expected) and math.isnan(got) or got == expected:
            return None
        if abs(got - expected) <= relative * abs(expected) + absolute:
            return None
    elif got == expected and type(got) is type(expected):
        return None
    return f"{here}: got {_short(got)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def compare(case: Case, got: Mapping[str, Any]) -> list[str]:
    """Every expected value that the adapter did not reproduce."""
    wrong = []
    for key, expected in case.expected.items():
        if key not in got:
            wrong.append(f"{key}: not computed, expected {_short(expected)}")
            continue
        relative, share = tolerance(key, case.dtype, float(case.params.get("tolerance", 0.0)))
        scale = max([1.0, *(abs(number) for number in numbers(expected))])
        text = difference(plain(got[key]), expected, relative, share * scale)
        if text is not None:
            wrong.append(f"{key} {text}")
    return wrong


def run(folder: Path, methods: set[str] | None = None) -> list[Outcome]:
    """Run every case; outcomes in the order of the files."""
    outcomes: dict[tuple[str, str], Outcome] = {}
    adapters: dict[str, Mapping[str, Adapter]] = {}
    for case in read_cases(folder, methods):
        key = (case.method, case.function)
        outcome = outcomes.setdefault(key, Outcome(method=case.method, function=case.function))
        if case.method not in adapters:
            adapters[case.method] = load_adapters(case.method)
        adapter = adapters[case.method].get(case.function)
        title = f"{case.method} {case.function} case {case.number}"
        if adapter is None:
            outcome.missing += 1
            outcome.messages.append(f"{title}: no adapter")
            continue
        try:
            wrong = compare(case, adapter(case))
        except Exception:  # an adapter may fail in any way; it counts as a failure of this case
            wrong = [traceback.format_exc()]
        if wrong:
            outcome.failed += 1
            outcome.messages += [f"{title}: {text}" for text in wrong]
        else:
            outcome.passed += 1
    return list(outcomes.values())


def main(arguments: list[str] | None = None) -> int:
    """Print one line per method and function, then what went wrong; 1 if anything failed or is missing."""
    parser = argparse.ArgumentParser(description="compare the plugins with recorded values")
    parser.add_argument("folder", nargs="?", type=Path, help="default: KDFW_GOLDEN, else the copies in the repository")
    parser.add_argument("--methods", help="names joined by commas; default: all")
    options = parser.parse_args(arguments)
    methods = set(options.methods.split(",")) if options.methods else None
    outcomes = run(options.folder or golden_folder(), methods)
    absent = sorted((methods or set()) - {outcome.method for outcome in outcomes})
    for outcome in outcomes:
        print(outcome)
    for outcome in outcomes:
        for message in outcome.messages:
            print(message, file=sys.stderr)
    for method in absent:
        print(f"{method}: no golden case", file=sys.stderr)
    return int(bool(absent) or any(outcome.failed or outcome.missing for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

"""Every plugin folder explains itself; the tables of options are those of the code.

`python tests/plugins/test_readmes.py --write` rewrites the tables.
"""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from kdfw.components import KINDS
from kdfw.options import options_of
from kdfw.plugins import build_registry, hook_name

ROOT = Path(__file__).resolve().parents[2] / "plugins"
NAMES = sorted(folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists())
BEGIN, END = "<!-- options: generated from the code -->", "<!-- end of options -->"


def offered(name: str) -> dict[tuple[str, str], Any]:
    module = importlib.import_module(f"kdfw_plugins.{name}")
    hooks = ((kind, getattr(module, hook_name(kind), None)) for kind in KINDS)
    return {(kind, label): cls for kind, hook in hooks if hook is not None for label, cls in hook().items()}


def tables(name: str) -> str:
    parts = []
    for (kind, label), cls in offered(name).items():
        rows = [f"### {kind} `{label}`", "", (cls.__doc__ or "").strip().split("\n")[0], ""]
        options = options_of(cls)
        if options:
            rows += ["| option | type | default | range | meaning |", "|---|---|---|---|---|"]
        for option in options.values():
            default = "required" if option.required else f"`{option.default!r}`"
            cells = (f"`{option.name}`", option.type_text, default, option.range_text, option.description)
            rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts).strip() or "No components: the plugin's functions are used with core components."


def test_some_plugins_were_found() -> None:
    assert {"ctkd", "prod", "trans_encoder"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_has_what_a_reader_needs(name: str) -> None:
    text = (ROOT / name / "README.md").read_text(encoding="utf-8")
    for heading in ("## What it does", "## Reconstructed or unverified", "## Options", "## Combining", "## Measured"):
        assert heading in text, heading
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    table = text.split(BEGIN)[1].split(END)[0].strip()
    assert table == tables(name), "run: python tests/plugins/test_readmes.py --write"


@pytest.mark.parametrize("name", NAMES)
def test_the_plugin_registers_alone(name: str) -> None:
    module = importlib.import_module(f"kdfw_plugins.{name}")
    registry = build_registry([(name, module, "kdfw", "0")])
    assert {kind: set(names) for kind, names in registry.components.items() if names} == {
        kind: {label for own, label in offered(name) if own == kind} for kind in {kind for kind, _ in offered(name)}
    }
    for cls in offered(name).values():
        options_of(cls)


@pytest.mark.parametrize("name", NAMES)
def test_no_plugin_imports_another(name: str) -> None:
    for file in (ROOT / name).glob("*.py"):
        imported = set(re.findall(r"(?:from|import) kdfw_plugins\.(\w+)", file.read_text(encoding="utf-8")))
        assert imported <= {name}, f"{file}: {imported}"


if __name__ == "__main__" and "--write" in sys.argv:
    for plugin in NAMES:
        readme = ROOT / plugin / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        readme.write_text(f"{before}{BEGIN}\n\n{tables(plugin)}\n\n{END}{after}", encoding="utf-8")

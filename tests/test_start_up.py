"""`kdfw --help` and `import kdfw` load nothing heavy, so both answer at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "transformers", "pydantic", "scipy", "faiss", "yaml", "accelerate", "datasets")


@pytest.mark.parametrize(
    "code",
    [
        "import kdfw",
        "from kdfw.cli import main\nfor words in (['--help'], ['mine', '--help'], ['--version']):\n"
        "    try:\n        main(words)\n    except SystemExit as stopped:\n        assert stopped.code == 0",
    ],
    ids=["import", "help"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    asks = f"{code}\nimport json, sys\nprint('\\n' + json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []

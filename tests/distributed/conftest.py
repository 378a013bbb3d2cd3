"""A way to run the tiny recipe in several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_processes import Together


@pytest.fixture
def together(tmp_path: Path) -> Together:
    return Together(tmp_path)

"""A tiny workspace whose recipe goes through every stage kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from whole_runs import write_workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only for tests; see `write_workspace`."""
    return write_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)

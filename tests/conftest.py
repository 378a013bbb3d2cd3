"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# where the suite was started in the background the signal is ignored, and would be in every process a test starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests share the cores with each other; and bits repeat only for one number of threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models and data, and a recipe of many stages (`whole_runs`). Read-only for tests."""
    from whole_runs import write_workspace

    return write_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets; tests that need one skip where it is absent."""
    root = Path(os.environ.get("KDFW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data sets at {root}; set KDFW_DATA")
    return root

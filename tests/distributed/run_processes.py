"""Processes that find each other as those of a launcher do."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whole_runs import SERVER


def _child(work: Callable[..., None], arguments: Sequence[Any], variables: dict[str, str], errors: Path) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(variables)
    with errors.open("w", encoding="utf-8") as stream:
        sys.stderr = stream
        code = 1
        try:
            code = _code_of(work, arguments)
        except BaseException:
            traceback.print_exc()
        stream.flush()
    os._exit(code)  # as a process of the launcher ends: without waiting for daemons of the test's parent


def _code_of(work: Callable[..., None], arguments: Sequence[Any]) -> int:
    from kdfw.errors import KdfwError

    try:
        work(*arguments)
    except KdfwError as error:  # as the command line does
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


class Together:
    """Runs one function in several processes of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0

    def start(self, processes: int, work: Callable[..., None], *arguments: Any) -> Started:
        from kdfw.engine.launch import environment, open_store

        self.runs += 1
        folder = self.folder / f"errors-{self.runs}"
        folder.mkdir()
        store = open_store() if processes > 1 else None
        children = []
        for rank in range(processes):
            variables = {} if store is None else environment(rank, processes, store.port)
            child = SERVER.Process(target=_child, args=(work, arguments, variables, folder / str(rank)))
            child.start()
            children.append(child)
        return Started(children, folder, store)

    def __call__(self, processes: int, work: Callable[..., None], *arguments: Any) -> list[int]:
        return self.start(processes, work, *arguments).codes()


class Started:
    """Processes on their way."""

    def __init__(self, children: Sequence[Any], folder: Path, store: Any) -> None:
        self.children, self.folder, self.store = children, folder, store

    def codes(self, timeout: float = 120.0) -> list[int]:
        """Exit codes in the order of ranks; fails the test when a process does not end."""
        for child in self.children:
            child.join(timeout)
        hanging = [rank for rank, child in enumerate(self.children) if child.exitcode is None]
        for rank in hanging:
            self.children[rank].kill()
            self.children[rank].join()
        assert not hanging, f"processes {hanging} did not end:\n{self.errors()}"
        return [child.exitcode for child in self.children]

    def errors(self) -> str:
        """What the processes said, in the order of ranks."""
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.iterdir()))

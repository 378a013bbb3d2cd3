"""Many processes of one run: how they start, find each other, and stop together.

On one machine `kdfw run --processes N` starts them; on several, any launcher that sets torch's usual environment does
(`accelerate launch`, `torchrun`, SLURM). A process that fails leaves a note in the store through which the processes
found each other; the others read it within a second and stop too, wherever they wait.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from kdfw.context import Workers
from kdfw.errors import ConfigError, KdfwError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("kdfw")
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
"""How long a process may take to stop by itself after another one has failed."""
STOP_SECONDS = 120.0
"""How long the launcher waits for the others, who may be writing a checkpoint, before it kills them."""
_ANSWER = datetime.timedelta(seconds=30)
LONGEST_WAIT = datetime.timedelta(days=7)
"""Of a collective. Long, because one process may build an index for hours while the others wait; a process that dies
is noticed by its note, its closed connections or the launcher, not by this."""


class OtherProcessError(KdfwError):
    """Another process of the run failed; this one stops with it."""


def start_processes() -> tuple[Workers, torch.device]:
    """This process's place in the run and its device, through Accelerate.

    Raises: ConfigError when there are fewer GPUs on this machine than processes.
    """
    import torch

    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Workers(), torch.device("cuda", 0) if cuda else torch.device("cpu")
    import torch.distributed as dist
    from accelerate import PartialState

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cuda and here > torch.cuda.device_count():
        raise ConfigError(
            f"{here} processes on a machine with {torch.cuda.device_count()} GPUs; start one for each GPU "
            "(ACCELERATE_USE_CPU=true leaves the GPUs alone)"
        )
    if not dist.is_initialized():
        # host values (shapes, flags, JSON) go by gloo also where tensors go by NCCL
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=LONGEST_WAIT)
    state = PartialState(cpu=not cuda)
    return Workers(rank=dist.get_rank(), world_size=dist.get_world_size()), state.device


@contextlib.contextmanager
def stopping_together(workers: Workers) -> Iterator[None]:
    """Inside, a failure of any process ends all of them, with the exit code of the first.

    Raises: what went wrong here, or OtherProcessError when another process failed first.
    """
    store = _store() if workers.world_size > 1 else None
    if store is None:
        yield
        return
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(store, workers, finished), name="kdfw-watch", daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        first = _leave_note(store, _note(error, workers.rank))
        finished.set()
        if first["rank"] == workers.rank:
            raise
        same = first["message"] == str(error)
        if isinstance(error, KdfwError) and not same:
            raise
        if same or isinstance(error, KeyboardInterrupt) or first["code"] == 130:
            raise SystemExit(first["code"]) from None
        raise _stopped(first) from None
    finally:
        finished.set()
        # a thread that is inside torch's store when the interpreter ends would abort the process
        watcher.join(timeout=10)


def leave() -> None:
    """Part from the other processes, once all is done: the group's threads must not outlive the interpreter."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _note(error: BaseException, rank: int) -> dict[str, Any]:
    code = 130 if isinstance(error, KeyboardInterrupt) else error.exit_code if isinstance(error, KdfwError) else 1
    return {"rank": rank, "code": code, "message": str(error), "type": type(error).__name__}


def _stopped(first: Mapping[str, Any]) -> OtherProcessError:
    error = OtherProcessError(f"stopped with process {first['rank']}, which failed: {first['type']}")
    error.exit_code = first["code"]
    return error


def _store() -> Any:
    """A connection of our own to the store of the launcher; None where processes found each other in another way."""
    import torch.distributed as dist

    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        return None
    return dist.TCPStore(host, int(port), is_master=False, timeout=_ANSWER)  # type: ignore[attr-defined]


def _key() -> str:
    return f"kdfw/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _leave_note(store: Any, note: Mapping[str, Any]) -> dict[str, Any]:
    """Say that this process fails, unless another one has said so; returns the first note."""
    try:
        first: dict[str, Any] = json.loads(store.compare_set(_key(), "", json.dumps(note)))
    except RuntimeError:  # the store is gone, and with it the process that held it
        return dict(note)
    return first


def _watch(store: Any, workers: Workers, finished: threading.Event) -> None:
    """End this process when another one has failed, even where it waits inside a collective."""
    while not finished.wait(POLL_SECONDS):
        try:
            if not store.check([_key()]):
                continue
            first = json.loads(store.get(_key()))
        except RuntimeError:
            first = {"rank": 0, "code": 1, "type": "it is gone, and so is the launcher"}
        if finished.wait(GRACE_SECONDS) or first["rank"] == workers.rank:
            return
        if first["code"] != 130:
            print(f"error: {_stopped(first)}", file=sys.stderr, flush=True)
        # everything written so far is whole or will be made again: the run goes on from here
        os._exit(first["code"])


# ---------------------------------------------------------------- one machine


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What process `rank` of this machine needs to find the others, in the names that torch reads."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher holds the store, so no process can take it along
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def open_store() -> Any:
    """The store through which the processes of this machine find each other, on a free port (`.port`)."""
    import torch.distributed as dist

    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]


def launch(processes: int, arguments: Sequence[str], output: IO[bytes] | None = None) -> int:
    """Run `kdfw ARGUMENTS` in that many processes of this machine; returns the exit code of the first that failed.

    Torch's own launcher always returns 1 and prints a stack trace of itself. Ctrl-C and SIGTERM are passed on.

    Args:
        output: where the processes write what they would print; default: where this one prints.
    """
    threads = {}
    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    store = open_store()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "kdfw", *arguments],
            env={**os.environ, **threads, **environment(rank, processes, store.port)},
            start_new_session=True,  # Ctrl-C reaches them once, through us
            stdout=output,
            stderr=output,
        )
        for rank in range(processes)
    ]

    def pass_on(number: int, frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(children, store)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()


def _wait(children: Sequence[subprocess.Popen[bytes]], store: Any) -> int:
    """Wait for all; the exit code of the first failure."""
    failed_at: float | None = None
    code = 0
    while True:
        codes = [child.poll() for child in children]
        for rank, found in enumerate(codes):
            if found and failed_at is None:
                failed_at = time.monotonic()
                if found < 0:
                    killed = f"killed by {signal.Signals(-found).name}"
                    if found == -signal.SIGKILL:
                        killed += "; was there enough memory?"
                    print(f"error: process {rank} was {killed}", file=sys.stderr)
                    _leave_note(store, {"rank": rank, "code": 1, "message": killed, "type": killed})
                code = 130 if -found in (signal.SIGINT, signal.SIGTERM) else found if found > 0 else 1
        if all(found is not None for found in codes):
            return code
        if failed_at is not None and time.monotonic() - failed_at > STOP_SECONDS:
            return code
        time.sleep(0.05)

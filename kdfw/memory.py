"""Memory of the machine and of this process, and how its allocator is made to keep and to return it."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GROWTH = 1.35
"""By how much a process may grow beyond what it settled at before freed memory is returned."""
SETTLING = 8
"""Batches after which a process is taken to have settled: sizes differ, and freed memory stays until it is returned."""


def machine_memory() -> float:
    """Bytes of memory that programs of this machine (or container) may use; infinite where nobody says."""
    found = [math.inf]
    try:
        found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    except (ValueError, OSError, AttributeError):
        pass
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(name, encoding="ascii") as stream:
                found.append(float(stream.read()))
        except (OSError, ValueError):  # no such group, or `max`
            continue
    return min(found)


def watch_memory(device: torch.device) -> Callable[[], dict[str, int]]:
    """Begin to watch how much memory is in use at most; what comes back tells it in megabytes.

    `memory_mb`: of the GPU, or of the process, from now on. Where the kernel keeps only one peak for the life of a
    process, that is told instead, as `process_memory_mb`.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return lambda: {"memory_mb": int(torch.cuda.max_memory_allocated(device) / 2**20)}
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as stream:
            stream.write("5")  # sets the peak (VmHWM) to what is in use now
        return lambda: {"memory_mb": _peak_kilobytes() // 1024}
    except OSError:
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return lambda: {"process_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}


def _peak_kilobytes() -> int:
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith("VmHWM"))


def keep_freed_memory() -> None:
    """Tell glibc not to hand large blocks back to the kernel, which zeroes them page by page when they are wanted
    again. A setting of the whole process, for a program of its own to choose; results do not change."""
    libc = _libc()
    if libc is None:
        return
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):  # MMAP_MAX, TRIM_THRESHOLD, TOP_PAD
        libc.mallopt(parameter, value)


def return_freed_memory() -> None:
    """Give the kernel back whatever the allocator holds of freed memory, holes between blocks in use included."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


class Upkeep:
    """Keeps a loop over batches of many sizes from growing: call `check` after each.

    Compiled kernels that stay in memory come to lie between large tensors that are freed, so that the heap fills with
    holes that fit less and less: a two-layer student grew from 1.6 GB at the first step to 6.5 GB at the 151st. The
    next step takes its pages anew, which costs it a fraction of a second: hence only from time to time.
    """

    def __init__(self) -> None:
        self._seen, self._fresh = 0, False
        self._least = self._settled = 0.0
        """What it settled at in the beginning, and since memory was last returned."""

    def check(self) -> bool:
        """Return freed memory if the process has grown by `GROWTH` since it settled; whether it was done."""
        now = resident_memory()
        self._seen += 1
        if self._seen <= SETTLING:
            self._least = self._settled = max(self._least, now)
        elif self._fresh:  # the first batch shows what is needed; more of them would show new holes, too
            self._settled, self._fresh = max(self._least, now), False
        if now <= GROWTH * self._settled:
            return False
        return_freed_memory()
        self._fresh = True
        return True


def resident_memory() -> float:
    """Bytes of memory this process holds, mapped files apart; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            _, resident, shared = map(int, stream.read().split()[:3])
        return float(resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


@functools.cache
def _libc() -> Any:
    """glibc, or None where another library is in its place."""
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None

"""Which arithmetic is used, and how fast float32 matrix products are done on a CPU.

Nothing here acts on import: settings of the process change inside `numerics`, which the engine enters.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from kdfw.errors import ConfigError

PRECISIONS = ("auto", "fp32", "fp32-strict", "bf16")
MAX_ERROR = 1e-5
"""Largest relative error of a float32 matrix product against float64 that is still called float32."""


def resolve(precision: str, device: torch.device | str) -> str:
    """`auto`, `fp32`, `fp32-strict` or `bf16` -> `fp32`, `fp32-strict` or `bf16`.

    `auto` takes bf16 where the hardware multiplies it natively: CUDA devices that say so, CPUs with AVX512-BF16 or AMX.
    Raises: ConfigError for an unknown name.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: no {precision!r}; known: {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bf16" if has_native_bf16(torch.device(device)) else "fp32"


def autocast_dtype(resolved: str) -> torch.dtype | None:
    """What `represent(autocast=...)` takes for a resolved precision."""
    return torch.bfloat16 if resolved == "bf16" else None


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        flags = _cpu_flags()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


@functools.cache
def _cpu_flags() -> frozenset[str]:
    capabilities: dict[str, Any] = {}
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        capabilities = ask()
    flags = {name for name, present in capabilities.items() if present}
    if flags:
        return frozenset(flags)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        line = ""
    return frozenset(line.partition(":")[2].split())


@contextlib.contextmanager
def numerics(precision: str, device: torch.device | str) -> Iterator[dict[str, Any]]:
    """Set the process up for a precision; undone on exit. Yields what was chosen and measured, for the manifest.

    On a CPU, `fp32` tries oneDNN's matrix product, which can be twice as fast as the default where that one does not
    use AVX-512. The switch that selects it allows bf16 arithmetic on CPUs with AMX, so its error is measured once, and
    above `MAX_ERROR` the default stays. `fp32-strict` never tries. On CUDA, float32 products stay float32 (no TF32).
    """
    device = torch.device(device)
    resolved = resolve(precision, device)
    chosen: dict[str, Any] = {"precision": resolved, "device": device.type, "fp32_matmul": "default"}
    matmul = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if device.type != "cpu" or resolved == "fp32-strict" or not hasattr(matmul, "fp32_precision"):
        yield chosen
        return
    assert matmul is not None
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    error = onednn_error()
    chosen["onednn_error"] = error
    if error > MAX_ERROR:
        matmul.fp32_precision = before
    else:
        chosen["fp32_matmul"] = "onednn"
    try:
        yield chosen
    finally:
        matmul.fp32_precision = before


@functools.cache
def onednn_error() -> float:
    """Relative error (largest absolute error over largest value) of float32 products as now set, against float64."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for rows, inner, columns in ((256, 384, 1536), (512, 1536, 384)):
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(columns, inner, generator=generator)
        exact = left.double() @ right.double().T
        for found in (torch.nn.functional.linear(left, right), torch.bmm(left[None], right.T[None])[0]):
            worst = max(worst, float((found.double() - exact).abs().max() / exact.abs().max()))
    return worst

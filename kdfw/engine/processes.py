"""The few collectives kdfw needs, each a no-op for one process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kdfw.engine.context import Workers


def gather_rows(array: np.ndarray, workers: Workers) -> np.ndarray:
    """Every process's rows in rank order. `array` is (rows, ...); rows may differ between processes."""
    if workers.world_size == 1:
        return array
    import torch
    import torch.distributed as dist

    contiguous = np.ascontiguousarray(array)
    shapes: list[Any] = [None] * workers.world_size
    dist.all_gather_object(shapes, (contiguous.shape, contiguous.dtype.str))
    widest = max(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes)
    if widest == 0:
        return array
    device = _device()
    padded = torch.zeros(widest, dtype=torch.uint8)
    raw = torch.from_numpy(np.frombuffer(contiguous.tobytes(), dtype=np.uint8).copy())
    padded[: len(raw)] = raw
    parts = [torch.empty(widest, dtype=torch.uint8, device=device) for _ in range(workers.world_size)]
    dist.all_gather(parts, padded.to(device))
    found = []
    for part, (shape, kind) in zip(parts, shapes, strict=True):
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        found.append(np.frombuffer(part[:size].cpu().numpy().tobytes(), dtype=np.dtype(kind)).reshape(shape))
    return np.concatenate(found)


def barrier(workers: Workers) -> None:
    """Wait until every process is here."""
    if workers.world_size > 1:
        import torch.distributed as dist

        dist.barrier()


def from_main(value: Any, workers: Workers) -> Any:
    """The main process's value (JSON-able) on every process."""
    if workers.world_size == 1:
        return value
    import torch.distributed as dist

    box = [json.dumps(value) if workers.main else None]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return json.loads(box[0])


def _device() -> Any:
    import torch
    import torch.distributed as dist

    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")

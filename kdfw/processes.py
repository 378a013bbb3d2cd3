"""The few collectives kdfw needs, each a no-op for one process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from kdfw.context import Workers


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


def share_weights(module: Module, workers: Workers) -> None:
    """The main process's parameters and buffers on every process."""
    if workers.world_size == 1:
        return
    import torch.distributed as dist

    for value in module.state_dict().values():
        here = value.detach().contiguous()
        dist.broadcast(here, src=0)
        value.copy_(here)


BUCKET = 1 << 25
"""Numbers exchanged at once."""


def mean_gradients(parameters: Sequence[Parameter], workers: Workers) -> None:
    """Average gradients over processes. Every process gives the same parameters in the same order.

    A parameter without a gradient on some processes counts as zero there; without one on all it keeps none.
    """
    if workers.world_size == 1 or not parameters:
        return
    import torch
    import torch.distributed as dist

    device = parameters[0].device
    used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, there in zip(parameters, used.tolist(), strict=True):
        if there and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= workers.world_size
        begin = 0
        for gradient in bucket:
            gradient.copy_(flat[begin : begin + gradient.numel()].view_as(gradient))
            begin += gradient.numel()


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype in groups of at most `BUCKET` numbers (or one larger tensor)."""
    for kind in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype != kind:
                continue
            if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(gradient)
        if bucket:
            yield bucket


def any_process(value: bool, workers: Workers) -> bool:
    """Whether it is true on any process."""
    if workers.world_size == 1:
        return value
    import torch
    import torch.distributed as dist

    flag = torch.tensor([int(value)], device=_device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def sum_values(values: Mapping[str, float], workers: Workers) -> dict[str, float]:
    """Sums by name over processes; names may differ between them."""
    if workers.world_size == 1:
        return dict(values)
    import torch.distributed as dist

    found: list[Any] = [None] * workers.world_size
    dist.all_gather_object(found, dict(values))
    total: dict[str, float] = {}
    for part in found:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _device() -> Any:
    import torch
    import torch.distributed as dist

    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")

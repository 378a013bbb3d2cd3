"""Checkpoints of a training stage: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdfw.errors import ArtifactError
from kdfw.files import files_below, sync_file, sync_folder, write_json
from kdfw.fingerprint import file_digest

KEEP = 2
"""Checkpoints kept; the newest may turn out to be damaged."""


def save(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
) -> Path:
    """Write `folder/step-N`, then remove older ones beyond `KEEP`.

    Args:
        step: optimizer steps done.
        state: JSON values (best measure so far, ...).
    Raises: ArtifactError when the disk is full; what was there before stays.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{step:08d}"
    building = folder / f".building-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        for name, module in modules.items():
            save_file(_contiguous(module.state_dict()), building / f"{name}.weights.safetensors")
        for name, optimizer in optimizers.items():
            tensors, numbers = _flatten(optimizer)
            save_file(tensors, building / f"{name}.optimizer.safetensors")
            write_json(building / f"{name}.optimizer.json", numbers)
        write_json(building / "state.json", {"step": step, **state})
        digests = {}
        for file in files_below(building):
            sync_file(building / file)
            digests[file.as_posix()] = file_digest(building / file)
        write_json(building / "checksums.json", digests)
        if target.exists():
            shutil.rmtree(target)
        os.replace(building, target)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, RuntimeError) and "No space" not in str(error):
            raise
        raise ArtifactError(f"{target}: cannot write a checkpoint: {error}; free some space and run again") from error
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums hold; None when there is none."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            digests = json.loads((candidate / "checksums.json").read_text(encoding="utf-8"))
            if all(file_digest(candidate / name) == digest for name, digest in digests.items()):
                return candidate
        except (OSError, ValueError):
            continue
    return None


def restore(
    checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Put a checkpoint's weights and optimizer states back; returns its `state`."""
    from safetensors.torch import load_file

    for name, module in modules.items():
        module.load_state_dict(load_file(checkpoint / f"{name}.weights.safetensors"))
    for name, optimizer in optimizers.items():
        tensors = load_file(checkpoint / f"{name}.optimizer.safetensors")
        numbers = json.loads((checkpoint / f"{name}.optimizer.json").read_text(encoding="utf-8"))
        _unflatten(optimizer, tensors, numbers)
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # tied weights share memory, which safetensors refuses
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.data_ptr()
        result[name] = tensor.detach().clone().contiguous() if pointer in seen else tensor.detach().contiguous()
        seen.add(pointer)
    return result


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _unflatten(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)

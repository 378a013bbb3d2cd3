"""Checkpoints of a training stage: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdfw.errors import ArtifactError
from kdfw.files import files_below, read_json, sync_file, sync_folder, write_atomic, write_json
from kdfw.fingerprint import file_digest

log = logging.getLogger("kdfw")
KEEP = 2
"""Checkpoints kept; the newest may turn out to be damaged."""


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def save(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    *,
    refers: int | None = None,
    along: Iterable[Path] = (),
) -> Path:
    """Write `folder/step-N`, then remove older ones beyond `KEEP`.

    Args:
        step: optimizer steps done.
        state: JSON values (best measure so far, ...).
        refers: the step of an earlier checkpoint that this one needs (the best one); it is not removed.
        along: files that are kept with it, where they are there.
    Raises: ArtifactError when the disk is full; what was there before stays.
    """
    from safetensors.torch import save_file

    target = place(folder, step)
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
        for file in along:
            if file.exists():
                shutil.copyfile(file, building / file.name)
        write_json(building / "state.json", {"step": step, "refers": refers, **state})
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
    _prune(folder, target)
    return target


def _prune(folder: Path, newest: Path) -> None:
    others = sorted(path for path in folder.glob("step-*") if path != newest)
    kept = [newest, *others[len(others) - KEEP + 1 :]]
    needed = [_referred(checkpoint) for checkpoint in kept]
    for old in others:
        if old not in kept and old not in needed:
            shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, and so is the one it refers to; None when there is none."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        if is_whole(candidate) and ((other := _referred(candidate)) is None or is_whole(other)):
            return candidate
        log.warning("%s: damaged, or refers to one that is; passed over", candidate)
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether its checksums hold."""
    try:
        digests = read_json(checkpoint / "checksums.json")
        return bool(digests) and all(file_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def require_whole(checkpoint: Path) -> None:
    """Raises: ArtifactError when its checksums do not hold."""
    if not is_whole(checkpoint):
        raise ArtifactError(f"{checkpoint}: damaged since it was written; run again, to go on from an earlier one")


def _referred(checkpoint: Path) -> Path | None:
    try:
        step = read_json(checkpoint / "state.json")["refers"]
        return None if step is None or step == step_of(checkpoint) else place(checkpoint.parent, step)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def bring_back(checkpoint: Path | None, folder: Path, names: Iterable[str]) -> None:
    """Put files back that were kept with a checkpoint; those that were not there then (or ever) are removed."""
    for name in names:
        if checkpoint is not None and (checkpoint / name).exists():
            write_atomic(folder / name, (checkpoint / name).read_bytes())
        else:
            (folder / name).unlink(missing_ok=True)


def restore(
    checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Put a checkpoint's weights and optimizer states back; returns its `state`."""
    from safetensors.torch import load_file

    for name, module in modules.items():
        module.load_state_dict(load_file(checkpoint / f"{name}.weights.safetensors"))
    for name, optimizer in optimizers.items():
        tensors = load_file(checkpoint / f"{name}.optimizer.safetensors")
        numbers = read_json(checkpoint / f"{name}.optimizer.json")
        _unflatten(optimizer, tensors, numbers)
    state: dict[str, Any] = read_json(checkpoint / "state.json")
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

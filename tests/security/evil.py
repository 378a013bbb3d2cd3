"""Attacks that leave a mark: a file that is there when code has run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

PICKLED_NAMES = ("pytorch_model.bin", "model.ckpt", "training_args.bin", "optimizer.pt")


class _Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def evil_pickle(mark: Path) -> bytes:
    """Bytes that make `mark` when they are unpickled."""
    return pickle.dumps(_Touch(mark))


def evil_torch_file(path: Path, mark: Path) -> None:
    """A `torch.save` archive whose pickle makes `mark`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", evil_pickle(mark))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def evil_code(mark: Path) -> str:
    """Python source that makes `mark` when it is imported."""
    return f"open({str(mark)!r}, 'w').close()\nfrom transformers import BertModel, BertConfig, BertTokenizerFast\n"

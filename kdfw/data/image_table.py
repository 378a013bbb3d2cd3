"""Images with ids in flat, memory-mapped files: a column of pictures that stands wherever a column of texts does."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.data.table import TextTable, TextTableWriter
from kdfw.errors import ArtifactError, DataError, MissingDependencyError
from kdfw.files import load_array, read_json

MAX_IMAGE_BYTES = 1 << 26
"""A larger file is not read: it is no image of a data set, or a trap."""


class ImageTable(TextTable):
    """An ordered, read-only column of (id, image), an `ImageSource`.

    The text of a row is the image's name and a hash of its pixels: what is kept by text (scores, embeddings) is kept
    by picture, and a person reads which one it is. Files: those of a `TextTable`, `pixels.npy` (rows, height, width,
    channels) uint8, `pixels.json` with mean and deviation of each channel.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        try:
            self._pixels = load_array(folder / "pixels.npy").view(np.ndarray)
            facts = read_json(folder / "pixels.json")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder}: damaged images ({error}); delete it and run again") from error
        self.mean: list[float] = facts["mean"]
        self.std: list[float] = facts["std"]

    def image(self, row: int) -> np.ndarray:
        """(height, width, channels) uint8; IndexError outside `0 <= row < len`."""
        image: np.ndarray = self._pixels[self._check(row)]
        return image


def open_table(folder: Path) -> TextTable:
    """A column of texts, or of images where there are pixels."""
    return ImageTable(folder) if (folder / "pixels.npy").exists() else TextTable(folder)


def write_images(
    folder: Path,
    images: Iterable[tuple[str, str, np.ndarray]],
    count: int,
    measured: Iterable[str],
) -> ImageTable:
    """Write a column of images, one at a time.

    Args:
        images: (id, name, (height, width, channels) uint8), all of one shape; at least one, at most `count`.
        measured: ids of the images whose mean and deviation normalise all of them.
    """
    wanted, rows = set(measured), 0
    total = squares = np.zeros(0)
    pixels_seen = 0
    stored: np.memmap[Any, np.dtype[np.uint8]] | None = None
    with TextTableWriter(folder) as writer:
        for id, name, pixels in images:
            if stored is None:
                shape = (count, *pixels.shape)
                stored = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
                total = squares = np.zeros(pixels.shape[-1])
            writer.add(id, f"{name} #{hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()}")
            stored[rows] = pixels
            rows += 1
            if id in wanted:
                values = pixels.reshape(-1, pixels.shape[-1]) / 255
                total, squares = total + values.sum(0), squares + (values**2).sum(0)
                pixels_seen += len(values)
        if stored is None:
            raise DataError("no images")
        stored.flush()
        if rows < count:  # some were left out: as many as there are
            kept = np.array(stored[:rows])
            del stored
            np.save(folder / "pixels.npy", kept)
        mean = total / max(pixels_seen, 1)
        std = np.sqrt(np.maximum(squares / max(pixels_seen, 1) - mean**2, 1e-12))
        facts: dict[str, Any] = {"mean": mean.tolist(), "std": np.maximum(std, 1e-6).tolist()}
        (folder / "pixels.json").write_text(json.dumps(facts), encoding="utf-8")
    return ImageTable(folder)


def decode(content: bytes, size: int | None) -> np.ndarray:
    """(height, width, 3) uint8 of an image file, transparent places white; scaled to a square of `size`.

    Raises: ValueError saying what is wrong with the file, MissingDependencyError without Pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("pillow", "reading image files", "images") from None
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image, dtype=np.uint8)
    # Pillow's decoders fail in many ways on damaged files; each means the same to the user
    except Exception as error:
        raise ValueError(f"not a readable image: {type(error).__name__}: {error}") from error

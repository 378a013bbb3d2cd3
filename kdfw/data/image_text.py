"""Images with captions: retrieval of captions for images, and of images for captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Sizes
from kdfw.data.image_table import MAX_IMAGE_BYTES, decode, write_images
from kdfw.data.ingest import IngestedDataset, in_share, known_split, split_names
from kdfw.data.lines import BadLines, Fields, read_json, read_lines, show
from kdfw.data.ranking_sets import DevShare, Name, RankingBuilder, Skip, load_ranking
from kdfw.data.sets import RankingData
from kdfw.data.store import missing_file, open_zip
from kdfw.data.table import TextTable, word_fault
from kdfw.errors import ConfigError, DataError
from kdfw.files import inside
from kdfw.types import Qrels

USUAL = {"train": 0, "dev": 1, "test": 2}


@dataclass(kw_only=True)
class Captioned:
    """An image and what it is called."""

    file: Path
    line: int
    image: str
    split: str
    captions: list[str]


class ImageText(IngestedDataset):
    """Images with one caption or several: `{"image": "a.png", "caption": "a red bicycle", "split": "train"}` a line.

    Queries are images and passages captions, or the other way round (`direction`); every caption of an image is
    relevant to it, and no other. The corpus is what belongs to the splits that are read: for the usual measures, over
    the test images alone, read the test split as a data set of its own. A caption's id is `<image>#<number>`.

    Files called `.tsv` or `.txt` have `image TAB caption`, one line a caption.
    """

    layout: ClassVar[str] = "image-text"
    holds: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    def __init__(
        self,
        *,
        captions: Annotated[
            Path | dict[str, Path], Field(description="JSONL or TSV; file by split, where lines do not name theirs")
        ],
        images: Annotated[Path, Field(description="folder or .zip that has the files the captions name")],
        templates: Annotated[
            list[str] | None,
            Field(
                min_length=1,
                description="captions made of a line's keys: `{name}, {keywords}`; default: what is under `caption` or "
                "`captions`, a text or a list",
            ),
        ] = None,
        size: Annotated[
            int | None, Field(ge=1, le=4096, description="scale every image to this square; default: all have one size")
        ] = None,
        direction: Annotated[
            Literal["image-to-text", "text-to-image"], Field(description="what is searched with what")
        ] = "image-to-text",
        splits: Annotated[list[str] | None, Field(min_length=1, description="only these splits")] = None,
        dev_share: DevShare = 0.0,
        name: Name = None,
        on_error: Skip = "raise",
    ) -> None:
        self._captions, self.images, self._templates = captions, images, templates
        self._size, self._direction, self._splits, self._dev_share = size, direction, splits, dev_share
        self.trains = splits is None or "train" in splits
        decisive: dict[str, Any] = {"templates": templates, "size": size, "direction": direction, "splits": splits}
        decisive |= {"dev_share": dev_share, "files": sorted(captions) if isinstance(captions, dict) else None}
        super().__init__(name=name, on_error=on_error, decisive=decisive)

    # ------------------------------------------------------------ files and lines

    def _caption_files(self) -> dict[str, Path]:
        """By split; an empty name for a file whose lines name theirs."""
        files = self._captions if isinstance(self._captions, dict) else {"": self._captions}
        for path in files.values():
            if not path.is_file():
                raise missing_file(path, "file of captions")
        return files

    def files(self) -> Mapping[str, Path]:
        found = {f"captions/{split}": path for split, path in self._caption_files().items()}
        if self.images.is_file():
            return {**found, "images": self.images}
        if not self.images.is_dir():
            raise missing_file(self.images, "folder or archive of images")
        inner = (path for path in sorted(self.images.rglob("*")) if path.is_file())
        return {**found, **{f"images/{path.relative_to(self.images).as_posix()}": path for path in inner}}

    def splits(self) -> Sequence[str]:
        return list(self._records(BadLines("skip")))

    def counted(self) -> Sizes:
        """An image is a query, and its captions are passages; or the other way round."""
        records = self._records(BadLines("skip"))
        images = {split: Amount(len(found)) for split, found in records.items()}
        captions = {split: Amount(sum(len(one.captions) for one in found)) for split, found in records.items()}
        queries, passages = (images, captions) if self._direction == "image-to-text" else (captions, images)
        total = Amount(0)
        for amount in passages.values():
            total = total + amount
        return Sizes(passages=total, items=queries, judged=queries, positives=captions)

    def _records(self, bad: BadLines) -> dict[str, list[Captioned]]:
        """Images by split in the order of the files, each once; captions of the same image are joined."""
        found: dict[str, Captioned] = {}
        for split, path in self._caption_files().items():
            read = self._tsv if {".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes} else self._json
            for line, image, own, captions in read(path, bad):
                part = split or own
                fault = word_fault(image) or ("" if part else "no split; give a file by split, or a key `split`")
                fault = fault or ("" if captions else "no caption")
                if not fault and image in found and found[image].split != part:
                    fault = f"image {image!r} is in two splits: {found[image].split} and {part}"
                if fault:
                    bad.report(path, line, fault)
                elif image in found:
                    found[image].captions.extend(captions)
                else:
                    found[image] = Captioned(file=path, line=line, image=image, split=part, captions=captions)
        return self._by_split(found.values())

    def _by_split(self, records: Any) -> dict[str, list[Captioned]]:
        named: dict[str, list[Captioned]] = {}
        files = ", ".join(map(str, self._caption_files().values()))
        for record in records:
            named.setdefault(record.split, []).append(record)
        distinct = sorted(named)
        parts = {known_split(name, distinct): found for name, found in named.items()}
        order = split_names(sorted(parts, key=lambda name: (USUAL.get(name, 3), name)), self._dev_share)
        if self._dev_share > 0:  # by image: captions of one image stay together
            train = parts["train"]
            parts["dev"] = [one for one in train if in_share(one.image, self._dev_share, "dev")]
            parts["train"] = [one for one in train if not in_share(one.image, self._dev_share, "dev")]
        for split in self._splits or ():
            if split not in parts:
                raise DataError(f"{files}: no split {split!r} among the captions; found: {', '.join(order)}")
        wanted = [split for split in order if self._splits is None or split in self._splits]
        empty = [split for split in wanted if not parts[split]]
        if empty or not wanted:
            fault = f"no images in split {empty[0]!r}; choose another share" if empty else "no captions"
            raise DataError(f"{files}: {fault}")
        return {split: parts[split] for split in wanted}

    def _json(self, path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, list[str]]]:
        for line, value in read_json(path, bad):
            fields = Fields(value)
            image, split = fields.text("image"), fields.text("split", "")
            if self._templates is None:
                captions = fields.texts("captions" if "captions" in value else "caption", required=True)
            else:
                captions = [_filled(template, fields) for template in self._templates]
            if fields.fault:
                bad.report(path, line, fields.fault)
                continue
            yield line, image, split, [caption for caption in captions if caption.strip()]

    def _tsv(self, path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, list[str]]]:
        if self._templates is not None:
            raise ConfigError(f"image-text: templates are for JSONL; {path} has one column of captions")
        for line, content in read_lines(path, bad):
            image, tab, caption = content.partition("\t")
            if not tab:
                bad.report(path, line, f"no tab in {show(content)}", "each line is `image TAB caption`")
                continue
            yield line, image, "", [caption] if caption.strip() else []

    # ------------------------------------------------------------ ingest

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        records = self._records(bad)
        image_to_text = self._direction == "image-to-text"
        image_folder, text_folder = ("queries", "corpus") if image_to_text else ("corpus", "queries")
        builder = RankingBuilder(folder, bad, 0.0)
        everyone = [one for found in records.values() for one in found]
        first = next(iter(records.values()))
        with ExitStack() as stack:
            images = write_images(
                folder / image_folder,
                self._decoded(everyone, self._opener(stack), bad),
                len(everyone),
                [one.image for one in first],
            )
        texts = builder.table(
            text_folder,
            [(path, _captions(everyone, path, images)) for path in self._caption_files().values()],
        )
        for split, found in records.items():
            kept = [one for one in found if one.image in images]
            pairs = [(one.image, f"{one.image}#{n}") for one in kept for n in range(len(one.captions))]
            qrels: Qrels = {}
            for image, caption in pairs:
                query, passage = (image, caption) if image_to_text else (caption, image)
                qrels.setdefault(query, {})[passage] = 1
            table = images if image_to_text else texts
            builder.split(split, "queries", table, table.rows(list(qrels)).tolist(), qrels)
        return builder.content()

    def _decoded(
        self, records: Sequence[Captioned], read: Callable[[str], bytes], bad: BadLines
    ) -> Iterator[tuple[str, str, np.ndarray]]:
        shape: tuple[int, ...] | None = None
        for one in records:
            try:
                pixels = decode(read(one.image), self._size)
            except ValueError as error:
                bad.report(one.file, one.line, f"image {one.image!r}: {error}")
                continue
            shape = shape or pixels.shape
            if pixels.shape != shape:
                found = f"image {one.image!r}: {pixels.shape[1]}x{pixels.shape[0]} among {shape[1]}x{shape[0]}"
                bad.report(one.file, one.line, found, "set `size` to scale all of them")
                continue
            yield one.image, one.image, pixels

    def _opener(self, stack: ExitStack) -> Callable[[str], bytes]:
        """What reads an image by name; ValueError says why one cannot be read."""
        if self.images.is_dir():

            def from_folder(name: str) -> bytes:
                path = inside(self.images, name)
                if not path.is_file():
                    raise ValueError(f"no such file in {self.images}")
                if path.stat().st_size > MAX_IMAGE_BYTES:
                    raise ValueError(f"{path.stat().st_size} bytes")
                return path.read_bytes()

            return from_folder
        archive = stack.enter_context(open_zip(self.images))
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}

        def from_zip(name: str) -> bytes:
            # entries are read into memory, never extracted: a name cannot lead outside
            if name not in entries:
                raise ValueError(f"no such file in {self.images}")
            if entries[name].file_size > MAX_IMAGE_BYTES:
                raise ValueError(f"{entries[name].file_size} bytes unpacked")
            try:
                return archive.read(entries[name])
            except (OSError, RuntimeError, NotImplementedError) as error:
                raise ValueError(f"cannot be unpacked: {error}") from error

        return from_zip

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> RankingData:
        return load_ranking(folder, content, fingerprint, self.display_name(next(iter(self._caption_files().values()))))


def _captions(records: Sequence[Captioned], path: Path, images: TextTable) -> Iterator[tuple[int, str, str]]:
    """(line, id, caption) of the images that could be read and whose captions begin in a file."""
    for one in records:
        if one.file == path and one.image in images:
            for number, caption in enumerate(one.captions):
                yield one.line, f"{one.image}#{number}", caption


def _filled(template: str, fields: Fields) -> str:
    """A template with the line's values; lists are joined by commas."""
    return re.sub(r"\{(\w+)\}", lambda match: ", ".join(fields.texts(match[1], required=True)), template)

"""The one token store: every text is tokenized once, whoever asks."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import struct
import tempfile
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.data.table import TextTable
from kdfw.errors import ArtifactError
from kdfw.files import replacing
from kdfw.fingerprint import fingerprint
from kdfw.types import Text, TextSource

log = logging.getLogger(__name__)

BLOCK_TEXTS = 1 << 14
"""Texts of one block: the unit that is tokenized, locked, written and resumed."""
_CALL_TEXTS = 1024
"""Texts given to the tokenizer at once; bounds its working memory."""
_HEADER = struct.Struct("<8sQQII")
"""magic, texts, tokens, bytes a token, CRC-32 of what follows"""
_MAGIC = b"kdfwtok1"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of what a tokenizer does with a text: vocabulary, normalizer, splitting and special tokens, not its path.

    Truncation and padding settings are left out: the store asks for neither.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    else:  # a tokenizer written in Python: its vocabulary and settings are all there is to see
        state = {"vocabulary": tokenizer.get_vocab(), "special": {k: str(v) for k, v in _special(tokenizer).items()}}
    return fingerprint({"class": type(tokenizer).__name__, "state": state})


def _special(tokenizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = tokenizer.special_tokens_map
    return found


class Tokens:
    """Body token ids of texts: without special tokens, untruncated up to `max_tokens`.

    Texts of a stored source come from memory-mapped blocks under `cache`, one folder for each (source, tokenizer,
    prefix). A block that is missing is tokenized when it is first asked for; blocks appear whole or not at all, so a
    killed run goes on where it stopped, and processes that share a cache share the work. Every block is checked
    against its checksum when it is opened; a damaged one is made again. Texts made on the fly stay in memory, the
    latest `memory_texts` of them.
    """

    def __init__(
        self,
        tokenizer: Any,
        cache: Path | None,
        max_tokens: int = 8192,
        memory_texts: int = 50_000,
    ) -> None:
        """Args:
        tokenizer: a transformers tokenizer; truncation and padding set on it are not obeyed (they belong to each call).
        cache: where blocks are kept; None keeps them in a temporary folder of this process.
        max_tokens: longer texts are cut there.
        """
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        self.dtype = np.dtype("<u2") if len(tokenizer) <= 1 << 16 else np.dtype("<u4")
        self._cache = cache
        self._private: Path | None = None
        self._stores: dict[tuple[str, str], _Store] = {}
        self._memory: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._memory_texts = memory_texts
        self._encode: Callable[[list[str]], list[list[int]]] | None = None

    def ids(self, texts: Sequence[Text], prefix: str = "") -> list[np.ndarray]:
        """Token ids of each text, as `tokenizer(prefix + text, add_special_tokens=False)` gives them.

        Returns: one read-only array of uint16 or uint32 a text.
        """
        found: list[np.ndarray | None] = [None] * len(texts)
        missing: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            if text.made is None and text.source is not None:
                source, row = _base(text.source, text.row)
                found[number] = self._store(source, prefix).ids(row)
                continue
            made = str(text)
            known = self._memory.get((prefix, made))
            if known is None:
                missing.setdefault(made, []).append(number)
            else:
                self._memory.move_to_end((prefix, made))
                found[number] = known
        if missing:
            for (made, numbers), ids in zip(missing.items(), self._tokenize(list(missing), prefix), strict=True):
                ids.flags.writeable = False
                self._memory[prefix, made] = ids
                for number in numbers:
                    found[number] = ids
            while len(self._memory) > self._memory_texts:
                self._memory.popitem(last=False)
        return [ids for ids in found if ids is not None]

    def lengths(self, source: TextSource, prefix: str = "") -> np.ndarray:
        """(rows,) int64 number of tokens of every text of a source, without touching the tokens themselves."""
        base = source.base if isinstance(source, TextTable) else source
        store = self._store(base, prefix)
        lengths = [np.diff(store.block(block).starts) for block in range(store.num_blocks)]
        whole = np.concatenate(lengths).astype(np.int64) if lengths else np.zeros(0, dtype=np.int64)
        return whole if base is source else whole[np.asarray(source.base_rows())]  # type: ignore[attr-defined]

    def prepare(
        self,
        source: TextSource,
        prefix: str = "",
        rows: range | None = None,
        done: Callable[[int], object] | None = None,
    ) -> None:
        """Tokenize a source (or the blocks that hold `rows` of it) ahead of time; `done(texts)` after each block."""
        base = source.base if isinstance(source, TextTable) else source
        store = self._store(base, prefix)
        wanted = range(len(base)) if rows is None or base is not source else rows
        if not len(wanted):
            return
        for block in range(wanted.start // BLOCK_TEXTS, (wanted.stop - 1) // BLOCK_TEXTS + 1):
            store.make(block)
            if done is not None:
                done(min(BLOCK_TEXTS, len(base) - block * BLOCK_TEXTS))

    def _store(self, source: TextSource, prefix: str) -> _Store:
        key = (source.fingerprint, prefix)
        store = self._stores.get(key)
        if store is None:
            name = fingerprint([source.fingerprint, self.fingerprint, prefix, self.max_tokens, BLOCK_TEXTS])
            store = self._stores[key] = _Store(self, source, prefix, self._folder(name))
        return store

    def _folder(self, name: str) -> Path:
        if self._cache is not None:
            folder = self._cache / "tokens" / name
            try:
                folder.mkdir(parents=True, exist_ok=True)
                return folder
            except OSError as error:
                log.warning("%s cannot be written (%s): tokens go to a temporary folder", folder, error.strerror)
        return self.private_folder(name)

    def private_folder(self, name: str) -> Path:
        """A folder of this process alone, gone when it ends."""
        if self._private is None:
            self._private = Path(tempfile.mkdtemp(prefix="kdfw-tokens-"))
            weakref.finalize(self, shutil.rmtree, self._private, ignore_errors=True)
        folder = self._private / name
        folder.mkdir(exist_ok=True)
        return folder

    def _tokenize(self, texts: Sequence[str], prefix: str) -> list[np.ndarray]:
        if self._encode is None:
            self._encode = _encoder(self.tokenizer)
        result: list[np.ndarray] = []
        for begin in range(0, len(texts), _CALL_TEXTS):
            batch = [prefix + text for text in texts[begin : begin + _CALL_TEXTS]]
            result.extend(np.asarray(ids[: self.max_tokens], dtype=self.dtype) for ids in self._encode(batch))
        return result


def _base(source: TextSource, row: int) -> tuple[TextSource, int]:
    if isinstance(source, TextTable) and source.base is not source:
        return source.base, source.base_row(row)
    return source, row


_PROBES = ["", " two  words ", "Zürich 3.14 naïve", "[CLS] <s> [MASK] </s> end", "日本語 text", "a" * 300]


def _encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """texts -> ids without special tokens; through the Rust tokenizer where that gives the same."""

    def plain(texts: list[str]) -> list[list[int]]:
        encoded = tokenizer(
            texts, add_special_tokens=False, padding=False, truncation=False, verbose=False,
            return_attention_mask=False, return_token_type_ids=False,
        )  # fmt: skip
        found: list[list[int]] = encoded["input_ids"]
        return found

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return plain
    import tokenizers

    try:
        # a copy: the caller's tokenizer keeps its own truncation and padding
        fast = tokenizers.Tokenizer.from_str(backend.to_str())
    except Exception:  # parts written in Python cannot be copied; the library raises a bare Exception
        return plain
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = backend.encode_special_tokens
    batch = getattr(fast, "encode_batch_fast", fast.encode_batch)

    def quick(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in batch(texts, add_special_tokens=False)]

    return quick if quick(_PROBES) == plain(_PROBES) else plain


class _Block:
    """One opened block."""

    def __init__(self, starts: np.ndarray, tokens: np.ndarray) -> None:
        self.starts = starts
        self.tokens = tokens


class _Store:
    """The blocks of one (source, tokenizer, prefix)."""

    def __init__(self, tokens: Tokens, source: TextSource, prefix: str, folder: Path) -> None:
        self._owner = tokens
        self._source = source
        self._prefix = prefix
        self._folder = folder
        self.num_blocks = -(-len(source) // BLOCK_TEXTS)
        self._blocks: dict[int, _Block] = {}

    def ids(self, row: int) -> np.ndarray:
        block = self._blocks.get(row // BLOCK_TEXTS) or self.block(row // BLOCK_TEXTS)
        at = row % BLOCK_TEXTS
        if row < 0 or at >= len(block.starts) - 1:
            raise IndexError(f"row {row} of {len(self._source)}")
        return block.tokens[block.starts[at] : block.starts[at + 1]]

    def block(self, number: int) -> _Block:
        if not 0 <= number < self.num_blocks:
            raise IndexError(f"row {number * BLOCK_TEXTS} of {len(self._source)}")
        if number not in self._blocks:
            self.make(number)
        return self._blocks[number]

    def make(self, number: int) -> None:
        """Open a block, tokenizing it first when it is missing or damaged."""
        from filelock import FileLock

        if number in self._blocks:
            return
        path = self._folder / f"{number:06d}.tokens"
        opened = self._open(path, number)
        if opened is None:
            try:
                with FileLock(path.with_suffix(".lock")):
                    opened = self._open(path, number)  # another process may have made it meanwhile
                    if opened is None:
                        content = self._tokenized(number)
                        with replacing(path) as stream:
                            stream.write(content)
            except OSError as error:
                private = self._owner.private_folder(self._folder.name)
                if private == self._folder:
                    raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error
                log.warning("%s cannot be written (%s): tokens go to a temporary folder", path, error.strerror or error)
                self._folder = private
                self.make(number)
                return
            opened = opened or self._open(path, number)
        if opened is None:
            raise ArtifactError(f"{path}: damaged right after it was written; is the disk failing?")
        self._blocks[number] = opened

    def _tokenized(self, number: int) -> bytes:
        begin = number * BLOCK_TEXTS
        end = min(begin + BLOCK_TEXTS, len(self._source))
        if isinstance(self._source, TextTable):
            texts = [text for _, text in self._source.iterate(begin, end)]
        else:
            texts = [self._source.text(row) for row in range(begin, end)]
        rows = self._owner._tokenize(texts, self._prefix)
        starts = np.zeros(len(rows) + 1, dtype="<i8")
        np.cumsum([len(row) for row in rows], out=starts[1:])
        flat = np.concatenate(rows) if rows else np.zeros(0, dtype=self._owner.dtype)
        body = starts.tobytes() + flat.astype(self._owner.dtype).tobytes()
        header = _HEADER.pack(_MAGIC, len(rows), len(flat), self._owner.dtype.itemsize, zlib.crc32(body))
        return header + body

    def _open(self, path: Path, number: int) -> _Block | None:
        """The block of a file, or None when it is missing or damaged (said in the log)."""
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size < _HEADER.size:
                    raise ValueError("too short")
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s: damaged (%s): made again", path, error)
            return None
        magic, texts, tokens, itemsize, checksum = _HEADER.unpack_from(mapped)
        dtype = self._owner.dtype
        body = memoryview(mapped)[_HEADER.size :]
        expected = min(BLOCK_TEXTS, len(self._source) - number * BLOCK_TEXTS)
        fits = len(body) == 8 * (texts + 1) + itemsize * tokens and (texts, itemsize) == (expected, dtype.itemsize)
        if magic != _MAGIC or not fits or zlib.crc32(body) != checksum:
            log.warning("%s: damaged (wrong checksum or size): made again", path)
            return None
        starts = np.frombuffer(mapped, dtype="<i8", count=texts + 1, offset=_HEADER.size)
        flat = np.frombuffer(mapped, dtype=dtype, count=tokens, offset=_HEADER.size + 8 * (texts + 1))
        return _Block(starts, flat)


def token_digest(ids: np.ndarray) -> str:
    """32 hex digits of token ids, whatever their width: the key of what is computed from a token row."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<u4").tobytes(), digest_size=16).hexdigest()

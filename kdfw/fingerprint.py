"""Fingerprints: short hashes of what an artifact was made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(value: Any) -> str:
    """32 hex digits of the canonical JSON form of a plain value. Raises: ValueError when it is nested too deeply."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """64 hex digits: SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

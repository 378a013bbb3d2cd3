"""What the tests of this folder do with runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdfw.fingerprint import file_digest

UNLIKE = ("timing.json", "artifact.json")
"""Files of a stage folder that hold times: they may differ between equal runs."""


def run(recipe: Path, out: Path, *settings: str, **options: Any) -> Any:
    """A run whose cache is `cache` beside its folder, unless said otherwise."""
    import kdfw

    options.setdefault("cache", out.parent / "cache")
    return kdfw.run(recipe, settings, out=out, **options)


def results(out: Path) -> dict[str, str]:
    """Digest of every result file in the stage folders, but for times."""
    stages = out / "stages"
    return {
        path.relative_to(stages).as_posix(): file_digest(path)
        for path in sorted(stages.rglob("*"))
        if path.is_file() and path.name not in UNLIKE and not path.relative_to(stages).parts[0].startswith(".")
    }


def flip(path: Path, at: int) -> None:
    """Change one byte in place: size and name stay."""
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0x04]))

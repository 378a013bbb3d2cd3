"""Licences as they are given: by a model's or data set's own card, or by a Python package. Never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdfw.errors import ConfigError, KdfwError
from kdfw.files import existing_folder
from kdfw.models.checkpoint import locate
from kdfw.recipe.source import parse

CARD_BYTES = 65_536
"""Of a README.md, how much is read for its header."""


def of_model(base: str) -> str:
    """Licence that the card of a base model names, or its Python package; empty when neither does."""
    try:
        folder = locate(base)
    except KdfwError:
        return ""
    found = of_card(folder / "README.md") if folder is not None else _of_hub(base, "model")
    return found or (_of_package(base.removeprefix("package:")) if base.startswith("package:") else "")


def of_data(options: Mapping[str, Any]) -> str:
    """Licence that the card in a data set's folder names, or its card on a hub where that has been fetched."""
    for name in ("folder", "path"):
        place = options.get(name)
        if isinstance(place, (str, Path)) and str(place):
            folder = existing_folder(str(place))
            return of_card(folder / "README.md") if folder is not None else _of_hub(str(place), "dataset")
    return ""


def of_card(path: Path) -> str:
    """The key `license` in the YAML header of a card; empty for a file without one."""
    try:
        if not path.is_file():
            return ""
        with path.open(encoding="utf-8", errors="replace") as stream:
            first, *lines = [line.rstrip() for line in stream.read(CARD_BYTES).splitlines()] or [""]
        if first != "---" or "---" not in lines:
            return ""
        given = parse("\n".join(lines[: lines.index("---")])).value.get("license")
    except (OSError, ConfigError):
        return ""
    names = given if isinstance(given, list) else [given]
    return ", ".join(name for name in names if isinstance(name, str))


def _of_hub(name: str, kind: str) -> str:
    """From a card in the hub's cache; nothing is fetched for it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "README.md", repo_type=kind)
    except (HFValidationError, ValueError):
        return ""
    return of_card(Path(found)) if isinstance(found, str) else ""


def _of_package(name: str) -> str:
    """What the metadata of an installed package say: the licence expression, or the short name of one."""
    from importlib import metadata

    try:
        (distribution, *_) = metadata.packages_distributions()[name]
        facts = metadata.metadata(distribution)
    except (KeyError, ValueError, metadata.PackageNotFoundError):
        return ""
    given = [str(facts[key]).strip() for key in ("License-Expression", "License") if key in facts]
    return next((text for text in given if text and len(text) <= 100 and "\n" not in text), "")

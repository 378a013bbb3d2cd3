"""Model types: thin wrappers over transformers (or torch, for small image nets) that give `Signals`."""

from __future__ import annotations

from kdfw.components import Model
from kdfw.models.bi_encoder import BiEncoder

STUDENTS: dict[str, type[Model]] = {
    "bi-encoder": BiEncoder,
}
"""Student types by their names in recipes."""

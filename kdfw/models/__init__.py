"""Model types: thin wrappers over transformers (or torch, for small image nets) that give `Signals`."""

from __future__ import annotations

from kdfw.components import Model
from kdfw.models.bi_encoder import BiEncoder
from kdfw.models.cross_encoder import CrossEncoder
from kdfw.models.image_classifier import ImageClassifier
from kdfw.models.image_text import ImageTextEncoder
from kdfw.models.late_interaction import LateInteraction
from kdfw.models.seq2seq import Seq2Seq
from kdfw.models.sparse import SparseEncoder
from kdfw.models.text_classifier import TextClassifier

STUDENTS: dict[str, type[Model]] = {
    "bi-encoder": BiEncoder,
    "cross-encoder": CrossEncoder,
    "image-classifier": ImageClassifier,
    "image-text-encoder": ImageTextEncoder,
    "late-interaction": LateInteraction,
    "seq2seq": Seq2Seq,
    "sparse": SparseEncoder,
    "text-classifier": TextClassifier,
}
"""Student types by their names in recipes."""

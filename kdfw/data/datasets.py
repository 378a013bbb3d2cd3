"""The data set types of kdfw by the names used in recipes."""

from __future__ import annotations

from collections.abc import Mapping

from kdfw.components import Dataset
from kdfw.data.hub_sets import HuggingFace, IrDatasets
from kdfw.data.image_text import ImageText
from kdfw.data.labelled_sets import Images, TextClassification
from kdfw.data.pair_sets import ParallelText, Sts, TsvPairs
from kdfw.data.pydocs import PyDocs
from kdfw.data.ranking_sets import Beir, JsonlRanking, MsMarco

DATASETS: Mapping[str, type[Dataset]] = {
    "beir": Beir,
    "huggingface": HuggingFace,
    "image-text": ImageText,
    "images": Images,
    "ir-datasets": IrDatasets,
    "jsonl": JsonlRanking,
    "msmarco": MsMarco,
    "parallel": ParallelText,
    "pydocs": PyDocs,
    "sts": Sts,
    "text-classification": TextClassification,
    "tsv-pairs": TsvPairs,
}

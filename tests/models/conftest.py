"""Tiny models and tokenizers made on the spot, and batches of real sentences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdfw.components import Model
from kdfw.types import Batch, Text

SENTENCES = (
    "0-dimensional biomaterials lack inductive properties.",
    "5% of perinatal mortality is due to low birth weight.",
    "A deficiency of vitamin B12 increases blood levels of homocysteine.",
    "Antiretroviral therapy reduces rates of tuberculosis across a broad range of CD4 strata.",
    "Diminished ovarian reserve is a very strong indicator of infertility, even in an a priori non-infertile woman; "
    "anti-Müllerian hormone (AMH) and follicle-stimulating hormone are measured in the early follicular phase.",
    "Neutrophil extracellular traps (NETs) are released by ANCA-stimulated neutrophils.",
    "One in two surgical randomized controlled trials are discontinued early!",
    "The risk of breast cancer among parous women increases with placental weight of pregnancies, and the association "
    "is strongest for premenopausal breast cancer. Cohort: 2,318 women; follow-up until 31 December 2001.",
    "x",
    "Tirasemtiv targets cardiac muscle (p < 0.05).",
    "Zürich's naïve café: 3.14 — \u201cquoted\u201d [MASK] #tag",
    "Polymeal nutrition reduces cardiovascular mortality. " * 6,
)


def wordpiece_tokenizer(texts: tuple[str, ...] = SENTENCES) -> Any:
    """A BERT-type tokenizer trained on the sentences."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    learned = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer = normalizers.BertNormalizer()
    learned.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learned.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    learned.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learned,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=512,
    )


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of 4 layers and its tokenizer; dropout 0.1."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = wordpiece_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def made(text: str) -> Text:
    return Text(source=None, made=text)


@pytest.fixture
def ranking_batch() -> Batch:
    """3 queries (two of them equal), 5 passages, 3 candidates each, the last one of query 1 padding."""
    return Batch(
        task="ranking",
        ids=("q0", "q1", "q2"),
        inputs={
            "query": [made(SENTENCES[number]) for number in (0, 8, 0)],
            "passage": [made(SENTENCES[number]) for number in (4, 1, 7, 9, 2)],
        },
        num_items=3.0,
        candidates=torch.tensor([[0, 1, 2], [3, 4, 3], [4, 0, 1]]),
        mask=torch.tensor([[True, True, True], [True, True, False], [True, True, True]]),
        labels=torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]),
        passage_ids=("p0", "p1", "p2", "p3", "p4"),
    )


class Pictures:
    """Twelve images of 16 x 16, as a stored source."""

    fingerprint = "pictures"
    mean = (0.5, 0.4, 0.6)
    std = (0.2, 0.25, 0.3)

    def __len__(self) -> int:
        return 12

    def image(self, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(0, 256, size=(16, 16, 3), dtype=np.uint8)

    def text(self, row: int) -> str:
        return f"picture {row}"

    def id(self, row: int) -> str:
        return f"i{row}"


class Pictured:
    """What `fit_data` reads of images with captions."""

    queries = {"train": Pictures()}
    corpus = None


class Labelled:
    """What `fit_data` reads of classification data."""

    classes = ("a", "b", "c")
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        self.splits: dict[str, Any] = {}


class Column:
    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, row: int) -> str:
        return self.texts[row]


class ParallelSplit:
    def __init__(self) -> None:
        self.source = Column(SENTENCES)
        self.target = Column(tuple(text.upper() for text in SENTENCES))


class ParallelTexts:
    """What `fit_data` reads of translation data."""

    def __init__(self) -> None:
        self.splits = {"train": ParallelSplit()}


@pytest.fixture
def build(tiny_bert: Path) -> Callable[..., tuple[Model, Batch]]:
    """A student of a type, loaded, with a batch of its task."""
    from kdfw.models import STUDENTS

    def make(name: str, batch: Batch, **options: Any) -> tuple[Model, Batch]:
        if name == "image-classifier":
            model: Any = STUDENTS[name](**{"net": "resnet8", **options})
            model.fit_data(Labelled())
            images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
            batch = Batch(
                task="classification",
                ids=tuple("abcde"),
                inputs={"image": images},
                num_items=5.0,
                labels=torch.tensor([0, 1, 2, 0, 1]),
            )
        elif name == "image-text-encoder":
            model = STUDENTS[name](**{"net": "resnet8", "text_base": str(tiny_bert), "projection": 8, **options})
            model.fit_data(Pictured())
            stored: Any = Pictures()
            pictures = [Text(source=stored, row=row) for row in (0, 8, 0)]
            batch = replace(batch, inputs={**batch.inputs, "query": pictures})
        elif name == "text-classifier":
            model = STUDENTS[name](**{"base": str(tiny_bert), "max_tokens": 40, **options})
            model.fit_data(Labelled())
            batch = Batch(
                task="classification",
                ids=tuple("abcdef"),
                inputs={"text": [made(SENTENCES[number]) for number in (0, 4, 1, 8, 0, 7)]},
                num_items=6.0,
                labels=torch.tensor([0, 1, 2, 0, 1, 2]),
            )
        elif name == "seq2seq":
            from kdfw.models.seq2seq import Scratch

            size = Scratch(layers=1, width=16, heads=2, vocabulary=200)
            model = STUDENTS[name](**{"scratch": size, "max_source_tokens": 50, "max_target_tokens": 40, **options})
            model.fit_data(ParallelTexts())
            texts = [made(SENTENCES[number]) for number in (0, 4, 1, 8)]
            batch = Batch(
                task="translation",
                ids=tuple("abcd"),
                inputs={"source": texts, "target": [made(str(text).upper()) for text in texts]},
                num_items=1.0,
            )
        else:
            model = STUDENTS[name](**{"base": str(tiny_bert), **options})
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.load()
        return model, batch

    return make

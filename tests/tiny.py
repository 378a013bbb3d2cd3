"""Tiny models and data made on the spot, for tests that run the engine on real files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = (
    "water stone river bridge light engine signal token passage query teacher student scale margin batch tensor kernel "
    "memory cache index shard graph loss rank score sample draw order seed clock stage plan recipe report table column"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]


def word_tokenizer(words: tuple[str, ...] = tuple(WORDS)) -> Any:
    """A BERT-type tokenizer whose vocabulary is whole words and letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    pieces = [*SPECIAL, *words, *letters, *[f"##{letter}" for letter in letters], ".", ",", "-"]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=128,
    )


def write_bert(folder: Path, *, layers: int = 2, width: int = 32, seed: int = 0) -> Path:
    """A folder with a random BERT (masked-LM head included) and its tokenizer; dropout 0.1."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = word_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=128,
            initializer_range=0.2,
        )
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_beir(folder: Path, *, passages: int = 60, queries: int = 24, seed: int = 0) -> Path:
    """A BEIR folder of made-up passages; a query is some words of its one relevant passage. Splits train, dev, test."""
    rng = random.Random(seed)
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 20))) for _ in range(passages)]
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for number, text in enumerate(texts):
            stream.write(json.dumps({"_id": f"p{number}", "title": "", "text": text}) + "\n")
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(queries):
            passage = rng.randrange(passages)
            words = rng.sample(texts[passage].split(), k=min(3, len(texts[passage].split())))
            stream.write(json.dumps({"_id": f"q{number}", "text": " ".join(words)}) + "\n")
            split = ("train", "train", "dev", "test")[number % 4]
            splits[split].append(f"q{number}\tp{passage}\t1\n")
    for split, rows in splits.items():
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")
    return folder

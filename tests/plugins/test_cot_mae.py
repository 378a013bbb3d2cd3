"""Invariants of CoT-MAE (arXiv:2208.07670), and of the bottleneck it shares with MASTER."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from kdfw.models.bottleneck import mask_words, word_groups
from kdfw_plugins.cot_mae.pretrain import pretraining_losses, swap_pairs
from kdfw_plugins.cot_mae.spans import span_records, spans_of

Item = TypeVar("Item")


class Random:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def choice(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.integers(len(items)))]


def test_spans_partition_the_sentences_in_order() -> None:
    sentences = [[number] * length for number, length in enumerate([3, 9, 2, 8, 1, 1, 7, 4])]
    spans = spans_of(sentences, 10)
    assert [sentence for span in spans for sentence in span] == sentences
    assert all(sum(map(len, span)) > 10 >= sum(map(len, span[:-1])) for span in spans[:-1])


@pytest.mark.parametrize("seed", range(5))
def test_partners_are_what_their_names_say(seed: int) -> None:
    sentences = [[number] * 4 for number in range(20)]
    records = span_records(sentences, max_tokens=10, window=2, draws=Random(seed))
    anchors = [record["anchor"] for record in records]
    for number, record in enumerate(records):
        place = anchors.index(record["random_sampled"])
        assert place != number and abs(place - number) <= 2
        assert abs(anchors.index(record["nearby"]) - number) == 1
        assert set(record["overlap"]) & set(record["anchor"]) and len(record["overlap"]) <= 12
    assert span_records(sentences[:3], max_tokens=100, window=2, draws=Random(seed)) == []


def test_the_decoder_reads_the_partner() -> None:
    assert swap_pairs(["a1", "b1", "a2", "b2"]) == ["b1", "a1", "b2", "a2"]


@pytest.mark.parametrize("seed", range(5))
def test_a_word_is_masked_whole_or_not_at_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = [f"##{n}" if rng.random() < 0.5 else f"{n}" for n in range(40)]
    groups = word_groups(tokens)
    mask = mask_words(40, groups, rng.permutation(len(groups)).tolist(), 0.3)
    assert 0 < sum(mask) <= 12
    assert all(len({mask[position] for position in group}) == 1 for group in groups)


def test_the_decoder_learns_of_the_encoder_through_one_vector() -> None:
    from transformers import BertConfig, BertForMaskedLM
    from transformers.models.bert.modeling_bert import BertLayer

    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model, decoder = BertForMaskedLM(config).eval(), nn.ModuleList([BertLayer(config).eval()])
    ids = torch.randint(4, 20, (2, 6))
    mask = torch.ones(2, 6, dtype=torch.long)
    labels = torch.full((2, 6), -100)
    labels[:, 2] = 5
    other = ids.flip(0).clone()
    first, second = pretraining_losses(model, decoder, ids, mask, labels, other, mask, labels)
    inner = next(model.bert.encoder.layer[0].attention.self.query.parameters())
    assert torch.autograd.grad(second, inner, retain_graph=True)[0].abs().sum() > 0
    other[:, 0] = 19
    assert torch.equal(pretraining_losses(model, decoder, ids, mask, labels, other, mask, labels)[1], second)
    none = torch.full((2, 6), -100)
    assert pretraining_losses(model, decoder, ids, mask, none, other, mask, none)[0].item() == 0.0
    assert first.item() > 0

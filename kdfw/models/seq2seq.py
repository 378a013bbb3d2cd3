"""Sequence to sequence: translation, one distribution over the vocabulary at each target position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kdfw.amounts import Shape
from kdfw.errors import ConfigError
from kdfw.models import checkpoint
from kdfw.models.attention import use_plain_attention
from kdfw.models.forward import Budget, assemble, evaluating, micro_batches
from kdfw.models.options import Dropout, Revision
from kdfw.models.rows import Graph, MicroBatch, RowGroup, lengths_of
from kdfw.models.text import TextModel, prefixed, texts_of
from kdfw.models.tokenize import Template, single_rows, template_of
from kdfw.types import Batch, Signals, Text


class Scratch(BaseModel):
    """Size of a translator that starts from random weights, with a vocabulary learned from the training data."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: int = Field(default=3, ge=1, description="layers of encoder and of decoder")
    width: int = Field(default=256, ge=8, description="width of the states; the feed-forward layers have 4 times that")
    heads: int = Field(default=4, ge=1, description="attention heads; a divisor of the width")
    vocabulary: int = Field(default=8000, ge=64, description="subwords, shared by both languages")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout in training")


class Seq2Seq(TextModel):
    """Encoder and decoder, trained with the reference as the decoder's input (arXiv:1706.03762)."""

    paper = "arXiv:1706.03762"
    provides: ClassVar[frozenset[str]] = frozenset({"logits"})
    tasks: ClassVar[frozenset[str]] = frozenset({"translation"})
    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    local_signals: ClassVar[bool] = True

    def __init__(
        self,
        *,
        base: Annotated[
            str | None, Field(description="hub name or folder of a pretrained translator; default: from scratch")
        ] = None,
        scratch: Annotated[
            Scratch | None, Field(description="size of a translator from scratch; its subwords come from the data")
        ] = None,
        max_source_tokens: Annotated[int, Field(ge=3, description="longer sources are cut")] = 128,
        max_target_tokens: Annotated[int, Field(ge=3, description="longer references are cut")] = 128,
        source_prefix: Annotated[str, Field(description="text put before every source (T5: the task)")] = "",
        dropout: Dropout = None,
        revision: Revision = None,
    ) -> None:
        super().__init__()
        if (base is None) == (scratch is None):
            raise ConfigError("seq2seq: write either `base` (pretrained) or `scratch` (from random weights)")
        if scratch is not None and scratch.width % scratch.heads:
            raise ConfigError(f"scratch.heads: found {scratch.heads}, which does not divide the width {scratch.width}")
        self.base = base  # type: ignore[assignment]
        self.scratch = scratch
        self.max_source_tokens = max_source_tokens
        self.max_target_tokens = max_target_tokens
        self.source_prefix = source_prefix
        self.dropout = dropout
        self.revision = revision
        self.translator: Any = None
        self._target: tuple[Template, bool] | None = None
        self._trained: Any = None

    def fit_data(self, data: Any) -> None:
        """Learn the subwords of a translator from scratch from the data's training split. Called before `load`."""
        if self.scratch is None:
            return
        split = data.splits.get("train") or next(iter(data.splits.values()))
        tables = (split.source, split.target)
        texts = (table.text(row) for table in tables for row in range(len(table)))
        self._trained = train_tokenizer(texts, self.scratch.vocabulary)

    def shape(self) -> Shape | None:
        return None  # two stacks of layers, which the count of one token does not fit

    def num_transformers(self) -> int | None:
        return None  # an encoder and a decoder, which architectures nest in their own ways

    def base_fingerprint(self) -> str:
        if self.scratch is not None:
            return f"scratch:{self.scratch.model_dump_json()}"
        return checkpoint.fingerprint(self.base, self.revision)

    def load(self, weights: Path | None = None) -> None:
        if self.scratch is not None and weights is None:
            if self._trained is None:
                raise ConfigError("scratch: its subwords are learned from the data; give it data (`fit_data`) first")
            self.set_tokenizer(self._trained)
            self.translator = build(self.scratch, self._trained, max(self.max_source_tokens, self.max_target_tokens))
            use_plain_attention(self.translator)
        else:
            source = self.source(weights)
            self.translator = self.open_transformer(source, weights, dropout=self.dropout)
            self.open_tokenizer(source)
        self._target = None
        self.check_length(
            self.translator, max_source_tokens=self.max_source_tokens, max_target_tokens=self.max_target_tokens
        )

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_transformer(self.translator, folder)
        self.save_tokenizer(folder, self.max_source_tokens)
        checkpoint.save_description(self, folder)

    def graphs(self) -> Sequence[Graph]:
        return [Graph(name="model", group="translation", finish=lambda found: {"logits": found["logits"]})]

    def usage(self) -> str:
        return f"""\
# texts: a list
# greedy, and without keeping what earlier steps computed: enough to try it
sources = {prefixed(self.source_prefix, "texts")}
ends, written = tokenizer.eos_token_id, np.zeros((len(texts), 0), dtype=np.int64)
for _ in range({self.max_target_tokens}):
    room = np.concatenate((written, np.full((len(texts), 1), ends)), axis=1)  # each is predicted from those before it
    (scores,) = run("model", sources, max_tokens={self.max_source_tokens}, target_ids=room)
    written = np.concatenate((written, scores[:, -1:].argmax(-1)), axis=1)
    if (written == ends).any(1).all():
        break
ended = [row[: list(row).index(ends)] if ends in row else row for row in written]
best = [tokenizer.decode(row, skip_special_tokens=True) for row in ended]"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        group = self._sources(texts_of(batch, "source"))
        return [replace(group, targets=self._targets(texts_of(batch, "target")))]

    def num_items(self, batch: Batch) -> float:
        """Target tokens of a batch, the end of each sentence included: its `num_items`."""
        return float(lengths_of(self._targets(texts_of(batch, "target"))).sum())

    def _sources(self, texts: Sequence[Text]) -> RowGroup:
        return self.single_group("translation", texts, self.source_prefix, self.max_source_tokens)

    def _targets(self, texts: Sequence[Text]) -> Sequence[np.ndarray]:
        """References with the special tokens the tokenizer gives to targets."""
        if self._target is None:
            self._target = self._target_template()
        template, like_source = self._target
        if like_source:
            bodies = self.tokens.ids(texts)
        else:  # a vocabulary of its own (Marian, mBART): the token store holds sources only
            encoded = self.tokenizer(text_target=[str(text) for text in texts], add_special_tokens=False)["input_ids"]
            bodies = [np.asarray(row, dtype=np.int64) for row in encoded]
        return single_rows(bodies, template, self.max_target_tokens)[0]

    def _target_template(self) -> tuple[Template, bool]:
        probe = "Ein kleines Haus, two green apples"
        tokenizer = self.tokenizer
        asked = tokenizer(text_target=probe)["input_ids"]
        if asked == tokenizer(probe)["input_ids"]:
            return self.template(False), True
        return template_of(_AsTarget(tokenizer)), False

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        """`logits` (R, T, V), `labels` (R, T), `real` (R, T): True at target tokens."""
        assert micro.targets is not None and micro.ids is not None
        real = micro.targets != -100
        labels = micro.targets.masked_fill(~real, self.pad_id)
        start = labels.new_full((len(labels), 1), self._start)
        output = self.translator(
            input_ids=micro.ids,
            attention_mask=None if micro.mask is None else micro.mask.long(),
            decoder_input_ids=torch.cat((start, labels[:, :-1]), dim=1),
            use_cache=False,
            return_dict=True,
        )
        return {"logits": output.logits, "labels": labels, "real": real}

    @property
    def _start(self) -> int:
        for config in (self.translator.generation_config, self.translator.config):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        raise ConfigError(f"base: {self.base!r} does not say which token a translation starts with")

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        """Items are target tokens: sentence by sentence, from left to right."""
        found = reps["translation"]
        real = found["real"]
        return Signals(logits=found["logits"][real], labels=found["labels"][real])

    # ------------------------------------------------------------ use

    def translate(
        self,
        texts: Sequence[Text],
        beam: int = 4,
        *,
        device: torch.device | str = "cpu",
        budget: Budget | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Translations in the order of `texts`, by beam search (1: greedy)."""
        budget = budget or Budget(tokens=4096)
        group = self._sources(texts)
        found = [""] * len(texts)
        with evaluating(self), torch.inference_mode():
            for rows in micro_batches(
                group.widths(), max(1, budget.tokens_on(torch.device(device)) // beam), budget.max_rows
            ):
                micro = assemble(group, rows, torch.device(device), self.pad_id)
                mask = torch.ones_like(micro.ids) if micro.mask is None else micro.mask.long()  # type: ignore[arg-type]
                output = self.translator.generate(
                    input_ids=micro.ids,
                    attention_mask=mask,
                    num_beams=beam,
                    do_sample=False,
                    max_length=None,
                    max_new_tokens=max_new_tokens or self.max_target_tokens,
                )
                for row, text in zip(rows, self.tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
                    found[int(row)] = text.strip()
        return found


class _AsTarget:
    """A tokenizer asked for targets, with the interface `template_of` uses."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.model_input_names = ["input_ids"]
        self.name_or_path = getattr(tokenizer, "name_or_path", "")

    def __call__(self, text: str, **options: Any) -> Any:
        return self.tokenizer(text_target=text, **options)


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    """A byte-pair tokenizer learned from texts, as a transformers tokenizer that ends every text with </s>."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    learned = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.NFKC()
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    learned.decoder = decoders.Metaspace()
    learned.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    )
    learned.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=learned,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def build(size: Scratch, tokenizer: Any, positions: int) -> nn.Module:
    """A transformer with random weights (drawn from torch's generator as it stands)."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=size.width,
        encoder_layers=size.layers,
        decoder_layers=size.layers,
        encoder_attention_heads=size.heads,
        decoder_attention_heads=size.heads,
        encoder_ffn_dim=4 * size.width,
        decoder_ffn_dim=4 * size.width,
        max_position_embeddings=positions,
        dropout=size.dropout,
        attention_dropout=0.0,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )
    model: nn.Module = BartForConditionalGeneration(config)
    return model

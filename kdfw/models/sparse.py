"""Learned sparse retrieval: a weight for every word of the vocabulary (SPLADE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdfw.models import checkpoint
from kdfw.models.options import Dropout, Layers, MaxPassageTokens, MaxQueryTokens, Revision
from kdfw.models.rows import Graph, MicroBatch, RowGroup
from kdfw.models.text import TextModel, among, by_candidate, largest, on, restore, run_transformer, texts_of
from kdfw.models.tokenize import unique_texts
from kdfw.types import Batch, Signals, Text


class SparseEncoder(TextModel):
    """max over tokens of log(1 + relu(masked language model logits)), dot product (arXiv:2109.10086, eq. 6)."""

    paper = "arXiv:2109.10086"
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "batch_logits", "query_sparse", "passage_sparse"})
    tasks: ClassVar[frozenset[str]] = frozenset({"ranking", "pairs"})
    auto: ClassVar[str] = "AutoModelForMaskedLM"
    search: ClassVar[str] = "sparse"

    def __init__(
        self,
        *,
        base: Annotated[str, Field(description="hub name, folder, or package:NAME of a masked language model")],
        max_query_tokens: MaxQueryTokens = 64,
        max_passage_tokens: MaxPassageTokens = 256,
        exclude_special: Annotated[
            bool, Field(description="leave [CLS], [SEP] and the like out of the maximum (sentence-transformers cannot)")
        ] = False,
        layers: Layers = None,
        dropout: Dropout = None,
        revision: Revision = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.max_query_tokens = max_query_tokens
        self.max_passage_tokens = max_passage_tokens
        self.exclude_special = exclude_special
        self.layers = layers
        self.dropout = dropout
        self.revision = revision
        self.language_model: nn.Module
        self._special: Tensor | None = None

    def load(self, weights: Path | None = None) -> None:
        source = self.source(weights)
        self.language_model = self.open_transformer(source, weights, layers=self.layers, dropout=self.dropout)
        self.open_tokenizer(source)
        self.check_length(
            self.language_model, max_query_tokens=self.max_query_tokens, max_passage_tokens=self.max_passage_tokens
        )
        self._special = torch.tensor(sorted(self.tokenizer.all_special_ids), dtype=torch.long)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_transformer(self.language_model, folder)
        longest = max(self.max_query_tokens, self.max_passage_tokens)
        self.save_tokenizer(folder, longest)
        settings: dict[str, object] = {"max_seq_length": longest, "do_lower_case": False}
        if self.max_query_tokens != self.max_passage_tokens:  # needs sentence-transformers 6
            settings |= {"query_length": self.max_query_tokens, "document_length": self.max_passage_tokens}
        checkpoint.save_json(folder / "sentence_bert_config.json", settings)
        (folder / "1_SpladePooling").mkdir(exist_ok=True)
        checkpoint.save_json(
            folder / "1_SpladePooling" / "config.json",
            {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None},
        )
        checkpoint.save_modules(
            folder,
            [("MLMTransformer", ""), ("SpladePooling", "1_SpladePooling")],
            model_type="SparseEncoder",
            prompts={"query": "", "document": ""},
            similarity="dot",
        )
        checkpoint.save_description(self, folder)

    def left_out(self) -> Mapping[str, str]:
        return {"exclude_special": "none: words of special tokens count there"} if self.exclude_special else {}

    def graphs(self) -> Sequence[Graph]:
        def finish(found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {"weights": found["sparse"]}

        return [Graph(name="model", group="passage", finish=finish)]

    def usage(self) -> str:
        return f"""\
# queries, passages: lists of texts
(query,) = run("model", queries, max_tokens={self.max_query_tokens})
(passage,) = run("model", passages, max_tokens={self.max_passage_tokens})
scores = query @ passage.T"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        queries, _ = unique_texts(texts_of(batch, "query"))
        passages, _ = unique_texts(texts_of(batch, "passage"))
        return [self.text_rows(queries, "query"), self.text_rows(passages, "passage")]

    def text_rows(self, texts: Sequence[Text], role: str) -> RowGroup:
        """Rows of queries or passages, for encoding outside a batch. `role`: `query` or `passage`."""
        limit = self.max_query_tokens if role == "query" else self.max_passage_tokens
        return self.single_group("query" if role == "query" else "passage", texts, "", limit)

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        """`sparse` (R, V), >= 0."""
        assert micro.ids is not None
        logits = run_transformer(self.language_model, micro).logits
        counted = micro.mask
        if self.exclude_special:
            assert self._special is not None
            ordinary = ~among(micro.ids, self._special)
            counted = ordinary if counted is None else counted & ordinary
        if counted is not None:
            logits = logits.masked_fill(~counted[:, :, None], -torch.inf)
        # the logarithm grows with its argument: taken after the maximum it costs 1/L of what it costs before
        return {"sparse": largest(logits, 1).float().relu().log1p()}

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        query = restore(reps["query"]["sparse"], texts_of(batch, "query"))
        passage = restore(reps["passage"]["sparse"], texts_of(batch, "passage"))
        extra = {}
        if "query_sparse" in need:
            extra["query_sparse"] = query
        if "passage_sparse" in need:
            extra["passage_sparse"] = passage
        if "batch_logits" in need:
            extra["batch_logits"] = query @ passage.T
        logits = None
        if batch.candidates is not None:
            candidates = batch.candidates.to(query.device)
            if "batch_logits" in extra:
                logits = extra["batch_logits"].gather(1, candidates)
            elif len(passage) * 4 >= candidates.numel():
                # a (Q, D, V) copy of the passages would be far larger than the products that are not needed
                logits = (query @ passage.T).gather(1, candidates)
            else:
                logits = torch.bmm(by_candidate(passage, candidates), query[:, :, None])[:, :, 0]
        return Signals(logits=logits, mask=on(batch.mask, query), labels=on(batch.labels, query), extra=extra)

"""Late interaction: one vector a token, scores by MaxSim (ColBERT)."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from kdfw.amounts import Amount, Shape
from kdfw.errors import ConfigError
from kdfw.models import checkpoint
from kdfw.models.options import Base, Dropout, Layers, MaxPassageTokens, MaxQueryTokens, Revision
from kdfw.models.rows import Graph, MicroBatch, RowGroup
from kdfw.models.text import (
    TextModel,
    among,
    by_candidate,
    largest,
    on,
    prefixed,
    restore,
    run_transformer,
    texts_of,
)
from kdfw.models.tokenize import unique_texts
from kdfw.types import Batch, Signals, Text

_MAX_SIMILARITIES = 1 << 24
"""Token similarities computed at once: 64 MB in float32."""


class LateInteraction(TextModel):
    """Every token has a vector; a query token counts with its best passage token (arXiv:2004.12832)."""

    paper = "arXiv:2004.12832"
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "batch_logits"})
    tasks: ClassVar[frozenset[str]] = frozenset({"ranking", "pairs"})
    search: ClassVar[str] = "maxsim"

    def __init__(
        self,
        *,
        base: Base,
        projection: Annotated[int, Field(ge=1, description="width of a token's vector")] = 128,
        max_query_tokens: MaxQueryTokens = 32,
        max_passage_tokens: MaxPassageTokens = 180,
        expand_queries: Annotated[
            bool, Field(description="fill queries up to `max_query_tokens` with [MASK] tokens that are scored too")
        ] = True,
        attend_to_expansion: Annotated[
            bool, Field(description="whether the other tokens see the [MASK] tokens of the expansion")
        ] = False,
        query_marker: Annotated[
            str, Field(description="token put before every query (ColBERT: [unused0]); empty: none")
        ] = "",
        passage_marker: Annotated[
            str, Field(description="token put before every passage (ColBERT: [unused1]); empty: none")
        ] = "",
        skip_punctuation: Annotated[bool, Field(description="punctuation of passages is not scored")] = True,
        layers: Layers = None,
        dropout: Dropout = None,
        revision: Revision = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.projection = projection
        self.max_query_tokens = max_query_tokens
        self.max_passage_tokens = max_passage_tokens
        self.expand_queries = expand_queries
        self.attend_to_expansion = attend_to_expansion
        self.query_marker = query_marker
        self.passage_marker = passage_marker
        self.skip_punctuation = skip_punctuation
        self.layers = layers
        self.dropout = dropout
        self.revision = revision
        self.encoder: nn.Module
        self.dense: nn.Linear
        self._mask_id = -1
        self._skipped: Tensor | None = None

    def shape(self) -> Shape | None:
        shape = super().shape()
        return None if shape is None else replace(shape, width=Amount(self.projection))

    def load(self, weights: Path | None = None) -> None:
        source = self.source(weights)
        encoder = self.open_transformer(source, weights, layers=self.layers, dropout=self.dropout)
        self.encoder = encoder
        self.open_tokenizer(source)
        self.check_length(encoder, max_query_tokens=self.max_query_tokens, max_passage_tokens=self.max_passage_tokens)
        markers = [marker for marker in (self.query_marker, self.passage_marker) if marker]
        if markers and weights is None:
            self.tokenizer.add_tokens(markers, special_tokens=True)
            if len(self.tokenizer) > encoder.get_input_embeddings().num_embeddings:
                encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            self.set_tokenizer(self.tokenizer)
        if self.expand_queries:
            if self.tokenizer.mask_token_id is None:
                raise ConfigError(f"expand_queries: the tokenizer of {self.base!r} has no mask token; set it to false")
            self._mask_id = int(self.tokenizer.mask_token_id)
        self.dense = nn.Linear(int(encoder.config.hidden_size), self.projection, bias=False)
        if weights is not None:
            from safetensors.torch import load_file

            stored = load_file(weights / "1_Dense" / "model.safetensors")["linear.weight"]
            self.dense.load_state_dict({"weight": stored}, strict=True)
        ids = [self.tokenizer.convert_tokens_to_ids(sign) for sign in string.punctuation]
        unknown = self.tokenizer.unk_token_id
        self._skipped = torch.tensor(sorted({id for id in ids if id is not None and id != unknown}), dtype=torch.long)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_transformer(self.encoder, folder)
        longest = max(self.max_query_tokens, self.max_passage_tokens)
        self.save_tokenizer(folder, longest)
        settings: dict[str, object] = {
            "max_seq_length": longest,
            "do_lower_case": False,
            "document_length": self.max_passage_tokens,
        }
        if self.expand_queries:
            settings["query_expansion"] = {
                "strategy": "fixed",
                "attend": self.attend_to_expansion,
                "length": self.max_query_tokens,
            }
        else:
            settings["query_length"] = self.max_query_tokens
        checkpoint.save_json(folder / "sentence_bert_config.json", settings)
        checkpoint.save_dense(folder / "1_Dense", self.dense, "token_embeddings")
        (folder / "2_MultiVectorMask").mkdir(exist_ok=True)
        checkpoint.save_json(
            folder / "2_MultiVectorMask" / "config.json",
            {
                "skiplist_words": list(string.punctuation) if self.skip_punctuation else [],
                "skiplist_tasks": ["document"],
                "keep_only_token_ids": None,
            },
        )
        (folder / "3_Normalize").mkdir(exist_ok=True)
        checkpoint.save_json(
            folder / "3_Normalize" / "config.json",
            {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"},
        )
        checkpoint.save_modules(
            folder,
            [
                ("Transformer", ""),
                ("Dense", "1_Dense"),
                ("MultiVectorMask", "2_MultiVectorMask"),
                ("Normalize", "3_Normalize"),
            ],
            model_type="MultiVectorEncoder",
            prompts={"query": _prompt(self.query_marker), "document": _prompt(self.passage_marker)},
            similarity="maxsim",
        )
        checkpoint.save_description(self, folder)

    def graphs(self) -> Sequence[Graph]:
        def finish(found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {"token_embeddings": found["tokens"], "token_mask": found["token_mask"]}

        return [Graph(name=side, group=side, finish=finish) for side in ("query", "passage")]

    def usage(self) -> str:
        expand = ", expand=True" if self.expand_queries else ""
        query = prefixed(_prompt(self.query_marker), "queries")
        passage = prefixed(_prompt(self.passage_marker), "passages")
        return f"""\
# queries, passages: lists of texts
query, _ = run("query", {query}, max_tokens={self.max_query_tokens}{expand})
passage, kept = run("passage", {passage}, max_tokens={self.max_passage_tokens})
similar = np.einsum("qih,pjh->qpij", query, passage)
scores = np.where(kept[None, :, None, :], similar, -np.inf).max(-1).sum(-1)"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        queries, _ = unique_texts(texts_of(batch, "query"))
        passages, _ = unique_texts(texts_of(batch, "passage"))
        return [self.text_rows(queries, "query"), self.text_rows(passages, "passage")]

    def text_rows(self, texts: Sequence[Text], role: str) -> RowGroup:
        """Rows of queries or passages, for encoding outside a batch. `role`: `query` or `passage`."""
        if role != "query":
            return self.single_group("passage", texts, _prompt(self.passage_marker), self.max_passage_tokens)
        group = self.single_group("query", texts, _prompt(self.query_marker), self.max_query_tokens)
        if not self.expand_queries:
            return group
        width = self.max_query_tokens
        ids = [np.concatenate((row, np.full(width - len(row), self._mask_id, dtype=np.int64))) for row in group.ids]
        types = None
        if group.type_ids is not None:
            types = [np.concatenate((row, np.zeros(width - len(row), dtype=np.int64))) for row in group.type_ids]
        return replace(group, ids=ids, type_ids=types)

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        """`tokens` (R, L, H), unit vectors, zero where a token is not scored; `token_mask` (R, L)."""
        assert micro.ids is not None
        scored = torch.ones_like(micro.ids, dtype=torch.bool) if micro.mask is None else micro.mask
        seen = micro.mask
        if micro.group == "query" and self.expand_queries and not self.attend_to_expansion:
            # the expansion is what follows the last other token of a row
            other = micro.ids != self._mask_id
            seen = other.flip(1).long().cumsum(1).flip(1) > 0
            if not torch.compiler.is_compiling() and bool(seen.all()):
                seen = None
        if micro.group == "passage" and self.skip_punctuation:
            assert self._skipped is not None
            scored = scored & ~among(micro.ids, self._skipped)
        states = self.dense(run_transformer(self.encoder, micro, mask=seen).last_hidden_state)
        vectors = nn.functional.normalize(states.float(), dim=-1)
        return {"tokens": vectors * scored[:, :, None], "token_mask": scored}

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        queries, passages = texts_of(batch, "query"), texts_of(batch, "passage")
        query, query_mask = (restore_any(reps["query"][name], queries) for name in ("tokens", "token_mask"))
        passage, passage_mask = (restore_any(reps["passage"][name], passages) for name in ("tokens", "token_mask"))
        extra = {}
        if "batch_logits" in need:
            extra["batch_logits"] = maxsim_all(query, query_mask, passage, passage_mask)
        logits = None
        if batch.candidates is not None:
            candidates = batch.candidates.to(query.device)
            if "batch_logits" in extra:
                logits = extra["batch_logits"].gather(1, candidates)
            else:
                logits = maxsim_candidates(query, query_mask, passage, passage_mask, candidates)
        return Signals(logits=logits, mask=on(batch.mask, query), labels=on(batch.labels, query), extra=extra)


def maxsim_all(query: Tensor, query_mask: Tensor, passage: Tensor, passage_mask: Tensor) -> Tensor:
    """(Q, P): every query against every passage.

    Args:
        query: (Q, L, H); passage: (P, K, H); masks (Q, L) and (P, K), True where a token is scored.
    """
    num_queries, length, width = query.shape
    num_passages, keys, _ = passage.shape
    together = max(1, _MAX_SIMILARITIES // max(length * num_passages * keys, 1))
    parts = []
    for begin in range(0, num_queries, together):
        some = query[begin : begin + together]
        similar = (some.reshape(-1, width) @ passage.reshape(-1, width).T).view(-1, length, num_passages, keys)
        best = _best(similar, passage_mask)
        parts.append((best * query_mask[begin : begin + together, :, None]).sum(1))
    return torch.cat(parts)


def maxsim_candidates(
    query: Tensor, query_mask: Tensor, passage: Tensor, passage_mask: Tensor, candidates: Tensor
) -> Tensor:
    """(Q, D): every query against its own candidates. Shapes as in `maxsim_all`; candidates (Q, D) rows of passage."""
    num_queries, length, width = query.shape
    num_candidates, keys = candidates.shape[1], passage.shape[1]
    together = max(1, _MAX_SIMILARITIES // max(length * num_candidates * keys, 1))
    parts = []
    for begin in range(0, num_queries, together):
        rows = candidates[begin : begin + together]
        chosen = by_candidate(passage, rows).view(len(rows), num_candidates * keys, width)
        similar = torch.bmm(query[begin : begin + together], chosen.transpose(1, 2))
        best = _best(similar.view(len(rows), length, num_candidates, keys), passage_mask[rows][:, None])
        parts.append((best * query_mask[begin : begin + together, :, None]).sum(1))
    return torch.cat(parts)


def _best(similar: Tensor, mask: Tensor) -> Tensor:
    """Largest over the last dimension where `mask` is True; 0 for a passage without scored tokens."""
    best = largest(similar.masked_fill(~mask, -torch.inf), -1)
    return torch.where(torch.isinf(best), torch.zeros_like(best), best)


def restore_any(rows: Tensor, texts: Sequence[Text]) -> Tensor:
    """`restore` for values of any type."""
    if rows.is_floating_point():
        return restore(rows, texts)
    unique, inverse = unique_texts(texts)
    return rows if len(unique) == len(texts) else rows[torch.from_numpy(inverse).to(rows.device)]


def _prompt(marker: str) -> str:
    return f"{marker} " if marker else ""

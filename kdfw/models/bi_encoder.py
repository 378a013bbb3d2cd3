"""Bi-encoder: one vector a text, scores are dot products or cosines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdfw.amounts import Amount, Shape
from kdfw.models import checkpoint
from kdfw.models.options import (
    Base,
    Dropout,
    Layers,
    MaxPassageTokens,
    MaxQueryTokens,
    PassagePrefix,
    QueryPrefix,
    Revision,
)
from kdfw.models.rows import Graph, MicroBatch, RowGroup
from kdfw.models.text import (
    TextModel,
    by_candidate,
    first_states,
    largest,
    on,
    prefixed,
    restore,
    run_transformer,
    texts_of,
)
from kdfw.models.tokenize import unique_texts
from kdfw.types import Batch, Signals, Text


class BiEncoder(TextModel):
    """Two texts become two vectors, compared by cosine or dot product (arXiv:1908.10084, arXiv:2004.04906)."""

    paper = "arXiv:1908.10084"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"logits", "batch_logits", "query_embeddings", "passage_embeddings", "query_hidden", "passage_hidden"}
    )
    tasks: ClassVar[frozenset[str]] = frozenset({"ranking", "pairs"})
    search: ClassVar[str] = "dense"

    def __init__(
        self,
        *,
        base: Base,
        pooling: Annotated[
            Literal["mean", "cls", "max", "last"], Field(description="how token states become one vector")
        ] = "mean",
        similarity: Annotated[
            Literal["cosine", "dot"], Field(description="cosine normalises the vectors; dot does not")
        ] = "cosine",
        scale: Annotated[float, Field(gt=0, description="scores are the similarity times this")] = 1.0,
        query_prefix: QueryPrefix = "",
        passage_prefix: PassagePrefix = "",
        max_query_tokens: MaxQueryTokens = 64,
        max_passage_tokens: MaxPassageTokens = 256,
        towers: Annotated[
            Literal["shared", "two"], Field(description="one transformer for both sides, or one for each")
        ] = "shared",
        projection: Annotated[
            int | None, Field(ge=1, description="width of the vectors; default: that of the transformer")
        ] = None,
        layers: Layers = None,
        dropout: Dropout = None,
        revision: Revision = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.pooling = pooling
        self.similarity = similarity
        self.scale = scale
        self.query_prefix = query_prefix
        self.passage_prefix = passage_prefix
        self.max_query_tokens = max_query_tokens
        self.max_passage_tokens = max_passage_tokens
        self.towers = towers
        self.projection = projection
        self.layers = layers
        self.dropout = dropout
        self.revision = revision
        self.encoders = nn.ModuleDict()
        """`both`, or `query` and `passage`."""
        self.projections = nn.ModuleDict()

    def shape(self) -> Shape | None:
        shape = super().shape()
        return shape if shape is None or self.projection is None else replace(shape, width=Amount(self.projection))

    def num_transformers(self) -> int | None:
        return 1 if self.towers == "shared" else 2

    # ------------------------------------------------------------ loading and saving

    def load(self, weights: Path | None = None) -> None:
        source = self.source(weights)
        sides = ("both",) if self.towers == "shared" else ("query", "passage")
        for side in sides:
            place = source
            if weights is not None and side != "both":
                place = weights / _TOWER_FOLDERS[side][0]
            transformer = self.open_transformer(place, weights, layers=self.layers, dropout=self.dropout)
            if side == sides[0]:
                self.open_tokenizer(place)
                self.check_length(
                    transformer, max_query_tokens=self.max_query_tokens, max_passage_tokens=self.max_passage_tokens
                )
            self.encoders[side] = transformer
            if self.projection is not None:
                dense = nn.Linear(int(transformer.config.hidden_size), self.projection, bias=False)
                if weights is not None:
                    from safetensors.torch import load_file

                    folder = weights / (_DENSE if side == "both" else _TOWER_FOLDERS[side][2])
                    dense.load_state_dict(
                        {"weight": load_file(folder / "model.safetensors")["linear.weight"]}, strict=True
                    )
                self.projections[side] = dense

    def save(self, folder: Path) -> None:
        """One tower: the transformer in `folder` itself, the other modules beside it. Two towers: one subfolder for
        each (`query_0_Transformer`, `document_0_Transformer`), joined by sentence-transformers' Router."""
        folder.mkdir(parents=True, exist_ok=True)
        longest = max(self.max_query_tokens, self.max_passage_tokens)
        prompts = {"query": self.query_prefix, "document": self.passage_prefix}
        common: dict[str, Any] = {
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "similarity": "cosine" if self.similarity == "cosine" else "dot",
        }
        if self.towers == "shared":
            self._save_transformer("both", folder, longest, self.max_query_tokens != self.max_passage_tokens)
            parts = self._save_head("both", folder, ("1_Pooling", _DENSE, "3_Normalize"))
            checkpoint.save_modules(folder, [("Transformer", ""), *parts], **common)
        else:
            structure: dict[str, list[str]] = {}
            types: dict[str, str] = {}
            for side, name, limit in (
                ("query", "query", self.max_query_tokens),
                ("passage", "document", self.max_passage_tokens),
            ):
                transformer, *others = _TOWER_FOLDERS[side]
                self._save_transformer(side, folder / transformer, limit, False)
                parts = [
                    ("Transformer", transformer),
                    *self._save_head(side, folder, (others[0], others[1], others[2])),
                ]
                structure[name] = [path for _, path in parts]
                types |= {path: checkpoint.module_path(kind) for kind, path in parts}
            checkpoint.save_json(
                folder / "router_config.json",
                {
                    "types": types,
                    "structure": structure,
                    "parameters": {"default_route": "document", "allow_empty_key": True},
                },
            )
            checkpoint.save_modules(folder, [("Router", "")], **common)
        checkpoint.save_description(self, folder)

    def _save_transformer(self, side: str, folder: Path, limit: int, by_role: bool) -> None:
        checkpoint.save_transformer(self.encoders[side], folder)
        self.save_tokenizer(folder, limit)
        settings: dict[str, Any] = {"max_seq_length": limit, "do_lower_case": False}
        if by_role:  # sentence-transformers before 6 knows one limit only
            settings |= {"query_length": self.max_query_tokens, "document_length": self.max_passage_tokens}
        checkpoint.save_json(folder / "sentence_bert_config.json", settings)

    def _save_head(self, side: str, folder: Path, names: tuple[str, str, str]) -> list[tuple[str, str]]:
        pooling, dense, normalize = names
        transformer: Any = self.encoders[side]
        width = int(transformer.config.hidden_size)
        modes = {
            f"pooling_mode_{mode}": mode == _POOLING_FLAGS[self.pooling]
            for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
        }
        checkpoint.save_json(
            folder / pooling / "config.json", {"word_embedding_dimension": width, "include_prompt": True, **modes}
        )
        parts = [("Pooling", pooling)]
        if self.projection is not None:
            checkpoint.save_dense(folder / dense, self.projections[side], "sentence_embedding")
            parts.append(("Dense", dense))
        if self.similarity == "cosine":
            (folder / normalize).mkdir(exist_ok=True)
            parts.append(("Normalize", normalize))
        return parts

    def width(self, signal: str) -> int:
        """Of embeddings and hidden states."""
        transformer: Any = next(iter(self.encoders.values()))
        hidden = int(transformer.config.hidden_size)
        if signal in ("query_hidden", "passage_hidden"):
            return hidden
        if signal in ("query_embeddings", "passage_embeddings"):
            return self.projection or hidden
        return super().width(signal)

    def graphs(self) -> Sequence[Graph]:
        def finish(found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {"sentence_embedding": found["embedding"]}

        if self.towers == "shared":
            return [Graph(name="model", group="passage", finish=finish)]
        return [Graph(name=side, group=side, finish=finish) for side in ("query", "passage")]

    def usage(self) -> str:
        names = ("model", "model") if self.towers == "shared" else ("query", "passage")
        query, passage = prefixed(self.query_prefix, "queries"), prefixed(self.passage_prefix, "passages")
        return f"""\
# queries, passages: lists of texts
(query,) = run("{names[0]}", {query}, max_tokens={self.max_query_tokens})
(passage,) = run("{names[1]}", {passage}, max_tokens={self.max_passage_tokens})
scores = {self.scale} * query @ passage.T"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        queries, _ = unique_texts(texts_of(batch, "query"))
        passages, _ = unique_texts(texts_of(batch, "passage"))
        return [self.text_rows(queries, "query"), self.text_rows(passages, "passage")]

    def text_rows(self, texts: Sequence[Text], role: str) -> RowGroup:
        """Rows of queries or passages, for encoding outside a batch. `role`: `query` or `passage`."""
        if role == "query":
            return self.single_group("query", texts, self.query_prefix, self.max_query_tokens)
        return self.single_group("passage", texts, self.passage_prefix, self.max_passage_tokens)

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        side = "both" if self.towers == "shared" else micro.group
        hidden = f"{micro.group}_hidden" in need
        output = run_transformer(self.encoders[side], micro, hidden)
        pooled = pool(output.last_hidden_state, micro.mask, self.pooling)
        if self.projection is not None:
            pooled = self.projections[side](pooled)
        if self.similarity == "cosine":
            pooled = nn.functional.normalize(pooled.float(), dim=-1)
        found = {"embedding": pooled}
        if hidden:
            found["hidden"] = first_states(output)
        return found

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        found = vector_signals(reps, batch, need, self.scale)
        hidden = {
            f"{side}_hidden": restore(reps[side]["hidden"], texts_of(batch, side))
            for side in ("query", "passage")
            if f"{side}_hidden" in need
        }
        return replace(found, extra={**found.extra, **hidden})


_DENSE = "2_Dense"
_TOWER_FOLDERS = {
    "query": ("query_0_Transformer", "query_1_Pooling", "query_2_Dense", "query_3_Normalize"),
    "passage": ("document_0_Transformer", "document_1_Pooling", "document_2_Dense", "document_3_Normalize"),
}
_POOLING_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}


def vector_signals(
    reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str], scale: float | Tensor
) -> Signals:
    """Signals of a model with one vector a row: `embedding` of the groups `query` and `passage`, their products."""
    query = restore(reps["query"]["embedding"], texts_of(batch, "query"))
    passage = restore(reps["passage"]["embedding"], texts_of(batch, "passage"))
    extra: dict[str, Tensor] = {}
    if "query_embeddings" in need:
        extra["query_embeddings"] = query
    if "passage_embeddings" in need:
        extra["passage_embeddings"] = passage
    if "batch_logits" in need:
        extra["batch_logits"] = scale * (query @ passage.T)
    logits = None
    if batch.candidates is not None:
        candidates = batch.candidates.to(query.device)
        if "batch_logits" in extra:
            logits = extra["batch_logits"].gather(1, candidates)
        else:
            logits = scale * torch.bmm(by_candidate(passage, candidates), query[:, :, None])[:, :, 0]
    return Signals(logits=logits, mask=on(batch.mask, query), labels=on(batch.labels, query), extra=extra)


def pool(states: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """(R, L, H) token states -> (R, H). `mask` (R, L) bool; None: every token is real."""
    if how == "cls":
        return states[:, 0]
    if how == "last":
        if mask is None:
            return states[:, -1]
        last = mask.long().sum(1) - 1
        return states[torch.arange(states.shape[0], device=states.device), last]
    states = states.float()
    if how == "max":
        return largest(states if mask is None else states.masked_fill(~mask[:, :, None], -torch.inf), 1)
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype)
    # one product instead of masking every state: (R, 1, L) x (R, L, H)
    return torch.bmm(weights[:, None], states)[:, 0] / weights.sum(1, keepdim=True)

"""Cross-encoder: one score for a query and a passage read together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdfw.errors import ConfigError
from kdfw.models import checkpoint
from kdfw.models.options import Base, Dropout, Layers, PassagePrefix, QueryPrefix, Revision
from kdfw.models.rows import Graph, MicroBatch, RowGroup
from kdfw.models.text import TextModel, first_states, on, prefixed, run_transformer, texts_of
from kdfw.models.tokenize import FIRST_TOKENS, unique_texts
from kdfw.types import Batch, Signals, Text

_ACTIVATIONS = {"none": "torch.nn.modules.linear.Identity", "sigmoid": "torch.nn.modules.activation.Sigmoid"}


class CrossEncoder(TextModel):
    """Query and passage in one sequence, one logit for the pair (arXiv:1901.04085)."""

    paper = "arXiv:1901.04085"
    provides: ClassVar[frozenset[str]] = frozenset({"logits", "hidden"})
    tasks: ClassVar[frozenset[str]] = frozenset({"ranking", "pairs"})
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    new_head: ClassVar[bool] = True

    def __init__(
        self,
        *,
        base: Base,
        max_pair_tokens: Annotated[int, Field(ge=5, le=32768, description="longer pairs are cut")] = 256,
        max_query_tokens: Annotated[
            int | None, Field(ge=1, description="queries keep at most this many tokens; default: all")
        ] = None,
        truncation: Annotated[
            Literal["longest_first", "only_second"], Field(description="which text of a pair that is too long is cut")
        ] = "longest_first",
        query_prefix: QueryPrefix = "",
        passage_prefix: PassagePrefix = "",
        label: Annotated[
            int | None, Field(ge=0, description="output that is the score, where a checkpoint has several")
        ] = None,
        activation: Annotated[
            Literal["none", "sigmoid"], Field(description="applied to scores outside training; losses see raw logits")
        ] = "none",
        layers: Layers = None,
        dropout: Dropout = None,
        revision: Revision = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.max_pair_tokens = max_pair_tokens
        self.max_query_tokens = max_query_tokens
        self.truncation = truncation
        self.query_prefix = query_prefix
        self.passage_prefix = passage_prefix
        self.label = label
        self.activation = activation
        self.layers = layers
        self.dropout = dropout
        self.revision = revision
        self.classifier: Any = None

    def load(self, weights: Path | None = None) -> None:
        source = self.source(weights)
        more = {} if self.label is not None or weights is not None else {"num_labels": 1}
        try:
            self.classifier = self.open_transformer(source, weights, layers=self.layers, dropout=self.dropout, **more)
        except RuntimeError as error:  # a classifier of another size in the checkpoint
            raise ConfigError(
                f"base: {self.base!r} has a classifier with several outputs; say with `label` which one is the score"
            ) from error
        outputs = int(self.classifier.config.num_labels)
        if self.label is not None and self.label >= outputs:
            raise ConfigError(f"label: found {self.label}, but {self.base!r} has outputs 0 to {outputs - 1}")
        self.open_tokenizer(source)
        self.check_length(self.classifier, max_pair_tokens=self.max_pair_tokens)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = _ACTIVATIONS[self.activation]
        config = self.classifier.config
        config.sentence_transformers = {"activation_fn": name}
        checkpoint.save_transformer(self.classifier, folder)
        self.save_tokenizer(folder, self.max_pair_tokens)
        settings: dict[str, object] = {"transformer_task": "sequence-classification"}
        if self.truncation != "longest_first":  # this and the prompt need sentence-transformers 6
            settings["processing_kwargs"] = {"text": {"truncation": self.truncation}}
        checkpoint.save_json(folder / "sentence_bert_config.json", settings)
        checkpoint.save_modules(
            folder,
            [("Transformer", "")],
            model_type="CrossEncoder",
            prompts={"query": self.query_prefix} if self.query_prefix else {},
            default_prompt="query" if self.query_prefix else None,
            similarity=None,
            activation_fn=name,
        )
        checkpoint.save_description(self, folder)

    def left_out(self) -> Mapping[str, str]:
        found = {}
        if self.max_query_tokens is not None:
            found["max_query_tokens"] = f"cut queries after {self.max_query_tokens} tokens, prefix included"
        if self.passage_prefix:
            found["passage_prefix"] = f"put {self.passage_prefix!r} before every passage"
        if self.label is not None:
            found["label"] = f"of several outputs take number {self.label}"
        return found

    def width(self, signal: str) -> int:
        """Of hidden states."""
        return int(self.classifier.config.hidden_size) if signal == "hidden" else super().width(signal)

    def graphs(self) -> Sequence[Graph]:
        def finish(found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {"scores": self.final_scores(found["logit"])}

        return [Graph(name="model", group="pair", finish=finish)]

    def usage(self) -> str:
        query, passage = prefixed(self.query_prefix, "queries"), prefixed(self.passage_prefix, "passages")
        helper = cut = ""
        if self.max_query_tokens is not None:
            helper, cut = (
                f"{FIRST_TOKENS}\n\n",
                f"query = [first_tokens(text, {self.max_query_tokens}) for text in query]\n",
            )
        return f"""\
{helper}# queries, passages: lists of texts
query, passage = {query}, {passage}
{cut}\
pairs = [list(side) for side in zip(*((one, other) for one in query for other in passage))]
(found,) = run("model", *pairs, max_tokens={self.max_pair_tokens}, truncation="{self.truncation}")
scores = found.reshape(len(query), len(passage))"""

    # ------------------------------------------------------------ the forward road

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        queries, passages = texts_of(batch, "query"), texts_of(batch, "passage")
        pairs, _ = self._pairs(batch)
        first = self.tokens.ids(queries, self.query_prefix)
        second = self.tokens.ids(passages, self.passage_prefix)
        return [self._group([first[q] for q, _ in pairs], [second[p] for _, p in pairs])]

    def pair_rows(self, queries: Sequence[Text], passages: Sequence[Text]) -> RowGroup:
        """Rows of pairs, for scoring outside a batch: query i with passage i."""
        return self._group(self.tokens.ids(queries, self.query_prefix), self.tokens.ids(passages, self.passage_prefix))

    def _group(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> RowGroup:
        if self.max_query_tokens is not None:
            first = [body[: self.max_query_tokens] for body in first]
        return self.pair_group("pair", first, second, self.max_pair_tokens, self.truncation)

    def _pairs(self, batch: Batch) -> tuple[list[tuple[int, int]], np.ndarray]:
        """Distinct (query, passage) pairs of the batch, each once, and (Q, D) where every candidate's pair is.

        Padded candidates repeat column 0 and so cost nothing.
        """
        assert batch.candidates is not None
        _, query_number = unique_texts(texts_of(batch, "query"))
        first_with = {int(number): index for index, number in reversed(list(enumerate(query_number)))}
        seen: dict[tuple[int, int], int] = {}
        pairs: list[tuple[int, int]] = []
        candidates = batch.candidates.cpu().numpy()
        places = np.empty(candidates.shape, dtype=np.int64)
        for q, row in enumerate(candidates):
            query = int(query_number[q])
            for d, passage in enumerate(row):
                key = (query, int(passage))
                if key not in seen:
                    seen[key] = len(pairs)
                    pairs.append((first_with[query], int(passage)))
                places[q, d] = seen[key]
        return pairs, places

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        output = run_transformer(self.classifier, micro, "hidden" in need)
        found = {"logit": output.logits[:, self.label or 0]}
        if "hidden" in need:
            found["hidden"] = first_states(output)
        return found

    def signals(self, reps: Mapping[str, Mapping[str, Tensor]], batch: Batch, need: frozenset[str]) -> Signals:
        logit = reps["pair"]["logit"]
        places = torch.from_numpy(self._pairs(batch)[1]).to(logit.device)
        extra = {}
        if "hidden" in need:
            # (Q, D, N, H): one row a candidate, as the logits
            hidden = reps["pair"]["hidden"]
            extra["hidden"] = hidden.index_select(0, places.flatten()).view(*places.shape, *hidden.shape[1:])
        logits = logit.index_select(0, places.flatten()).view(places.shape)
        return Signals(logits=logits, mask=on(batch.mask, logit), labels=on(batch.labels, logit), extra=extra)

    def final_scores(self, logits: Tensor) -> Tensor:
        """Scores as users see them: `activation` applied."""
        return logits.sigmoid() if self.activation == "sigmoid" else logits

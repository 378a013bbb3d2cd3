"""What models over a pretrained transformer share: the base, the tokenizer, rows of texts and pairs, the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kdfw.amounts import Shape
from kdfw.components import Model
from kdfw.errors import ConfigError, Problem
from kdfw.models import checkpoint, embedding
from kdfw.models.attention import packing_of, use_plain_attention
from kdfw.models.fused import fused, prepare
from kdfw.models.rows import MicroBatch, RowGroup
from kdfw.models.tokenize import Template, Truncation, pair_rows, single_rows, template_of, unique_texts
from kdfw.types import Batch, Text

if TYPE_CHECKING:
    from kdfw.data.tokens import Tokens


class TextModel(Model):
    """A model whose rows are token sequences of a pretrained transformer.

    The engine sets `allow_remote_code` before `load` and `token_cache` after it.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"text"})
    auto: ClassVar[str] = "AutoModel"
    """The transformers class that loads the base."""
    new_head: ClassVar[bool] = False
    """Whether what a base lacks beside its encoder is drawn anew, to be trained."""

    base: str
    revision: str | None

    def __init__(self) -> None:
        super().__init__()
        self.allow_remote_code = False
        self.token_cache: Path | None = None
        self.tokenizer: Any = None
        self.pad_id = 0
        self._tokens: Tokens | None = None
        self._tokens_cache: Path | None = None
        self._templates: dict[bool, Template] = {}

    def base_fingerprint(self) -> str:
        return checkpoint.fingerprint(self.base, self.revision)

    def check_base(self, where: Callable[[str], str]) -> Iterator[Problem]:
        return self.check_layers(where)

    def check_layers(
        self, where: Callable[[str], str], *, base: str = "base", layers: str = "layers"
    ) -> Iterator[Problem]:
        """Faults of the option that says which layers of a base are kept, both by their names."""
        name, wanted = getattr(self, base, None), getattr(self, layers, None)
        if name is None or wanted is None:
            return
        total = checkpoint.num_layers(checkpoint.configuration(name, self.revision))
        fault = checkpoint.layers_fault(wanted, total)
        if fault is not None:
            yield Problem(where=where(layers), found=fault[0], fix=fault[1])

    def shape(self) -> Shape | None:
        """By the usual names in a transformer's configuration and in the options of our models."""
        limits = {name: getattr(self, f"max_{name}_tokens", None) for name in ("query", "passage", "pair")}
        limits["text"] = getattr(self, "max_tokens", None)
        flop, width = checkpoint.cost(
            checkpoint.configuration(self.base, self.revision),
            layers=getattr(self, "layers", None),
            vocabulary=self.auto == "AutoModelForMaskedLM",
        )
        return Shape(
            flop_per_token=flop,
            width=width,
            limits={name: limit for name, limit in limits.items() if limit is not None},
        )

    def num_transformers(self) -> int | None:
        return 1

    def source(self, weights: Path | None) -> Path | str:
        """Where to load from: a saved folder, the folder of the base, or a hub name."""
        return weights or checkpoint.locate(self.base) or self.base

    def open_tokenizer(self, source: Path | str) -> None:
        """Load the tokenizer; everything derived from an earlier one is forgotten."""
        revision = None if isinstance(source, Path) else self.revision
        self.set_tokenizer(
            checkpoint.load_tokenizer(source, revision=revision, allow_remote_code=self.allow_remote_code)
        )

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use a tokenizer that is already loaded."""
        self.tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
        self._tokens = None
        self._templates = {}

    def open_transformer(
        self,
        source: Path | str,
        weights: Path | None,
        *,
        layers: int | str | Sequence[int] | None = None,
        dropout: float | None = None,
        **options: Any,
    ) -> Any:
        """The transformer, cut to `layers` unless it comes from a folder we saved, with fast attention."""
        model = checkpoint.load_transformer(
            self.auto,
            source,
            revision=None if isinstance(source, Path) else self.revision,
            allow_remote_code=self.allow_remote_code,
            new_head=self.new_head and weights is None,
            **options,
        )
        if layers is not None and weights is None:
            checkpoint.keep_layers(model, layers)
        if dropout is not None:
            checkpoint.set_dropout(model, dropout)
        use_plain_attention(model)
        prepare(model)
        embedding.prepare(model)
        return model

    def check_length(self, transformer: Any, **limits: int) -> None:
        """Refuse a length limit beyond the positions the base has. Raises: ConfigError naming the option."""
        config = transformer.config
        known = getattr(config, "max_position_embeddings", None)
        if not isinstance(known, int) or known < 1:
            return
        if str(config.model_type) in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
            known -= int(config.pad_token_id or 0) + 1  # their positions start after the padding id
        for name, limit in limits.items():
            if limit > known:
                raise ConfigError(f"{name}: found {limit}, but {self.base!r} has positions for {known} tokens")

    def __getstate__(self) -> dict[str, Any]:
        # a copy (a frozen student as teacher) opens the token store for itself: memory maps cannot be copied
        return {**self.__dict__, "_tokens": None}

    # ------------------------------------------------------------ rows

    @property
    def tokens(self) -> Tokens:
        """The token store of this model's tokenizer."""
        if self._tokens is None or self._tokens_cache != self.token_cache:
            from kdfw.data.tokens import Tokens

            self._tokens = Tokens(self.tokenizer, self.token_cache)
            self._tokens_cache = self.token_cache
        return self._tokens

    def template(self, pair: bool) -> Template:
        """Special tokens around one text, or around a pair."""
        if pair not in self._templates:
            self._templates[pair] = template_of(self.tokenizer, pair=pair)
        return self._templates[pair]

    def single_group(self, name: str, texts: Sequence[Text], prefix: str, max_tokens: int) -> RowGroup:
        """Rows of single texts."""
        template = self.template(False)
        rows, truncated = single_rows(self.tokens.ids(texts, prefix), template, max_tokens, self._side)
        types = None
        if template.has_types:
            types = [
                np.concatenate(
                    (
                        template.prefix_types,
                        np.full(length - template.added, template.body_types[0], dtype=np.int64),
                        template.suffix_types,
                    )
                )
                for length in rows.lengths()
            ]
        return RowGroup(name=name, ids=rows, type_ids=types, max_tokens=max_tokens, truncated=truncated)

    def pair_group(
        self,
        name: str,
        first: Sequence[np.ndarray],
        second: Sequence[np.ndarray],
        max_tokens: int,
        rule: Truncation,
    ) -> RowGroup:
        """Rows of pairs of body ids."""
        rows, types, truncated = pair_rows(first, second, self.template(True), max_tokens, rule, self._side)
        return RowGroup(name=name, ids=rows, type_ids=types, max_tokens=max_tokens, truncated=truncated)

    @property
    def _side(self) -> str:
        return str(getattr(self.tokenizer, "truncation_side", "right"))

    # ------------------------------------------------------------ writing

    def save_tokenizer(self, folder: Path, max_tokens: int) -> None:
        """The tokenizer, with the length limit under which others cut texts as we do."""
        self.tokenizer.model_max_length = max_tokens
        self.tokenizer.save_pretrained(folder)


def run_transformer(transformer: Any, micro: MicroBatch, hidden: bool = False, mask: Tensor | None = None) -> Any:
    """One forward call. `mask` (R, L) bool replaces the micro-batch's; no mask at all where nothing is padded."""
    seen = micro.mask if mask is None else mask
    inputs: dict[str, Any] = {"input_ids": micro.ids}
    if seen is not None:
        inputs["attention_mask"] = seen.long()
    if micro.type_ids is not None:
        inputs["token_type_ids"] = micro.type_ids
    packing = packing_of(transformer, seen)
    if packing is not None:
        inputs["packing"] = packing
    inputs |= {"output_hidden_states": hidden, "return_dict": True}
    if hidden or torch.compiler.is_compiling():  # the short way leaves no states of single layers
        return transformer(**inputs)
    with fused():
        return transformer(**inputs)


def first_states(output: Any) -> Tensor:
    """(R, N, H): the first token's state after each layer."""
    return torch.stack([layer[:, 0] for layer in output.hidden_states[1:]], dim=1)


def prefixed(prefix: str, name: str) -> str:
    """Python that puts a prefix before every text of a list of that name."""
    return f"[{prefix!r} + text for text in {name}]" if prefix else name


def by_candidate(passages: Tensor, candidates: Tensor) -> Tensor:
    """(P, ...) -> (Q, D, ...): each candidate's row.

    A lookup as of an embedding, whose gradient is summed in a fixed order; that of plain indexing is not.
    """
    flat = nn.functional.embedding(candidates, passages.reshape(len(passages), -1))
    return flat.view(*candidates.shape, *passages.shape[1:])


def among(ids: Tensor, few: Tensor) -> Tensor:
    """Where ids (R, L) are one of `few` (n,); as `torch.isin`, which cannot be exported to ONNX."""
    return (ids[..., None] == few.to(ids.device)).any(-1)


def largest(values: Tensor, dim: int) -> Tensor:
    """The maximum along one dimension. Unlike `amax` it keeps positions for the backward pass, not all the values."""
    return values.max(dim).values


def texts_of(batch: Batch, role: str) -> Sequence[Text]:
    """The texts of one role of a batch."""
    texts = batch.inputs[role]
    assert not isinstance(texts, Tensor)
    return texts


def restore(rows: Tensor, texts: Sequence[Text]) -> Tensor:
    """(unique texts, ...) -> one row a text, in the order of `texts`."""
    unique, inverse = unique_texts(texts)
    if len(unique) == len(texts):
        return rows
    return by_candidate(rows, torch.from_numpy(inverse).to(rows.device))


def on(value: Tensor | None, like: Tensor) -> Tensor | None:
    """A batch's tensor on the device of the signals."""
    return None if value is None else value.to(like.device)

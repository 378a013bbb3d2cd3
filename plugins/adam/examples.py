"""The augmenter: appends dark candidates to a drawn example, anew each time it is read."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdfw.components import Augmenter
from kdfw.errors import ConfigError
from kdfw.types import Candidate, Clock, Example, Text
from kdfw_plugins.adam.dark import mask_tokens, mix_tokens

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import Data

KIND = "dark"
"""`Candidate.kind` of a dark example: neither positive nor negative; contrastive losses leave it out."""

Share = Annotated[tuple[float, float], Field(description="least and greatest share, drawn uniformly per example")]


class DarkExamples(Augmenter):
    """Adds passages of moderate relevance: `reinforced` negatives and `noisy` positives.

    A noisy positive is the first positive with some tokens masked; a reinforced negative is a hard negative with a
    span of the first positive written over it. All numbers are reconstructions (see README).

    Args:
        reinforced: negatives with a piece of the positive, per query; the negatives are drawn without repetition
            while they last.
        noisy: masked copies of the positive, per query.
        mix: the span of the positive is written over one of the negative, or put between its tokens.
        tokenizer: hub name, folder, or package:NAME of a fast tokenizer whose pieces are the tokens; default: words,
            split at spaces.
        mask_token: what a masked token reads as; default: that of the tokenizer, or `[MASK]`.
        max_tokens: passages are cut to so many tokens first, so that no change falls where the models cut them;
            default: all.
    """

    paper = "arXiv:2212.10192 (token-space procedure reconstructed)"
    makes_texts = True

    def __init__(
        self,
        *,
        reinforced: Annotated[int, Field(ge=0)] = 4,
        noisy: Annotated[int, Field(ge=0)] = 4,
        mask_share: Share = (0.15, 0.6),
        mix_share: Share = (0.1, 0.5),
        mix: Literal["overwrite", "insert"] = "overwrite",
        tokenizer: str | None = None,
        mask_token: str | None = None,
        max_tokens: Annotated[int | None, Field(ge=2)] = None,
    ) -> None:
        for name, (low, high) in (("mask_share", mask_share), ("mix_share", mix_share)):
            if not 0 < low <= high < 1:
                raise ConfigError(
                    f"augmenter adam-dark-examples: {name} is [{low}, {high}]; write 0 < least <= greatest < 1"
                )
        self.reinforced = reinforced
        self.noisy = noisy
        self.mask_share = mask_share
        self.mix_share = mix_share
        self.insert = mix == "insert"
        self.tokenizer = tokenizer
        self.mask_token = mask_token
        self.max_tokens = max_tokens
        self._pieces: Any = None

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        if self.tokenizer is None:
            return
        from kdfw.models.checkpoint import load_tokenizer, locate

        self._pieces = load_tokenizer(locate(self.tokenizer) or self.tokenizer)
        if not self._pieces.is_fast:
            raise ConfigError(f"augmenter adam-dark-examples: tokenizer {self.tokenizer!r} is not a fast tokenizer")

    def counts(self, candidates: int) -> tuple[int, int]:
        made = self.reinforced + self.noisy
        return candidates + made, made

    def apply(self, example: Example, clock: Clock, rng: np.random.Generator) -> Example:
        positive = next((c for c in example.candidates if c.kind == "positive"), None)
        if positive is None:
            return example
        source = self._split(str(positive.text))
        made: list[Candidate] = []
        negatives = [c for c in example.candidates if c.kind == "negative"]
        order = rng.permutation(len(negatives)) if negatives else np.zeros(0, dtype=np.int64)
        for number in range(self.reinforced if negatives else 0):
            negative = negatives[int(order[number % len(order)])]
            share = float(rng.uniform(*self.mix_share))
            tokens = mix_tokens(source, self._split(str(negative.text)), share, rng, insert=self.insert)
            made.append(_candidate(tokens))
        mask = f" {self._mask()} "
        for _ in range(self.noisy):
            made.append(_candidate(mask_tokens(source, mask, float(rng.uniform(*self.mask_share)), rng)))
        return replace(example, candidates=(*example.candidates, *made))

    def _mask(self) -> str:
        if self.mask_token is not None:
            return self.mask_token
        return "[MASK]" if self._pieces is None else str(self._pieces.mask_token)

    def _split(self, text: str) -> list[str]:
        """Tokens as pieces of the text itself, each with the space before it, so that joining them restores it."""
        if self._pieces is None:
            return re.findall(r"\s*\S+", text)[: self.max_tokens]
        spans = self._pieces(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for begin, end in spans["offset_mapping"] if end > begin][: self.max_tokens]
        return [text[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _candidate(tokens: list[str]) -> Candidate:
    return Candidate(id="", text=Text(source=None, made=re.sub(r"\s+", " ", "".join(tokens)).strip()), kind=KIND)

"""A causal language model as a pointwise teacher: how much it prefers `yes` to `no` as the next token."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from kdfw.components import Teacher
from kdfw.errors import ConfigError
from kdfw.fingerprint import fingerprint

if TYPE_CHECKING:
    from kdfw.context import StageContext

POINTWISE = (
    "Does the passage answer the query? Reply with one word, yes or no.\n\n"
    "Query: {query}\n\nPassage: {passage}\n\nDoes the passage answer the query?"
)


def fill(template: str, **values: str) -> str:
    """Put values into `{name}` places, in one pass: a text that holds `{passage}` or braces stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match.group(1), match.group(0)), template)


def check_template(template: str, where: str, needed: Sequence[str] = ("query", "passage")) -> None:
    """Raises ConfigError when a place is missing."""
    missing = [f"{{{name}}}" for name in needed if f"{{{name}}}" not in template]
    if missing:
        raise ConfigError(f"{where}: the template has no {' and no '.join(missing)}; every text must have its place")


class LocalLLM(Teacher):
    """Scores a passage by the logits of `yes` and `no` after a prompt, with a causal language model run locally.

    The score is log-sum-exp of the `yes` tokens' logits minus that of the `no` tokens' (the log odds of yes;
    `probability`: its sigmoid), as pointwise LLM rerankers do (arXiv:2003.06713 for the idea, arXiv:2310.08319).

    Args:
        base: hub name, folder, or package:NAME of a causal language model
        template: the prompt, with the places {query} and {passage}
        system: system message, where the tokenizer has a chat template
        chat: use the tokenizer's chat template: when it has one, always, or never
        yes: words that mean yes; those that are one token of the tokenizer count, with and without a leading blank
        no: words that mean no
        score: log odds, or probability
        revision: commit, tag or branch of a hub model
    """

    paper = "arXiv:2310.08319"

    def __init__(
        self,
        *,
        base: str,
        template: str = POINTWISE,
        system: str = "",
        chat: Literal["auto", "always", "never"] = "auto",
        yes: list[str] = ["yes", "Yes", " yes", " Yes"],  # noqa: B006 - options are never changed
        no: list[str] = ["no", "No", " no", " No"],  # noqa: B006
        score: Literal["log-odds", "probability"] = "log-odds",
        max_tokens: Annotated[
            int, Field(ge=16, description="tokens of a whole prompt; longer passages are cut")
        ] = 1024,
        max_query_tokens: Annotated[int, Field(ge=1, description="longer queries are cut")] = 128,
        tokens_per_batch: Annotated[int, Field(ge=1, description="token budget of a micro-batch")] = 8192,
        revision: str | None = None,
    ) -> None:
        check_template(template, "llm")
        self.base = base
        self.template = template
        self.system = system
        self.chat = chat
        self.yes = list(yes)
        self.no = list(no)
        self.kind = score
        self.max_tokens = max_tokens
        self.max_query_tokens = max_query_tokens
        self.tokens_per_batch = tokens_per_batch
        self.revision = revision
        self.model: Any = None
        self.tokenizer: Any = None
        self.device = torch.device("cpu")
        self.truncated = 0
        """Passages cut so far."""

    def fingerprint(self) -> str:
        from kdfw.models import checkpoint

        options = [self.template, self.system, self.chat, self.yes, self.no, self.kind]
        lengths = [self.max_tokens, self.max_query_tokens]
        return fingerprint(["llm", self.version, checkpoint.fingerprint(self.base, self.revision), options, lengths])

    def load(self, context: StageContext) -> None:
        from kdfw.models import checkpoint

        source = checkpoint.locate(self.base) or self.base
        self.tokenizer = checkpoint.load_tokenizer(source, revision=self.revision)
        self.model = checkpoint.load_transformer("AutoModelForCausalLM", source, revision=self.revision).eval()
        self.device = torch.device(context.device)
        self.model.to(self.device, torch.bfloat16 if context.precision == "bf16" else torch.float32)
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if self.chat == "always" and not has_template:
            raise ConfigError(f"llm: `chat: always`, but the tokenizer of {self.base!r} has no chat template")
        self._chat = has_template and self.chat != "never"
        self._yes, self._no = self._answers(self.yes, "yes"), self._answers(self.no, "no")
        both = set(self._yes) & set(self._no)
        if both:
            raise ConfigError(f"llm: yes and no share the tokens {sorted(both)} of {self.base!r}; choose other words")
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if isinstance(longest, int) and self.max_tokens > longest:
            raise ConfigError(f"llm: max_tokens is {self.max_tokens}, but {self.base!r} reads at most {longest}")

    def _answers(self, words: Sequence[str], name: str) -> list[int]:
        found = []
        for word in words:
            ids = self.tokenizer.encode(word, add_special_tokens=False)
            if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id:
                found.append(int(ids[0]))
        if not found:
            raise ConfigError(
                f"llm: none of {list(words)} is one token of {self.base!r}; set `{name}` to words that are"
            )
        return sorted(set(found))

    # ------------------------------------------------------------ prompts

    def _ids(self, query: str, passage: str) -> list[int]:
        text = fill(self.template, query=query, passage=passage)
        if not self._chat:
            return list(self.tokenizer.encode(text, add_special_tokens=True))
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": text})
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(prompt, add_special_tokens=False))

    def _cut(self, text: str, tokens: int) -> tuple[str, bool]:
        """The text up to `tokens` tokens, and whether anything was cut."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) <= tokens:
            return text, False
        return self.tokenizer.decode(ids[: max(tokens, 0)], skip_special_tokens=True), True

    def prompts(self, query: str, passages: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompt for each passage; only the passage is cut when a prompt is too long.

        Raises: ConfigError when template and query leave no room.
        """
        query, _ = self._cut(query, self.max_query_tokens)
        room = self.max_tokens - len(self._ids(query, ""))
        if room < 8:
            raise ConfigError(
                f"llm: template and query leave {room} of {self.max_tokens} tokens for the passage; "
                "raise max_tokens or lower max_query_tokens"
            )
        found = []
        for passage in passages:
            ids, space = self._ids(query, passage), room
            if len(ids) > self.max_tokens:
                self.truncated += 1
            while len(ids) > self.max_tokens:  # decoding and encoding again may give a few tokens more
                ids = self._ids(query, self._cut(passage, space)[0])
                space -= max(len(ids) - self.max_tokens, 1)
            found.append(ids)
        return found

    # ------------------------------------------------------------ scores

    def score(
        self, query: Sequence[str], passages: Sequence[Sequence[str]], ids: Sequence[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        from kdfw.models.forward import micro_batches

        prompts = [prompt for text, row in zip(query, passages, strict=True) for prompt in self.prompts(text, row)]
        scores = np.full(len(prompts), np.nan, dtype=np.float32)
        with torch.inference_mode():
            for rows in micro_batches(np.asarray([len(prompt) for prompt in prompts]), self.tokens_per_batch):
                scores[rows] = self._forward([prompts[row] for row in rows])
        return np.split(scores, np.cumsum([len(row) for row in passages])[:-1])

    def _forward(self, prompts: Sequence[list[int]]) -> np.ndarray:
        """Prompts are padded on the left, so that every next token is in the last column."""
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        options: dict[str, Any] = {
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0).to(self.device),
            "logits_to_keep": 1,
        }
        known = inspect.signature(self.model.forward).parameters  # models with relative positions take no position ids
        output = self.model(
            input_ids=tokens.to(self.device),
            attention_mask=mask.to(self.device),
            use_cache=False,
            **{name: value for name, value in options.items() if name in known},
        )
        logits = output.logits[:, -1].float()
        odds = logits[:, self._yes].logsumexp(1) - logits[:, self._no].logsumexp(1)
        found: np.ndarray = (odds if self.kind == "log-odds" else odds.sigmoid()).cpu().numpy()
        return found

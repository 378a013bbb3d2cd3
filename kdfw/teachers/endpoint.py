"""An LLM behind an OpenAI-compatible HTTP endpoint as a teacher, pointwise or listwise.

The client is the standard library's `urllib` with a pool of threads: a request is one JSON POST, so a dependency
would bring nothing but its own retries, which this teacher must control itself (budget, Retry-After, redaction).

Money and work are safe: every answer is put into the score store as it arrives (a pair, or a window of a list), what
was spent is written down after each, and a request goes out only while its worst case fits into the budget. A stop,
clean or not, therefore costs nothing twice.

The API key is read from the environment variable named in the options, sent in the Authorization header and nowhere
else: not in fingerprints, files or logs, and cut out of every message, also out of what a server says back. Redirects
are refused, because they would carry the header to another host.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import http.client
import io
import json
import logging
import math
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdfw.components import Teacher
from kdfw.errors import ArtifactError, ConfigError, KdfwError
from kdfw.fingerprint import fingerprint
from kdfw.teachers.llm import POINTWISE, check_template, fill
from kdfw.teachers.store import ScoreStore, pair_keys, text_hashes

if TYPE_CHECKING:
    from kdfw.context import StageContext

GRADED = (
    "How well does the passage answer the query? Reply with one number from 0 (not at all) to {highest} (perfectly), "
    "and nothing else.\n\nQuery: {query}\n\nPassage: {passage}"
)
LISTWISE = (
    "I will give you {count} passages, each with an identifier in brackets. Rank them by how well they answer the "
    "query: {query}\n\n{passages}\n\nQuery: {query}\n\nRank all {count} passages, the best first. Reply with the "
    "identifiers only, in the form [2] > [1] > [3]."
)
MAX_ANSWER_BYTES = 1 << 22
MAX_WAIT_SECONDS = 120.0
"""Longest wait before a try, whatever the server asks for."""
LEAST_LOGPROB = -1e5
"""What is below, or above its negative, is no log probability; servers write -9999 for an impossible token."""
MAX_TOKENS = 1 << 31
"""A usage above it is no count of tokens of one request."""
SHOWN = 300
"""Characters of a server's own words in a message."""
KEY_PREFIX = 6
"""So many first characters of the key are cut out where a text ends with them: it may have been cut inside the key."""
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_log = logging.getLogger("kdfw")


class EndpointError(KdfwError):
    """An endpoint cannot be used: wrong address or key, or it fails again and again. Never contains the key."""


class BudgetError(EndpointError):
    """The next request might exceed the budget. Everything scored so far is stored."""


class _Nonsense(Exception):
    """An answer that cannot be understood; asked again."""


def order_of(answer: str, count: int) -> tuple[list[int], bool]:
    """The ranking an answer gives, repaired where it is nearly one.

    Identifiers are read in brackets (or, in an answer of numbers and separators alone, without). Repeated and unknown
    ones are dropped, missing ones follow in their old order, as RankGPT does (arXiv:2304.09542, sec. 3.2).

    Args:
        count: passages in the window, identifiers 1 to `count`.
    Returns: positions 0 to count - 1, best first, and whether anything had to be repaired.
    Raises: _Nonsense when fewer than half of the identifiers are in the answer.
    """
    named = re.findall(r"\[\s*(\d{1,6})\s*\]", answer)
    if not named and re.fullmatch(r"[\d\s>,;.\[\]\n-]*", answer):
        named = re.findall(r"\d{1,6}", answer)
    given = [int(number) - 1 for number in named]
    order = list(dict.fromkeys(place for place in given if 0 <= place < count))
    if len(order) * 2 < count or not order:
        raise _Nonsense(f"{len(order)} of {count} identifiers in the answer")
    rest = [place for place in range(count) if place not in set(order)]
    return order + rest, order != given or bool(rest)


def windows(count: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the windows over a list, from its end to its front, as RankGPT slides them (arXiv:2304.09542)."""
    end = count
    while True:
        begin = max(end - size, 0)
        yield begin, end
        if begin == 0:
            return
        end -= stride


def log_odds(top: Sequence[Mapping[str, Any]]) -> float:
    """log P(yes) - log P(no) from the likeliest first tokens.

    A side that is not among them gets the least log probability that is: a bound, from the side it errs to.
    Raises: _Nonsense when neither is among them.
    """
    sides: dict[str, list[float]] = {"yes": [], "no": []}
    lowest = 0.0
    for entry in top:
        value = float(entry["logprob"])
        if not abs(value) <= -LEAST_LOGPROB:  # not a number neither
            continue
        lowest = min(lowest, value)
        word = str(entry["token"]).strip().strip("\"'.,*▁Ġ").lower()
        if word in sides:
            sides[word].append(value)
    if not sides["yes"] and not sides["no"]:
        raise _Nonsense("neither yes nor no among the likeliest tokens")

    def total(values: list[float]) -> float:
        if not values:
            return lowest
        highest = max(values)
        return highest + math.log(sum(math.exp(value - highest) for value in values))

    return total(sides["yes"]) - total(sides["no"])


class OpenAI(Teacher):
    """Scores from any server that speaks the OpenAI chat-completions protocol.

    Pointwise `yes-no` reads the log probabilities of the first token (the endpoint must give them); pointwise `grade`
    reads a number. Listwise shows windows of a list and sorts it from the back to the front (RankGPT,
    arXiv:2304.09542); the score of a passage is then its place: D - rank, so D - 1 down to 0.

    Args:
        base_url: address up to and without `/chat/completions`, such as http://localhost:8000/v1
        model: the model's name at the endpoint
        api_key_env: environment variable that holds the API key; null for servers without one
        mode: one request a passage, or one a window
        answer: pointwise: log odds of yes against no, or a graded answer
        highest_grade: pointwise grades go from 0 to this
        template: the prompt; places {query} and {passage}, or listwise {query}, {passages} and {count}
        system: system message
        currency: name of the currency of prices and budget
        max_passage_words: longer passages are cut, as the prompt's price depends on them
        request_options: further fields of the request body, such as a reasoning effort
    """

    paper = "arXiv:2304.09542"
    keeps_own_scores: ClassVar[bool] = True

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        mode: Literal["pointwise", "listwise"] = "pointwise",
        answer: Literal["yes-no", "grade"] = "yes-no",
        highest_grade: Annotated[int, Field(ge=1, le=100)] = 3,
        template: str | None = None,
        system: str = "",
        window: Annotated[int, Field(ge=2, le=1000, description="passages shown at once")] = 20,
        stride: Annotated[int, Field(ge=1, description="how far the window moves; below `window`")] = 10,
        max_passage_words: Annotated[int, Field(ge=1)] = 300,
        max_answer_tokens: Annotated[
            int | None, Field(ge=1, description="1 for yes-no, 8 for a grade, 8 a passage listwise")
        ] = None,
        concurrency: Annotated[int, Field(ge=1, le=256, description="requests at once")] = 4,
        timeout_seconds: Annotated[float, Field(gt=0, description="longest wait for an answer")] = 60.0,
        retries: Annotated[int, Field(ge=0, description="tries after the first, for failures that may pass")] = 6,
        nonsense_retries: Annotated[int, Field(ge=0, description="tries after an answer that makes no sense")] = 2,
        backoff_seconds: Annotated[
            float, Field(ge=0, description="wait before the second try; doubles each time, with jitter")
        ] = 1.0,
        price_per_1k_input: Annotated[float, Field(ge=0, description="of tokens sent, in `currency`")] = 0.0,
        price_per_1k_output: Annotated[float, Field(ge=0, description="of tokens received, in `currency`")] = 0.0,
        currency: str = "USD",
        budget: Annotated[float | None, Field(gt=0, description="most that may be spent, in `currency`")] = None,
        token_budget: Annotated[int | None, Field(gt=0, description="most tokens, sent and received")] = None,
        request_options: dict[str, Any] | None = None,
    ) -> None:
        address = urllib.parse.urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError("openai: base_url must begin with http:// or https://, such as http://localhost:8000/v1")
        if address.username or address.password or address.query or address.fragment:
            raise ConfigError(
                "openai: base_url must hold no user, password or query: recipes are copied into run folders; "
                "put the key into an environment variable and name it in api_key_env"
            )
        if mode == "listwise" and stride >= window:
            raise ConfigError(
                f"openai: stride {stride} must be below window {window}, or nothing moves between windows"
            )
        if budget is not None and not (price_per_1k_input or price_per_1k_output):
            raise ConfigError("openai: a budget needs price_per_1k_input and price_per_1k_output, or use token_budget")
        if api_key_env is not None and not re.fullmatch(r"\w+_(KEY|TOKEN)", api_key_env):
            raise ConfigError(
                f"openai: api_key_env is {api_key_env!r}, and must end in _KEY or _TOKEN: a recipe says where the "
                "variable is sent, so it may not name any; copy the key into one such as MY_HOST_API_KEY"
            )
        if template is None:
            template = LISTWISE if mode == "listwise" else (POINTWISE if answer == "yes-no" else GRADED)
        check_template(template, "openai", ("query", "passages") if mode == "listwise" else ("query", "passage"))
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.api_key_env = api_key_env
        self.mode = mode
        self.answer = answer
        self.highest_grade = highest_grade
        self.template = template
        self.system = system
        self.window = window
        self.stride = stride
        self.max_passage_words = max_passage_words
        pointwise_tokens = 1 if answer == "yes-no" else 8
        self.max_answer_tokens = max_answer_tokens or (8 * window if mode == "listwise" else pointwise_tokens)
        self.concurrency = concurrency
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.nonsense_retries = nonsense_retries
        self.backoff_seconds = backoff_seconds
        self.price_per_1k_input = price_per_1k_input
        self.price_per_1k_output = price_per_1k_output
        self.currency = currency
        self.budget = budget
        self.token_budget = token_budget
        self.request_options = dict(request_options or {})
        ours = sorted({"messages", "model", "stream", "n", "logprobs", "top_logprobs"} & set(self.request_options))
        if ours:
            raise ConfigError(f"openai: request_options may not hold {', '.join(ours)}: kdfw sets them")
        self.counts: Counter[str] = Counter()
        """Requests, retries, repaired and unusable answers, pairs or windows taken from the store."""
        self._key = ""
        self._store: ScoreStore | None = None
        self._meter = _Meter(None, "", 0)
        self._workers = 1
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._opener: urllib.request.OpenerDirector | None = None

    def fingerprint(self) -> str:
        """Of everything that changes an answer; not of key, price or budget."""
        asked = [
            self.base_url,
            self.mode,
            self.answer,
            self.highest_grade,
            self.template,
            self.system,
            self.max_passage_words,
        ]
        listwise = [self.window, self.stride] if self.mode == "listwise" else []
        return fingerprint(
            ["openai", self.version, self.model, asked, listwise, self.max_answer_tokens, self.request_options]
        )

    def load(self, context: StageContext) -> None:
        """Read the key, open the store and the record of what this stage has spent.

        Raises: ConfigError when the key's variable is not set or cannot be sent.
        """
        self._key = self._read_key()
        own = fingerprint(["openai", self.fingerprint()])
        folder = context.cache / "scores" / own
        self._store = ScoreStore(folder, describe={"model": self.model, "mode": self.mode})
        self._workers = context.workers.world_size
        stage = hashlib.blake2b(str(context.folder.name).encode(), digest_size=8).hexdigest()
        self._meter = _Meter(folder if self._store.writable else None, stage, context.workers.rank)
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects(), _Http(), _Https()]
        address = urllib.parse.urlsplit(self.base_url)
        if address.hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        elif self._key and address.scheme == "http":
            _log.warning("openai: %s is not encrypted, and the API key goes over it; use https", self.base_url)
        self._opener = urllib.request.build_opener(*handlers)

    def _read_key(self) -> str:
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"openai: the environment variable {self.api_key_env} is not set; put the API key there, "
                "or write `api_key_env: null` for a server without one"
            )
        if not re.fullmatch(r"[\x21-\x7e]+", key):  # http.client would print the whole header in its error
            raise ConfigError(f"openai: the key in {self.api_key_env} has characters that no HTTP header can hold")
        return key

    # ------------------------------------------------------------ what it costs

    def expected(self, queries: int, pairs: int, words: float | None = None) -> str:
        """Estimated requests, tokens and cost, from the template and passages of `words` words (default: 60)."""
        words = min(words or 60.0, self.max_passage_words)
        frame = len(self.template + self.system) / 4 + 20
        passage = words * 1.4
        if self.mode == "listwise":
            depth = max(pairs / max(queries, 1), 1)
            per_query = max(1, math.ceil((depth - self.window) / self.stride) + 1)
            requests = queries * per_query
            sent = requests * (frame + min(depth, self.window) * (passage + 5))
            received = requests * min(self.max_answer_tokens, 5 * min(depth, self.window))
        else:
            requests = pairs
            sent, received = requests * (frame + passage), requests * min(self.max_answer_tokens, 8)
        cost = self.price(sent, received)
        text = f"{self.model}: about {requests:,.0f} requests, {sent + received:,.0f} tokens"
        if self.price_per_1k_input or self.price_per_1k_output:
            text += f", {cost:,.2f} {self.currency}"
        if self.budget is not None:
            text += f" (budget {self.budget:,.2f}, spent so far {self._meter.cost:,.2f}"
            text += "; scoring will stop before it is done)" if cost + self._meter.cost > self.budget else ")"
        return text + "; less what the store already holds"

    def price(self, sent: float, received: float) -> float:
        """Cost of tokens, in `currency`."""
        return (sent * self.price_per_1k_input + received * self.price_per_1k_output) / 1000

    def report(self) -> Mapping[str, Any]:
        spent = {"tokens_sent": self._meter.sent, "tokens_received": self._meter.received}
        if self.price_per_1k_input or self.price_per_1k_output:
            spent[f"cost_{self.currency}"] = round(self._meter.cost, 6)  # type: ignore[assignment]
        return {**{name: count for name, count in sorted(self.counts.items())}, **spent}

    # ------------------------------------------------------------ scores

    def score(
        self, query: Sequence[str], passages: Sequence[Sequence[str]], ids: Sequence[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        """Scores, through the store. NaN only for a pair, or a list, whose answers never made sense (`unusable`).

        Raises: BudgetError before a request that might exceed the budget, EndpointError when the endpoint fails.
            Everything scored until then is stored.
        """
        if self._store is None:
            raise EndpointError("openai: `load` comes before `score`")
        self._stop.clear()
        if self.mode == "pointwise":
            return self._score_pairs(query, passages)
        work = [lambda q=q, row=row: self._sort(q, row) for q, row in zip(query, passages, strict=True)]
        return self._all(work)

    def _all(self, work: Sequence[Callable[[], Any]]) -> list[Any]:
        """Results of all, in order; the first error stops what has not begun, and is raised when the rest is done."""
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            futures: list[Future[Any]] = [pool.submit(self._guarded, task) for task in work]
            try:
                for future in futures:
                    future.exception()
            except BaseException:  # Ctrl-C: let running requests end, start no more
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise
        errors = [
            error
            for error in (future.exception() for future in futures)
            if not isinstance(error, (type(None), _Stopped))
        ]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def _guarded(self, task: Callable[[], Any]) -> Any:
        if self._stop.is_set():
            raise _Stopped
        try:
            return task()
        except BaseException:
            self._stop.set()
            raise

    def _score_pairs(self, query: Sequence[str], passages: Sequence[Sequence[str]]) -> list[np.ndarray]:
        assert self._store is not None
        counts = [len(row) for row in passages]
        texts = [self._cut(text) for row in passages for text in row]
        hashes = np.repeat(text_hashes(list(query), "query"), counts, axis=0)
        keys = pair_keys(hashes, text_hashes(texts, "passage"))
        scores, known = self._store.get(keys)
        self._count("from_store", int(known.sum()))
        queries = [text for text, count in zip(query, counts, strict=True) for _ in range(count)]
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        todo = [int(row) for row in first if not known[row]]

        def ask(row: int) -> None:
            score = self._pointwise(queries[row], texts[row])
            scores[row] = score
            if math.isfinite(score):
                self._keep(keys[row : row + 1], np.asarray([score], dtype=np.float32))

        self._all([lambda row=row: ask(row) for row in sorted(todo)])  # type: ignore[misc]
        scores = scores[first][inverse.reshape(-1)]
        return np.split(scores.astype(np.float32), np.cumsum(counts)[:-1])

    def _keep(self, keys: np.ndarray, scores: np.ndarray) -> None:
        assert self._store is not None
        with self._lock:
            self._store.put(keys, scores)

    def _pointwise(self, query: str, passage: str) -> float:
        prompt = fill(self.template, query=query, passage=passage, highest=str(self.highest_grade))

        def read(answer: Mapping[str, Any]) -> float:
            if self.answer == "yes-no":
                return log_odds(_top_logprobs(answer))
            found = re.search(r"(?<![\d.])((?:(?<!\w)[-\u2212])?)(\d{1,3}(?:\.\d+)?)", _content(answer))
            if found is None or found[1] or float(found[2]) > self.highest_grade:
                raise _Nonsense("no grade in the answer")
            return float(found[2])

        options = {"logprobs": True, "top_logprobs": 20} if self.answer == "yes-no" else {}
        value = self._sensible(prompt, options, read)
        return math.nan if value is None else float(value)

    def _sort(self, query: str, passages: Sequence[str]) -> np.ndarray:
        """Scores D - 1 ... 0 by the order that sliding windows give; needs one request for each window not stored.

        All NaN when a window's answers made no sense: the order it came in is the first retriever's, not the teacher's.
        """
        order = list(range(len(passages)))
        texts = [self._cut(text) for text in passages]
        if len(order) > 1:
            for begin, end in windows(len(order), self.window, self.stride):
                window = order[begin:end]
                if len(window) < 2:
                    continue
                places = self._window(query, [texts[place] for place in window])
                if places is None:
                    return np.full(len(passages), np.nan, dtype=np.float32)
                order[begin:end] = [window[place] for place in places]
        scores = np.empty(len(order), dtype=np.float32)
        scores[order] = np.arange(len(order) - 1, -1, -1, dtype=np.float32)
        return scores

    def _window(self, query: str, texts: Sequence[str]) -> list[int] | None:
        """The order of one window: stored under the query and (window, passage) hashes as the place of each passage.

        None, and nothing stored, when none of its answers made sense: another run asks again.
        """
        assert self._store is not None
        whole = json.dumps(list(texts), ensure_ascii=True)
        prints = [f"{place}\x00{whole}" for place in range(len(texts))]
        keys = pair_keys(np.repeat(text_hashes([query], "query"), len(texts), axis=0), text_hashes(prints, "passage"))
        with self._lock:
            stored, known = self._store.get(keys)
        if known.all():
            self._count("from_store")
            return [int(place) for place in np.argsort(stored, kind="stable")]
        shown = "\n".join(f"[{place}] {text}" for place, text in enumerate(texts, start=1))
        prompt = fill(self.template, query=query, passages=shown, count=str(len(texts)))

        def read(answer: Mapping[str, Any]) -> list[int]:
            order, repaired = order_of(_content(answer), len(texts))
            if repaired:
                self._count("repaired")
            return order

        order: list[int] | None = self._sensible(prompt, {}, read)
        if order is None:
            return None
        places = np.empty(len(texts), dtype=np.float32)
        places[order] = np.arange(len(texts), dtype=np.float32)
        self._keep(keys, places)
        return order

    def _cut(self, text: str) -> str:
        words = text.split()
        return " ".join(words[: self.max_passage_words]) if len(words) > self.max_passage_words else text

    def _sensible(self, prompt: str, options: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]) -> Any:
        """The answer as `read` understands it; None when none of the tries made sense."""
        for attempt in range(self.nonsense_retries + 1):
            answer = self._request(prompt, options, attempt)
            try:
                return read(answer)
            except _Nonsense:
                self._count("nonsense")
        self._count("unusable")
        return None

    # ------------------------------------------------------------ requests

    def _count(self, what: str, amount: int = 1) -> None:
        if amount:
            with self._meter.lock:
                self.counts[what] += amount

    def _request(self, prompt: str, options: Mapping[str, Any], attempt: int) -> Mapping[str, Any]:
        """One answer: the first choice of a chat completion. Tries again after failures that may pass."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": prompt})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.max_answer_tokens,
            **options,
            **self.request_options,
        }
        if attempt and "temperature" not in self.request_options:
            body["temperature"] = 0.7  # at 0 the same request would give the same nonsense
        if "max_completion_tokens" in body:
            del body["max_tokens"]
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        # a token is at least one byte, so this is an upper bound; half of it is charged where an answer has no usage
        most_sent = len(json.dumps(messages, ensure_ascii=False).encode()) + 64
        most_received = int(self.request_options.get("max_completion_tokens") or self.max_answer_tokens)
        faults = []
        for number in range(self.retries + 1):
            if self._stop.is_set():
                raise _Stopped
            self._reserve(most_sent, most_received)
            sent = received = 0
            try:
                self._count("requests")
                found, usage = self._post(data)
                sent, received = usage if usage is not None else ((most_sent + 1) // 2, most_received)
                return found
            except _Again as again:
                faults.append(str(again))
                self._count("retries")
                if again.charged:
                    sent, received = (most_sent + 1) // 2, most_received
                wait = again.wait
            finally:
                self._meter.settle(self, most_sent, most_received, sent, received)
            if number < self.retries:
                self._sleep(number, wait)
        raise EndpointError(
            f"openai: {self.base_url} failed {self.retries + 1} times: {faults[-1]}. What was scored is "
            "stored; run again when the endpoint is well, or raise `retries`, `timeout_seconds`"
        )

    def _sleep(self, number: int, asked: float | None) -> None:
        wait = self.backoff_seconds * 2**number * (0.5 + random.random() / 2)  # jitter must differ between processes
        if asked is not None:
            wait = max(wait, asked)
        self._stop.wait(min(wait, MAX_WAIT_SECONDS))

    def _reserve(self, sent: int, received: int) -> None:
        """Hold the worst case of a request back; each process may use its share of what was left at the start."""
        meter = self._meter
        with meter.lock:
            cost = meter.cost - meter.cost_before + self.price(meter.held_sent + sent, meter.held_received + received)
            tokens = meter.tokens - meter.tokens_before + meter.held_sent + meter.held_received + sent + received
            over = ""
            if self.budget is not None and cost > (self.budget - meter.cost_before) / self._workers:
                over = f"`budget` of {self.budget:g} {self.currency} ({meter.cost:.4f} spent)"
            elif self.token_budget is not None and tokens > (self.token_budget - meter.tokens_before) / self._workers:
                over = f"`token_budget` of {self.token_budget} ({meter.tokens} used)"
            if over:
                raise BudgetError(
                    f"openai: stopped, as the next request might exceed the {over}. "
                    "Everything scored so far is stored; raise it and run again to go on"
                )
            meter.held_sent += sent
            meter.held_received += received

    def _post(self, data: bytes) -> tuple[Mapping[str, Any], tuple[int, int] | None]:
        """(first choice, (tokens sent, received) if the server says). Raises _Again or EndpointError, redacted."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "kdfw"}
        request = urllib.request.Request(f"{self.base_url}/chat/completions", data=data, headers=headers, method="POST")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        assert self._opener is not None
        fault: _Again | EndpointError
        try:
            with self._opener.open(request, timeout=self.timeout_seconds) as response:
                raw = response.read(MAX_ANSWER_BYTES + 1)
            return _choice(raw, self._shown)
        except urllib.error.HTTPError as error:
            said = ""
            with error, contextlib.suppress(OSError, http.client.HTTPException):
                said = self._shown(error.read(MAX_ANSWER_BYTES).decode("utf-8", "replace"))
            text = f"HTTP {error.code} {self._shown(str(error.reason))}: {said}".rstrip(": ")
            if error.code in _RETRIED:
                fault = _Again(text, _retry_after(error.headers.get("Retry-After")))
            elif error.code in (401, 403):
                fault = EndpointError(f"openai: {self.base_url}: {text}; check the key in {self.api_key_env}")
            else:
                fault = EndpointError(f"openai: {self.base_url}: {text}; the request will not do better a second time")
        except _Nonsense as error:
            fault = _Again(str(error), None, charged=True)
        except TimeoutError:
            fault = _Again(f"no answer within {self.timeout_seconds:g} seconds", None, charged=True)
        except (OSError, http.client.HTTPException) as error:
            slow = isinstance(getattr(error, "reason", None), TimeoutError)
            fault = _Again(self._shown(f"{type(error).__name__}: {error}"), None, charged=slow)
        raise fault from None  # the cause could show request headers

    def _shown(self, text: str, length: int = SHOWN) -> str:
        """The beginning of what a server says. The key goes before the cut, which could leave most of it."""
        return self._redact(text).strip()[:length]

    def _redact(self, text: str) -> str:
        """The text without the key, in any of the forms it might come back in, and without a first part at its end."""
        if not self._key:
            return text
        quoted = urllib.parse.quote(self._key, safe="")
        forms = {
            self._key,
            quoted,
            re.sub("%..", lambda code: code[0].lower(), quoted),
            json.dumps(self._key)[1:-1],
            json.dumps(self._key)[1:-1].replace("/", "\\/"),  # as PHP writes JSON
            base64.b64encode(self._key.encode()).decode(),
        }
        longest_first = sorted(forms, key=len, reverse=True)
        for form in longest_first:
            text = text.replace(form, "[key]")
        for form in longest_first:
            for length in range(len(form) - 1, KEY_PREFIX - 1, -1):
                if text.endswith(form[:length]):
                    return text[:-length] + "[key]"
        return text

    def __repr__(self) -> str:
        return f"<openai {self.model!r} at {self.base_url}>"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an endpoint teacher holds a key and is not pickled")


class _Stopped(Exception):
    """Not begun, because another request failed for good."""


class _Again(Exception):
    """A failure that may pass. `wait`: the seconds the server asked for; `charged`: it may have cost money."""

    def __init__(self, text: str, wait: float | None, charged: bool = False) -> None:
        super().__init__(text)
        self.wait = wait
        self.charged = charged


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # urllib then raises the 3xx answer as an HTTPError


class _Pieces(io.RawIOBase):
    """What a socket gives until a moment, so that a server that sends a byte now and then is not waited for."""

    def __init__(self, raw: Any, connection: socket.socket) -> None:
        super().__init__()
        self._raw = raw
        self._socket = connection
        wait = connection.gettimeout()
        self._end = math.inf if wait is None else time.monotonic() + wait

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(min(left, threading.TIMEOUT_MAX))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose header and body together take no longer than the socket's timeout, which is for one read."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Pieces(self.fp.detach(), sock))


class _InTime:
    """A handler of urllib whose connections answer with `_Response`."""

    def do_open(self, http_class: Any, req: Any, **arguments: Any) -> Any:
        def connection(*place: Any, **options: Any) -> Any:
            made = http_class(*place, **options)
            made.response_class = _Response
            return made

        return super().do_open(connection, req, **arguments)  # type: ignore[misc]


class _Http(_InTime, urllib.request.HTTPHandler):
    pass


class _Https(_InTime, urllib.request.HTTPSHandler):
    pass


class _Meter:
    """What was spent, in memory and as lines of a file for each process, so that a resumed stage goes on counting.

    Args:
        folder: where the files are; None keeps them in memory.
        stage: whose budget it is.
    """

    def __init__(self, folder: Path | None, stage: str, rank: int) -> None:
        self.path = None if folder is None else folder / f"spent-{stage}-{rank}.jsonl"
        self.lock = threading.Lock()
        self.sent = self.received = self.held_sent = self.held_received = 0
        self.cost = 0.0
        for path in sorted(folder.glob(f"spent-{stage}-*.jsonl")) if folder is not None else ():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    sent, received, cost = json.loads(line)
                    self.sent, self.received = self.sent + int(sent), self.received + int(received)
                    self.cost += float(cost)
                except (ValueError, TypeError, OverflowError, RecursionError):
                    continue  # a line torn by a kill: at most one request
        self.cost_before, self.tokens_before = self.cost, self.tokens

    @property
    def tokens(self) -> int:
        return self.sent + self.received

    def settle(self, teacher: OpenAI, held_sent: int, held_received: int, sent: int, received: int) -> None:
        """Give a reservation back and note what was really used."""
        with self.lock:
            self.held_sent -= held_sent
            self.held_received -= held_received
            if not sent and not received:
                return
            cost = teacher.price(sent, received)
            self.sent, self.received, self.cost = self.sent + sent, self.received + received, self.cost + cost
            if self.path is not None:
                try:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([sent, received, cost]) + "\n")
                except OSError as error:
                    raise ArtifactError(f"{self.path}: cannot note what was spent: {error.strerror}") from error


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date (RFC 9110, sec. 10.2.3)."""
    if not value:
        return None
    try:
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _choice(raw: bytes, shown: Callable[[str, int], str]) -> tuple[Mapping[str, Any], tuple[int, int] | None]:
    """First choice and usage of a chat completion. Raises _Nonsense when it is none, with its beginning as `shown`."""
    if len(raw) > MAX_ANSWER_BYTES:
        raise _Nonsense(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    try:
        answer = json.loads(raw)
        choice = answer["choices"][0]
        if not isinstance(choice["message"], dict):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        start = shown(raw.decode("utf-8", "replace"), 80)
        raise _Nonsense(f"not a chat completion: {start!r}") from None
    usage = answer.get("usage")
    try:
        counted = (int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return choice, None
    return choice, counted if min(counted) >= 0 and max(counted) <= MAX_TOKENS else None


def _content(choice: Mapping[str, Any]) -> str:
    content = choice["message"].get("content")
    if not isinstance(content, str):
        raise _Nonsense("an answer without text")
    return without_thoughts(content)


def without_thoughts(text: str) -> str:
    """The text without what stands in `<think>`, to its end where that is not closed: thoughts name passages too."""
    kept = []
    at = 0
    while (begin := text.find("<think>", at)) >= 0:
        kept.append(text[at:begin])
        end = text.find("</think>", begin)
        if end < 0:
            return "".join(kept)
        at = end + len("</think>")
    return "".join([*kept, text[at:]])


def _top_logprobs(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    given = choice.get("logprobs")
    if not isinstance(given, dict) or not given.get("content"):
        raise EndpointError(
            "openai: the endpoint gives no log probabilities, which `answer: yes-no` needs; write `answer: grade`"
        )
    try:
        top = list(given["content"][0]["top_logprobs"])
        return [{"token": str(entry["token"]), "logprob": float(entry["logprob"])} for entry in top]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise _Nonsense("log probabilities that are not readable") from None

"""The LLM endpoint teacher against a local HTTP server that misbehaves in every way we know."""

from __future__ import annotations

import base64
import json
import logging
import math
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_values import ODD, changed, fuzzing
from teacher_fakes import FakeContext

from kdfw.errors import ConfigError
from kdfw.teachers.endpoint import (
    BudgetError,
    EndpointError,
    OpenAI,
    _Nonsense,
    _retry_after,
    log_odds,
    order_of,
    windows,
    without_thoughts,
)

KEY = "sk-test/secret+key==1234567890"


@dataclass
class Server:
    """A chat-completions server. `script` holds special answers given first: (status, headers, body) or a callable."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    script: list[Any] = field(default_factory=list)
    answer: Callable[[str], dict[str, Any]] = lambda prompt: text_choice("")
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})
    lock: threading.Lock = field(default_factory=threading.Lock)


def text_choice(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def odds_choice(**top: float) -> dict[str, Any]:
    entries = [{"token": token, "logprob": value} for token, value in top.items()]
    return {"message": {"content": "yes"}, "logprobs": {"content": [{"token": "x", "top_logprobs": entries}]}}


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                state.times.append(time.monotonic())
                special = state.script.pop(0) if state.script else None
            if callable(special):
                try:
                    special(self)
                except OSError:
                    return  # the client has given up
                if special.__name__ == "drip":
                    return
                special = None
            if special is None:
                answer: dict[str, Any] = {"choices": [state.answer(body["messages"][-1]["content"])]}
                if state.usage is not None:
                    answer["usage"] = state.usage
                special = (200, {}, json.dumps(answer).encode())
            status, headers, data = special
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has given up

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    yield state
    http.shutdown()
    http.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LLM_KEY", KEY)


def loaded(server: Server, tmp_path: Path, **options: Any) -> OpenAI:
    given = {"api_key_env": "TEST_LLM_KEY", "backoff_seconds": 0.0, "concurrency": 2, **options}
    teacher = OpenAI(base_url=server.url, model="judge", **given)
    teacher.load(FakeContext(cache=tmp_path / "cache", folder=tmp_path / "stage"))
    return teacher


def score(teacher: OpenAI, *lists: list[str]) -> list[list[float]]:
    queries = [f"query {number}" for number in range(len(lists))]
    found = teacher.score(
        queries, lists, [(query, list(passages)) for query, passages in zip(queries, lists, strict=True)]
    )
    return [row.tolist() for row in found]


def grade(prompt: str) -> dict[str, Any]:
    """Grades a passage by the number in it."""
    number = int(prompt.split("Passage: p")[1].split()[0])
    return text_choice(str(number % 4))


def by_number(prompt: str) -> dict[str, Any]:
    """Ranks a window by the numbers in its passages, greatest first."""
    shown = re.findall(r"^\[(\d+)\] p(\d+)$", prompt, re.M)
    best = sorted(shown, key=lambda row: -int(row[1]))
    return text_choice(" > ".join(f"[{place}]" for place, _ in best))


# ------------------------------------------------------------ parts


def test_order_of_answers_by_hand() -> None:
    assert order_of("[2] > [1] > [3]", 3) == ([1, 0, 2], False)
    assert order_of("2 > 1 > 3", 3) == ([1, 0, 2], False)
    assert order_of("The ranking is [3] > [1]", 3) == ([2, 0, 1], True)  # the missing one follows
    assert order_of("[1] > [1] > [9] > [2] > [0]", 3) == ([0, 1, 2], True)  # repeated and unknown ones are dropped
    for nonsense in ("I cannot help with that.", "", "[7] > [8]", "Passage 2 has 1 of 3 answers", "[1]"):
        with pytest.raises(_Nonsense):
            order_of(nonsense, 3)


def test_windows_slide_from_the_end_to_the_front() -> None:
    assert list(windows(100, 20, 10)) == [(b, b + 20) for b in range(80, -1, -10)]
    assert list(windows(25, 20, 10)) == [(5, 25), (0, 15)]
    assert list(windows(7, 20, 10)) == [(0, 7)]


def test_log_odds_by_hand() -> None:
    top = [{"token": t, "logprob": math.log(p)} for t, p in [("Yes", 0.5), (" no", 0.2), ("yes", 0.1), ("Well", 0.05)]]
    assert log_odds(top) == pytest.approx(math.log(0.6 / 0.2))
    assert log_odds([{"token": "yes", "logprob": -0.1}, {"token": "x", "logprob": -9.0}]) == pytest.approx(8.9)
    with pytest.raises(_Nonsense):
        log_odds([{"token": "maybe", "logprob": -0.1}])


# ------------------------------------------------------------ normal work


def test_pointwise_scores_are_log_odds_of_yes_and_no(server: Server, tmp_path: Path) -> None:
    server.answer = lambda prompt: odds_choice(yes=-0.5 if "good" in prompt else -4.0, no=-2.0)
    teacher = loaded(server, tmp_path, system="You judge.")
    assert score(teacher, ["a good one", "another"], ["bad"]) == [[1.5, -2.0], [-2.0]]
    assert len(server.requests) == 3
    first = server.requests[0]
    assert first["model"] == "judge" and first["temperature"] == 0 and first["max_tokens"] == 1
    assert first["logprobs"] is True and first["messages"][0] == {"role": "system", "content": "You judge."}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_pair_is_asked_once_however_often_it_stands_somewhere(server: Server, tmp_path: Path) -> None:
    server.answer = grade
    teacher = loaded(server, tmp_path, answer="grade")
    assert score(teacher, ["p1", "p2", "p1"]) == [[1, 2, 1]]
    assert len(server.requests) == 2
    again = loaded(server, tmp_path, answer="grade")
    assert score(again, ["p2", "p3", "p1"]) == [[2, 3, 1]]
    assert len(server.requests) == 3
    assert again.report()["from_store"] == 2


def test_texts_with_braces_and_places_stay_as_they_are(server: Server, tmp_path: Path) -> None:
    server.answer = lambda prompt: text_choice("1")
    teacher = loaded(server, tmp_path, answer="grade", template="Q {query} P {passage}")
    score(teacher, ["{query} {x} {{passage}}"])
    assert server.requests[0]["messages"][-1]["content"] == "Q query 0 P {query} {x} {{passage}}"


def test_listwise_sliding_windows_sort_like_a_bubble(server: Server, tmp_path: Path) -> None:
    server.answer = by_number
    teacher = loaded(server, tmp_path, mode="listwise", window=4, stride=2)
    # windows: [p2 p4 p3 p9] -> p9 p4 p3 p2; then [p5 p1 p9 p4] -> p9 p5 p4 p1
    assert score(teacher, ["p5", "p1", "p2", "p4", "p3", "p9"]) == [[4, 2, 0, 3, 1, 5]]
    assert len(server.requests) == 2
    assert server.requests[0]["messages"][-1]["content"].count("\n[") == 4
    assert score(loaded(server, tmp_path, mode="listwise", window=4, stride=2), ["p5", "p1", "p2", "p4", "p3", "p9"])
    assert len(server.requests) == 2  # both windows come from the store


def test_a_list_of_one_needs_no_request(server: Server, tmp_path: Path) -> None:
    assert score(loaded(server, tmp_path, mode="listwise"), ["p1"], []) == [[0.0], []]
    assert not server.requests


# ------------------------------------------------------------ failures


def test_too_many_requests_waits_as_long_as_the_server_asks(server: Server, tmp_path: Path) -> None:
    server.answer = grade
    server.script = [(429, {"Retry-After": "0.3"}, b"slow down")]
    teacher = loaded(server, tmp_path, answer="grade")
    assert score(teacher, ["p3"]) == [[3]]
    assert server.times[1] - server.times[0] >= 0.3
    assert teacher.report()["retries"] == 1


def test_waits_double_without_advice(server: Server, tmp_path: Path) -> None:
    server.answer = grade
    server.script = [(500, {}, b"oops"), (503, {}, b"oops"), (502, {}, b"oops")]
    assert score(loaded(server, tmp_path, answer="grade", backoff_seconds=0.1), ["p3"]) == [[3]]
    gaps = np.diff(server.times)
    assert gaps[0] >= 0.05 and gaps[1] >= 0.1 and gaps[2] >= 0.2


def test_an_endpoint_that_stays_broken_is_an_error_that_says_what_it_said(server: Server, tmp_path: Path) -> None:
    server.script = [(500, {}, b"database on fire")] * 3
    with pytest.raises(EndpointError, match="failed 3 times: HTTP 500 .*database on fire"):
        score(loaded(server, tmp_path, answer="grade", retries=2), ["p3"])
    assert len(server.requests) == 3


def test_a_request_that_is_refused_is_not_repeated(server: Server, tmp_path: Path) -> None:
    for status, says in ((401, "check the key in TEST_LLM_KEY"), (404, "HTTP 404"), (400, "HTTP 400")):
        server.requests.clear()
        server.script = [(status, {}, b"no")]
        with pytest.raises(EndpointError, match=says):
            score(loaded(server, tmp_path, answer="grade"), ["p3"])
        assert len(server.requests) == 1


def test_a_timeout_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.answer = grade
    server.script = [lambda handler: time.sleep(0.5)]
    teacher = loaded(server, tmp_path, answer="grade", timeout_seconds=0.1)
    assert score(teacher, ["p3"]) == [[3]]
    assert teacher.report()["retries"] == 1


@pytest.mark.parametrize("begun", [0, 1])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(server: Server, tmp_path: Path, begun: int) -> None:
    """From the first byte on, or after the header."""
    header = b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n"
    gone = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(header * begun)
        for byte in header * 10:
            if gone.wait(0.05):
                break
            handler.wfile.write(bytes([byte]))

    server.script = [drip] * 2
    began = time.monotonic()
    with pytest.raises(EndpointError, match="failed 2 times: no answer within 0.3 seconds"):
        score(loaded(server, tmp_path, answer="grade", timeout_seconds=0.3, retries=1), ["p3"])
    gone.set()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "body",
    [
        b"<html>gateway</html>",
        b"{}",
        b"[]",
        b"",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"\xff\xfe",
        b"[" * 9999,
    ],
)
def test_answers_that_are_no_completions_are_tried_again(server: Server, tmp_path: Path, body: bytes) -> None:
    server.answer = grade
    server.script = [(200, {}, body)]
    assert score(loaded(server, tmp_path, answer="grade"), ["p3"]) == [[3]]


def test_a_dead_address_is_an_error(tmp_path: Path, server: Server) -> None:
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(EndpointError, match="failed 2 times"):
        score(loaded(server, tmp_path, answer="grade", retries=1), ["p3"])


def test_prose_is_asked_again_then_counted_and_never_stored(server: Server, tmp_path: Path) -> None:
    server.answer = lambda prompt: text_choice("I would rather not say.")
    teacher = loaded(server, tmp_path, answer="grade", nonsense_retries=1)
    assert np.isnan(score(teacher, ["p1"])[0][0])
    assert [request["temperature"] for request in server.requests] == [0, 0.7]
    assert teacher.report()["nonsense"] == 2 and teacher.report()["unusable"] == 1
    server.answer = grade
    assert score(loaded(server, tmp_path, answer="grade"), ["p1"]) == [[1]]


@pytest.mark.parametrize("said", ["9", "-1", "\u22121", "9" * 5000, "<think>a 1?"])
def test_a_grade_out_of_range_is_nonsense(server: Server, tmp_path: Path, said: str) -> None:
    server.answer = lambda prompt: text_choice(said)
    assert np.isnan(score(loaded(server, tmp_path, answer="grade", nonsense_retries=0), ["p1"])[0][0])


def test_a_hyphen_is_no_sign(server: Server, tmp_path: Path) -> None:
    server.answer = lambda prompt: text_choice("grade-2")
    assert score(loaded(server, tmp_path, answer="grade"), ["p1"]) == [[2]]


def test_thoughts_are_left_out_in_one_pass() -> None:
    assert without_thoughts("a<think>b</think>c<think></think>d</think>") == "acd</think>"
    assert without_thoughts("a<think>b<think>c") == "a"
    began = time.monotonic()
    assert without_thoughts("<think>" * 500_000) == ""
    assert without_thoughts("<think></think>" * 250_000) == ""
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400, "1" + "0" * 30, "-1", '"x"', "null", "[]"])
def test_a_usage_that_is_none_is_not_counted(server: Server, tmp_path: Path, number: str) -> None:
    answer = json.dumps({"choices": [text_choice("3")], "usage": {"prompt_tokens": 0, "completion_tokens": 1}})
    server.script = [(200, {}, answer.replace("0,", f"{number},").encode())]
    teacher = loaded(server, tmp_path, answer="grade", price_per_1k_input=1.0)
    assert score(teacher, ["p1"]) == [[3]]
    assert 0 < teacher.report()["tokens_sent"] < 1000


@pytest.mark.parametrize("value", ["1e999", "1" + "0" * 400, "-1e308", "-1e39", '"x"', "null"])
def test_a_log_probability_that_is_none_is_nonsense(server: Server, tmp_path: Path, value: str) -> None:
    server.script = [(200, {}, json.dumps({"choices": [odds_choice(yes=12345)]}).replace("12345", value).encode())]
    server.answer = lambda prompt: odds_choice(yes=-0.5, no=-2.0)
    teacher = loaded(server, tmp_path)
    assert score(teacher, ["p1"]) == [[1.5]]
    assert teacher.report()["nonsense"] == 1


def test_a_partial_ranking_is_repaired_and_counted(server: Server, tmp_path: Path) -> None:
    server.answer = lambda prompt: text_choice("Sure! [3] > [1] > [3]")
    teacher = loaded(server, tmp_path, mode="listwise")
    assert score(teacher, ["p1", "p2", "p3"]) == [[1, 0, 2]]
    assert teacher.report()["repaired"] == 1


@pytest.mark.parametrize("said", ["As a language model", None])
def test_a_list_with_a_window_without_sense_has_no_scores_and_is_asked_again_next_time(
    server: Server, tmp_path: Path, said: Any
) -> None:
    server.answer = lambda prompt: text_choice(said)
    teacher = loaded(server, tmp_path, mode="listwise", nonsense_retries=0)
    assert np.isnan(score(teacher, ["p1", "p2", "p3"])).all()
    assert teacher.report()["unusable"] == 1
    server.answer = by_number
    assert score(loaded(server, tmp_path, mode="listwise"), ["p1", "p2", "p3"]) == [[0, 1, 2]]


def test_an_endpoint_without_log_probabilities_is_told_apart(server: Server, tmp_path: Path) -> None:
    server.answer = lambda prompt: text_choice("yes")
    with pytest.raises(EndpointError, match="write `answer: grade`"):
        score(loaded(server, tmp_path), ["p1"])


# ------------------------------------------------------------ money


def test_the_budget_is_never_exceeded_and_raising_it_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.answer = grade
    prices = {"price_per_1k_input": 1.0, "price_per_1k_output": 2.0, "concurrency": 1, "answer": "grade"}
    passages = [f"p{number}" for number in range(20)]
    teacher = loaded(server, tmp_path, budget=1.0, **prices)  # an answer costs 0.1 + 0.02
    with pytest.raises(BudgetError, match="raise it and run again"):
        score(teacher, passages)
    done = len(server.requests)
    assert 3 <= done <= 8
    assert teacher.report()["cost_USD"] == pytest.approx(0.12 * done)
    with pytest.raises(BudgetError):  # what was spent is remembered
        score(loaded(server, tmp_path, budget=1.0, **prices), passages)
    assert len(server.requests) == done
    richer = loaded(server, tmp_path, budget=100.0, **prices)
    assert score(richer, passages) == [[number % 4 for number in range(20)]]
    assert len(server.requests) == 20
    assert richer.report()["cost_USD"] == pytest.approx(0.12 * 20)


def test_the_token_budget_holds_for_requests_at_once(server: Server, tmp_path: Path) -> None:
    server.answer = grade
    teacher = loaded(server, tmp_path, answer="grade", token_budget=2000, concurrency=8)
    with pytest.raises(BudgetError, match="token_budget"):
        score(teacher, [f"p{number}" for number in range(50)])
    assert 110 * len(server.requests) == teacher.report()["tokens_sent"] + teacher.report()["tokens_received"] <= 2000


def test_without_usage_in_the_answer_the_budget_still_stops(server: Server, tmp_path: Path) -> None:
    server.answer, server.usage = grade, None
    with pytest.raises(BudgetError):
        score(loaded(server, tmp_path, answer="grade", token_budget=3000), [f"p{number}" for number in range(50)])
    assert 1 < len(server.requests) < 50


def test_the_estimate_by_hand(server: Server, tmp_path: Path) -> None:
    teacher = loaded(
        server, tmp_path, answer="grade", template="x" * 364 + "{query}{passage}", price_per_1k_input=0.5, budget=10.0
    )
    # frame 380 / 4 + 20 = 115 tokens, passage 100 words * 1.4 = 140, answer 8: 255 in, 8 out, 1,000 pairs
    said = teacher.expected(10, 1000, words=100)
    assert "1,000 requests" in said and "263,000 tokens" in said and "127.50 USD" in said
    assert "will stop before it is done" in said
    listwise = loaded(server, tmp_path, mode="listwise")
    assert "90 requests" in listwise.expected(10, 1000)  # 9 windows of 20 by 10 over 100 passages


def test_a_budget_needs_prices() -> None:
    with pytest.raises(ConfigError, match="needs price_per_1k"):
        OpenAI(base_url="http://localhost/v1", model="m", budget=1.0)


# ------------------------------------------------------------ the key


def forms(key: str) -> list[bytes]:
    from urllib.parse import quote

    return [key.encode(), quote(key, safe="").encode(), base64.b64encode(key.encode()), json.dumps(key)[1:-1].encode()]


def test_the_key_is_in_no_file_log_error_or_fingerprint(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    echoes = b"bad key: " + b" ".join(forms(KEY))
    said = []
    for status in (401, 400, 500, 200):
        server.script = [(status, {"X-Key": KEY}, echoes)] * 2
        teacher = loaded(server, tmp_path, answer="grade", retries=1)
        with pytest.raises(EndpointError) as caught:
            score(teacher, ["p1"])
        said.append("".join(traceback.format_exception(caught.value)))
        said += [repr(teacher), teacher.fingerprint(), repr(teacher.report())]
    server.answer = grade
    score(loaded(server, tmp_path, answer="grade"), ["p1"])
    captured = capsys.readouterr()
    said += [caplog.text, captured.out, captured.err]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for form in forms(KEY):
        assert form.decode() not in "\n".join(said)
        assert not [path for path in files if form in path.read_bytes()]
    assert "[key]" in said[0]


@pytest.mark.parametrize("status", [401, 400, 500, 200])
@pytest.mark.parametrize("before", [0, *range(35, 82, 5), 270, 285, 295, 1990, (1 << 22) - 20])
def test_no_part_of_the_key_is_left_where_a_text_is_cut(
    server: Server, tmp_path: Path, status: int, before: int
) -> None:
    for fill in (b" ", b"x") if before < 5000 else (b"x",):
        server.script = [(status, {}, fill * before + KEY.encode() + b" and more")]
        with pytest.raises(EndpointError) as caught:
            score(loaded(server, tmp_path, answer="grade", retries=0), ["p1"])
        assert KEY[:6] not in str(caught.value)


def test_a_text_that_was_cut_inside_the_key_ends_before_it(server: Server, tmp_path: Path) -> None:
    teacher = loaded(server, tmp_path, answer="grade")
    for form in forms(KEY):
        text = "x " + form.decode()
        assert [teacher._redact(text[:end]) for end in range(8, len(text) + 1)] == ["x [key]"] * (len(form) - 5)
    assert teacher._redact(f"x {KEY[:5]}") == f"x {KEY[:5]}"


@pytest.mark.parametrize("name", ["HOME", "DATABASE_PASSWORD", "MY_KEY_FILE", "", "a b_KEY"])
def test_a_variable_that_is_not_named_as_a_key_is_not_read(name: str) -> None:
    with pytest.raises(ConfigError, match="must end in _KEY or _TOKEN"):
        OpenAI(base_url="http://localhost/v1", model="m", api_key_env=name)


def test_a_redirect_does_not_carry_the_key_elsewhere(server: Server, tmp_path: Path) -> None:
    server.script = [(307, {"Location": server.url + "/elsewhere"}, b"")]
    with pytest.raises(EndpointError, match="HTTP 307"):
        score(loaded(server, tmp_path, answer="grade"), ["p1"])
    assert len(server.requests) == 1


def test_a_key_with_a_line_break_is_refused_without_being_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_LLM_KEY", "sk-first\nsecond")
    with pytest.raises(ConfigError) as caught:
        loaded(server, tmp_path)
    assert "TEST_LLM_KEY" in str(caught.value) and "first" not in str(caught.value)


def test_a_missing_key_names_its_variable(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        loaded(server, tmp_path, api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize("url", ["http://user:pw@host/v1", "http://host/v1?key=abc", "file:///etc/passwd", "host/v1"])
def test_addresses_that_hold_secrets_or_are_none_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAI(base_url=url, model="m")


# ---------------------------------------------------------------- anything at all

ANSWERS = {
    "yes-no": {"choices": [odds_choice(yes=-0.5, no=-1.5)], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    "grade": {"choices": [text_choice("2")], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    "listwise": {"choices": [text_choice("[2] > [1]")], "usage": None},
}
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["[1]", "[2] > [1]", "[1] [1]", "<think>[2]", "3", "-1", "99999999", KEY]
)
BODIES = {
    kind: changed(answer) | TEXTS.map(lambda text: json.dumps({"choices": [text_choice(text)]}).encode())
    for kind, answer in ANSWERS.items()
}


@given(
    data=st.data(), kind=st.sampled_from(sorted(ANSWERS)), status=st.sampled_from([200] * 8 + [204, 400, 401, 429, 500])
)
@fuzzing(400)
def test_any_answer_gives_scores_or_an_error_without_the_key(
    server: Server, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, status: int
) -> None:
    options = {"mode": "listwise"} if kind == "listwise" else {"answer": kind}
    root = tmp_path_factory.mktemp("teacher")
    teacher = loaded(server, root, retries=0, nonsense_retries=1, token_budget=10_000, **options)
    server.script = [(status, {}, data.draw(BODIES[kind])) for _ in range(2)]
    server.answer = lambda prompt: ANSWERS[kind]["choices"][0]
    try:
        scores = np.asarray(score(teacher, ["p1", "p2"])[0])
    except EndpointError as error:
        assert str(error) and KEY[:8] not in str(error)
        return
    assert scores.shape == (2,) and not np.isinf(scores).any()
    if kind == "grade":
        assert ((scores >= 0) & (scores <= 3) | np.isnan(scores)).all()
    if kind == "listwise":
        assert sorted(scores.tolist()) == [0.0, 1.0] or np.isnan(scores).all()
    assert teacher.report()["tokens_sent"] >= 0
    again = loaded(server, root, retries=0, **options)
    if np.isfinite(scores).all():  # what made sense is stored, and asked no more
        before = len(server.requests)
        assert score(again, ["p1", "p2"]) == [scores.tolist()] and len(server.requests) == before


@given(value=st.text(max_size=30) | ODD.map(str) | st.sampled_from(["Wed, 21 Oct 2099 07:28:00 GMT", "-5", "inf"]))
@fuzzing(200)
def test_any_wished_wait_is_a_number_of_seconds_or_none(value: str) -> None:
    found = _retry_after(value)
    assert found is None or (math.isfinite(found) and found >= 0)


@given(
    answer=st.text(max_size=60) | st.lists(st.integers(-1, 9).map(lambda n: f"[{n}]")).map(" > ".join),
    count=st.integers(1, 7),
)
@fuzzing(300)
def test_any_answer_of_a_ranker_is_an_order_or_nonsense(answer: str, count: int) -> None:
    try:
        order, _ = order_of(without_thoughts(answer), count)
    except _Nonsense:
        return
    assert sorted(order) == list(range(count))

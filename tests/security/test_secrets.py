"""An API key is in no file, log line or error of a whole run."""

from __future__ import annotations

import base64
import json
import logging
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from whole_runs import run

from kdfw.errors import KdfwError

KEY = "sk-proj/very+secret==0123456789abcdef"

RECIPE = """\
kdfw: 1
name: asks
data: {{type: beir, folder: {root}/beir}}
models:
  student: {{type: bi-encoder, base: {root}/student, max_query_tokens: 16, max_passage_tokens: 32}}
  judge: {{type: openai, base_url: "{url}", model: m, api_key_env: KDFW_TEST_KEY, retries: 0, backoff_seconds: 0}}
stages:
  - {{name: mined, type: mine, retriever: bm25, depth: 4}}
  - {{name: scores, type: score, teacher: judge, of: mined}}
  - name: distill
    type: train
    student: student
    teachers: [scores]
    sampler: {{type: mined, of: mined, negatives: 1}}
    losses: [{{type: kl}}]
    train: {{steps: 2, batch_size: 2, lr: 1e-3, precision: fp32}}
  - {{name: test, type: evaluate, split: test, models: [distill], measures: [nDCG@10]}}
"""


def forms() -> list[bytes]:
    """The key as it is, and as it might be written down."""
    raw = KEY.encode()
    return [
        raw,
        base64.b64encode(raw),
        urllib.parse.quote(KEY, safe="").encode(),
        json.dumps(KEY)[1:-1].encode(),
        KEY[8:].encode(),
    ]


@pytest.fixture
def server() -> Iterator[dict[str, object]]:
    state: dict[str, object] = {"status": 200, "seen": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state["seen"].append(self.headers["Authorization"])  # type: ignore[attr-defined]
            top = [{"token": "yes", "logprob": -0.1 - len(body) % 7}, {"token": "no", "logprob": -2.0}]
            choice = {"message": {"content": "yes"}, "logprobs": {"content": [{"token": "yes", "top_logprobs": top}]}}
            # an endpoint that gives the key back, as some do in their errors
            echo = {"error": {"message": f"bad key {self.headers['Authorization']}"}}
            data = json.dumps({"choices": [choice], "id": KEY} if state["status"] == 200 else echo).encode()
            self.send_response(int(str(state["status"])))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state["url"] = f"http://127.0.0.1:{http.server_address[1]}/v1"
    yield state
    http.shutdown()
    http.server_close()
    thread.join(5)


def files_with_the_key(*roots: Path) -> list[Path]:
    return [
        path
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in forms())
    ]


def test_the_key_stays_in_the_environment(
    workspace: Path, tmp_path: Path, server: dict[str, object], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setenv("KDFW_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=workspace, url=server["url"]), encoding="utf-8")
    result = run(recipe, tmp_path / "out" / "run")
    assert result is not None and set(server["seen"]) == {f"Bearer {KEY}"}  # type: ignore[call-overload]
    assert files_with_the_key(tmp_path / "out") == []
    for status in (401, 400, 500, 429):
        server["status"] = status
        with pytest.raises(KdfwError) as caught:
            run(recipe, tmp_path / "out" / f"run-{status}", "models.judge.model=other")
        shown = repr(caught.value) + str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
        assert KEY not in shown and KEY[8:] not in shown
    assert files_with_the_key(tmp_path / "out") == []
    written = caplog.text + "".join(capfd.readouterr())
    assert written and KEY not in written and KEY[8:] not in written


def test_paths_do_not_take_secrets_from_the_environment(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KDFW_TEST_KEY", KEY)
    for text in ("$KDFW_TEST_KEY/beir", "${KDFW_TEST_KEY}", "~/$KDFW_TEST_KEY"):
        with pytest.raises(KdfwError, match="KDFW_TEST_KEY") as caught:
            run(workspace / "recipe.yaml", tmp_path / "run", f"data.folder={text}")
        assert KEY not in str(caught.value)

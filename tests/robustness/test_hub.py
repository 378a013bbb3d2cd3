"""Models from a hub (a server of the test's own): one commit for the whole run, and a download that breaks off."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from whole_runs import RECIPE

from tests.tiny import write_bert


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as loading a model asks for."""

    protocol_version = "HTTP/1.1"
    folders: ClassVar[dict[str, Path]] = {}
    """By commit; the last one is `main`."""
    cut: ClassVar[str] = ""
    """Ending of files whose download breaks off half-way."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        path = urlsplit(self.path).path
        self.asked.append(path)
        commit = list(self.folders)[-1]
        data, status, name = b"", 200, ""
        if path.startswith("/api/models/org/tiny"):
            names = sorted(file.name for file in self.folders[commit].iterdir())
            found: Any = {"id": "org/tiny", "sha": commit, "tags": [], "siblings": [{"rfilename": n} for n in names]}
            if "/tree/" in path:
                found = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            data = json.dumps(found).encode()
        elif path.startswith("/org/tiny/resolve/"):
            revision, name = path.removeprefix("/org/tiny/resolve/").split("/", 1)
            commit = commit if revision == "main" else revision
            file = self.folders[commit] / name
            if file.is_file():
                data = file.read_bytes()
            else:
                status = 404
        else:
            status = 404
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not with_body:
            return
        if self.cut and name.endswith(self.cut):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a program that takes its models from the server."""
    monkeypatch.setattr(Hub, "folders", {"a" * 40: write_bert(tmp_path / "a", layers=1, seed=1)})
    monkeypatch.setattr(Hub, "cut", "")
    monkeypatch.setattr(Hub, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(workspace: Path, tmp_path: Path) -> Path:
    text = RECIPE.format(root=workspace).replace(str(workspace / "student"), "org/tiny")
    assert "base: org/tiny" in text
    kept = [line for line in text.splitlines() if "name: kept" not in line and "name: vectors" not in line]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(kept), encoding="utf-8")
    return path


def kdfw(environment: dict[str, str], *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kdfw", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def weights_of(out: Path) -> bytes:
    (file,) = out.glob("stages/*-distill/model/model.safetensors")
    return file.read_bytes()


def test_a_download_that_breaks_off_is_said_and_taken_up_again(
    hub: dict[str, str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    monkeypatch.setattr(Hub, "cut", ".safetensors")
    broken = kdfw(hub, "run", recipe, "--out", out)
    assert broken.returncode == 2
    assert "'org/tiny'" in broken.stderr and "The download failed: " in broken.stderr
    assert "Run the same command again" in broken.stderr
    assert not list(out.glob("stages/*-distill/model"))
    monkeypatch.setattr(Hub, "cut", "")
    assert kdfw(hub, "run", recipe, "--out", out).returncode == 0
    # what came is the file itself, whole
    (loaded,) = (Path(hub["HF_HOME"]) / "hub").glob("models--org--tiny/snapshots/*/model.safetensors")
    assert loaded.read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
    assert list(out.glob("stages/*-distill/model/model.safetensors"))


def test_the_commit_is_that_of_the_first_run(
    hub: dict[str, str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    assert kdfw(hub, "run", recipe, "--out", out).returncode == 0
    first = weights_of(out)
    # the model was not here before, now it is, and its branch moves on: what is here stays what is used
    moved = {**Hub.folders, "b" * 40: write_bert(tmp_path / "b", layers=1, seed=2)}
    monkeypatch.setattr(Hub, "folders", moved)
    again = kdfw(hub, "run", recipe, "--out", out)
    assert again.returncode == 0 and "nothing to do" in again.stderr + again.stdout
    # where it has never been, the new one is taken
    shutil.rmtree(hub["HF_HOME"])
    assert kdfw(hub, "run", recipe, "--out", out).returncode == 0
    assert weights_of(out) != first


def test_a_plan_needs_no_hub(hub: dict[str, str], recipe: Path):
    planned = kdfw({**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}, "plan", recipe)
    assert planned.returncode == 0 and "distill" in planned.stdout
    # one attempt, not those of a download, which take half a minute
    assert planned.stderr.count("org/tiny: the hub cannot be reached") == 1 and "Retrying" not in planned.stderr


@pytest.mark.parametrize("command", ["plan", "check"])
def test_offline_asks_nobody(hub: dict[str, str], recipe: Path, command: str):
    done = kdfw(hub, command, recipe, "--offline")
    assert not Hub.asked and "cannot be reached" not in done.stderr
    assert done.returncode == (0 if command == "plan" else 2)
    if command == "plan":
        assert kdfw(hub, "plan", recipe).returncode == 0 and Hub.asked

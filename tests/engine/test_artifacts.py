"""The artifact store: atomic commits, damage detected, locks, read-only caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdfw import files
from kdfw.engine.artifacts import MANIFEST, ArtifactStore
from kdfw.errors import ArtifactError

FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache", fallback=tmp_path / "own")


def make(store: ArtifactStore) -> Path:
    work = store.work_folder("mine", FINGERPRINT)
    (work / "sub").mkdir()
    (work / "sub" / "data.bin").write_bytes(b"0123456789")
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "big").write_bytes(b"x" * 100)
    return store.commit("mine", FINGERPRINT, {"queries": 3}).folder


def test_a_committed_artifact_is_found_with_its_summary_and_without_scratch(store: ArtifactStore):
    folder = make(store)
    found = store.find("mine", FINGERPRINT)
    assert found is not None and found.folder == folder and found.summary == {"queries": 3}
    assert not (folder / "checkpoints").exists()
    assert not (store.writable / "work" / folder.name).exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "other"])
def test_a_damaged_artifact_is_set_aside_and_never_used(tmp_path: Path, damage: str):
    folder = make(ArtifactStore(tmp_path / "cache", tmp_path / "own"))
    target = folder / "sub" / "data.bin"
    if damage == "flip":
        target.write_bytes(b"0123456780")
    elif damage == "truncate":
        target.write_bytes(b"0123")
    elif damage == "remove":
        target.unlink()
    elif damage == "manifest":
        (folder / MANIFEST).write_text("{")
    else:
        value = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**value, "fingerprint": "ff"}))
    fresh = ArtifactStore(tmp_path / "cache", tmp_path / "own")
    assert fresh.find("mine", FINGERPRINT) is None
    assert len(list((tmp_path / "cache" / "damaged").iterdir())) == 1
    assert make(fresh).is_dir(), "it can be made again"


def test_a_kill_before_the_rename_leaves_no_artifact_and_keeps_the_work(store: ArtifactStore, monkeypatch):
    work = store.work_folder("mine", FINGERPRINT)
    (work / "part").write_text("half")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdfw.engine.artifacts.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.commit("mine", FINGERPRINT, {})
    monkeypatch.undo()
    assert store.find("mine", FINGERPRINT) is None
    assert (store.work_folder("mine", FINGERPRINT) / "part").read_text() == "half"


def test_a_full_disk_is_an_artifact_error_that_says_so(store: ArtifactStore, monkeypatch):
    work = store.work_folder("mine", FINGERPRINT)
    (work / "part").write_text("x")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdfw.engine.artifacts.sync_file", full)
    with pytest.raises(ArtifactError, match="No space left"):
        store.commit("mine", FINGERPRINT, {})
    assert store.find("mine", FINGERPRINT) is None


def test_a_cache_that_cannot_be_written_is_read_and_new_artifacts_go_elsewhere(tmp_path: Path, monkeypatch):
    cache, own = tmp_path / "cache", tmp_path / "own"
    make(ArtifactStore(cache, own))
    monkeypatch.setattr("kdfw.engine.artifacts._can_write", lambda folder: folder != cache)
    store = ArtifactStore(cache, own)
    assert store.find("mine", FINGERPRINT) is not None
    work = store.work_folder("mine", "ffff")
    (work / "x").write_text("x")
    assert own in store.commit("mine", "ffff", {}).folder.parents
    assert store.find("mine", "ffff") is not None


def test_two_processes_cannot_make_the_same_artifact_at_once(tmp_path: Path):
    program = (
        "import sys, time; from pathlib import Path; from kdfw.engine.artifacts import ArtifactStore\n"
        f"s = ArtifactStore(Path({str(tmp_path / 'c')!r}), Path({str(tmp_path / 'o')!r}))\n"
        "with s.locked('mine', 'aa'):\n"
        "    made = s.find('mine', 'aa')\n"
        "    if made is None:\n"
        "        w = s.work_folder('mine', 'aa'); assert not (w / 'x').exists()\n"
        "        (w / 'x').write_text('1'); time.sleep(0.5); s.commit('mine', 'aa', {}); print('made')\n"
        "    else: print('found')\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in running)
    assert said == ["found", "made"]


def test_write_atomic_keeps_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdfw.files.os.fsync", full)
    with pytest.raises(ArtifactError, match="free some space"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_paths_cannot_leave_their_folder(tmp_path: Path, name: str):
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(tmp_path, root / "link")
    with pytest.raises(ArtifactError, match="outside"):
        files.inside(root, name)
    assert files.inside(root, "a/b") == (root / "a" / "b").resolve()

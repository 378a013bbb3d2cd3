"""Full disks, read-only caches, and two runs in one cache."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_runs import SERVER, STAGES, results, run

from kdfw.cli import main
from kdfw.errors import KdfwError


@pytest.fixture(scope="module")
def finished(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    run(workspace / "recipe.yaml", root / "run")
    return root


def mount(*options: str) -> bool:
    return not subprocess.run(["mount", *options], capture_output=True, check=False).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 32 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount") or not mount("-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)):
        pytest.skip("may not mount a file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


# buffers that could not be written say so again when Python drops them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_with_a_word_and_the_run_goes_on_when_there_is_space(
    workspace: Path, finished: Path, small_disk: Path
):
    stopped = []
    for size in [*range(40, 160, 24), *range(160, 900, 40), 4000]:
        assert mount("-o", f"remount,size={size}k", str(small_disk))
        try:
            run(workspace / "recipe.yaml", small_disk / "run")
            break
        except KdfwError as error:
            assert error.exit_code == 2
            text = str(error)
            assert str(small_disk) in text and ("space" in text or "disk is full" in text), text
            done = small_disk / "run" / "manifest.json"
            stages = json.loads(done.read_text())["stages"] if done.exists() else []
            stopped.append(len(stages))
    assert results(small_disk / "run") == results(finished / "run")
    assert set(stopped) >= {0, 2}, stopped  # full while mining and training at least


@pytest.mark.parametrize("nth", [1, 4, 9, 16, 25, 36])
def test_a_write_that_fails_anywhere_does_no_damage(
    workspace: Path, finished: Path, tmp_path: Path, nth: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """Every flush from the nth on says that the disk is full; then there is space again."""
    monkeypatch.setattr("kdfw.cli.tune_process", lambda: None)
    calls = iter(range(1, 10**6))
    real = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    arguments = ["run", str(workspace / "recipe.yaml"), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "c")]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(arguments) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "space" in said
    assert main(arguments) == 0
    assert results(tmp_path / "run") == results(finished / "run")


def test_a_read_only_cache_is_read_and_the_rest_goes_beside_the_run(
    workspace: Path, finished: Path, small_disk: Path, tmp_path: Path
):
    assert mount("-o", "remount,size=4000k", str(small_disk))
    shutil.copytree(finished / "cache", small_disk / "cache")
    assert mount("-o", "remount,ro", str(small_disk))
    out, recipe = tmp_path / "run", workspace / "recipe.yaml"
    run(recipe, out, cache=small_disk / "cache")
    stages = json.loads((out / "manifest.json").read_text())["stages"]
    assert all(stage["cached"] for stage in stages)
    assert results(out) == results(finished / "run")
    changed = tmp_path / "changed"
    run(recipe, changed, "stages.distill.losses.1.weight=0.5", cache=small_disk / "cache")
    cached = {stage["name"]: stage["cached"] for stage in json.loads((changed / "manifest.json").read_text())["stages"]}
    assert cached["scores"] and not cached["distill"]
    assert list((changed / "cache" / "artifacts").glob("train-*"))


def begin_together(recipe: Path, out: Path, cache: Path, barrier: Any) -> None:
    import torch

    torch.set_num_threads(1)
    barrier.wait()
    run(recipe, out, cache=cache)


def test_two_runs_in_one_cache_make_each_artifact_once(workspace: Path, finished: Path, tmp_path: Path):
    barrier = SERVER.Barrier(2)
    outs = [tmp_path / "one", tmp_path / "two"]
    children = [
        SERVER.Process(target=begin_together, args=(workspace / "recipe.yaml", out, tmp_path / "cache", barrier))
        for out in outs
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    expected = results(finished / "run")
    assert all(results(out) == expected for out in outs)
    made = [
        [stage["name"] for stage in json.loads((out / "manifest.json").read_text())["stages"] if not stage["cached"]]
        for out in outs
    ]
    assert sorted(made[0] + made[1]) == sorted(STAGES)
    assert not list((tmp_path / "cache").glob("damaged/*")) and not list((tmp_path / "cache").glob("work/*"))

"""A byte that changes anywhere in the cache never changes a result."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from whole_runs import STAGES, flip, results, run

from kdfw.cli import main
from kdfw.data.ranking import Ranking


@pytest.fixture(scope="module")
def finished(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `run/` and its `cache/`."""
    root = tmp_path_factory.mktemp("finished")
    run(workspace / "recipe.yaml", root / "run")
    return root


def kept_files(cache: Path) -> Iterator[Path]:
    for path in sorted(cache.rglob("*")):
        if path.is_file() and path.stat().st_size and path.parts[len(cache.parts)] != "locks":
            yield path


def places(path: Path, rng: random.Random) -> list[int]:
    size = path.stat().st_size
    return sorted({rng.randrange(min(size, 128)), rng.randrange(size)})


def test_a_byte_changed_in_any_artifact_is_found_and_the_stage_made_again(
    workspace: Path, finished: Path, tmp_path: Path
):
    expected = results(finished / "run")
    shutil.copytree(finished, tmp_path / "w", copy_function=shutil.copy2)
    out = tmp_path / "w" / "run"
    rng = random.Random(1)
    files = [path.relative_to(tmp_path / "w") for path in kept_files(tmp_path / "w" / "cache" / "artifacts")]
    assert len(files) > 30
    for name in files:
        for at in places(tmp_path / "w" / name, rng)[:1]:
            flip(tmp_path / "w" / name, at)
        run(workspace / "recipe.yaml", out)
        assert results(out) == expected, name
        made = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        again = [stage["name"] for stage in made["stages"] if not stage["cached"]]
        assert len(again) == 1, name  # what was damaged, and nothing else


def test_a_byte_changed_in_what_is_kept_by_content_never_changes_a_result(
    workspace: Path, finished: Path, tmp_path: Path
):
    """Ingested data, tokens, scores, embeddings, indexes, remembered hashes: made again, or an error names the file."""
    expected = results(finished / "run")
    rng = random.Random(2)
    shared = [
        path.relative_to(finished / "cache")
        for path in kept_files(finished / "cache")
        if path.relative_to(finished / "cache").parts[0] != "artifacts" and path.suffix != ".lock"
    ]
    assert {name.parts[0] for name in shared} >= {"data", "tokens", "scores", "embeddings", "bm25"}
    for number, name in enumerate(shared):
        cache = tmp_path / f"cache-{number}"
        shutil.copytree(finished / "cache", cache, ignore=shutil.ignore_patterns("artifacts"))
        for at in places(cache / name, rng)[number % 2 : number % 2 + 1]:
            flip(cache / name, at)
        if name.parts[0] in ("data", "bm25", "embeddings"):  # training has no part in it
            for folder in (finished / "cache" / "artifacts").glob("train-*"):
                shutil.copytree(folder, cache / "artifacts" / folder.name)
        out = tmp_path / f"run-{number}"
        run(workspace / "recipe.yaml", out, cache=cache)
        assert results(out) == expected, name
        shutil.rmtree(out)
        shutil.rmtree(cache)


ODD = [
    b"", b"[]", b"null", b"[" * 200_000, b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}",
    b'{"files": {"a": 1}, "checksum": 3, "format": "x", "width": [], "digest": [], "stages": [1], "data": []}',
]  # fmt: skip


@pytest.mark.parametrize("content", ODD, ids=lambda content: content[:8].decode("latin-1"))
def test_whatever_stands_in_the_json_files_of_cache_and_run_folder_the_results_are_the_same(
    workspace: Path, finished: Path, tmp_path: Path, content: bytes
):
    expected = results(finished / "run")
    shutil.copytree(finished, tmp_path / "w")
    out, cache = tmp_path / "w" / "run", tmp_path / "w" / "cache"
    damaged = [path for path in [*out.glob("*.json"), *cache.rglob("*.json")] if "artifacts" not in path.parts]
    damaged += [path for kind in ("mine", "evaluate") for path in cache.glob(f"artifacts/{kind}-*/artifact.json")]
    assert {path.name for path in damaged} >= {
        "manifest.json", "plan.json", "diagnosis.json", "store.json", "000000.json", "artifact.json"
    }  # fmt: skip
    for path in damaged:
        path.unlink()  # the run folder holds links to the cache
        path.write_bytes(content)
    run(workspace / "recipe.yaml", out, cache=cache)
    assert results(out) == expected
    for name in ("manifest.json", "diagnosis.json"):
        assert isinstance(json.loads((out / name).read_text(encoding="utf-8")), dict)
    assert run(workspace / "recipe.yaml", out, cache=cache).nothing_to_do


@pytest.mark.parametrize("content", ODD, ids=lambda content: content[:8].decode("latin-1"))
def test_a_damaged_run_folder_is_an_error_where_it_is_only_read(
    workspace: Path, finished: Path, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    shutil.copytree(finished / "run", out)
    (out / "manifest.json").write_bytes(content)
    assert main(["diagnose", str(out), "--cache", str(finished / "cache")]) == 2
    assert "manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["change", "remove", "of another run"])
def test_a_diagnosis_that_is_not_the_run_s_is_written_again(
    workspace: Path, finished: Path, tmp_path: Path, damage: str
):
    shutil.copytree(finished, tmp_path / "w")
    path = tmp_path / "w" / "run" / "diagnosis.json"
    whole = path.read_bytes()
    if damage == "change":
        flip(path, len(whole) // 2)
    elif damage == "remove":
        path.unlink()
    else:  # another recipe's, all of whose stages are in the cache
        path.write_text("{}")
        other = tmp_path / "w" / "run" / "manifest.json"
        other.write_text(json.dumps({**json.loads(other.read_text()), "stages": []}))
    run(workspace / "recipe.yaml", tmp_path / "w" / "run")
    assert path.read_bytes() == whole


def test_a_byte_changed_in_the_run_folder_is_mended(workspace: Path, finished: Path, tmp_path: Path):
    expected = results(finished / "run")
    shutil.copytree(finished, tmp_path / "w")
    out = tmp_path / "w" / "run"
    weights = next(out.glob("stages/*-distill/model/model.safetensors"))
    flip(weights, weights.stat().st_size // 2)
    result = run(workspace / "recipe.yaml", out)
    assert results(out) == expected
    assert result.nothing_to_do


def test_only_stages_that_depend_on_a_changed_input_run_again(workspace: Path, finished: Path, tmp_path: Path):
    """One byte of the student's weights under the old size and date: what a comparison of dates would not see."""
    import os

    base = tmp_path / "student"
    shutil.copytree(workspace / "student", base)
    out, recipe = tmp_path / "run", workspace / "recipe.yaml"
    setting = f"models.student.base={base}"
    run(recipe, out, setting)
    before = results(out)
    weights = base / "model.safetensors"
    stat = weights.stat()
    raw = weights.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    name = next(name for name in header if name.endswith("word_embeddings.weight"))
    end = 8 + int.from_bytes(raw[:8], "little") + header[name]["data_offsets"][1]
    with weights.open("r+b") as stream:  # the sign of one number of the last word
        stream.seek(end - 1)
        stream.write(bytes([raw[end - 1] ^ 0x80]))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    run(recipe, out, setting)
    cached = {
        stage["name"]: stage["cached"]
        for stage in json.loads((out / "manifest.json").read_text(encoding="utf-8"))["stages"]
    }
    assert cached == {name: name in ("mined", "scores") for name in STAGES}
    after = results(out)
    assert before.keys() == after.keys()


def test_a_changed_passage_under_the_old_size_and_date_is_noticed(workspace: Path, tmp_path: Path):
    import os

    data = tmp_path / "beir"
    shutil.copytree(workspace / "beir", data)
    out, recipe = tmp_path / "run", workspace / "recipe.yaml"
    run(recipe, out, f"data.folder={data}")
    corpus = data / "corpus.jsonl"
    stat = corpus.stat()
    old = corpus.read_bytes()
    text = json.loads(old.split(b"\n")[0])["text"].encode()
    new = old.replace(text, text[::-1], 1)
    assert new != old and len(new) == len(old)
    corpus.write_bytes(new)
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(recipe, out, f"data.folder={data}")
    stages = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert not any(stage["cached"] for stage in stages)
    shutil.rmtree(tmp_path / "cache")
    run(recipe, tmp_path / "other", f"data.folder={data}")
    for name in ("run.trec", "ranking.scores.npy"):  # what was computed is that of the new bytes
        assert results(tmp_path / "other")[f"01-mined/{name}"] == results(out)[f"01-mined/{name}"]
    # pairs scored before are taken from the store; in another batch their last bits would be other ones
    first, second = (Ranking.load(folder / "stages" / "02-scores").scores for folder in (out, tmp_path / "other"))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)

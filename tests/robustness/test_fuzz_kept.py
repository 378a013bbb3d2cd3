"""Whatever has become of a file that kdfw has written beside its data: the same results, or an error that names it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_values import changed, fuzzing, put
from whole_runs import results, run

from kdfw.cli import main
from kdfw.data.store import read_manifest, write_manifest
from kdfw.engine.artifacts import MANIFEST, ArtifactStore
from kdfw.engine.licences import of_card
from kdfw.errors import ArtifactError
from kdfw.teachers.store import ScoreStore, pair_keys, text_hashes


@given(data=st.data())
@fuzzing(300)
def test_the_manifest_of_ingested_data(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("ingested")
    (folder / "texts.bin").write_bytes(b"passages")
    write_manifest(folder, {"layout": "beir", "skipped": {"a.tsv": [3, 4]}, "splits": ["train", "test"]})
    before = read_manifest(folder)
    put(folder / "manifest.json", data.draw(changed(json.loads((folder / "manifest.json").read_text()))))
    try:
        assert read_manifest(folder) == before
    except ArtifactError as error:
        assert str(folder) in str(error) and "run again" in str(error)


@given(data=st.data())
@fuzzing(300)
def test_the_manifest_of_an_artifact(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    root = tmp_path_factory.mktemp("cache")
    store = ArtifactStore(root, root)
    (store.work_folder("train", "abc") / "weights").write_bytes(b"1234")
    made = store.commit("train", "abc", {"steps": 3, "lines": {"a.tsv": [1]}}, seconds=1.5)
    put(made.folder / MANIFEST, data.draw(changed(json.loads((made.folder / MANIFEST).read_text()))))
    found = ArtifactStore(root, root).find("train", "abc")
    assert found is None or found == made
    if found is None:  # set aside, and not lost
        assert not made.folder.exists()
        assert [path.read_bytes() for path in (root / "damaged").rglob("weights")] == [b"1234"]


@given(data=st.data())
@fuzzing(300)
def test_the_description_of_a_score_store(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("scores")
    keys = pair_keys(text_hashes(["q", "q"], "query"), text_hashes(["a", "b"], "passage"))
    ScoreStore(folder, describe={"model": "judge"}).put(keys, np.asarray([1.0, 2.0], dtype=np.float32))
    put(folder / "store.json", data.draw(changed(json.loads((folder / "store.json").read_text()))))
    try:
        store = ScoreStore(folder)
    except ArtifactError as error:
        assert str(folder) in str(error)
        return
    scores, known = store.get(keys)
    assert [score for score, there in zip(scores.tolist(), known, strict=True) if there] in ([], [1.0, 2.0])


CARD = {"license": "mit", "tags": ["a", "b"], "model-index": [{"name": "x", "results": []}]}


@given(
    head=changed(CARD),
    before=st.sampled_from(["---\n", "--- \n", "", "\ufeff---\n"]),
    after=st.sampled_from(["\n---\n", "\n---", "", "\n...\n---\n"]),
)
@fuzzing(300)
def test_the_card_of_a_model_or_data_set(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, before: str, after: str
):
    path = tmp_path_factory.mktemp("card") / "README.md"
    path.write_bytes(before.encode() + head + after.encode())
    assert isinstance(of_card(path), str)


@given(content=st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f"---\n{text}\n---".encode()))
@fuzzing(300)
def test_a_card_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.mktemp("card") / "README.md"
    path.write_bytes(content)
    assert isinstance(of_card(path), str)


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `run/` and its `cache/`."""
    root = tmp_path_factory.mktemp("finished")
    run(workspace / "recipe.yaml", root / "run")
    return root


@given(data=st.data())
@fuzzing(15)
def test_the_files_a_run_folder_is_known_by(
    workspace: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    root = tmp_path_factory.mktemp("run")
    shutil.copytree(finished / "run", root / "run")
    for name in ("manifest.json", "plan.json", "diagnosis.json"):
        put(root / "run" / name, data.draw(changed(copy.deepcopy(json.loads((finished / "run" / name).read_text())))))
    run(workspace / "recipe.yaml", root / "run", cache=finished / "cache")
    assert results(root / "run") == results(finished / "run")
    assert isinstance(json.loads((root / "run" / "manifest.json").read_text(encoding="utf-8")), dict)


@given(data=st.data())
@fuzzing(20)
def test_commands_that_read_a_run_folder(finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    root = tmp_path_factory.mktemp("run")
    shutil.copytree(finished / "run", root / "run")
    for name in data.draw(st.lists(st.sampled_from(["manifest.json", "plan.json", "diagnosis.json"]), min_size=1)):
        put(root / "run" / name, data.draw(changed(json.loads((finished / "run" / name).read_text()))))
    for measures in sorted((root / "run").rglob("measures.json"))[:1]:
        put(measures, data.draw(changed(json.loads(measures.read_text()))))
    cache = ["--cache", str(finished / "cache")]
    for command in (["report", str(root / "run")], ["compare", str(root / "run"), str(finished / "run")],
                    ["diagnose", str(root / "run"), *cache]):  # fmt: skip
        assert main(command) in (0, 2), command

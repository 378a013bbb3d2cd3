"""No code runs because of a recipe, a data file, a checkpoint or a model folder. Each test tries it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from evil import PICKLED_NAMES, evil_code, evil_pickle, evil_torch_file
from whole_runs import run

import kdfw
from kdfw.errors import ConfigError, KdfwError

TAGS = [
    "!!python/object/apply:pathlib.Path.touch [{mark}]",
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/object:subprocess.Popen {{args: [touch, '{mark}']}}",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {mark}']",
]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-has-run"


@pytest.fixture
def student(workspace: Path, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(workspace / "student", tmp_path / "student"))


def train_with(workspace: Path, student: Path, tmp_path: Path, **options: bool) -> None:
    run(workspace / "recipe.yaml", tmp_path / "run", f"models.student.base={student}", **options)


def test_the_attacks_work_where_nobody_looks(tmp_path: Path, mark: Path):
    """Otherwise the tests below would prove nothing."""
    import pickle

    import torch

    pickle.loads(evil_pickle(mark))
    assert mark.exists()
    mark.unlink()
    yaml.unsafe_load(TAGS[1].format(mark=mark))
    assert mark.exists()
    mark.unlink()
    evil_torch_file(tmp_path / "weights.bin", mark)
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_recipes_and_settings_are_refused(workspace: Path, tmp_path: Path, mark: Path, tag: str):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"kdfw: 1\ndescription: {tag.format(mark=mark)}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="recipe.yaml:2.*python"):
        kdfw.plan(recipe)
    with pytest.raises(ConfigError, match="python"):
        kdfw.plan(workspace / "recipe.yaml", [f"description={tag.format(mark=mark)}"])
    assert not mark.exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize("name", [TAGS[1], "!!bool xyz", "!!timestamp abc", '!!int ""', "!!binary é", "&a [*a]"])
def test_the_report_of_a_hostile_run_folder_runs_nothing(tmp_path: Path, mark: Path, name: str):
    from kdfw.report import write_report

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(f"name: {name.format(mark=mark)}\n", encoding="utf-8")
    (tmp_path / "run" / "manifest.json").write_text('{"name": "x", "stages": []}', encoding="utf-8")
    write_report(tmp_path / "run")
    assert not mark.exists()


def test_a_model_folder_with_pickled_weights_only_is_refused(
    workspace: Path, student: Path, tmp_path: Path, mark: Path
):
    (student / "model.safetensors").unlink()
    evil_torch_file(student / "pytorch_model.bin", mark)
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin.*safetensors"):
        train_with(workspace, student, tmp_path)
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin"):
        train_with(workspace, student, tmp_path, trust_remote_code=True)
    assert not mark.exists()


def test_pickles_beside_the_weights_are_not_opened(workspace: Path, student: Path, tmp_path: Path, mark: Path):
    for name in PICKLED_NAMES:
        evil_torch_file(student / name, mark)
    (student / "vocab.pkl").write_bytes(evil_pickle(mark))
    train_with(workspace, student, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "named", ["../outside.safetensors", "other.bin", "gone.safetensors", "sub/x.safetensors", 7, None]
)
def test_an_index_of_weights_names_safetensors_of_its_folder_only(
    workspace: Path, student: Path, tmp_path: Path, mark: Path, named: object
):
    """Others would be loaded, and are in no fingerprint."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(student / "model.safetensors")
    (student / "model.safetensors").unlink()
    (student / "sub").mkdir()
    for place in ("x.safetensors", "../outside.safetensors", "sub/x.safetensors"):
        save_file(tensors, student / place, metadata={"format": "pt"})
    evil_torch_file(student / "other.bin", mark)
    names = dict.fromkeys(tensors, "x.safetensors")
    index = student / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    train_with(workspace, student, tmp_path)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**names, next(iter(names)): named}}))
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json: names"):
        train_with(workspace, student, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": []}', b"[" * 100_000])
def test_an_index_of_weights_that_is_none_is_named(workspace: Path, student: Path, tmp_path: Path, content: bytes):
    (student / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ConfigError, match="not readable as an index of weights"):
        train_with(workspace, student, tmp_path)


def with_own_code(student: Path, mark: Path, file: str, key: dict[str, object]) -> None:
    (student / "own_code.py").write_text(evil_code(mark), encoding="utf-8")
    config = json.loads((student / file).read_text(encoding="utf-8"))
    (student / file).write_text(json.dumps({**config, **key}), encoding="utf-8")


OWN_CODE = {
    "model": ("config.json", {"auto_map": {"AutoModel": "own_code.BertModel", "AutoConfig": "own_code.BertConfig"}}),
    "unknown type": ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "own_code.BertConfig"}}),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "own_code.BertTokenizerFast"]}},
    ),
}


@pytest.mark.parametrize("where", OWN_CODE)
def test_code_in_a_model_folder_is_refused(
    workspace: Path, student: Path, tmp_path: Path, mark: Path, where: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with_own_code(student, mark, *OWN_CODE[where])
    with pytest.raises(ConfigError, match=str(student)):
        train_with(workspace, student, tmp_path)
    assert not mark.exists()
    assert "own_code" not in str(sorted(sys.modules))


def test_a_recipe_cannot_allow_it(workspace: Path, student: Path, tmp_path: Path, mark: Path):
    with_own_code(student, mark, *OWN_CODE["model"])
    for setting in ("trust_remote_code=true", "models.student.trust_remote_code=true"):
        with pytest.raises(ConfigError, match="unknown key"):
            run(workspace / "recipe.yaml", tmp_path / "run", f"models.student.base={student}", setting)
    assert not mark.exists()


def test_an_adapter_is_refused(workspace: Path, student: Path, tmp_path: Path, mark: Path):
    (student / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    evil_torch_file(student / "adapter_model.bin", mark)
    with pytest.raises(ConfigError, match="adapter"):
        train_with(workspace, student, tmp_path)
    assert not mark.exists()


def test_a_package_is_found_without_importing_it(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch):
    from kdfw.models.checkpoint import locate

    package = tmp_path / "evil_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text(evil_code(mark))
    (package / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package:evil_package") == package / "model"
    for name in ("package:evil_package.sub", "package:../evil_package", "package:os;import x"):
        with pytest.raises(KdfwError):
            locate(name)
    assert not mark.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 4) + b"\x80\x04.\n",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 64) + b'{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,9999999999]}}'[:64].ljust(64),
        b"PK\x03\x04" + b"\0" * 64,
    ],
    ids=["empty", "no header", "length", "long", "pickle", "list", "offsets", "zip"],
)
def test_weights_that_are_no_safetensors_are_named(workspace: Path, student: Path, tmp_path: Path, raw: bytes):
    (student / "model.safetensors").write_bytes(raw)
    with pytest.raises(KdfwError, match=str(student)):
        train_with(workspace, student, tmp_path)


def test_hostile_safetensors_metadata_is_only_text(workspace: Path, student: Path, tmp_path: Path, mark: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(student / "model.safetensors")
    metadata = {"format": "pt", "../../x": f"__import__('os').system('touch {mark}')", "<script>": "\0\n"}
    save_file(tensors, student / "model.safetensors", metadata=metadata)
    train_with(workspace, student, tmp_path)
    assert not mark.exists()


def test_arrays_of_objects_are_not_unpickled(workspace: Path, tmp_path: Path, mark: Path):
    """In a cache from somebody else, with checksums that hold."""
    from kdfw.data.ranking import Ranking
    from kdfw.engine.artifacts import ArtifactStore

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {mark}",)

    out, cache = tmp_path / "run", tmp_path / "cache"
    run(workspace / "recipe.yaml", out)
    stage = json.loads((out / "plan.json").read_text())["stages"][0]
    folder = cache / "artifacts" / f"mine-{stage['fingerprint']}"
    work = ArtifactStore(cache, tmp_path).work_folder("mine", stage["fingerprint"])
    for path in folder.iterdir():
        shutil.copyfile(path, work / path.name)
    np.save(work / "ranking.scores.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    shutil.rmtree(folder)
    ArtifactStore(cache, tmp_path).commit("mine", stage["fingerprint"], {})
    shutil.rmtree(next((cache / "artifacts").glob("train-*")))
    with pytest.raises(KdfwError, match="objects"):
        Ranking.load(folder)
    with pytest.raises(KdfwError):
        run(workspace / "recipe.yaml", tmp_path / "other", cache=cache)
    assert not mark.exists()


def test_a_pickle_in_place_of_a_checkpoint_is_passed_over(tmp_path: Path, mark: Path):
    import hashlib

    from kdfw.engine import checkpoint

    folder = tmp_path / "checkpoints"
    for digests in ({}, None):
        place = folder / f"step-0000000{1 if digests is None else 2}"
        place.mkdir(parents=True)
        (place / "student.weights.safetensors").write_bytes(evil_pickle(mark))
        digest = hashlib.sha256(evil_pickle(mark)).hexdigest()
        sums = {"student.weights.safetensors": "0" * 64 if digests is None else digest}
        (place / "checksums.json").write_text(json.dumps(sums))
    found = checkpoint.latest(folder)
    assert found is not None and found.name == "step-00000002"
    import torch

    with pytest.raises(Exception, match=r"[Hh]eader"):
        checkpoint.restore(found, {"student": torch.nn.Linear(1, 1)}, {})
    assert not mark.exists()


def test_no_module_of_ours_can_unpickle_or_evaluate():
    """What would open the door is not there to be called."""
    import re

    import kdfw_plugins

    roots = [Path(kdfw.__file__).parent, *map(Path, kdfw_plugins.__path__)]
    forbidden = re.compile(
        r"\b(pickle\.|torch\.load\(|joblib|shelve\.|marshal\.|yaml\.(unsafe_|full_)?load\(|allow_pickle=True"
        r"|(?<![.\w])eval\(|(?<![.\w])exec\(|os\.system|shell=True|extractall|trust_remote_code=True)"
    )
    files = [path for root in roots for path in root.rglob("*.py")]
    assert len(files) > 100
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []

"""ONNX copies: equal for any number of rows and tokens; the lines of the README run; a wrong copy is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdfw.cli import main
from kdfw.components import Model
from kdfw.engine import export
from kdfw.engine.export import export_onnx
from kdfw.errors import ConfigError, MissingDependencyError
from kdfw.models import onnx
from kdfw.models.forward import signals_of
from kdfw.types import Batch
from tests.models.conftest import SENTENCES, made

Build = Callable[..., tuple[Model, Batch]]
QUERIES, PASSAGES = SENTENCES[:3], SENTENCES[3:8]
needs_onnx = pytest.mark.filterwarnings("ignore")  # the exporter warns about itself


@pytest.fixture
def with_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `export`)")


def run_readme(folder: Path, **given: Any) -> dict[str, Any]:
    """What the Python lines of the README leave behind."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"folder": str(folder), **given}
    exec(code[1], names)
    return names


def ranking(queries: tuple[str, ...], passages: tuple[str, ...]) -> Batch:
    """Every query with every passage."""
    return Batch(
        task="ranking",
        ids=tuple(str(number) for number in range(len(queries))),
        inputs={"query": [made(text) for text in queries], "passage": [made(text) for text in passages]},
        num_items=float(len(queries)),
        candidates=torch.arange(len(passages)).repeat(len(queries), 1),
    )


def student(build: Build, name: str, **options: Any) -> Any:
    """A model in evaluation mode, random weights."""
    return build(name, ranking(QUERIES, PASSAGES), **options)[0].eval()


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    ("name", "options", "graphs"),
    [
        ("bi-encoder", {"projection": 8, "layers": 1, "query_prefix": "query: ", "scale": 20.0}, ["model"]),
        ("bi-encoder", {"towers": "two", "layers": 1, "pooling": "last", "similarity": "dot"}, ["passage", "query"]),
        ("cross-encoder", {"layers": 1, "activation": "sigmoid", "max_pair_tokens": 32}, ["model"]),
        (
            "cross-encoder",
            {
                "layers": 1,
                "max_query_tokens": 6,
                "max_pair_tokens": 32,
                "query_prefix": "ask: ",
                "passage_prefix": "it ",
            },
            ["model"],
        ),
        ("late-interaction", {"layers": 1, "projection": 8, "query_marker": "[unused0]"}, ["passage", "query"]),
        ("sparse", {"layers": 1, "exclude_special": True}, ["model"]),
    ],
)
def test_rankers(
    build: Build, tmp_path: Path, with_onnx: None, name: str, options: dict[str, Any], graphs: list[str]
) -> None:
    model = student(build, name, **options)
    model.save(tmp_path / "model")
    found = export_onnx(tmp_path, tmp_path / "onnx")
    assert found.largest_difference < 1e-5 and found.batches == 8
    assert sorted(path.stem for path in (tmp_path / "onnx").glob("*.onnx")) == graphs
    scores = run_readme(tmp_path / "onnx", queries=list(QUERIES), passages=list(PASSAGES))["scores"]
    expected = signals_of(model, ranking(QUERIES, PASSAGES), frozenset({"logits"})).logits
    assert expected is not None
    final = getattr(model, "final_scores", lambda logits: logits)(expected)
    np.testing.assert_allclose(scores, final.numpy(), atol=1e-4, rtol=1e-4)
    facts = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    assert facts["type"] == name and facts["compared"]["largest_difference"] == found.largest_difference
    assert all(one["inputs"]["input_ids"] == ["rows", "tokens"] for one in facts["graphs"].values())


@needs_onnx
def test_text_classifier(build: Build, tmp_path: Path, with_onnx: None) -> None:
    model = student(build, "text-classifier", layers=1, extra_tokens=["<e1>"])
    model.save(tmp_path / "model")
    assert export_onnx(tmp_path, tmp_path / "onnx").largest_difference < 1e-5
    texts = [f"<e1> {text}" for text in SENTENCES]
    ran = run_readme(tmp_path / "onnx", texts=texts)
    batch = Batch(task="classification", ids=SENTENCES, inputs={"text": [made(text) for text in texts]}, num_items=1.0)
    expected = signals_of(model, batch, frozenset({"logits"})).logits
    assert expected is not None
    np.testing.assert_allclose(ran["scores"], expected.numpy(), atol=1e-4)
    assert ran["best"] == ["abc"[number] for number in expected.argmax(-1).tolist()]


@needs_onnx
def test_image_classifier(build: Build, tmp_path: Path, with_onnx: None) -> None:
    model = student(build, "image-classifier", net="resnet8")
    model.save(tmp_path / "model")
    assert export_onnx(tmp_path, tmp_path / "onnx").largest_difference < 1e-4
    assert not (tmp_path / "onnx" / "tokenizer.json").exists()
    images = np.random.default_rng(0).integers(0, 256, size=(5, 32, 32, 3), dtype=np.uint8)
    ran = run_readme(tmp_path / "onnx", images=images)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    batch = Batch(task="classification", ids=tuple("abcde"), inputs={"image": pixels}, num_items=5.0)
    expected = signals_of(model, batch, frozenset({"logits"})).logits
    assert expected is not None
    np.testing.assert_allclose(ran["scores"], expected.numpy(), atol=1e-4)


@needs_onnx
def test_transformers_image_model(build: Build, tmp_path: Path, with_onnx: None) -> None:
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    model = student(build, "image-classifier", net=None, base=str(tmp_path / "base"))
    model.save(tmp_path / "model")
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = Batch(task="classification", ids=tuple("abcd"), inputs={"image": images}, num_items=4.0)
    ours = signals_of(model, batch, frozenset({"logits"})).logits
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours, opened(images).logits)
    assert export_onnx(tmp_path, tmp_path / "onnx").largest_difference < 1e-5
    facts = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    assert facts["graphs"]["model.onnx"]["inputs"] == {"pixel_values": ["rows", 3, 16, 16]}


@pytest.mark.slow
@needs_onnx
def test_translator(build: Build, tmp_path: Path, with_onnx: None) -> None:
    model = student(build, "seq2seq", max_target_tokens=12)
    model.save(tmp_path / "model")
    assert export_onnx(tmp_path, tmp_path / "onnx").largest_difference < 1e-4
    texts = list(SENTENCES[:3])
    translated = model.translate([made(text) for text in texts], beam=1)
    assert run_readme(tmp_path / "onnx", texts=texts)["best"] == translated


@needs_onnx
def test_a_copy_that_says_something_else_is_refused(
    build: Build, tmp_path: Path, with_onnx: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = student(build, "image-classifier", net="resnet8")
    model.save(tmp_path / "model")
    to = tmp_path / "onnx"
    arguments = ["export", str(tmp_path), "--onnx"]
    assert main([*arguments, "--tolerance", "0"]) == 2
    error = capsys.readouterr().err
    assert "differs from the model by" in error and "more than 0" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]  # nothing was left behind
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"{to}: differs from the original by at most ")
    before = {path: path.stat().st_mtime_ns for path in to.iterdir()}
    assert main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in to.iterdir()}


def test_numbers_that_are_none_are_no_agreement() -> None:
    ones = torch.ones(2, 3)
    for other in (np.full((2, 3), np.nan), np.ones((2, 2)), np.full((2, 3), np.inf)):
        assert onnx._difference(ones, other.astype(np.float32)) == float("inf")
    assert onnx._difference(100 * ones, np.full((2, 3), 101.0)) == pytest.approx(0.01)
    assert onnx._difference(ones > 0, np.ones((2, 3), dtype=bool)) == 0.0


def test_texts_that_are_tried_are_of_many_lengths() -> None:
    words = [len(text.split()) for text in onnx.texts()]
    assert len(words) >= 16 and words[0] == 1 and max(words) > 150 and len(set(words)) > 10


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxscript":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"onnxscript.*pip install 'kdfw\[export\]'"):
        export_onnx(tmp_path, tmp_path / "onnx")


def test_a_model_without_graphs_is_refused(build: Build, tmp_path: Path, with_onnx: None) -> None:
    model = student(build, "sparse", layers=1)
    model.save(tmp_path / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "graphs", Model.graphs)
        with pytest.raises(ConfigError, match="a sparse cannot be exported to ONNX"):
            export_onnx(tmp_path, tmp_path / "onnx")


def test_an_interrupted_copy_leaves_nothing(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(build, "sparse", layers=1)
    model.save(tmp_path / "model")

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "sync_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export.export_student(tmp_path, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

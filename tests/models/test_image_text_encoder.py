"""Image and text encoders side by side: towers by what a row is, CLIP's checkpoints, folders, both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdfw.components import Model
from kdfw.engine.export import export_onnx
from kdfw.errors import ConfigError, DataError
from kdfw.models.checkpoint import load_model
from kdfw.models.forward import encode_texts, signals_of
from kdfw.models.image_text import ImageTextEncoder
from kdfw.models.rows import Pictures as PictureRows
from kdfw.types import Batch, Text
from tests.models.conftest import Pictured, Pictures, made, wordpiece_tokenizer

Build = Callable[..., tuple[Model, Batch]]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP checkpoint of one layer a tower, for images of 16 x 16."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("tiny_clip")
    tokenizer = wordpiece_tokenizer()
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config={**size, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "eos_token_id": 3},
            vision_config={**size, "image_size": 16, "patch_size": 8},
            projection_dim=12,
        )
    ).save_pretrained(folder)
    return folder


def pixels(rows: list[int]) -> torch.Tensor:
    """(rows, 3, 16, 16) of the pictures, normalised."""
    images = torch.from_numpy(np.stack([Pictures().image(row) for row in rows])).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(Pictures.mean)[:, None, None]) / torch.tensor(Pictures.std)[:, None, None]


def test_scores_by_another_way(build: Build, ranking_batch: Batch) -> None:
    model, batch = build("image-text-encoder", ranking_batch, scale=5.0)
    model.eval()
    assert isinstance(model, ImageTextEncoder)
    found = signals_of(model, batch, model.provides)
    with torch.inference_mode():
        image = model.projections["image"](model.image(pixels([0, 8, 0])).mean((2, 3)))
        rows = model.tokenizer([str(text) for text in batch.inputs["passage"]], padding=True, truncation=True,
                               max_length=32, return_tensors="pt")  # fmt: skip
        states = model.text(**rows).last_hidden_state
        kept = rows["attention_mask"][..., None]
        text = model.projections["text"]((states * kept).sum(1) / kept.sum(1))
        cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(found["batch_logits"], 5 * cosines, atol=1e-5, rtol=1e-5)
    assert batch.candidates is not None
    torch.testing.assert_close(found["logits"], (5 * cosines).gather(1, batch.candidates), atol=1e-5, rtol=1e-5)
    assert found["query_embeddings"].shape == (3, 8)
    assert [len(group) for group in model.rows(batch, frozenset())] == [2, 5]  # the repeated picture once


def test_what_a_row_is_decides_its_tower_not_its_role(build: Build, ranking_batch: Batch) -> None:
    model, batch = build("image-text-encoder", ranking_batch)
    model.eval()
    there = signals_of(model, batch, frozenset({"batch_logits"}))["batch_logits"]
    inputs = {"query": batch.inputs["passage"], "passage": batch.inputs["query"]}
    turned = replace(batch, inputs=inputs, candidates=None)
    back = signals_of(model, turned, frozenset({"batch_logits"}))["batch_logits"]
    torch.testing.assert_close(back, there.T)
    vectors = encode_texts(model, Pictures(), "passage", rows=range(3, 6))  # type: ignore[arg-type]
    assert vectors.shape == (3, 8) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["net", "image_base", "base"])
def test_a_saved_folder_gives_the_same_scores(
    build: Build, ranking_batch: Batch, tiny_clip: Path, tmp_path: Path, kind: str
) -> None:
    options: dict[str, Any] = {}
    if kind == "base":
        options = {"base": str(tiny_clip), "net": None, "text_base": None}
    if kind == "image_base":
        from transformers import ViTConfig, ViTModel

        torch.manual_seed(1)
        config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ViTModel(config).save_pretrained(tmp_path / "vit")
        options = {"net": None, "image_base": str(tmp_path / "vit"), "text_layers": 2}
    model, batch = build("image-text-encoder", ranking_batch, **options)
    model.eval().save(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    expected = signals_of(model, batch, frozenset({"batch_logits"}))["batch_logits"]
    assert torch.equal(signals_of(again, batch, frozenset({"batch_logits"}))["batch_logits"], expected)
    assert expected.std() > 1e-4


def test_a_clip_checkpoint_gives_what_transformers_gives(
    build: Build, ranking_batch: Batch, tiny_clip: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, CLIPModel

    model, batch = build("image-text-encoder", ranking_batch, base=str(tiny_clip), net=None, text_base=None)
    model.eval().save(tmp_path)
    ours = signals_of(model, batch, frozenset({"batch_logits"}))["batch_logits"]
    opened = CLIPModel.from_pretrained(tmp_path).eval()
    texts = [str(text) for text in batch.inputs["passage"]]
    rows = AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.inference_mode():
        found = opened(
            input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], pixel_values=pixels([0, 8, 0])
        )
    torch.testing.assert_close(ours, found.logits_per_image, atol=1e-4, rtol=1e-4)


def test_a_checkpoints_own_normalisation_is_used(tiny_clip: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_clip, tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    model = ImageTextEncoder(base=str(tmp_path / "clip"))
    model.fit_data(Pictured())
    model.load()
    assert model.facts["mean"] == [0, 0, 0] and model.facts["std"] == [1, 1, 1]


def test_texts_and_images_are_not_mixed(build: Build, ranking_batch: Batch) -> None:
    model, batch = build("image-text-encoder", ranking_batch)
    mixed = [*batch.inputs["query"], made("a text")]
    with pytest.raises(DataError, match="a text among images: 'a text'"):
        model.rows(replace(batch, inputs={**batch.inputs, "query": mixed}), frozenset())


def test_options_that_do_not_go_together() -> None:
    two = {"text_base": "x", "net": "resnet8", "image_base": "y"}
    for options in ({}, {"net": "resnet8"}, {"text_base": "x"}, two):
        with pytest.raises(ConfigError, match="write `base`, or `text_base` with either"):
            ImageTextEncoder(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`base` has both towers"):
        ImageTextEncoder(base="x", net="resnet8")
    with pytest.raises(ConfigError, match="the data has no images"):
        ImageTextEncoder(text_base="x", net="resnet8").load()


def test_pictures_are_read_when_they_are_needed() -> None:
    rows = PictureRows([Text(source=Pictures(), row=row) for row in (3, 1)])  # type: ignore[arg-type]
    read = rows.read(np.array([1, 0, 1]))
    assert read.shape == (3, 3, 16, 16) and read.dtype == np.uint8
    assert np.array_equal(read[0], Pictures().image(1).transpose(2, 0, 1)) and np.array_equal(read[0], read[2])
    assert rows.cost() == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx(build: Build, ranking_batch: Batch, tmp_path: Path) -> None:
    from tests.models.test_onnx import run_readme

    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `export`)")
    model, batch = build("image-text-encoder", ranking_batch, text_layers=1)
    model.eval().save(tmp_path / "model")
    assert export_onnx(tmp_path, tmp_path / "onnx").largest_difference < 1e-4
    images = np.stack([Pictures().image(row) for row in (0, 8, 0)])
    texts = [str(text) for text in batch.inputs["passage"]]
    scores = run_readme(tmp_path / "onnx", images=images, texts=texts)["scores"]
    expected = signals_of(model, batch, frozenset({"batch_logits"}))["batch_logits"]
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-3)

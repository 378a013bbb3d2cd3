"""Images with captions: both directions, every layout, and what is said when files are wrong."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdfw.amounts import Amount
from kdfw.data.image_table import ImageTable, open_table, write_images
from kdfw.data.image_text import ImageText
from kdfw.data.sets import RankingData
from kdfw.errors import ArtifactError, ConfigError, DataError

image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra `images`)")


def png(colour: tuple[int, ...], size: int = 4) -> bytes:
    stream = io.BytesIO()
    image_module.new("RGBA" if len(colour) == 4 else "RGB", (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


COLOURS = {"red.png": (255, 0, 0), "green.png": (0, 255, 0), "blue.png": (0, 0, 255), "clear.png": (9, 9, 9, 0)}
LINES = [
    {"image": "red.png", "name": "red square", "keywords": ["warm", "four corners"], "split": "train"},
    {"image": "green.png", "name": "green square", "keywords": ["leaf"], "split": "train"},
    {"image": "blue.png", "name": "blue square", "keywords": ["sky"], "split": "val"},
    {"image": "clear.png", "name": "nothing", "keywords": [], "split": "test"},
]


def archive(path: Path, files: Mapping[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as stream:
        for name, content in (files or {name: png(colour) for name, colour in COLOURS.items()}).items():
            stream.writestr(name, content)
    return path


def jsonl(path: Path, lines: Sequence[Mapping[str, Any]] = LINES) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {"captions": jsonl(tmp_path / "captions.jsonl"), "images": archive(tmp_path / "images.zip")}


def opened(dataset: ImageText, cache: Path) -> RankingData:
    data = dataset.open(cache)
    assert isinstance(data, RankingData)
    return data


def test_images_find_their_captions(files: dict[str, Path], tmp_path: Path) -> None:
    dataset = ImageText(**files, templates=["{name}", "{name}: {keywords}"])  # type: ignore[arg-type]
    assert dataset.splits() == ["train", "dev", "test"]
    data = opened(dataset, tmp_path / "cache")
    assert data.task == "ranking" and data.name == "captions.jsonl"
    assert dict(data.corpus.iterate()) == {
        "red.png#0": "red square", "red.png#1": "red square: warm, four corners",
        "green.png#0": "green square", "green.png#1": "green square: leaf",
        "blue.png#0": "blue square", "blue.png#1": "blue square: sky",
        "clear.png#0": "nothing", "clear.png#1": "nothing: ",
    }  # fmt: skip
    assert {split: queries.ids() for split, queries in data.queries.items()} == {
        "train": ["red.png", "green.png"], "dev": ["blue.png"], "test": ["clear.png"],
    }  # fmt: skip
    assert data.qrels["dev"] == {"blue.png": {"blue.png#0": 1, "blue.png#1": 1}}
    train, test = data.queries["train"], data.queries["test"]
    assert isinstance(train, ImageTable) and isinstance(test, ImageTable)
    assert train.image(1).tolist() == [[[0, 255, 0]] * 4] * 4
    assert test.image(0).tolist() == [[[255] * 3] * 4] * 4  # transparent places are white
    assert train.text(0).startswith("red.png #") and train.text(0) != train.text(1)
    # of the training images: half red, half green
    assert train.mean == pytest.approx([0.5, 0.5, 0.0]) and train.std == pytest.approx([0.5, 0.5, 1e-6])
    with pytest.raises(IndexError):
        test.image(1)


def test_captions_find_their_image(files: dict[str, Path], tmp_path: Path) -> None:
    dataset = ImageText(**files, templates=["{name}", "{keywords}"], direction="text-to-image")  # type: ignore[arg-type]
    data = opened(dataset, tmp_path / "cache")
    assert isinstance(data.corpus, ImageTable) and data.corpus.ids() == list(COLOURS)
    assert dict(data.queries["dev"].iterate()) == {"blue.png#0": "blue square", "blue.png#1": "sky"}
    assert data.qrels["dev"] == {"blue.png#0": {"blue.png": 1}, "blue.png#1": {"blue.png": 1}}
    assert data.queries["test"].ids() == ["clear.png#0"]  # no keywords, no caption


def test_a_split_alone_has_a_corpus_of_its_own(files: dict[str, Path], tmp_path: Path) -> None:
    dataset = ImageText(**files, templates=["{name}"], splits=["test", "dev"])  # type: ignore[arg-type]
    assert dataset.splits() == ["dev", "test"]
    data = opened(dataset, tmp_path / "cache")
    assert data.corpus.ids() == ["blue.png#0", "clear.png#0"]
    with pytest.raises(DataError, match="no split 'tset' among the captions; found: train, dev, test"):
        ImageText(**files, templates=["{name}"], splits=["tset"]).splits()  # type: ignore[arg-type]


def test_files_by_split_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    (tmp_path / "pictures" / "sub" / "a.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "pictures" / "b.png").write_bytes(png((4, 5, 6), size=8))
    (tmp_path / "train.tsv").write_text("sub/a.png\tone\nsub/a.png\ttwo, still\n")
    (tmp_path / "test.jsonl").write_text('{"image": "b.png", "captions": ["x", "y"]}\n')
    dataset = ImageText(
        captions={"train": tmp_path / "train.tsv", "test": tmp_path / "test.jsonl"},
        images=tmp_path / "pictures",
        size=2,
    )
    data = opened(dataset, tmp_path / "cache")
    assert dict(data.corpus.iterate()) == {
        "sub/a.png#0": "one", "sub/a.png#1": "two, still", "b.png#0": "x", "b.png#1": "y",
    }  # fmt: skip
    assert data.queries["test"].image(0).tolist() == [[[4, 5, 6]] * 2] * 2  # type: ignore[attr-defined]
    before = dataset.fingerprint()
    (tmp_path / "pictures" / "b.png").write_bytes(png((7, 5, 6), size=8))
    assert dataset.fingerprint() != before
    with pytest.raises(ConfigError, match="templates are for JSONL"):
        ImageText(captions={"train": tmp_path / "train.tsv"}, images=tmp_path, templates=["{name}"]).splits()


def test_dev_is_carved_by_image(tmp_path: Path) -> None:
    lines = [{"image": f"{n}.png", "captions": [f"one {n}", f"two {n}"], "split": "train"} for n in range(60)]
    images = archive(tmp_path / "i.zip", {f"{n}.png": png((n, n, n), 1) for n in range(60)})
    for direction in ("image-to-text", "text-to-image"):
        dataset = ImageText(
            captions=jsonl(tmp_path / "c.jsonl", lines),
            images=images,
            dev_share=0.3,
            direction=direction,  # type: ignore[arg-type]
        )
        data = opened(dataset, tmp_path / "cache")
        parts = [{id.split("#")[0] for id in data.queries[split].ids()} for split in ("train", "dev")]
        assert parts[0] and parts[1] and not parts[0] & parts[1] and len(parts[0] | parts[1]) == 60


@pytest.mark.parametrize("direction", ["image-to-text", "text-to-image"])
def test_sizes_are_known_before_an_image_is_read(files: dict[str, Path], tmp_path: Path, direction: Any) -> None:
    dataset = ImageText(**files, templates=["{name}", "{keywords}"], direction=direction)  # type: ignore[arg-type]
    before = dataset.sizes(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    dataset.open(tmp_path / "cache")
    after = dataset.sizes(tmp_path / "cache")
    for name in ("passages", "items", "judged", "positives"):
        assert getattr(before, name) == getattr(after, name)
    assert before.passages == Amount(7 if direction == "image-to-text" else 4)


GREEN = {"image": "green.png", "name": "x", "keywords": [], "split": "train"}
BAD = [
    ({"image": "red.png", "name": "x", "split": "train"}, None, "2: no list under 'keywords'"),
    ({"name": "x", "split": "train"}, None, "2: no text under 'image'"),
    ({**GREEN, "image": "red.png", "split": "test"}, None, "2: image 'red.png' is in two splits: train and test"),
    ({**GREEN, "split": ""}, None, "2: no split; give a file by split, or a key `split`"),
    ({**GREEN, "name": " "}, None, "2: no caption"),
    ({**GREEN, "image": "a b.png"}, None, "2: the id 'a b.png' holds white space"),
    ({**GREEN, "image": "gone.png"}, None, "2: image 'gone.png': no such file in"),
    (GREEN, b"no image", "2: image 'green.png': not a readable image: UnidentifiedImageError"),
    (GREEN, png((1, 1, 1), 5), "2: image 'green.png': 5x5 among 4x4; set `size` to scale all of them"),
]


@pytest.mark.parametrize(("line", "content", "said"), BAD)
def test_a_line_that_cannot_be_used(tmp_path: Path, line: dict[str, Any], content: bytes | None, said: str) -> None:
    captions = jsonl(tmp_path / "c.jsonl", [LINES[0], line, LINES[2]])
    images = {name: png(colour) for name, colour in COLOURS.items()}
    images |= {} if content is None else {"green.png": content}
    options: Any = {"captions": captions, "images": archive(tmp_path / "i.zip", images),
                    "templates": ["{name}", "{keywords}"]}  # fmt: skip
    with pytest.raises(DataError) as caught:
        ImageText(**options).open(tmp_path / "cache")
    assert f"c.jsonl:{said}" in str(caught.value)
    data = opened(ImageText(**options, on_error="skip"), tmp_path / "cache")
    assert data.queries["train"].ids() == ["red.png"] and data.queries["dev"].ids() == ["blue.png"]
    assert all(id.split("#")[0] in ("red.png", "blue.png") for id in data.corpus.ids())
    assert data.queries["dev"].image(0).tolist() == [[[0, 0, 255]] * 4] * 4  # type: ignore[attr-defined]


def test_a_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png((1, 1, 1)))
    (tmp_path / "pictures").mkdir()
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        captions = jsonl(tmp_path / "c.jsonl", [{"image": name, "caption": "x", "split": "train"}])
        with pytest.raises((DataError, ArtifactError), match="points outside"):
            ImageText(captions=captions, images=tmp_path / "pictures").open(tmp_path / "cache")


def test_missing_files_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file of captions"):
        ImageText(captions=tmp_path / "gone.jsonl", images=files["images"]).fingerprint()
    with pytest.raises(DataError, match=r"gone\.zip: no such folder or archive of images"):
        ImageText(captions=files["captions"], images=tmp_path / "gone.zip").fingerprint()


def test_a_column_of_images_is_a_column_of_texts(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 3, 2, 3), dtype=np.uint8)
    rows = [(f"i{number}", f"n{number}", image) for number, image in enumerate(pixels)]
    table = write_images(tmp_path / "t", rows, 7, ["i0", "i1"])  # two fewer than announced
    view = table.select([3, 1])
    assert isinstance(view, ImageTable) and view.row("i1") == 1 and view.base is table
    assert np.array_equal(view.image(0), pixels[3]) and np.array_equal(view.select([1]).image(0), pixels[1])  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(view))
    assert isinstance(again, ImageTable) and np.array_equal(again.image(1), pixels[1])
    values = pixels[:2].reshape(-1, 3) / 255
    assert table.mean == pytest.approx(values.mean(0).tolist()) and table.std == pytest.approx(values.std(0).tolist())
    changed = pixels.copy()
    changed[4, 0, 0, 0] ^= 1
    other = write_images(tmp_path / "o", [(i, n, p) for (i, n, _), p in zip(rows, changed, strict=True)], 5, ["i0"])
    assert other.fingerprint != table.fingerprint and other.text(4) != table.text(4) and other.text(3) == table.text(3)
    (tmp_path / "t" / "pixels.npy").write_bytes(b"")
    with pytest.raises(ArtifactError):
        open_table(tmp_path / "t")


def test_real_pictures(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "emoji-image-text"
    files = {"captions": folder / "captions.jsonl", "images": folder / "images-32px.zip"}
    data = opened(ImageText(**files, templates=["{name}", "{name}, {keywords}"]), tmp_path)  # type: ignore[arg-type]
    assert {split: len(queries) for split, queries in data.queries.items()} == {"train": 1309, "dev": 169, "test": 161}
    assert len(data.corpus) == 2 * 1639
    first = data.queries["train"]
    assert first.id(0) == "emoji_u1f600.png" and data.corpus.text(0) == "grinning face"
    assert first.image(0).shape == (32, 32, 3)  # type: ignore[attr-defined]


_LINES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "image": st.sampled_from(["red.png", "../red.png", "", "nowhere.png"])
            | st.text(max_size=3)
            | st.integers(),
            "caption": st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2) | st.none() | st.floats(),
            "split": st.sampled_from(["train", "val", "test", "no"]) | st.none() | st.integers(),
        },
    ),
    max_size=4,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    captions=st.binary(max_size=40) | _LINES.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    ending=st.sampled_from([".jsonl", ".tsv"]),
    images=st.binary(max_size=40) | st.just(b"PK\x03\x04") | st.none(),
    image=st.binary(max_size=20) | st.integers(0, 80),
)
def test_any_bytes_give_an_error_of_ours_or_images(
    tmp_path_factory: pytest.TempPathFactory, captions: bytes, ending: str, images: bytes | None, image: bytes | int
) -> None:
    """`image`: the bytes of a picture, or how many bytes a whole one is cut to; `images`: bytes of the archive."""
    root = tmp_path_factory.mktemp("fuzz")
    file, packed = root / f"captions{ending}", root / "images.zip"
    file.write_bytes(captions)
    whole = png((255, 0, 0))
    archive(packed, {"red.png": whole[:image] if isinstance(image, int) else image})
    if images is not None:
        packed.write_bytes(images)
    try:
        data = opened(ImageText(captions=file, images=packed), root / "cache")
    except (DataError, ConfigError) as error:
        assert str(root) in str(error)
        return
    assert isinstance(image, int) and image >= len(whole) - 12 and images is None, (
        "a picture was read from a damaged file"
    )
    assert sum(map(len, data.queries.values())) > 0

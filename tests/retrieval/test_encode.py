"""Embeddings in the cache: whole, resumable, verified, the same whatever the number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_fakes import CharacterModel, Context, Texts, two_workers

from kdfw.errors import ArtifactError, ConfigError, DataError
from kdfw.retrieval import encode
from kdfw.retrieval.encode import encode_vectors

RNG = np.random.default_rng(3)
TEXTS = Texts([(f"t{n}", "".join(RNG.choice(list("abcdefgh"), size=RNG.integers(1, 30)))) for n in range(90)])
EXPECTED = np.stack([CharacterModel().vector(text) for _, text in TEXTS.rows])


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PASSAGE_WINDOW", 16)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.npy"))}


def test_vectors_are_those_of_the_model_in_the_order_of_the_texts(tmp_path: Path) -> None:
    model = CharacterModel()
    store = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": model}))
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-6)
    assert len(store) == 6 and model.encoded == 90
    np.testing.assert_array_equal(store.block(10, 40), store.array[10:40])


def test_a_second_use_encodes_nothing_and_loads_no_model(tmp_path: Path) -> None:
    first = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": CharacterModel()}))
    second = encode_vectors("m", TEXTS, "passage", Context(tmp_path))
    np.testing.assert_array_equal(first.array, second.array)


@pytest.mark.parametrize(
    "other",
    [
        {"precision": "bf16"},
        {"role": "query"},
        {"name": "other"},
        {"dtype": "float16"},
        {"texts": Texts([("t0", "a")])},
    ],
)
def test_whatever_changes_the_vectors_changes_the_place(tmp_path: Path, other: dict[str, object]) -> None:
    models = {"m": CharacterModel(), "other": CharacterModel(seed=1)}
    first = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models=models))
    context = Context(tmp_path, models=models, precision=other.get("precision", "fp32"))
    second = encode_vectors(
        str(other.get("name", "m")),
        other.get("texts", TEXTS),
        str(other.get("role", "passage")),
        context,
        dtype=other.get("dtype", "float32"),
    )
    assert first.folder != second.folder


class Stops(CharacterModel):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def encode(self, micro, need):  # type: ignore[no-untyped-def]
        if self.encoded >= self.after:
            raise KeyboardInterrupt
        return super().encode(micro, need)


def test_a_killed_run_goes_on_at_the_first_window_that_is_not_done(tmp_path: Path) -> None:
    encode_vectors("m", TEXTS, "passage", Context(tmp_path / "whole", models={"m": CharacterModel()}))
    with pytest.raises(KeyboardInterrupt):
        encode_vectors("m", TEXTS, "passage", Context(tmp_path / "killed", models={"m": Stops(48)}))
    rest = CharacterModel()
    encode_vectors("m", TEXTS, "passage", Context(tmp_path / "killed", models={"m": rest}))
    assert rest.encoded == 90 - 48
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_window_written_but_not_marked_is_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[int] = []
    real = encode.Windows.mark

    def mark(self: encode.Windows, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt
        marked.append(number)
        real(self, number)

    monkeypatch.setattr(encode.Windows, "mark", mark)
    with pytest.raises(KeyboardInterrupt):
        encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": CharacterModel()}))
    assert marked == [0, 1]
    monkeypatch.setattr(encode.Windows, "mark", real)
    rest = CharacterModel()
    store = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": rest}))
    assert rest.encoded == 90 - 32
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-6)


def test_a_damaged_window_is_found_and_encoded_again(tmp_path: Path) -> None:
    store = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": CharacterModel()}))
    path = store.folder / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # in the last window
    path.write_bytes(content)
    rest = CharacterModel()
    store = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": rest}))
    assert rest.encoded == 10
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-6)


@pytest.mark.parametrize("kept", [0, 60, 500])
def test_a_file_cut_short_is_made_again(kept: int, tmp_path: Path) -> None:
    store = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": CharacterModel()}))
    path = store.folder / "vectors.npy"
    path.write_bytes(path.read_bytes()[:kept])
    store = encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": CharacterModel()}))
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-6)


def test_two_processes_write_the_bytes_that_one_writes(tmp_path: Path) -> None:
    encode_vectors("m", TEXTS, "passage", Context(tmp_path / "one", models={"m": CharacterModel()}))
    counts = two_workers(lambda workers: shared(tmp_path / "two", workers))
    assert sum(counts) == 90 and min(counts) > 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


def shared(folder: Path, workers: object) -> int:
    model = CharacterModel()
    encode_vectors("m", TEXTS, "passage", Context(folder, models={"m": model}, workers=workers))
    return model.encoded


def test_a_window_nobody_wrote_is_named(tmp_path: Path) -> None:
    class Alone(type(Context(tmp_path).workers)):  # type: ignore[misc]
        def barrier(self) -> None: ...

    context = Context(tmp_path, models={"m": CharacterModel()}, workers=Alone(rank=0, world_size=2))
    with pytest.raises(ArtifactError, match="rows 48 to 64 are missing"):
        encode_vectors("m", TEXTS, "passage", context)


def test_a_vector_that_is_not_finite_names_its_text(tmp_path: Path) -> None:
    model = CharacterModel()
    model.table[ord("h")] = torch.nan
    first = next(id for id, text in TEXTS.rows if "h" in text)
    with pytest.raises(DataError, match=f"'{first}' is not finite"):
        encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": model}))


def test_a_full_disk_is_an_artifact_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode.os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device.*KDFW_CACHE"):
        encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": CharacterModel()}))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = CharacterModel()
    model.search = ""  # type: ignore[misc]
    with pytest.raises(ConfigError, match="'m' cannot encode one text by itself"):
        encode_vectors("m", TEXTS, "passage", Context(tmp_path, models={"m": model}))

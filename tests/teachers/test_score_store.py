"""The score store: what was put comes back, and damage never gives a wrong score."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdfw.errors import ArtifactError
from kdfw.teachers import store as store_module
from kdfw.teachers.store import ScoreStore, pair_keys, text_hashes


def keys_of(*pairs: tuple[str, str]) -> np.ndarray:
    return pair_keys(text_hashes([q for q, _ in pairs], "query"), text_hashes([p for _, p in pairs], "passage"))


def many(begin: int, end: int, passages: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Keys and scores of pairs number `begin` to `end`; the score is a function of the pair, so it can be checked."""
    numbers = range(begin, end)
    keys = keys_of(*[(f"query {n // passages}", f"passage {n}") for n in numbers])
    return keys, np.asarray([n / 7 for n in numbers], dtype=np.float32)


def test_a_pair_is_found_by_its_texts_and_by_nothing_else(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.put(keys_of(("a", "b"), ("a", "c")), np.asarray([1.5, -2.0]))
    scores, found = store.get(keys_of(("a", "c"), ("b", "a"), ("a", "b"), ("a", "bc"), ("c", "a")))
    assert found.tolist() == [True, False, True, False, False]
    assert scores[[0, 2]].tolist() == [-2.0, 1.5]
    assert np.isnan(scores[[1, 3, 4]]).all()


def test_equal_texts_as_query_and_passage_are_a_pair_like_any_other(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(100)]
    store = ScoreStore(tmp_path)
    store.put(keys_of(*[(t, t) for t in texts]), np.arange(100))
    scores, found = ScoreStore(tmp_path).get(keys_of(*[(t, t) for t in texts]))
    assert found.all() and scores.tolist() == list(range(100))


def test_a_second_process_sees_what_the_first_stored(tmp_path: Path) -> None:
    first, second = ScoreStore(tmp_path), ScoreStore(tmp_path)
    keys, scores = many(0, 50)
    first.put(keys, scores)
    got, found = second.get(keys)
    assert found.all() and np.array_equal(got, scores)
    more, more_scores = many(50, 70)
    second.put(more, more_scores)
    assert first.get(more)[1].all() and len(first) == 70


def test_vectors_of_scores(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, width=3)
    keys, _ = many(0, 7)
    values = np.arange(21, dtype=np.float32).reshape(7, 3)
    store.put(keys, values)
    got, found = ScoreStore(tmp_path, width=3).get(keys[::-1])
    assert found.all() and np.array_equal(got, values[::-1])
    with pytest.raises(ArtifactError, match="expected format 1 with 1"):
        ScoreStore(tmp_path)


def test_the_first_score_of_a_pair_stays(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    keys = keys_of(("a", "b"))
    store.put(keys, np.asarray([1.0]))
    store.put(keys, np.asarray([2.0]))
    assert store.get(keys)[0].tolist() == [1.0]
    assert len(store) == 1


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            ScoreStore(tmp_path).put(keys_of(("a", "b")), np.asarray([bad]))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that a few hundred pairs go through logs, segments, merges and merges in parts."""
    monkeypatch.setattr(store_module, "LOG_PAIRS", 20)
    monkeypatch.setattr(store_module, "BLOCK_PAIRS", 16)
    monkeypatch.setattr(store_module, "FAN_OUT", 3)
    monkeypatch.setattr(store_module, "MERGE_PAIRS", 64)


def test_nothing_is_lost_in_segments_and_merges(tmp_path: Path, small: None) -> None:
    store = ScoreStore(tmp_path)
    rng = np.random.default_rng(0)
    keys, scores = many(0, 1000)
    order = rng.permutation(1000)
    for begin in range(0, 1000, 13):
        part = order[begin : begin + 13]
        store.put(keys[part], scores[part])
    names = [path.name for path in tmp_path.iterdir()]
    assert sum(name.startswith("segment-") for name in names) <= 9, names
    assert sum(name.startswith("log-") for name in names) <= 1
    for opened in (store, ScoreStore(tmp_path)):
        got, found = opened.get(keys)
        assert found.all() and np.array_equal(got, scores)
        assert not opened.get(many(1000, 1100)[0])[1].any()
        assert len(opened) == 1000


def test_a_log_cut_at_any_byte_of_its_last_block_keeps_all_before_it(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "whole")
    first, first_scores = many(0, 9)
    last, last_scores = many(9, 14)
    store.put(first, first_scores)
    log = next((tmp_path / "whole").glob("log-*.bin"))
    before = log.stat().st_size
    store.put(last, last_scores)
    data = log.read_bytes()
    assert ScoreStore(tmp_path / "whole").get(last)[1].all()
    for cut in range(before, len(data)):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / log.name).write_bytes(data[:cut])
        opened = ScoreStore(folder)
        got, found = opened.get(first)
        assert found.all() and np.array_equal(got, first_scores), cut
        assert not opened.get(last)[1].any(), cut
        opened.put(last, last_scores)  # the next writer cuts the torn block off and goes on
        again = ScoreStore(folder)
        assert np.array_equal(again.get(last)[0], last_scores), cut
        assert (folder / log.name).read_bytes() == data, cut
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["log", "segment"])
def test_a_changed_byte_anywhere_never_gives_a_wrong_score(tmp_path: Path, small: None, kind: str) -> None:
    keys, scores = many(0, 18 if kind == "log" else 60)
    store = ScoreStore(tmp_path / "whole")
    for begin in range(0, len(keys), 6 if kind == "log" else 60):
        store.put(keys[begin:], scores[begin:]) if kind == "segment" else store.put(
            keys[begin : begin + 6], scores[begin : begin + 6]
        )
    file = next((tmp_path / "whole").glob(f"{kind}-*.bin"))
    data = file.read_bytes()
    lost = []
    for at in range(0, len(data), 7):
        folder = tmp_path / "bad"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / file.name).write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        got, found = ScoreStore(folder).get(keys)
        assert np.array_equal(got[found], scores[found]), at
        lost.append(int((~found).sum()))
        shutil.rmtree(folder)
    assert max(lost) <= 16 and min(lost) > 0  # one block is lost, the others are not


def test_a_damaged_block_is_named_and_its_pairs_can_be_stored_again(
    tmp_path: Path, small: None, caplog: pytest.LogCaptureFixture
) -> None:
    keys, scores = many(0, 60)
    ScoreStore(tmp_path).put(keys, scores)
    file = next(tmp_path.glob("segment-*.bin"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))
    store = ScoreStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        _, found = store.get(keys)
        store.get(keys)
    assert [record for record in caplog.messages if file.name in record and "block 0 (16 pairs) is damaged" in record]
    assert len(caplog.messages) == 1
    assert found.sum() == 44
    store.put(keys[~found], scores[~found])
    got, found = ScoreStore(tmp_path).get(keys)
    assert found.all() and np.array_equal(got, scores)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'{"format": 1, "width": 3}',
        b'{"format": [], "width": {}}',
        None,
    ],
)
def test_a_damaged_store_json_costs_no_score(tmp_path: Path, damage: bytes | None) -> None:
    keys, scores = many(0, 30)
    ScoreStore(tmp_path, describe={"model": "m"}).put(keys, scores)
    whole = (tmp_path / "store.json").read_bytes()
    if damage is None:
        (tmp_path / "store.json").unlink()
    else:
        (tmp_path / "store.json").write_bytes(damage)
    got, found = ScoreStore(tmp_path, describe={"model": "m"}).get(keys)
    assert found.all() and np.array_equal(got, scores)
    assert (tmp_path / "store.json").read_bytes() == whole


@pytest.mark.parametrize("meta", [None, b"{"])
def test_a_store_of_another_width_is_refused(tmp_path: Path, meta: bytes | None) -> None:
    ScoreStore(tmp_path).put(*many(0, 30))
    if meta is not None:
        (tmp_path / "store.json").write_bytes(meta)
    with pytest.raises(ArtifactError, match="format 1 with 1 values a pair; expected format 1 with 2"):
        ScoreStore(tmp_path, width=2)


@pytest.mark.parametrize("content", ['{"format": 2, "width": 1}', '{"format": 1, "width": 3}'])
def test_an_empty_store_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ArtifactError, match="expected format 1 with 1"):
        ScoreStore(tmp_path)


def test_a_segment_cut_short_is_named(tmp_path: Path, small: None, caplog: pytest.LogCaptureFixture) -> None:
    keys, scores = many(0, 60)
    ScoreStore(tmp_path).put(keys, scores)
    file = next(tmp_path.glob("segment-*.bin"))
    file.write_bytes(file.read_bytes()[:-24])
    with caplog.at_level(logging.WARNING):
        got, found = ScoreStore(tmp_path).get(keys)
    assert "cut short" in caplog.text and found.sum() == 48
    assert np.array_equal(got[found], scores[found])


def test_a_kill_between_the_new_segment_and_the_removal_of_its_sources_changes_nothing(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    keys, scores = many(0, 60)
    store = ScoreStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            store.put(keys, scores)
    assert list(tmp_path.glob("log-*")) and list(tmp_path.glob("segment-*"))
    again = ScoreStore(tmp_path)
    got, found = again.get(keys)
    assert found.all() and np.array_equal(got, scores)
    more, more_scores = many(60, 100)
    again.put(more, more_scores)
    got, found = ScoreStore(tmp_path).get(np.concatenate([keys, more]))
    assert found.all() and np.array_equal(got, np.concatenate([scores, more_scores]))


def test_a_full_disk_is_an_artifact_error_and_leaves_the_store_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, scores = many(0, 30)
    store = ScoreStore(tmp_path)
    store.put(keys[:10], scores[:10])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match="No space left on device"):
            store.put(keys[10:], scores[10:])
    for opened in (store, ScoreStore(tmp_path)):
        got, found = opened.get(keys)
        assert found.tolist() == [True] * 10 + [False] * 20
        assert np.array_equal(got[:10], scores[:10])
    store.put(keys[10:], scores[10:])
    assert ScoreStore(tmp_path).get(keys)[1].all()


def test_a_read_only_cache_is_read_and_new_scores_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys, scores = many(0, 30)
    ScoreStore(tmp_path).put(keys[:10], scores[:10])

    def refused(self: ScoreStore) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ScoreStore, "_lock", refused)  # the tests may run as root, who is refused nothing
    with caplog.at_level(logging.WARNING):
        store = ScoreStore(tmp_path)
        store.put(keys[10:20], scores[10:20])
        store.put(keys[20:], scores[20:])
    assert len(caplog.messages) == 1 and "stay in memory" in caplog.text
    got, found = store.get(keys)
    assert found.all() and np.array_equal(got, scores)
    monkeypatch.undo()
    assert ScoreStore(tmp_path).get(keys)[1].sum() == 10


def _writer(folder: Path, part: int) -> None:
    store_module.LOG_PAIRS = 50
    store = ScoreStore(folder)
    for begin in range(0, 300, 25):
        keys, scores = many(300 * part + begin - 100 * part, 300 * part + begin + 25 - 100 * part)
        store.put(keys, scores)


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn")
    workers = [start.Process(target=_writer, args=(tmp_path, part)) for part in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    keys, scores = many(0, 500)  # the two overlap by a third
    got, found = ScoreStore(tmp_path).get(keys)
    assert found.all() and np.array_equal(got, scores)


_KILLED = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("score_store", sys.argv[1])  # without the package: starts in no time
module = sys.modules["score_store"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.LOG_PAIRS, module.FAN_OUT, module.BLOCK_PAIRS = 300, 3, 64
store = module.ScoreStore(module.Path(sys.argv[2]))
for number in range(int(sys.argv[3]), 10**6):
    texts = [f"{number} {row}" for row in range(37)]
    keys = module.pair_keys(module.text_hashes(texts, "query"), module.text_hashes(texts, "passage"))
    store.put(keys, np.arange(37) + number)
    print(number, flush=True)
"""


def test_a_killed_writer_loses_at_most_what_it_had_not_confirmed(tmp_path: Path) -> None:
    rng = random.Random(0)
    done = 0
    for _ in range(5):
        command = [sys.executable, "-c", _KILLED, store_module.__file__, str(tmp_path), str(done)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randint(5, 40)):
                done = int(writer.stdout.readline()) + 1
            time.sleep(rng.random() / 100)
            writer.send_signal(signal.SIGKILL)
        texts = [[f"{number} {row}" for row in range(37)] for number in range(done)]
        flat = [text for group in texts for text in group]
        keys = pair_keys(text_hashes(flat, "query"), text_hashes(flat, "passage"))
        scores, found = ScoreStore(tmp_path).get(keys)
        assert found.all()
        assert np.array_equal(scores, (np.arange(37)[None] + np.arange(done)[:, None]).ravel())
    assert list(tmp_path.glob("segment-*"))

"""The sample that training keeps: right scores, the same bytes after a kill, and training that does not notice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from whole_runs import run, write_workspace

from kdfw.engine.probe import ALTERNATIVES, FILE, ITEMS, load_probe, save_probe


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_workspace(tmp_path_factory.mktemp("probe"))
    run(root / "recipe.yaml", root / "out")
    return root


def test_it_holds_what_teacher_and_student_say_of_training_examples(done: Path) -> None:
    from kdfw.data.ranking import Ranking

    stages = done / "out/stages"
    probe = load_probe(stages / "03-distill")
    assert probe is not None and probe.after is not None and probe.before is not None
    assert len(probe.ids) == 12 <= ITEMS and probe.mask.size <= ALTERNATIVES and probe.mask.all()
    assert (probe.labels.sum(1) == 1).all() and (probe.labels[:, 0] == 1).all()  # positives come first
    assert list(probe.teachers) == ["scores"] and not probe.skipped
    scored = Ranking.load(stages / "02-scores")
    scores, known = probe.teachers["scores"]
    assert known.all()
    for item, id in enumerate(probe.ids):
        rows, stored = scored.of(scored.index()[id])
        by_id = {f"p{row}": value for row, value in zip(rows.tolist(), stored.tolist(), strict=True)}
        assert [by_id[name] for name in probe.alternatives[item]] == pytest.approx(scores[item].tolist())


def test_before_is_the_model_as_it_starts_and_after_as_it_is_kept(done: Path) -> None:
    from sentence_transformers import SentenceTransformer

    probe = load_probe(done / "out/stages/03-distill")
    assert probe is not None and probe.after is not None
    texts, queries = (
        {row["_id"]: row["text"] for row in map(json.loads, (done / "beir" / name).read_text().splitlines())}
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    model = SentenceTransformer(str(done / "out/stages/03-distill/model"), device="cpu")
    for item in range(3):
        query = model.encode([queries[probe.ids[item]]])
        passages = model.encode([texts[name] for name in probe.alternatives[item]])
        expected = model.similarity(query, passages)[0].numpy()
        assert probe.after[item] == pytest.approx(expected, abs=1e-4)
    assert not np.allclose(probe.before, probe.after)


def test_a_stage_that_goes_on_after_a_kill_writes_the_same_bytes(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdfw.engine import checkpoint

    real = checkpoint.save

    def save_and_stop(folder: Path, step: int, *rest: object, **named: object) -> None:
        real(folder, step, *rest, **named)  # type: ignore[arg-type]
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(done / "recipe.yaml", done / "again", cache=done / "other")
    run(done / "recipe.yaml", done / "again", cache=done / "other")
    name = Path("stages/03-distill") / FILE
    assert (done / "again" / name).read_bytes() == (done / "out" / name).read_bytes()


def test_training_is_the_same_without_it(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdfw.engine.training.why_not", lambda stage, student: "not wanted")
    run(done / "recipe.yaml", done / "bare", cache=done / "third")
    bare, out = (done / name / "stages/03-distill" for name in ("bare", "out"))
    assert not (bare / FILE).exists()
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (bare / name).read_bytes() == (out / name).read_bytes()


def test_a_damaged_file_is_none(done: Path, tmp_path: Path) -> None:
    assert load_probe(tmp_path) is None
    probe = load_probe(done / "out/stages/03-distill")
    assert probe is not None
    save_probe(probe, tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    assert whole == (done / "out/stages/03-distill" / FILE).read_bytes()
    for content in (b"", whole[:20], whole[:-40], b"\x00" * 64):
        (tmp_path / FILE).write_bytes(content)
        assert load_probe(tmp_path) is None

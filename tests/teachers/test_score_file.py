"""Teachers read from files: the values of the file, and NaN for what it does not hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from kdfw.errors import DataError
from kdfw.teachers.score_file import ScoreFile


def loaded(path: Path, **options: str) -> ScoreFile:
    teacher = ScoreFile(path=path, **options)  # type: ignore[arg-type]
    teacher.load()
    return teacher


def ask(teacher: ScoreFile, *lists: tuple[str, list[str]]) -> list[list[float]]:
    found = teacher.score([""] * len(lists), [[""] * len(ids) for _, ids in lists], lists)
    return [row.tolist() for row in found]


LAYOUTS = {
    "tsv": "q1\tp1\t1.5\nq1\tp2\t-2\nq2\tp1\t0.25\n",
    "margin": "1.5\t-2\tq1\tp1\tp2\n0.25\t3\tq2\tp1\tp7\n",
    "trec": "q1 Q0 p1 1 1.5 run\nq1 Q0 p2 2 -2 run\nq2 Q0 p1 1 0.25 run\n",
    "jsonl": json.dumps({"qid": "q1", "pids": ["p1", "p2"], "scores": [1.5, -2]})
    + "\n"
    + json.dumps({"qid": "q2", "scores": {"p1": 0.25}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("named", [False, True])
def test_every_layout_gives_the_same_scores(tmp_path: Path, layout: str, named: bool) -> None:
    path = tmp_path / "scores.gz"
    path.write_bytes(gzip.compress(LAYOUTS[layout].encode()))
    teacher = loaded(path, layout=layout if named else "auto")
    first, second, third = ask(teacher, ("q1", ["p2", "p1", "p10", "p"]), ("q2", ["p1", "p2"]), ("q3", ["p1"]))
    assert first[:2] == [-2.0, 1.5] and np.isnan(first[2:]).all()
    assert second[0] == 0.25 and np.isnan(second[1])
    assert np.isnan(third).all()
    assert ask(teacher, ("q1", [])) == [[]]


def test_probabilities_become_logits(tmp_path: Path) -> None:
    path = tmp_path / "scores.tsv"
    path.write_text("q1\tp1\t0.75\nq1\tp2\t0.5\nq1\tp3\t1\n")
    (found,) = ask(loaded(path, hold="probabilities"), ("q1", ["p1", "p2", "p3"]))
    assert found == pytest.approx([np.log(3), 0.0, np.log(1e7)], rel=1e-5)
    assert ScoreFile(path=path).fingerprint() != ScoreFile(path=path, hold="probabilities").fingerprint()
    path.write_text("q1\tp1\t1.5\n")
    with pytest.raises(DataError, match=r"query 'q1' has a score outside \[0, 1\]; write `hold: scores`"):
        loaded(path, hold="probabilities")


def test_the_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.tsv", tmp_path / "b.tsv"
    path.write_text(LAYOUTS["tsv"])
    copy.write_text(LAYOUTS["tsv"])
    same = ScoreFile(path=copy).fingerprint()
    assert ScoreFile(path=path).fingerprint() == same
    path.write_text(LAYOUTS["tsv"].replace("1.5", "1.6"))
    assert ScoreFile(path=path).fingerprint() != same


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone.tsv: no such score file"):
        ScoreFile(path=tmp_path / "gone.tsv").fingerprint()


@pytest.mark.parametrize(
    "name",
    ["bert-cross-encoder.bm25-candidates.dl19.tsv.gz", "margin-mse.dl19.pos_neg_scores_ids.tsv.gz",
     "listwise-gpt-3.5-turbo.dl20.trec.gz"],
)  # fmt: skip
def test_published_teacher_scores_come_back_as_they_stand_in_the_file(data_dir: Path, name: str) -> None:
    path = data_dir / "msmarco-dl" / "teacher" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    expected: dict[str, dict[str, float]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            fields = line.split()
            if len(fields) == 3:
                rows = [(fields[0], fields[1], fields[2])]
            elif len(fields) == 5:
                rows = [(fields[2], fields[3], fields[0]), (fields[2], fields[4], fields[1])]
            else:
                rows = [(fields[0], fields[2], fields[4])]
            for query, passage, score in rows:
                expected.setdefault(query, {})[passage] = float(np.float32(score))
    assert len(expected) > 40
    teacher = loaded(path)
    found = ask(teacher, *[(query, list(row)) for query, row in expected.items()])
    assert found == [list(row.values()) for row in expected.values()]

"""`kdfw evaluate` and `kdfw compare` on files, benchmarks by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdfw.cli import main
from kdfw.data.runs import read_run
from kdfw.errors import DataError
from kdfw.evaluation.answers import has_answer
from kdfw.evaluation.api import evaluate
from kdfw.evaluation.compare import compare, comparison_table
from kdfw.evaluation.systems import Compared, load_evaluations, merge_seeds


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    run, qrels = tmp_path / "one.trec", tmp_path / "qrels"
    run.write_text("q1 Q0 a 1 2 t\nq1 Q0 b 2 1 t\nq3 Q0 a 1 1 t\n")
    qrels.write_text("q1 0 b 1\nq2 0 a 1\n")
    return run, qrels


def test_evaluate_prints_json(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, qrels = files
    out = run.with_name("pq.jsonl")
    arguments = ["evaluate", "--run", str(run), "--qrels", str(qrels), "--measures", "RR@10 Success@1", "--json"]
    assert main([*arguments, "--per-query", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measures"] == {"RR@10": 0.25, "Success@1": 0.0}
    assert (found["queries"], found["missing_queries"], found["unjudged_queries"]) == (2, 1, 1)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"query": "q1", "RR@10": 0.5, "Success@1": 0.0},
        {"query": "q2", "RR@10": 0.0, "Success@1": 0.0},
    ]


def test_evaluate_says_what_it_counts(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, qrels = files
    assert main(["evaluate", "--run", str(run), "--qrels", str(qrels), "--benchmark", "beir/scifact"]) == 0
    text = capsys.readouterr().out
    assert "over 2 queries, 1 of them missing from the run (counted as 0)" in text
    assert "beir/scifact: nDCG@10 with the grades as gains" in text


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--measures", "nDGC@10"], "did you mean 'nDCG@10'"), (["--benchmark", "beir/scfact"], "beir/scifact")],
)
def test_mistakes_exit_with_2(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert main(["evaluate", "--run", str(files[0]), "--qrels", str(files[1]), *extra]) == 2
    assert message in capsys.readouterr().err


def test_submission_files_are_written(files: tuple[Path, Path]) -> None:
    run, qrels = files
    out = {kind: run.with_name(f"out.{kind}") for kind in ("trec", "msmarco", "beir")}
    writes = [part for kind, path in out.items() for part in (f"--write-{kind}", str(path))]
    arguments = ["evaluate", "--run", str(run), "--qrels", str(qrels), "--tag", "mine", *writes]
    assert main(arguments) == 0
    assert out["trec"].read_text().splitlines()[0] == "q1 Q0 a 1 2.0 mine"
    assert out["msmarco"].read_text().splitlines()[1] == "q1\tb\t2"
    assert read_run(out["beir"]) == read_run(run)


def test_a_query_is_removed_from_its_own_results() -> None:
    found = evaluate({"q": {"q": 3.0, "a": 1.0}}, {"q": {"a": 1}}, "RR", remove_query=True)
    assert found.measures == {"RR": 1.0}


def system(name: str, values: list[float], **facts: float) -> Compared:
    return Compared(name=name, seeds=[{"RR": {f"q{n}": v for n, v in enumerate(values)}}], facts=facts)


def test_compare_tests_against_the_baseline() -> None:
    base = system("base", [0.1, 0.2, 0.3, 0.4], queries_per_second=9, parameters=5)
    good = system("good", [0.2, 0.3, 0.4, 0.5], queries_per_second=5, parameters=4)
    poor = system("poor", [0.1, 0.1, 0.4, 0.4], queries_per_second=3, parameters=6)
    result = compare([base, good, poor])
    against = result["systems"]["good"]["measures"]["RR"]["against_baseline"]
    assert against["difference"] == pytest.approx(0.1)
    assert against["randomisation"] == pytest.approx(2 / 16)
    assert against["randomisation_holm"] == pytest.approx(4 / 16)
    assert (against["wins"], against["losses"]) == (4, 0)
    assert result["pareto"] == {"queries_per_second": ["base", "good"], "parameters": ["good"]}
    assert "against_baseline" not in result["systems"]["base"]["measures"]["RR"]
    for style in ("text", "markdown", "latex"):
        assert "0.3500" in comparison_table(result, style)  # type: ignore[arg-type]
    assert r"p\_" not in comparison_table(result, "markdown")


def test_seeds_are_taken_together() -> None:
    runs = [system("tiny-seed1", [0.0, 1.0]), system("tiny-seed2", [0.5, 1.0]), system("other", [0.0, 0.0])]
    merged = merge_seeds(runs)
    assert [(found.name, len(found.seeds)) for found in merged] == [("tiny", 2), ("other", 1)]
    entry = compare(merged, baseline="other")["systems"]["tiny"]["measures"]["RR"]
    assert entry["by_seed"] == [0.5, 0.75]
    assert entry["mean"] == pytest.approx(0.625)
    assert entry["spread"] == pytest.approx(np.std([0.5, 0.75], ddof=1))


def test_compare_refuses_what_does_not_belong_together() -> None:
    one, two = system("one", [0.1]), Compared(name="two", seeds=[{"RR": {"other": 0.1}}])
    with pytest.raises(DataError, match="share no query"):
        compare([one, two])
    with pytest.raises(DataError, match="no run 'on' to be the baseline; did you mean 'one'"):
        compare([one], baseline="on")
    with pytest.raises(DataError, match="two of the runs are called 'one'"):
        compare([one, one])
    with pytest.raises(DataError, match="not every run has the measure 'AP'"):
        compare([one], measures=["AP"])


def test_compare_reads_run_folders_and_run_files(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = tmp_path / "exp" / "stages" / "04-test"
    stage.mkdir(parents=True)
    lines = [{"query": "q1", "system": "student", "RR": 1.0}, {"query": "q2", "system": "student", "RR": 0.5}]
    (stage / "per_query.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["compare", str(files[0]), str(tmp_path / "exp"), "--qrels", str(files[1]), "--measure", "RR"]
    assert main([*arguments, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["systems"]) == ["one", "exp/student"]
    assert found["systems"]["exp/student"]["measures"]["RR"]["against_baseline"]["difference"] == pytest.approx(0.5)
    with pytest.raises(DataError, match="no evaluation in it"):
        (tmp_path / "nothing").mkdir()
        load_evaluations([tmp_path / "nothing"])
    with pytest.raises(DataError, match="add --qrels"):
        load_evaluations([files[0]])
    (stage / "per_query.jsonl").write_text('{"system": "x"}\n')
    with pytest.raises(DataError, match=r"per_query.jsonl:1: not a per-query line"):
        load_evaluations([tmp_path / "exp"])


def test_answers_match_as_whole_tokens() -> None:
    assert has_answer("He was born in São Paulo, Brazil.", ["Rio", "SÃO PAULO"])
    assert not has_answer("The art of war", ["ar"])

"""What `kdfw compare` makes of run folders: stages in common, seeds of one recipe, what is the same, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from kdfw.cli import main
from kdfw.errors import DataError
from kdfw.evaluation.compare import compare_runs, comparison_table
from kdfw.evaluation.systems import load_evaluations

Values = Mapping[str, list[float]]


def write_run(folder: Path, stages: Mapping[str, Values], *, seed: int = 1, loss: str = "kl", pairs: int = 0) -> Path:
    """A run folder with evaluate stages: stage -> system -> values of RR by query; `distill` is what it trained."""
    planned: list[dict[str, Any]] = [
        {"name": "scores", "type": "score", "folder": "01-scores", "inputs": []},
        {"name": "distill", "type": "train", "folder": "02-distill", "inputs": ["scores"]},
    ]
    summaries = {"scores": {"pairs": pairs, "cost_USD": 0.5}, "distill": {}}
    for number, name in enumerate(stages, start=3):
        planned.append({"name": name, "type": "evaluate", "folder": f"{number:02d}-{name}", "inputs": ["distill"]})
    for stage in planned:
        place = folder / "stages" / stage["folder"]
        place.mkdir(parents=True)
        made = {"seconds": 10.0, "summary": summaries.get(stage["name"], {})}
        (place / "artifact.json").write_text(json.dumps(made))
    for name, systems in stages.items():
        place = next(folder.glob(f"stages/*-{name}"))
        rows = [
            {"query": f"q{number}", "system": system, "RR": value}
            for system, values in systems.items()
            for number, value in enumerate(values)
        ]
        (place / "per_query.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        known = {"parameters": 5, "setting": "full retrieval", "depth": 100, "judged@10": 0.12}
        facts = {system: {"measures": {}, **known} for system in systems}
        (place / "measures.json").write_text(json.dumps({"split": f"split-of-{name}", "systems": facts}))
        speed = {system: {"queries_per_second": 100.0 * seed} for system in systems}
        (place / "timing.json").write_text(json.dumps(speed))
    (folder / "plan.json").write_text(json.dumps({"stages": planned}))
    (folder / "recipe.yaml").write_text(f"name: {folder.name}\nseed: {seed}\nlosses: [{loss}]\n")
    return folder


BASE = [0.1, 0.2, 0.3, 0.4]


def test_seeds_of_one_recipe_are_one_system_and_what_never_changes_stands_once(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", {"test": {"bm25": BASE, "distill": [0.2, 0.3, 0.4, 0.5]}}, seed=1)
    two = write_run(tmp_path / "b", {"test": {"bm25": BASE, "distill": [0.4, 0.3, 0.4, 0.5]}}, seed=2)
    other = write_run(tmp_path / "c", {"test": {"bm25": BASE, "distill": [0.0, 0.3, 0.4, 0.5]}}, loss="mse")
    (result,) = compare_runs([one, two, other])
    assert list(result["systems"]) == ["bm25", "a+b/distill", "c/distill"]
    entry = result["systems"]["a+b/distill"]
    assert entry["seeds"] == 2 and entry["measures"]["RR"]["by_seed"] == pytest.approx([0.35, 0.4])
    assert entry["queries_per_second"] == 150.0
    assert result["measured_on"] == "split split-of-test" and result["baseline"] == "bm25"
    text = comparison_table(result)
    assert "0.3750 ± 0.0354" in text and "standard deviation over seeds" in text and "split-of-test" in text
    (apart,) = compare_runs([one, two, other], separate_seeds=True)
    assert list(apart["systems"]) == ["bm25", "a/distill", "b/distill", "c/distill"]


def test_what_two_recipes_share_stands_once_with_all_its_seeds(tmp_path: Path) -> None:
    runs = []
    for seed, teacher in ((1, BASE), (2, [0.4, 0.3, 0.2, 0.9])):
        for number, loss in enumerate(("kl", "mse")):
            student = [value + 0.01 * number for value in teacher]
            systems = {"teacher": teacher, "distill": student}
            runs.append(write_run(tmp_path / f"{loss}-seed{seed}", {"test": systems}, seed=seed, loss=loss))
    (result,) = compare_runs(runs)
    assert list(result["systems"]) == ["teacher", "kl/distill", "mse/distill"]
    assert result["systems"]["teacher"]["measures"]["RR"]["by_seed"] == pytest.approx([0.25, 0.45])


def test_a_baseline_that_one_stage_lacks_is_an_error_that_names_the_stage(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {"test": {"bm25": BASE, "distill": BASE}, "other": {"distill": BASE}})
    with pytest.raises(DataError, match="evaluate stage other: no run 'bm25' to be the baseline.*Known: distill"):
        compare_runs([run], baseline="bm25")
    (result,) = compare_runs([run], baseline="bm25", stage="test")
    assert result["baseline"] == "bm25"


@pytest.mark.parametrize(
    ("classes", "measures"),
    [
        (["cat", "dog"], {"accuracy", "macro-f1"}),
        (["Cause-Effect(e1,e2)", "Other"], {"accuracy", "macro-f1", "relation-f1"}),
    ],
)
def test_runs_of_classifiers_are_compared(tmp_path: Path, classes: list[str], measures: set[str]) -> None:
    run = write_run(tmp_path / "a", {"test": {"one": BASE}})
    (place,) = run.glob("stages/*-test")
    rows = [
        {
            "query": f"q{item}",
            "system": name,
            "accuracy": float(guess == item % 2),
            "predicted": guess,
            "label": item % 2,
        }
        for name, right in (("one", 6), ("two", 8))
        for item in range(10)
        for guess in [item % 2 if item < right else 1 - item % 2]
    ]
    (place / "per_query.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = {"split": "test", "classes": classes, "systems": {"one": {}, "two": {}}}
    (place / "measures.json").write_text(json.dumps(found))
    (result,) = compare_runs([run])
    assert set(result["measures"]) == measures
    assert result["systems"]["two"]["measures"]["accuracy"]["mean"] == pytest.approx(0.8)
    assert result["systems"]["two"]["measures"]["macro-f1"]["mean"] == pytest.approx(0.8)


def test_runs_are_compared_by_what_they_were_measured_by(tmp_path: Path) -> None:
    runs = []
    for name, noise in (("a", 0.0), ("b", 0.5)):
        run = write_run(tmp_path / name, {"test": {"one": BASE}}, loss=name)
        (place,) = run.glob("stages/*-test")
        rows = [
            {"query": f"q{item}", "system": "one", "score": score, "gold": item, "group": item % 2}
            for item in range(20)
            for score in [item + noise * (-3) ** (item % 4)]
        ]  # fmt: skip
        (place / "per_query.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "measures.json").write_text(json.dumps({"measures": ["macro-spearman"], "systems": {"one": {}}}))
        runs.append(run)
    (result,) = compare_runs(runs)
    assert result["measures"] == ["macro-spearman"]
    even, odd = (
        spearmanr(range(start, 20, 2), [n + 0.5 * (-3) ** (n % 4) for n in range(start, 20, 2)]) for start in (0, 1)
    )
    mean = result["systems"]["b/one"]["measures"]["macro-spearman"]["mean"]
    assert mean == pytest.approx(50 * (even.statistic + odd.statistic))
    (asked,) = compare_runs(runs, measures=["spearman"])
    assert asked["measures"] == ["spearman"]
    (place,) = runs[0].glob("stages/*-test")
    (place / "measures.json").write_text(json.dumps({"measures": ["pearson"], "systems": {"one": {}}}))
    (result,) = compare_runs(runs)
    assert result["measures"] == ["macro-spearman", "spearman", "pearson"]


def test_two_runs_of_one_recipe_and_seed_stay_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", {"test": {"distill": BASE}})
    two = write_run(tmp_path / "b", {"test": {"distill": [*BASE[:3], 0.9]}})
    (result,) = compare_runs([one, two])
    assert list(result["systems"]) == ["a/distill", "b/distill"]


def test_names_of_runs_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / place / "run", {"test": {"distill": [value, 0.5]}}, loss=place)
        for place, value in (("x", 0.1), ("y", 0.2))
    ]
    (result,) = compare_runs(paths)
    assert list(result["systems"]) == ["x/run/distill", "y/run/distill"]
    with pytest.raises(DataError, match="is given twice"):
        compare_runs([paths[0], paths[0]])


def test_each_evaluation_in_common_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "a", {"dev": {"distill": BASE}, "test": {"distill": BASE[:2]}})
    two = write_run(tmp_path / "b", {"dev": {"distill": [*BASE[:3], 0.9]}, "test": {"distill": [0.3, 0.4]}})
    assert [result["stage"] for result in compare_runs([one, two])] == ["dev", "test"]
    assert [result["queries"] for result in compare_runs([one, two])] == [4, 2]
    assert main(["compare", str(one), str(two)]) == 0
    text = capsys.readouterr().out
    assert "dev:\n" in text and "test:\n" in text
    assert main(["compare", str(one), str(two), "--stage", "test", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 2
    with pytest.raises(DataError, match="no evaluate stage 'tests'; did you mean 'test'"):
        load_evaluations([one, two], stage="tests")
    third = write_run(tmp_path / "c", {"other": {"distill": BASE}})
    with pytest.raises(DataError, match="no evaluate stage in common .*c: other"):
        load_evaluations([one, third])
    folders = [next(run.glob("stages/*-test")) for run in (one, two)]
    (result,) = compare_runs(folders)
    assert list(result["systems"]) == ["a/distill", "b/distill"]
    (within,) = compare_runs(sorted(one.glob("stages/*-test")) + sorted(one.glob("stages/*-dev")))
    assert within["queries"] == 2 and within["left_out_queries"] == 2


def test_quality_is_set_against_speed_size_and_what_the_teacher_cost(tmp_path: Path) -> None:
    cheap = write_run(tmp_path / "cheap", {"test": {"distill": BASE}}, loss="a", pairs=100)
    dear = write_run(tmp_path / "dear", {"test": {"distill": [0.5, *BASE[1:]]}}, loss="b", pairs=900, seed=3)
    waste = write_run(tmp_path / "waste", {"test": {"distill": [0.0, *BASE[1:]]}}, loss="c", pairs=500)
    (result,) = compare_runs([cheap, dear, waste])
    facts = result["systems"]["dear/distill"]
    assert (facts["teacher_pairs"], facts["teacher_seconds"], facts["making_seconds"]) == (900.0, 10.0, 20.0)
    assert facts["teacher_cost_USD"] == 0.5
    assert result["pareto"]["teacher_pairs"] == ["cheap/distill", "dear/distill"]
    assert result["pareto"]["queries_per_second"] == ["dear/distill"]
    table = comparison_table(result)
    assert "full retrieval" in table and "12%" in table
    assert "teacher pairs" in table and "teacher USD" in table and "100*" in table and "500*" not in table
    for style in ("markdown", "latex"):
        assert "900*" in comparison_table(result, style)  # type: ignore[arg-type]


def test_a_comparison_is_ranxs_and_scipys(data_dir: Path) -> None:
    """Means, t-test and wins of whole run files, against the libraries' own comparison."""
    import warnings

    from scipy.stats import ttest_rel

    from kdfw.data.order import trec_order
    from kdfw.data.runs import read_qrels, read_run
    from kdfw.evaluation.api import evaluate

    names = ["bm25", "tasb", "splade-pp-ed"]
    paths = [data_dir / f"msmarco-dl/runs/{name}.dl20.trec.gz" for name in names]
    judged = data_dir / "msmarco-dl/qrels.dl20.trec"
    qrels = read_qrels(judged)
    (result,) = compare_runs(paths, qrels, ["nDCG@10"])
    assert list(result["systems"]) == [f"{name}.dl20" for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ranx import Qrels, Run, compare

        runs = []
        for path, name in zip(paths, names, strict=True):
            # ranx gets no ties: it would order them in its own way
            ranked = {query: trec_order(scores) for query, scores in read_run(path).items()}
            strict = {query: {id: float(-rank) for rank, id in enumerate(ids)} for query, ids in ranked.items()}
            runs.append(Run(strict, name=f"{name}.dl20"))
        theirs = compare(Qrels(qrels), runs, ["ndcg@10"], stat_test="student")
    base = evaluate(paths[0], judged, "nDCG@10").per_query["nDCG@10"]
    raw = []
    for path, name in zip(paths[1:], names[1:], strict=True):
        entry = result["systems"][f"{name}.dl20"]["measures"]["nDCG@10"]
        against = entry["against_baseline"]
        assert entry["mean"] == pytest.approx(theirs.results[f"{name}.dl20"]["ndcg@10"], abs=1e-9)
        own = evaluate(path, judged, "nDCG@10").per_query["nDCG@10"]
        expected = ttest_rel([own[query] for query in qrels], [base[query] for query in qrels]).pvalue
        assert against["t_test"] == pytest.approx(expected, rel=1e-9)
        wins = theirs.win_tie_loss[(f"{name}.dl20", "bm25.dl20")]["ndcg@10"]
        assert (against["wins"], against["losses"]) == (wins["W"], wins["L"])
        p_value = theirs.comparisons[frozenset(("bm25.dl20", f"{name}.dl20"))]["ndcg@10"]["p_value"]
        assert p_value == pytest.approx(expected, abs=1e-6)
        raw.append((expected, against["t_test_holm"]))
    smaller, larger = sorted(raw)
    assert smaller[1] == pytest.approx(2 * smaller[0]) and larger[1] == pytest.approx(max(larger[0], 2 * smaller[0]))

"""The stage `evaluate` on real files: full retrieval, re-ranking, other tasks; what it writes is what files measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import write_beir, write_bert

from kdfw.evaluation.api import evaluate
from kdfw.evaluation.table import measures_table


def write_recipe(folder: Path, stages: str, data: str = "") -> Path:
    base = write_bert(folder / "bert")
    data = data or f"{{type: beir, folder: {write_beir(folder / 'beir')}}}"
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"kdfw: 1\nname: tiny\nseed: 1\nprecision: fp32\ndata: {data}\n"
        f"models:\n  small: {{type: bi-encoder, base: {base}, max_passage_tokens: 32, max_query_tokens: 16}}\n"
        f"  cross: {{type: cross-encoder, base: {base}, max_pair_tokens: 48}}\n"
        f"stages:\n{stages}"
    )
    return recipe


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from kdfw.engine.api import run

    monkeypatch.setattr("kdfw.engine.run.write_report", lambda out: None)  # the report has tests of its own
    stages = (
        "  - {name: found, type: mine, retriever: bm25, depth: 10, split: test, drop_positives: false}\n"
        "  - {name: full, type: evaluate, models: [small], against: [bm25], measures: [nDCG@10, RR@10], depth: 20}\n"
        "  - {name: again, type: evaluate, models: [small, cross], candidates: found, measures: [RR@10]}\n"
    )
    run(write_recipe(tmp_path, stages), out=tmp_path / "out", cache=tmp_path / "cache")
    return tmp_path / "out"


def test_full_retrieval_and_reranking(finished: Path, tmp_path: Path) -> None:
    full = next(finished.glob("stages/*full"))
    result = json.loads((full / "measures.json").read_text())
    assert result["order"] == ["bm25", "small"] and result["baseline"] == "bm25"
    assert result["systems"]["small"]["setting"] == "full retrieval"
    assert result["systems"]["small"]["parameters"] > 0
    for name, system in result["systems"].items():
        found = evaluate(full / f"run.{name}.trec", tmp_path / "beir/qrels/test.tsv", result["measures"])
        assert found.measures == pytest.approx(system["measures"], abs=1e-12)
        assert found.depth == system["depth"] <= 20
    lines = [json.loads(line) for line in (full / "per_query.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * result["queries"] == 12
    mean = sum(line["RR@10"] for line in lines if line["system"] == "bm25") / 6
    assert mean == pytest.approx(result["systems"]["bm25"]["measures"]["RR@10"])
    assert result["systems"]["bm25"]["measures"]["RR@10"] > 0.5  # queries are words of their passage
    against = result["systems"]["small"]["against_baseline"]["RR@10"]
    assert against["wins"] + against["ties"] + against["losses"] == 6
    assert "full retrieval" in measures_table(full)
    again = json.loads((next(finished.glob("stages/*again")) / "measures.json").read_text())
    assert again["systems"]["cross"]["setting"] == "re-ranking of found"
    assert again["systems"]["cross"]["depth"] <= 10


def test_queries_are_kept_with_the_texts_of_what_was_found(finished: Path, tmp_path: Path) -> None:
    full = next(finished.glob("stages/*full"))
    rows = [json.loads(line) for line in (full / "examples.jsonl").read_text().splitlines()]
    texts = {}
    for name in ("corpus", "queries"):
        for line in (tmp_path / f"beir/{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            texts[row["_id"]] = row["text"]
    order: dict[tuple[str, str], dict[str, int]] = {}
    for system in ("bm25", "small"):
        for line in (full / f"run.{system}.trec").read_text().splitlines():
            query, _, passage, rank, _, _ = line.split()
            order.setdefault((system, query), {})[passage] = int(rank)
    assert len(rows) == 6
    for row in rows:
        assert row["text"] == texts[row["query"]]
        for system, found in row["lists"].items():
            assert [passage for passage, _ in found] == list(order[system, row["query"]])[:5]
            assert all(row["passages"][passage] == texts[passage] for passage, _ in found)
        (relevant,) = row["relevant"]
        assert row["grades"] == {relevant: 1} and row["relevant_in_all"] == 1
        expected = {name: ranks[relevant] for (name, query), ranks in order.items()
                    if query == row["query"] and relevant in ranks}  # fmt: skip
        assert row["relevant"][relevant] == expected
    pair = json.loads((full / "agreement.json").read_text())["pairs"]["bm25"]["small"]
    shares = []
    for row in rows:
        first, other = (list(order[system, row["query"]])[:10] for system in ("bm25", "small"))
        shares.append(len(set(first) & set(other)) / len(first))
    assert pair["overlap@10"] == pytest.approx(sum(shares) / 6)


def test_sentence_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import spearmanr

    from kdfw.engine.api import run

    monkeypatch.setattr("kdfw.engine.run.write_report", lambda out: None)
    pairs = [(1, "water stone", "river bridge"), (4, "water", "water"), (2, "light", "engine"), (0, "cache", "index")]
    (tmp_path / "pairs.tsv").write_text("".join("\t".join(map(str, pair)) + "\n" for pair in pairs))
    data = f"{{type: tsv-pairs, files: {{test: {tmp_path / 'pairs.tsv'}}}}}"
    stages = "  - {name: test, type: evaluate, models: [small, cross]}\n"
    run(write_recipe(tmp_path, stages, data), out=tmp_path / "out", cache=tmp_path / "cache")
    stage = next((tmp_path / "out").glob("stages/*test"))
    result = json.loads((stage / "measures.json").read_text())
    lines = [json.loads(line) for line in (stage / "per_query.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines if line["system"] == "small"]
    expected = 100 * spearmanr(scores, [pair[0] for pair in pairs]).statistic
    assert result["systems"]["small"]["measures"]["spearman"] == pytest.approx(expected)
    assert result["queries"] == 4 and result["order"] == ["small", "cross"]


def test_a_correlation_that_is_not_defined_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdfw.engine.api import run
    from kdfw.evaluation.compare import compare_runs

    monkeypatch.setattr("kdfw.engine.run.write_report", lambda out: None)
    (tmp_path / "pairs.tsv").write_text("3\twater\tstone\n3\tlight\tengine\n3\tcache\tindex\n")
    data = f"{{type: tsv-pairs, files: {{test: {tmp_path / 'pairs.tsv'}}}}}"
    stages = "  - {name: test, type: evaluate, models: [small, cross], measures: [spearman]}\n"
    run(write_recipe(tmp_path, stages, data), out=tmp_path / "out", cache=tmp_path / "cache")
    text = (next((tmp_path / "out").glob("stages/*test")) / "measures.json").read_text()
    assert "NaN" not in text  # gold is the same everywhere
    assert json.loads(text)["systems"]["small"]["measures"] == {"spearman": None}
    (result,) = compare_runs([tmp_path / "out"], measures=["spearman"])
    assert result["systems"]["small"]["measures"]["spearman"]["mean"] is None
    assert result["pareto"] == {}

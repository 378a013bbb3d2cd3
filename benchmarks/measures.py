"""Measures of many queries: kdfw from arrays against ranx from dictionaries and pytrec_eval.

    python benchmarks/measures.py [--queries 6980] [--depth 1000] [--rounds 3] [--out measures.json]

Every side starts from what it takes: ranx and pytrec_eval from dictionaries of ids, kdfw from a gain matrix or from a
`Ranking` (rows of a corpus), each gathered before the clock starts as it is in training. ranx is timed warm (compiled).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdfw.data.ranking import Ranking
from kdfw.evaluation.arrays import JudgedRows, score_gains, score_ranking

CORPUS = 8_841_823
MEASURES = "nDCG@10 RR@10 R@1000 AP"


def fastest(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """(seconds of the fastest round, the result)."""
    best = float("inf")
    result = None
    for _ in range(rounds):
        gc.collect()
        begin = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - begin)
    return best, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=6980)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import pytrec_eval

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ranx

    rng = np.random.default_rng(13)
    shape = (args.queries, args.depth)
    rows = np.stack([rng.choice(CORPUS, args.depth, replace=False) for _ in range(args.queries)])
    scores = -np.sort(-rng.random(shape, dtype=np.float32), axis=1)
    scores = 1 + np.argsort(np.argsort(scores, axis=1), axis=1).astype(np.float32)  # no ties: the rivals differ there
    qrels: dict[str, dict[str, int]] = {}
    gains = np.zeros(shape, dtype=np.int8)
    grades: list[list[int]] = []
    for query in range(args.queries):
        inside = rng.choice(args.depth, size=rng.integers(0, 3), replace=False)
        judged = {str(rows[query, rank]): int(rng.integers(1, 4)) for rank in inside}
        for rank in inside:
            gains[query, rank] = judged[str(rows[query, rank])]
        judged[str(CORPUS + query)] = 1  # one that is not found
        qrels[str(query)] = judged
        grades.append(list(judged.values()))
    ids = [[str(row) for row in line] for line in rows.tolist()]
    run = {str(q): dict(zip(ids[q], scores[q].tolist(), strict=True)) for q in range(args.queries)}
    order = np.argsort(-scores, axis=1)
    ranked_rows = np.take_along_axis(rows, order, axis=1)
    ranked_gains = np.take_along_axis(gains, order, axis=1)
    ranking = Ranking(
        query_ids=tuple(str(query) for query in range(args.queries)),
        starts=np.arange(args.queries + 1, dtype=np.int64) * args.depth,
        passages=ranked_rows.reshape(-1),
        scores=np.take_along_axis(scores, order, axis=1).reshape(-1),
    )

    def row(passage: str) -> int:
        if int(passage) >= CORPUS:
            raise KeyError(passage)
        return int(passage)

    judged_rows = JudgedRows.of(qrels, row, CORPUS)

    def by_ranx() -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = ["ndcg@10", "mrr@10", f"recall@{args.depth}", "map"]
            found = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), names, make_comparable=True)
        return dict(zip(MEASURES.split(), map(float, found.values()), strict=True))

    def by_pytrec_eval() -> dict[str, float]:
        names = {"ndcg_cut.10", "recip_rank", f"recall.{args.depth}", "map"}
        found = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
        keys = dict(zip(["nDCG@10", "R@1000", "AP"], ["ndcg_cut_10", f"recall_{args.depth}", "map"], strict=True))
        means = {name: float(np.mean([line[key] for line in found.values()])) for name, key in keys.items()}
        cut = [line["recip_rank"] if line["recip_rank"] >= 0.0999 else 0.0 for line in found.values()]
        return means | {"RR@10": float(np.mean(cut))}

    names = MEASURES.replace("R@1000", f"R@{args.depth}")

    def means(values: dict[str, np.ndarray]) -> dict[str, float]:
        return {name.replace(f"R@{args.depth}", "R@1000"): float(value.mean()) for name, value in values.items()}

    by_ranx()  # compiles
    seconds: dict[str, float] = {}
    values: dict[str, dict[str, float]] = {}
    for name, work in {
        "kdfw, gain matrix": lambda: means(score_gains(ranked_gains, grades, names)),
        "kdfw, ranking": lambda: means(score_ranking(ranking, judged_rows, names)),
        "pytrec_eval": by_pytrec_eval,
        "ranx": by_ranx,
    }.items():
        seconds[name], values[name] = fastest(work, args.rounds)
    ours = values["kdfw, gain matrix"]
    apart = max(abs(other[name] - ours[name]) for other in values.values() for name in ours)
    ratios = {
        f"{ours_name} against {rival}": seconds[rival] / seconds[ours_name]
        for ours_name in ("kdfw, gain matrix", "kdfw, ranking")
        for rival in ("pytrec_eval", "ranx")
    }
    result = {
        "queries": args.queries,
        "depth": args.depth,
        "measures": names.split(),
        "seconds": seconds,
        "ratios": ratios,
        "greatest_difference": apart,
        "values": ours,
    }
    for name, value in seconds.items():
        print(f"{name:<20} {value * 1000:10.1f} ms")
    for name, value in ratios.items():
        print(f"{name:<40} {value:8.1f}x")
    print(f"greatest difference of a mean: {apart:.2e}")
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

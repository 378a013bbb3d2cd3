"""Scoring candidates with a cross-encoder: kdfw beside sentence-transformers' CrossEncoder.predict, same pairs.

    python benchmarks/teacher.py --data FOLDER_WITH_BEIR_LAYOUT [--long] --out teacher.json

The cross-encoder is the base model with a random head (speed does not depend on its weights). `kdfw-stored` scores the
same pairs again from the score store: what a second epoch, a second run or a resumed stage pays.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sides import compare, parser_of, texts_of

SIDES = ("st", "st-bf16", "kdfw", "kdfw-bf16", "kdfw-stored")


def make_work(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from kdfw.models.cross_encoder import CrossEncoder

    queries, passages = texts_of(Path(args.data), args.long, 0)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = CrossEncoder(base=args.base, max_pair_tokens=256)
    model.load()
    folder = tempfile.mkdtemp(prefix="cross-encoder-")
    model.save(Path(folder))
    return {
        "folder": folder,
        "queries": [queries[row] for row in rng.choice(len(queries), args.queries, replace=False)],
        "lists": [
            [passages[row] for row in rng.choice(len(passages), args.candidates, replace=False)]
            for _ in range(args.queries)
        ],
    }


def run_side(args: argparse.Namespace, side: str, work: dict[str, Any]) -> dict[str, Any]:
    import torch

    seconds, cpu = [], []
    if side.startswith("st"):
        from sentence_transformers import CrossEncoder as Rival

        kind = {"torch_dtype": torch.bfloat16} if side == "st-bf16" else {}
        model = Rival(work["folder"], device="cpu", max_length=256, model_kwargs=kind)
        pairs = [(query, text) for query, texts in zip(work["queries"], work["lists"], strict=True) for text in texts]

        def score() -> np.ndarray:
            found = model.predict(
                pairs, batch_size=32, show_progress_bar=False, activation_fn=torch.nn.Identity(), convert_to_tensor=True
            )
            return found.float().numpy().reshape(-1)
    else:
        from kdfw.models.cross_encoder import CrossEncoder
        from kdfw.models.forward import Budget, signals_of
        from kdfw.models.precision import autocast_dtype, numerics
        from kdfw.teachers.scoring import ranking_batch
        from kdfw.teachers.store import ScoreStore, pair_keys, text_hashes
        from kdfw.types import Text

        precision = "bf16" if side == "kdfw-bf16" else "fp32"
        ours = CrossEncoder(base=work["folder"], max_pair_tokens=256)
        ours.load()
        ids = [str(number) for number in range(args.queries)]
        batch = ranking_batch(
            ids,
            [Text(source=None, made=text) for text in work["queries"]],
            [[Text(source=None, made=text) for text in texts] for texts in work["lists"]],
            [[f"{number}-{place}" for place in range(len(texts))] for number, texts in enumerate(work["lists"])],
        )

        def compute() -> np.ndarray:
            with numerics(precision, "cpu"):
                budget = Budget(tokens=args.tokens)
                found = signals_of(
                    ours, batch, frozenset({"logits"}), budget=budget, autocast=autocast_dtype(precision)
                )
            assert found.logits is not None
            return found.logits.numpy().reshape(-1)

        score = compute
        if side == "kdfw-stored":
            store = ScoreStore(Path(tempfile.mkdtemp(prefix="scores-")))
            queries = text_hashes(work["queries"], "query").repeat(args.candidates, axis=0)
            passages = [text for texts in work["lists"] for text in texts]
            store.put(pair_keys(queries, text_hashes(passages, "passage")), compute())

            def score() -> np.ndarray:
                hashes = text_hashes(work["queries"], "query").repeat(args.candidates, axis=0)
                found, known = store.get(pair_keys(hashes, text_hashes(passages, "passage")))
                assert known.all()
                return np.asarray(found)

    for _ in range(args.repeats + 1):
        begin, busy = time.perf_counter(), time.process_time()
        values = score()
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - busy)
    return {"seconds": seconds, "cpu": cpu, "values": values.tolist()}


def check(result: dict[str, Any], rival: dict[str, Any]) -> dict[str, float]:
    mine, theirs = np.asarray(result["values"]), np.asarray(rival["values"])
    return {"largest score difference": float(np.abs(mine - theirs).max())}


def main() -> None:
    parser = parser_of(__doc__, SIDES)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048, help="kdfw's token budget of a micro-batch")
    args = parser.parse_args()
    compare(args, make_work, run_side, ("st", "st-bf16"), "pairs", args.queries * args.candidates, check)


if __name__ == "__main__":
    main()

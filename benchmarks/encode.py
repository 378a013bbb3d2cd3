"""Corpus encoding: kdfw beside sentence-transformers' `encode`, same model, same passages.

    python benchmarks/encode.py --data FOLDER_WITH_BEIR_LAYOUT [--long] --out encode.json

Vectors are compared: smallest cosine between a passage's vector and the rival's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from sides import compare, parser_of, texts_of

SIDES = ("st", "st-bf16", "kdfw", "kdfw-bf16")


def make_work(args: argparse.Namespace) -> list[str]:
    _, passages = texts_of(Path(args.data), args.long, 0)
    rng = np.random.default_rng(0)
    return [passages[row] for row in rng.choice(len(passages), args.passages, replace=False)]


def run_side(args: argparse.Namespace, side: str, passages: list[str]) -> dict[str, Any]:
    import torch

    from kdfw.models import checkpoint

    seconds, cpu = [], []
    if side.startswith("st"):
        from sentence_transformers import SentenceTransformer

        kind = {"torch_dtype": torch.bfloat16} if side == "st-bf16" else {}
        model = SentenceTransformer(str(checkpoint.locate(args.base)), device="cpu", model_kwargs=kind)

        def encode() -> np.ndarray:
            found = model.encode(passages, batch_size=32, show_progress_bar=False, convert_to_tensor=True)
            return found.float().numpy()
    else:
        from kdfw.models.bi_encoder import BiEncoder
        from kdfw.models.forward import Budget, encode_texts
        from kdfw.models.precision import autocast_dtype, numerics
        from kdfw.types import Text

        precision = "bf16" if side == "kdfw-bf16" else "fp32"
        ours = BiEncoder(base=args.base, max_passage_tokens=256)
        ours.load()
        texts = [Text(source=None, made=passage) for passage in passages]

        def encode() -> np.ndarray:
            with numerics(precision, "cpu"):
                return encode_texts(
                    ours, texts, "passage", budget=Budget(tokens=args.tokens), autocast=autocast_dtype(precision)
                )

    for _ in range(args.repeats + 1):
        begin, busy = time.perf_counter(), time.process_time()
        vectors = encode()
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - busy)
    return {"seconds": seconds, "cpu": cpu, "values": vectors.tolist()}


def check(result: dict[str, Any], rival: dict[str, Any]) -> dict[str, float]:
    mine, theirs = np.asarray(result["values"]), np.asarray(rival["values"])
    cosines = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    return {"1 - min cosine": float(1 - cosines.min())}


def main() -> None:
    parser = parser_of(__doc__, SIDES)
    parser.add_argument("--passages", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048, help="kdfw's token budget of a micro-batch")
    args = parser.parse_args()
    compare(args, make_work, run_side, ("st", "st-bf16"), "passages", args.passages, check)


if __name__ == "__main__":
    main()

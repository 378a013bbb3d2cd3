"""A distillation step with stored teacher scores, beside the same step with the teacher in the loop.

    python benchmarks/second_epoch.py --data FOLDER_WITH_BEIR_LAYOUT [--long] --out second.json

From the second epoch on kdfw reads what it once scored. The teacher is a cross-encoder of 6 layers with a random head
(speed does not depend on its weights), the student has 3 layers of the base. `st-loop` is sentence-transformers'
trainer and its CrossEncoder.predict in each step; `kdfw-loop` scores with kdfw in each step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import distillation_step as step
import numpy as np
from sides import compare, parser_of

SIDES = ("st-loop", "kdfw-loop", "kdfw-stored")


def make_work(args: argparse.Namespace) -> dict[str, Any]:
    """The texts and lists of `distillation_step`, with the scores of a cross-encoder that stands in a folder."""
    import torch

    from kdfw.models.cross_encoder import CrossEncoder

    torch.manual_seed(0)
    model = CrossEncoder(base=args.base, max_pair_tokens=256)
    model.load()
    folder = tempfile.mkdtemp(prefix="cross-encoder-")
    model.save(Path(folder))
    work = {**step.make_batches(args), "folder": folder}
    teach = kdfw_teacher(args, work)
    work["scores"] = np.concatenate([teach(number) for number in range(args.steps)]).tolist()
    return work


def lists_of(args: argparse.Namespace, work: dict[str, Any], number: int) -> tuple[list[str], list[list[str]]]:
    """Queries of a step, and the texts of their candidates."""
    part = slice(number * args.batch, (number + 1) * args.batch)
    texts = [[work["passages"][row] for row in rows] for rows in work["candidates"][part]]
    return work["queries"][part], texts


def kdfw_teacher(args: argparse.Namespace, work: dict[str, Any]) -> Any:
    from kdfw.models.cross_encoder import CrossEncoder
    from kdfw.models.forward import Budget, signals_of
    from kdfw.models.precision import numerics
    from kdfw.teachers.scoring import ranking_batch
    from kdfw.types import Text

    model = CrossEncoder(base=work["folder"], max_pair_tokens=256)
    model.load()

    def teach(number: int) -> np.ndarray:
        queries, texts = lists_of(args, work, number)
        batch = ranking_batch(
            queries,
            [Text(source=None, made=text) for text in queries],
            [[Text(source=None, made=text) for text in row] for row in texts],
            texts,
        )
        with numerics("fp32", "cpu"):
            found = signals_of(model, batch, frozenset({"logits"}), budget=Budget(tokens=args.tokens))
        assert found.logits is not None
        return found.logits.numpy()

    return teach


def stored_scores(args: argparse.Namespace, work: dict[str, Any]) -> Any:
    """Scores of a step from the score store, found by the hashes of the texts."""
    from kdfw.teachers.store import ScoreStore, pair_keys, text_hashes

    store = ScoreStore(Path(tempfile.mkdtemp(prefix="scores-")))

    def keys(number: int) -> np.ndarray:
        queries, texts = lists_of(args, work, number)
        hashes = text_hashes(queries, "query").repeat(len(texts[0]), axis=0)
        return pair_keys(hashes, text_hashes([text for row in texts for text in row], "passage"))

    for number in range(args.steps):
        scores = np.asarray(work["scores"][number * args.batch : (number + 1) * args.batch], dtype=np.float32)
        store.put(keys(number), scores.reshape(-1))

    def teach(number: int) -> np.ndarray:
        found, known = store.get(keys(number))
        assert known.all()
        return np.asarray(found).reshape(args.batch, -1)

    return teach


def st_teacher(args: argparse.Namespace, work: dict[str, Any]) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(work["folder"], device="cpu", max_length=256)

    def teach(number: int) -> np.ndarray:
        queries, texts = lists_of(args, work, number)
        pairs = [(query, text) for query, row in zip(queries, texts, strict=True) for text in row]
        found = model.predict(pairs, batch_size=32, show_progress_bar=False, activation_fn=torch.nn.Identity())
        return np.asarray(found).reshape(len(queries), -1)

    return teach


def run_side(args: argparse.Namespace, side: str, work: dict[str, Any]) -> dict[str, Any]:
    make = {"st-loop": st_teacher, "kdfw-loop": kdfw_teacher, "kdfw-stored": stored_scores}[side]
    return (step.run_st if side == "st-loop" else step.run_kdfw)(args, side, work, make(args, work))


def main() -> None:
    parser = parser_of(__doc__, SIDES)
    parser.add_argument("--batch", type=int, default=16, help="queries a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048, help="kdfw's token budget of a micro-batch")
    args = parser.parse_args()
    compare(args, make_work, run_side, ("st-loop", "kdfw-loop"), "queries", args.batch, step.check)


if __name__ == "__main__":
    main()

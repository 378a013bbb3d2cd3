"""One listwise distillation step (1 positive + 7 other passages a query): kdfw beside sentence-transformers.

    python benchmarks/distillation_step.py --data FOLDER_WITH_BEIR_LAYOUT [--long] --out step.json

Same student (layers of all-MiniLM-L6-v2, dropout off), same texts, same stored teacher scores, same loss (KL at one
temperature), same optimizer (AdamW). Each side runs in a process of its own, in turn, several rounds; the fastest
median step of each is kept, so that other work on the machine hurts both sides alike; processor seconds are shown
beside it, because they hardly change with the load. Losses (largest relative difference) are compared step by step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sides import compare, parser_of, texts_of

LAYERS = [0, 2, 4]
TEMPERATURE = 0.05
SIDES = ("st", "st-bf16", "kdfw", "kdfw-strict", "kdfw-bf16")


def make_batches(args: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """Texts, batches of (query, 8 passages), and the teacher's scores for them."""
    from kdfw.models.bi_encoder import BiEncoder
    from kdfw.models.forward import encode_texts
    from kdfw.types import Text

    queries, passages = texts_of(Path(args.data), args.long, seed)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(queries), args.batch * args.steps, replace=False)
    candidates = rng.integers(0, len(passages), (len(chosen), 8))
    teacher = BiEncoder(base=args.base)
    teacher.load()
    query = encode_texts(teacher, [Text(source=None, made=queries[number]) for number in chosen], "query")
    rows, place = np.unique(candidates, return_inverse=True)
    passage = encode_texts(teacher, [Text(source=None, made=passages[row]) for row in rows], "passage")
    scores = np.einsum("qh,qdh->qd", query, passage[place.reshape(candidates.shape)])
    return {
        "queries": [queries[number] for number in chosen],
        "passages": [passages[row] for row in rows],
        "candidates": place.reshape(candidates.shape).tolist(),
        "scores": scores.tolist(),
    }


def run_kdfw(
    args: argparse.Namespace, side: str, work: dict[str, Any], teach: Callable[[int], np.ndarray] | None = None
) -> dict[str, Any]:
    """Steps of kdfw; `teach` gives the scores of a step, (batch, 8), where they are not given with the work."""
    import torch

    from kdfw.models.bi_encoder import BiEncoder
    from kdfw.models.forward import Budget, represent
    from kdfw.models.precision import autocast_dtype, numerics
    from kdfw.types import Batch, Text

    precision = {"kdfw-strict": "fp32-strict", "kdfw-bf16": "bf16"}.get(side, "fp32")
    need = frozenset({"logits"})
    with numerics(precision, "cpu") as chosen:
        model = BiEncoder(base=args.base, layers=LAYERS, dropout=0.0, max_query_tokens=256)
        model.load()
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
        budget = Budget(tokens=args.tokens)
        seconds, busy, losses = [], [], []
        for step in range(args.steps):
            begin, cpu = time.perf_counter(), time.process_time()
            part = slice(step * args.batch, (step + 1) * args.batch)
            rows, place = np.unique(np.asarray(work["candidates"][part]), return_inverse=True)
            batch = Batch(
                task="ranking",
                ids=tuple(map(str, range(args.batch))),
                inputs={
                    "query": [Text(source=None, made=text) for text in work["queries"][part]],
                    "passage": [Text(source=None, made=work["passages"][row]) for row in rows],
                },
                num_items=float(args.batch),
                candidates=torch.from_numpy(place.reshape(args.batch, -1)),
            )
            reps = represent(
                model,
                model.rows(batch, need),
                need,
                budget=budget,
                rng_key=(0, step),
                autocast=autocast_dtype(precision),
            )
            logits = model.signals(reps, batch, need).logits
            assert logits is not None
            teacher = torch.from_numpy(teach(step)) if teach else torch.tensor(work["scores"][part])
            log_p, log_q = ((scores / TEMPERATURE).log_softmax(-1) for scores in (teacher, logits))
            loss = TEMPERATURE**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            seconds.append(time.perf_counter() - begin)
            busy.append(time.process_time() - cpu)
    return {"seconds": seconds, "cpu": busy, "losses": losses, "chosen": chosen}


def run_st(
    args: argparse.Namespace, side: str, work: dict[str, Any], teach: Callable[[int], np.ndarray] | None = None
) -> dict[str, Any]:
    """Steps of the rival's trainer; `teach` is called in each step and must compute the scores given with the work."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
    from transformers import TrainerCallback

    from kdfw.models import checkpoint

    model = SentenceTransformer(str(checkpoint.locate(args.base)), device="cpu")
    checkpoint.keep_layers(model[0].model, LAYERS)
    checkpoint.set_dropout(model[0].model, 0.0)
    model.max_seq_length = 256
    candidates = np.asarray(work["candidates"])
    columns: dict[str, Any] = {"query": work["queries"]}
    for column in range(candidates.shape[1]):
        columns[f"passage{column}"] = [work["passages"][row] for row in candidates[:, column]]
    columns["label"] = work["scores"]
    at: list[float] = []
    cpu: list[float] = []
    losses: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            at.append(time.perf_counter())
            cpu.append(time.process_time())
            if teach:
                teach(len(at) // 2)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            at.append(time.perf_counter())
            cpu.append(time.process_time())

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as out:
        options = SentenceTransformerTrainingArguments(
            out,
            per_device_train_batch_size=args.batch,
            num_train_epochs=1,
            learning_rate=5e-5,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=side == "st-bf16",
            batch_sampler=lambda dataset, batch_size, drop_last, **_: DefaultBatchSampler(
                torch.utils.data.SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last
            ),
        )
        SentenceTransformerTrainer(
            model=model,
            args=options,
            train_dataset=Dataset.from_dict(columns),
            loss=DistillKLDivLoss(model, temperature=TEMPERATURE),
            callbacks=[Watch()],
        ).train()

    # from the begin of a step to the begin of the next, so that loading the next batch counts for both sides
    def steps(times: list[float]) -> list[float]:
        return [later - earlier for earlier, later in zip(times[::2], times[2::2], strict=False)] + [
            times[-1] - times[-2]
        ]

    return {"seconds": steps(at), "cpu": steps(cpu), "losses": losses, "chosen": {}}


def check(result: dict[str, Any], rival: dict[str, Any]) -> dict[str, float]:
    """Largest relative difference of a step's loss."""
    pairs = zip(result["losses"], rival["losses"], strict=True)
    return {"loss difference": max(abs(mine - theirs) / abs(theirs) for mine, theirs in pairs)}


def run_side(args: argparse.Namespace, side: str, work: dict[str, Any]) -> dict[str, Any]:
    return (run_st if side.startswith("st") else run_kdfw)(args, side, work)


def main() -> None:
    parser = parser_of(__doc__, SIDES)
    parser.add_argument("--batch", type=int, default=16, help="queries a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="kdfw's token budget of a micro-batch")
    args = parser.parse_args()
    compare(args, make_batches, run_side, ("st", "st-bf16"), "queries", args.batch, check)


if __name__ == "__main__":
    main()

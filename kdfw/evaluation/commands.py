"""The commands `kdfw evaluate` and `kdfw compare`. Nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdfw.types import Run

if TYPE_CHECKING:
    from kdfw.evaluation.api import Evaluation
    from kdfw.evaluation.benchmarks import Benchmark

Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_parsers(add: Add) -> None:
    """Add both commands; `add(name, function, help)` makes a parser."""
    measure = add("evaluate", run_evaluate, "measure a run file as trec_eval would, and write submission files")
    measure.add_argument("--run", type=Path, required=True, help="TREC, MS MARCO or JSON run; may be gzipped")
    measure.add_argument("--qrels", type=Path, help="TREC, BEIR or MS MARCO judgements")
    measure.add_argument("--measures", help="such as 'nDCG@10 RR(rel=2)@10 AP R@1000'")
    measure.add_argument("--benchmark", help="take the official measures, conventions and judgements of this benchmark")
    measure.add_argument(
        "--folder",
        type=Path,
        help="where the benchmark's files are; default: looked for below $KDFW_DATA, else fetched",
    )
    measure.add_argument("--per-query", type=Path, help="file for per-query values, one JSON object a line")
    measure.add_argument("--json", action="store_true", help="print JSON")
    measure.add_argument(
        "--run-format", choices=["auto", "trec", "msmarco", "scores", "json"], default="auto", help="layout of the run"
    )
    measure.add_argument("--write-trec", type=Path, help="also write the run as a TREC run")
    measure.add_argument("--write-msmarco", type=Path, help="also write the run for the MS MARCO leaderboards")
    measure.add_argument("--write-beir", type=Path, help="also write the run as BEIR results (JSON)")
    measure.add_argument("--write-mteb", type=Path, help="also write the measures as MTEB's result files have them")
    measure.add_argument("--task", help="MTEB's name of the task, such as SciFact, for --write-mteb")
    measure.add_argument("--tag", default="kdfw", help="name of the system in a TREC run")
    other = add("compare", run_compare, "compare runs: confidence intervals, tests against a baseline, seeds")
    other.add_argument("runs", nargs="+", type=Path, help="run folders, evaluate stages, per-query files or run files")
    other.add_argument(
        "--measure", action="append", help="which measure; may be repeated; default: what the runs were measured by"
    )
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
    from kdfw.evaluation.benchmarks import benchmark
    from kdfw.evaluation.formats import write_mteb
    from kdfw.evaluation.measures import parse_measures

    known = benchmark(args.benchmark) if args.benchmark else None
    if known is not None and known.task not in ("ranking", "answers"):
        raise DataError(
            f"benchmark {known.name!r} is no retrieval; measure a model on it with a recipe (`benchmarks:`)"
        )
    measures = args.measures or (" ".join(known.measures) if known else "nDCG@10 RR@10 R@1000 AP")
    if known is None or known.task == "ranking":
        parse_measures(measures)  # before a file of gigabytes is read
    if args.write_mteb and not args.task:
        raise DataError("--write-mteb needs MTEB's name of the task: add --task NAME")
    writes = any((args.write_trec, args.write_msmarco, args.write_beir))
    if args.qrels is None and known is None and not writes:
        raise DataError("no judgements: add --qrels FILE or --benchmark NAME")
    run = read_run(args.run, format=args.run_format, finite=False)
    _write_submissions(args, run)
    if args.qrels is None and known is None:
        return 0  # a submission for queries whose judgements nobody has
    found = _evaluation(args, known, run, measures)
    if args.write_mteb:
        write_mteb(args.write_mteb, args.task, found.measures, main=_main(found.measures))
    if args.json:
        extra = {"benchmark": known.name, "convention": known.convention} if known else {}
        print(json.dumps({**found.as_dict(), **extra}))
        return 0
    width = max(map(len, found.measures))
    for name, value in found.measures.items():
        print(f"{name:<{width}}  {value:.4f}")
    print(f"over {found.queries} queries", end="")
    print(f", {found.missing} of them missing from the run (counted as 0)" if found.missing else "", end="")
    judged = "" if found.judged is None else f", {found.judged:.1%} of the first 10 judged"
    print(f"; depth {found.depth}{judged}")
    if found.unjudged_queries:
        print(f"{found.unjudged_queries} queries of the run are not in the qrels and do not count")
    if known:
        print(f"{known.name}: {known.convention}")
        if known.items and known.items != found.queries:
            print(f"not the official queries: {found.queries:,} of {known.items:,}")
    return 0


def _write_submissions(args: argparse.Namespace, run: Run) -> None:
    from kdfw.evaluation.formats import write_beir, write_msmarco, write_trec

    if args.write_trec:
        write_trec(run, args.write_trec, args.tag)
    if args.write_msmarco:
        write_msmarco(run, args.write_msmarco)
    if args.write_beir:
        write_beir(run, args.write_beir)


def _evaluation(args: argparse.Namespace, known: Benchmark | None, run: Run, measures: str) -> Evaluation:
    from kdfw.evaluation.answers import evaluate_answers
    from kdfw.evaluation.api import evaluate
    from kdfw.evaluation.benchmarks import load_qrels

    if known is not None and known.task == "answers":
        return evaluate_answers(run, known, args.folder, measures.split(), per_query=args.per_query)
    qrels = args.qrels if args.qrels is not None or known is None else load_qrels(known.name, args.folder)
    remove = known.remove_query if known else False
    return evaluate(run, qrels, measures, per_query=args.per_query, remove_query=remove)


def _main(measures: Mapping[str, float]) -> str:
    """What MTEB calls the main score: nDCG@10 where it is measured, else the first measure."""
    from kdfw.evaluation.formats import mteb_name

    named = [mteb_name(name) for name in measures]
    return "ndcg_at_10" if "ndcg_at_10" in named else named[0]


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

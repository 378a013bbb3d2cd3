"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kdfw import __version__
from kdfw.errors import DataError, KdfwError

Command = Callable[[argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(
        prog="kdfw",
        description="Knowledge distillation: one recipe from teacher to measured student.",
        epilog="Exit codes: 0 done, 2 you can mend it (recipe, data, plugin), 1 our fault, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"kdfw {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="more log lines; tracebacks of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, function: Command, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(function=function)
        return sub

    def recipe_arguments(
        sub: argparse.ArgumentParser, also: str = "", out: str = "run folder; default: runs/<name>"
    ) -> None:
        sub.add_argument("recipe", help=f"path of a recipe, or the name of a shipped one, such as quickstart{also}")
        sub.add_argument("settings", nargs="*", metavar="key.path=value", help="values that replace the recipe's")
        sub.add_argument("--out", type=Path, help=out)
        sub.add_argument("--cache", type=Path, help="shared cache; default: $KDFW_CACHE, or beside the runs")

    run = add("run", _run, "run a recipe, or go on where it stopped")
    recipe_arguments(run)
    run.add_argument("--processes", type=_from_one, default=1, metavar="N", help="processes on this machine")
    run.add_argument("--fresh", action="store_true", help="start anew; the old run is kept under another name")
    run.add_argument("--offline", action="store_true", help="never ask a hub for a model or data set")
    run.add_argument(
        "--trust-remote-code", action="store_true", help="let model folders run their own code; off unless given"
    )
    plan = add("plan", _plan, "print the stages of a recipe, which are cached, and the work they are")
    recipe_arguments(plan)
    plan.add_argument("--offline", action="store_true", help="never ask a hub")
    plan.add_argument("--json", action="store_true", help="as JSON")
    check = add("check", _check, "check a recipe, and run one batch through every stage without training")
    recipe_arguments(check)
    check.add_argument("--offline", action="store_true", help="never ask a hub")
    check.add_argument("--json", action="store_true", help="as JSON")

    sweep = add("sweep", _sweep, "run a small grid of a recipe's values and seeds, and compare what came of it")
    recipe_arguments(sweep, out="folder of the run folders; default: runs/<name>-sweep")
    sweep.add_argument(
        "--grid", action="append", default=[], metavar="KEY=V1,V2", help="values of a key; several: every combination"
    )
    sweep.add_argument("--seeds", metavar="N", help="number of seeds, from the recipe's on; or seeds as 1,2,3")
    sweep.add_argument("--plan", action="store_true", help="print the runs and what is cached; run nothing")
    sweep.add_argument("--baseline", help="what the others are tested against; default: the first values of the grid")
    sweep.add_argument("--measure", action="append", help="of the comparison; may be repeated; default: all")
    sweep.add_argument("--processes", type=_from_one, default=1, metavar="N", help="processes of each run")
    sweep.add_argument("--offline", action="store_true", help="never ask a hub for a model or data set")
    sweep.add_argument("--trust-remote-code", action="store_true", help="let model folders run their own code")
    sweep.add_argument("--json", action="store_true", help="as JSON")

    diagnosis = add("diagnose", _diagnose, "look at teachers' scores: spread, temperature, judgements, agreement")
    recipe_arguments(diagnosis, "; or a run folder. Of a recipe the stages up to the teachers' scores are run")
    diagnosis.add_argument("--stage", help="one training stage, also one that needs others to be trained first")
    diagnosis.add_argument("--offline", action="store_true", help="never ask a hub")
    diagnosis.add_argument("--json", action="store_true", help="as JSON")

    from kdfw.engine import file_commands
    from kdfw.evaluation import commands as evaluation_commands

    file_commands.add_parsers(add, tune_process)
    evaluation_commands.add_parsers(add)

    report = add("report", _report, "rebuild the report of one or more runs")
    report.add_argument("runs", nargs="+", type=Path, help="run folders")
    report.add_argument("--out", type=Path, help="where to write it; default: report.html of the first run")
    plugins = add("plugins", _plugins, "list installed plugins with their components")
    plugins.add_argument("--json", action="store_true", help="as JSON")
    explain = add("explain", _explain, "print options, needs and paper of a component")
    explain.add_argument("kind", help="loss, sampler, student, teacher, stage, ...")
    explain.add_argument("name", nargs="?", help="its name in recipes; without it, all of the kind are listed")
    new = add("new-plugin", _new_plugin, "write a working plugin package with one loss and one test")
    new.add_argument("name", help="lower-case words joined by hyphens")
    new.add_argument("--into", type=Path, default=Path("."), help="folder to write it into; default: here")
    schema = add("schema", _schema, "write the JSON schema of recipes, for editors")
    schema.add_argument("--out", type=Path, help="file; default: standard output")
    export = add("export", _export, "write a run's student for transformers and sentence-transformers, or as ONNX")
    export.add_argument("run", type=Path, help="run folder, or a folder written by a training stage")
    export.add_argument("--stage", help="which training stage; default: the last")
    export.add_argument("--to", "--out", type=Path, help="folder to write; default: <run>/export, or <run>/onnx")
    export.add_argument("--onnx", action="store_true", help="as ONNX graphs, compared with the original")
    export.add_argument(
        "--tolerance", type=float, default=1e-4, help="how much outputs of the ONNX copy may differ (%(default)s)"
    )
    add("doctor", _doctor, "versions, devices, precision, disk, and what is missing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest:  # argparse takes settings only before the options; people write them after as well
        if not hasattr(parsed, "settings") or any(item.startswith("-") for item in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        parsed.settings = [*parsed.settings, *rest]
    set_up_logging(verbose=parsed.verbose)
    try:
        function: Command = parsed.function
        return function(parsed)
    except KdfwError as error:
        if parsed.verbose:
            logging.getLogger("kdfw").exception("error")
        print(_message(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def set_up_logging(*, verbose: bool = False) -> None:
    """Our own lines go to stderr, those of libraries only when something is wrong. One process of several speaks."""
    main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("kdfw", "kdfw_plugins"):
        logging.getLogger(ours).setLevel(logging.WARNING if not main else logging.DEBUG if verbose else logging.INFO)


def _from_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _message(error: KdfwError) -> str:
    problems = getattr(error, "problems", ())
    if len(problems) > 1:
        return f"{len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems)
    return f"error: {error}"


def tune_process() -> None:
    """Settings of the whole process that only a program of its own may choose: they change speed, never results.

    glibc hands every large tensor back to the kernel and zeroes new ones page by page; told to keep freed memory,
    encoding on a CPU is up to 1.6 times faster. OpenBLAS takes AVX2 kernels on AMD processors that have AVX-512;
    naming a core type before it loads makes exact search up to 1.8 times faster.
    """
    if sys.platform != "linux":
        return
    from kdfw.memory import keep_freed_memory

    keep_freed_memory()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            text = stream.read(8192)
    except OSError:
        return
    if "AuthenticAMD" in text and "avx512f" in text:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.processes > 1 and "WORLD_SIZE" not in os.environ:
        from kdfw.engine.launch import launch

        return launch(arguments.processes, sys.argv[1:])
    tune_process()
    from kdfw.engine import api

    result = api.run(
        arguments.recipe,
        arguments.settings,
        out=arguments.out,
        cache=arguments.cache,
        fresh=arguments.fresh,
        offline=arguments.offline,
        trust_remote_code=arguments.trust_remote_code,
    )
    if "WORLD_SIZE" in os.environ:
        from kdfw.engine.launch import leave

        leave()
    if result is None:  # not the main process
        return 0
    print(api.result_text(result))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from kdfw.engine import api

    text = api.plan_text(
        arguments.recipe,
        arguments.settings,
        arguments.out,
        arguments.cache,
        offline=arguments.offline,
        as_json=arguments.json,
    )
    print(text)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    tune_process()
    from kdfw.engine import api

    text, warnings = api.check_text(
        arguments.recipe,
        arguments.settings,
        arguments.out,
        arguments.cache,
        offline=arguments.offline,
        as_json=arguments.json,
    )
    print(text)
    return 2 if warnings else 0


def _sweep(arguments: argparse.Namespace) -> int:
    import json

    from kdfw.engine import cells, sweep, sweep_result

    seeds = None if arguments.seeds is None else cells.seeds_of(arguments.seeds)
    chosen = (arguments.recipe, arguments.grid, seeds, arguments.settings)
    if arguments.offline:
        from kdfw.models.checkpoint import go_offline

        go_offline()
    if arguments.plan:
        print(sweep.plan_text(*chosen, out=arguments.out, cache=arguments.cache, as_json=arguments.json))
        return 0
    result = sweep.sweep(
        *chosen,
        out=arguments.out,
        cache=arguments.cache,
        baseline=arguments.baseline,
        measures=arguments.measure,
        processes=arguments.processes,
        offline=arguments.offline,
        trust_remote_code=arguments.trust_remote_code,
    )
    if arguments.json:
        print(json.dumps(sweep_result.sweep_values(result), indent=2, ensure_ascii=False))
    else:
        print(f"{sweep_result.sweep_text(result)}\n\nsweep folder: {result.folder}")
    return result.exit_code


def _diagnose(arguments: argparse.Namespace) -> int:
    tune_process()
    import json

    from kdfw.engine.diagnose import diagnose
    from kdfw.evaluation.diagnosis_text import diagnosis_text

    found = diagnose(
        arguments.recipe,
        arguments.settings,
        stage=arguments.stage,
        out=arguments.out,
        cache=arguments.cache,
        offline=arguments.offline,
    )
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else diagnosis_text(found))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from kdfw.report import write_report

    path = write_report(*arguments.runs, out=arguments.out)
    if path is None:
        raise DataError(f"{arguments.runs[0]}: no run folder (no manifest.json, plan.json or recipe.yaml in it)")
    print(path)
    return 0


def _plugins(arguments: argparse.Namespace) -> int:
    from kdfw.describe import plugins_text

    print(plugins_text(as_json=arguments.json))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from kdfw.describe import explain_text

    print(explain_text(arguments.kind, arguments.name))
    return 0


def _new_plugin(arguments: argparse.Namespace) -> int:
    from kdfw.scaffold import write_plugin

    folder = write_plugin(arguments.name, arguments.into)
    print(f"wrote {folder}\nnext: pip install -e {folder} && pytest {folder}")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from kdfw.files import write_atomic
    from kdfw.recipe.schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if arguments.out is None:
        print(text, end="")
    else:
        write_atomic(arguments.out, text)
        print(arguments.out)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from kdfw.engine.export import export_onnx, export_student

    to: Path = arguments.to or arguments.run / ("onnx" if arguments.onnx else "export")
    if not arguments.onnx:
        print(export_student(arguments.run, to, stage=arguments.stage))
        return 0
    found = export_onnx(arguments.run, to, stage=arguments.stage, tolerance=arguments.tolerance)
    print(f"{to}: differs from the original by at most {found.largest_difference:.2g} ({found.rows} rows)")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from kdfw.describe import doctor_text

    print(doctor_text())
    return 0

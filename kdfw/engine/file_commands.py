"""`kdfw mine`, `score`, `encode`, `search`: one stage at work on files, without a recipe.

Each builds a small recipe in memory and runs it as `kdfw run` would: there is no second way to do any of these things.
Results of stages go to the cache as in any run: a command that was stopped goes on, one that is repeated copies.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.plugins import Registry

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str], argparse.ArgumentParser]
EVERY_RESULT = 1_000_000
"""Depth that no candidate list has."""
COMPONENT = """\
DATA, MODEL and RETRIEVER are TYPE, TYPE:VALUE (the type's first option: a folder or base), or a mapping as in a recipe:
  --data beir:scifact                  --data '{type: msmarco, folder: msmarco, dev_share: 0.1}'
  --model bi-encoder:package:minilm    --model '{type: cross-encoder, base: PATH, max_pair_tokens: 256}'
`kdfw explain dataset` (student, teacher, retriever) lists the types. Further options of the stage are written as
option=value; `kdfw explain stage NAME` lists them. Results are kept in the cache: a command that was stopped goes on.
"""


def add_parsers(add: Add, prepare: Callable[[], None]) -> None:
    """Add the commands; `add(name, function, help)` makes a parser, `prepare` is called before one runs."""

    def command(name: str, function: Callable[[argparse.Namespace], Path], help: str, example: str) -> Any:
        def run(arguments: argparse.Namespace) -> int:
            prepare()
            print(function(arguments))
            return 0

        sub = add(name, run, help)
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        sub.epilog = f"{COMPONENT}\nexample:\n  {example}"
        sub.add_argument("settings", nargs="*", metavar="option=value", help="further options of the stage")
        sub.add_argument("--data", required=True, help="the data set")
        sub.add_argument("--out", required=True, type=Path, help="file to write")
        sub.add_argument("--cache", type=Path, help="shared cache; default: $KDFW_CACHE, or beside the file")
        sub.add_argument("--offline", action="store_true", help="never ask a hub for a model or data set")
        sub.add_argument("--trust-remote-code", action="store_true", help="let model folders run their own code")
        return sub

    mine = command(
        "mine", run_mine, "candidate lists for training, as a TREC run",
        "kdfw mine --data beir:scifact --retriever bm25 --depth 100 --split train --out mined.trec ranks=[1,50]",
    )  # fmt: skip
    mine.add_argument("--retriever", help="what searches; default: bm25, or the search that fits --model")
    mine.add_argument("--model", help="a model; a retriever refers to it as `model`")
    mine.add_argument("--depth", type=int, default=200, help="results looked at for each query")
    mine.add_argument("--split", default="train", help="whose queries")
    score = command(
        "score", run_score, "scores of a model or teacher for candidate lists, as `qid TAB pid TAB score`",
        "kdfw score --data beir:scifact --model cross-encoder:PATH --candidates mined.trec --out scores.tsv",
    )  # fmt: skip
    score.add_argument("--model", required=True, help="what scores: a student or teacher type")
    score.add_argument("--candidates", required=True, type=Path, help="run file with the lists")
    score.add_argument("--split", default="train", help="whose queries the lists belong to")
    encode = command(
        "encode", run_encode, "vectors of texts, as a .npy array, with their ids in a text file beside it",
        "kdfw encode --data beir:scifact --model bi-encoder:PATH --out vectors.npy",
    )  # fmt: skip
    encode.add_argument("--model", required=True, help="a model that gives each text one vector")
    encode.add_argument("--of", choices=["passages", "queries"], default="passages", help="which texts")
    encode.add_argument("--split", default="test", help="whose queries")
    encode.add_argument("--ids", type=Path, help="file for the ids; default: ids.txt beside --out")
    search = command(
        "search", run_search, "search the corpus for every query of a split, as a TREC run",
        "kdfw search --data beir:scifact --model bi-encoder:PATH --split test --depth 1000 --out run.trec",
    )  # fmt: skip
    search.add_argument("--model", help="the model to search with; one that cannot search re-ranks BM25's results")
    search.add_argument("--retriever", help="what searches, instead of what fits --model")
    search.add_argument("--depth", type=int, default=1000, help="results of each query")
    search.add_argument("--split", default="test", help="whose queries")


def run_mine(arguments: argparse.Namespace) -> Path:
    """`kdfw mine`."""
    return _lists(arguments, {}, "bm25")


def run_search(arguments: argparse.Namespace) -> Path:
    """`kdfw search`."""
    from kdfw.errors import ConfigError, Problem

    if arguments.model is None and arguments.retriever is None:
        fix = "give --model TYPE:BASE, or --retriever bm25"
        raise ConfigError(Problem(where="command line", found="nothing to search with", fix=fix))
    return _lists(arguments, {"drop_positives": False}, "")


def _lists(arguments: argparse.Namespace, options: Mapping[str, Any], retriever: str) -> Path:
    """Run one mining stage and write its lists."""
    from kdfw.data.ranking import Ranking
    from kdfw.plugins import registry
    from kdfw.retrieval.mining import write_run

    known = registry()
    model = _spec(known, ("student",), arguments.model, "--model") if arguments.model else None
    if arguments.retriever is not None:
        searches: Any = _spec(known, ("retriever",), arguments.retriever, "--retriever")
    elif model is not None:
        searches = _retriever_of(known, model)
    else:
        searches = retriever
    stage = {
        "name": "lists", "type": "mine", "retriever": searches, "depth": arguments.depth, "split": arguments.split,
        **options,
    }  # fmt: skip
    with _ran(known, arguments, [stage], model) as (folders, data):
        ranking = Ranking.load(folders["lists"])
        write_run(ranking, data.corpus, arguments.out)
    return Path(arguments.out)


def run_score(arguments: argparse.Namespace) -> Path:
    """`kdfw score`."""
    from kdfw.data.ranking import Ranking
    from kdfw.errors import DataError
    from kdfw.files import write_lines
    from kdfw.plugins import registry

    known = registry()
    model = _spec(known, ("student", "teacher"), arguments.model, "--model")
    given = {"type": "run-file", "path": str(arguments.candidates)}
    stages = [
        {
            "name": "candidates", "type": "mine", "retriever": given, "depth": EVERY_RESULT, "split": arguments.split,
            "drop_positives": False,
        },
        {
            "name": "scores", "type": "score", "teacher": "model", "of": ["candidates"], "split": arguments.split,
            "include_positives": False,
        },
    ]  # fmt: skip
    with _ran(known, arguments, stages, model) as (folders, data):
        ranking = Ranking.load(folders["scores"])
        if not len(ranking.passages):
            found = f"{arguments.candidates}: no query of split {arguments.split!r} of the data is in it"
            raise DataError(f"{found}; name the split the lists are for with --split")
        write_lines(arguments.out, _score_lines(ranking, data))
    return Path(arguments.out)


def _score_lines(ranking: Ranking, data: RankingData) -> Iterator[str]:
    """`qid TAB pid TAB score`; nine digits are read back as the same float32."""
    for number, query in enumerate(ranking.query_ids):
        for row, score in zip(*ranking.of(number), strict=True):
            yield f"{query}\t{data.corpus.id(int(row))}\t{float(score):.9g}\n"


def run_encode(arguments: argparse.Namespace) -> Path:
    """`kdfw encode`."""
    from kdfw.files import replacing
    from kdfw.plugins import registry

    known = registry()
    model = _spec(known, ("student",), arguments.model, "--model")
    stage = {"name": "vectors", "type": "encode", "model": "model", "of": arguments.of, "split": arguments.split}
    with _ran(known, arguments, [stage], model) as (folders, _):
        targets = {"ids.txt": arguments.ids or arguments.out.with_name("ids.txt"), "vectors.npy": arguments.out}
        for name, target in targets.items():
            with (folders["vectors"] / name).open("rb") as source, replacing(target) as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
    return Path(arguments.out)


def _spec(known: Registry, kinds: Sequence[str], text: str, flag: str) -> dict[str, Any]:
    """The mapping a recipe would have: from `TYPE`, `TYPE:VALUE`, or a mapping in YAML."""
    from kdfw.errors import ConfigError, Problem, one_of
    from kdfw.options import options_of
    from kdfw.recipe.source import parse

    where = f"command line: {flag}"
    if text.lstrip().startswith("{"):
        return dict(parse(text, where).value)
    name, colon, value = text.partition(":")
    types = [type for kind in kinds for type in known.names(kind)]
    if name not in types:
        raise ConfigError(Problem(where=where, found=f"no {kinds[0]} type {name!r}", fix=one_of(name, types)))
    kind = next(kind for kind in kinds if name in known.names(kind))
    if not colon:
        return {"type": name}
    return {"type": name, next(iter(options_of(known.get(kind, name)))): value}


def _retriever_of(known: Registry, model: Mapping[str, Any]) -> dict[str, Any]:
    """The retriever that searches with a model; a model that cannot search re-ranks."""
    from kdfw.retrieval import SEARCHES

    name = model.get("type")
    search = getattr(known.get("student", name), "search", "") if name in known.names("student") else "dense"
    if search:
        return {"type": SEARCHES[search], "model": "model"}
    return {"type": "rerank", "first": "bm25", "model": "model"}


@contextlib.contextmanager
def _ran(
    known: Registry,
    arguments: argparse.Namespace,
    stages: Sequence[Mapping[str, Any]],
    model: Mapping[str, Any] | None,
) -> Iterator[tuple[Mapping[str, Path], RankingData]]:
    """Run stages as a recipe of their own: (folder of each by name, the data set), until the block ends.

    `option=value` settings of the command line go to the last stage. Raises: what `run_plan` raises.
    """
    from kdfw.engine.launch import start_processes
    from kdfw.engine.run import default_cache, run_plan
    from kdfw.recipe.plan import make_plan
    from kdfw.recipe.recipe import build
    from kdfw.recipe.source import Source, override

    value: dict[str, Any] = {
        "kdfw": 1,
        "name": arguments.command,
        "data": _spec(known, ("dataset",), arguments.data, "--data"),
        "stages": [dict(stage) for stage in stages],
    }
    if model is not None:
        value["models"] = {"model": dict(model)}
    source = Source(value=value, lines={(): ("command line", 0)}, file="command line")
    settings = [f"stages.{stages[-1]['name']}.{setting}" for setting in arguments.settings]
    if arguments.offline:
        from kdfw.models.checkpoint import go_offline

        go_offline()
    plan = make_plan(build(override(source, settings), known))
    workers, device = start_processes()
    out: Path = arguments.out
    cache = arguments.cache or default_cache(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # beside the file, so that large results are linked from the cache and not copied
    with tempfile.TemporaryDirectory(prefix=f".kdfw-{plan.recipe.name}-", dir=out.parent) as folder:
        result = run_plan(
            plan,
            Path(folder),
            cache=cache,
            workers=workers,
            offline=arguments.offline,
            trust_remote_code=arguments.trust_remote_code,
            device=device,
        )
        data: Any = plan.datasets["data"].open(cache)
        yield result.stages, data

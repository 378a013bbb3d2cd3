"""What an `evaluate` entry with `benchmarks` stands for: a data set and a stage for each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdfw.components import WrittenOut
from kdfw.errors import DataError
from kdfw.evaluation.benchmarks import Benchmark, benchmark, slug_of
from kdfw.fingerprint import fingerprint
from kdfw.retrieval import RETRIEVERS

DEFAULT_DEPTH = 1000
SEARCHED = ("ranking", "answers")
"""Tasks of benchmarks over a collection of passages."""
OWN = ("benchmarks", "split", "data", "name")
"""Keys of an entry that each benchmark has its own of."""


def benchmark_stages(entry: Mapping[str, Any], recipe: Mapping[str, Any]) -> WrittenOut | None:
    """The stages of an `evaluate` entry with benchmarks; None for one without.

    A benchmark that is the mean of others is written out as those. One that does not exist becomes a data set all the
    same: building it is what fails, with its place in the recipe.
    """
    items = entry.get("benchmarks")
    if not isinstance(items, list) or not items:
        return None
    stages: list[tuple[dict[str, Any], tuple[str | int, ...]]] = []
    data: dict[str, tuple[dict[str, Any], tuple[str | int, ...]]] = {}
    if "split" in entry:
        stages.append(({key: value for key, value in entry.items() if key != "benchmarks"}, ()))
    near = _own_folders(recipe)
    for index, item in enumerate(items):
        for known, options in _each(item):
            candidates = options.pop("candidates", None)
            slug = slug_of(known.name if known else str(options.get("name")))
            name = f"benchmark-{slug}" + (f"-{fingerprint(options)[:6]}" if len(options) > 1 else "")
            written = {"type": "benchmark", **({"near": near} if near and "folder" not in options else {}), **options}
            data[name] = (written, ("benchmarks", index))
            stage = _stage(entry, known, name, f"{entry.get('name', entry['type'])}-{slug}", recipe)
            if candidates is not None and (known is None or known.task in SEARCHED):
                first = _first_stage(stage, candidates)
                stages.append((first, ("benchmarks", index)))
                stage["candidates"] = first["name"]
            stages.append((stage, ()))
    return WrittenOut(stages=stages, data=data)


def _each(item: Any) -> Iterator[tuple[Benchmark | None, dict[str, Any]]]:
    """(benchmark, options of its data set) of an item; several for one that is the mean of others."""
    options = dict(item) if isinstance(item, Mapping) else {"name": item}
    try:
        known = benchmark(str(options.get("name")))
    except DataError:
        yield None, options
        return
    if not known.parts:
        yield known, options
    for part in known.parts:
        own = {**options, "name": part}
        if isinstance(options.get("folder"), str):
            own["folder"] = str(Path(options["folder"]) / part.rpartition("/")[2])
        yield benchmark(part), own


def _stage(
    entry: Mapping[str, Any], known: Benchmark | None, data: str, name: str, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """The evaluation of one benchmark."""
    stage = {key: value for key, value in entry.items() if key not in OWN}
    stage |= {"name": name, "data": data, "split": known.name if known else "test"}
    if known is not None and known.task == "answers":
        stage.pop("measures", None)  # there are no judgements that anything else could be measured by
    if known is not None and known.task not in SEARCHED:
        _without_retrieval(stage, recipe)
    return stage


def _first_stage(stage: Mapping[str, Any], candidates: Any) -> dict[str, Any]:
    """The search for what an evaluation re-ranks."""
    return {
        "name": f"{stage['name']}-{_first_name(candidates)}",
        "type": "mine",
        "retriever": candidates,
        "data": stage["data"],
        "split": stage["split"],
        "depth": stage.get("depth", DEFAULT_DEPTH),
        "drop_positives": False,
    }


def _without_retrieval(stage: dict[str, Any], recipe: Mapping[str, Any]) -> None:
    """Take out what only means something where passages are searched."""
    models = recipe.get("models")
    models = models if isinstance(models, Mapping) else {}
    against = stage.get("against")
    if isinstance(against, list):
        stage["against"] = [name for name in against if name not in RETRIEVERS or name in models]
    if stage.get("baseline") in RETRIEVERS and stage["baseline"] not in models:
        del stage["baseline"]
    for key in ("candidates", "depth", "rerank_depth", "measures"):
        stage.pop(key, None)


def _first_name(candidates: Any) -> str:
    """What a first stage is called: the file of a given run, else the retriever's type."""
    options = candidates if isinstance(candidates, Mapping) else {"type": candidates}
    name = Path(str(options["path"])).name.partition(".trec")[0] if "path" in options else options.get("type")
    return slug_of(str(name)) or "candidates"


def _own_folders(recipe: Mapping[str, Any]) -> list[str]:
    """Folders of the recipe's own data sets that are there."""
    data = recipe.get("data")
    several: Sequence[Any] = [data] if isinstance(data, Mapping) and "type" in data else []
    if isinstance(data, Mapping) and "type" not in data:
        several = list(data.values())
    folders = [each.get("folder") for each in several if isinstance(each, Mapping)]
    expanded = [os.path.expandvars(os.path.expanduser(folder)) for folder in folders if isinstance(folder, str)]
    return [folder for folder in expanded if Path(folder).is_dir()]

"""Writing run files and results as trec_eval, leaderboards, BEIR and MTEB take them. `kdfw.data.runs` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdfw.data.order import trec_order
from kdfw.errors import DataError
from kdfw.files import write_lines


def write_trec(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str, depth: int | None = None) -> None:
    """Write a TREC run, `qid Q0 pid rank score tag`: ranks from 1, in trec_eval's order.

    Args:
        tag: name of the system; no spaces.
        depth: write only the best so many of each query.
    Raises: DataError for an id or tag that would not survive the format (empty, or with white space).
    """
    _check_word(tag, "run tag")

    def lines() -> Iterator[str]:
        for query, results in run.items():
            _check_word(query, "query id")
            for rank, passage in enumerate(trec_order(results, query)[:depth], start=1):
                _check_word(passage, "passage id")
                yield f"{query} Q0 {passage} {rank} {float(results[passage])!r} {tag}\n"

    write_lines(Path(path), lines())


def write_msmarco(run: Mapping[str, Mapping[str, float]], path: str | Path, depth: int | None = 1000) -> None:
    """Write a submission to the MS MARCO leaderboards: `qid TAB pid TAB rank`, ranks from 1.

    Raises: DataError for ids with white space.
    """

    def lines() -> Iterator[str]:
        for query, results in run.items():
            _check_word(query, "query id")
            for rank, passage in enumerate(trec_order(results, query)[:depth], start=1):
                _check_word(passage, "passage id")
                yield f"{query}\t{passage}\t{rank}\n"

    write_lines(Path(path), lines())


def write_beir(run: Mapping[str, Mapping[str, float]], path: str | Path, depth: int | None = None) -> None:
    """Write results as BEIR and ranx store them: `{qid: {pid: score}}`, best first."""

    def lines() -> Iterator[str]:
        yield "{"
        for number, (query, results) in enumerate(run.items()):
            ranked = {passage: float(results[passage]) for passage in trec_order(results, query)[:depth]}
            yield f"{',' if number else ''}\n{json.dumps(query)}: {json.dumps(ranked)}"
        yield "\n}\n"

    write_lines(Path(path), lines())


def write_mteb(
    path: str | Path,
    task: str,
    scores: Mapping[str, float],
    *,
    main: str = "ndcg_at_10",
    split: str = "test",
    language: str = "eng-Latn",
) -> None:
    """Write the measures of one task as MTEB's result files have them.

    Args:
        task: MTEB's name of the task, such as `SciFact`.
        scores: values by name, as kdfw writes names (`nDCG@10`); they are renamed (`ndcg_at_10`).
        main: which of them, by MTEB's name, is `main_score`.
    Raises: DataError when `main` is not among the scores.
    """
    from kdfw import __version__

    renamed = {mteb_name(name): float(value) for name, value in scores.items()}
    if main not in renamed:
        raise DataError(f"{path}: the main score {main!r} is not among the measures ({', '.join(sorted(renamed))})")
    entry = {**renamed, "main_score": renamed[main], "hf_subset": "default", "languages": [language]}
    result = {"task_name": task, "evaluated_with": f"kdfw {__version__}", "scores": {split: [entry]}}
    write_lines(Path(path), [json.dumps(result, indent=2), "\n"])


def mteb_name(name: str) -> str:
    """MTEB's name of a measure: `nDCG@10` is `ndcg_at_10`, `RR@10` is `mrr_at_10`."""
    head, _, cutoff = name.partition("@")
    head = {"rr": "mrr", "ap": "map", "r": "recall", "p": "precision", "success": "hit_rate"}.get(
        head.lower(), head.lower()
    )
    return f"{head}_at_{cutoff}" if cutoff else head


def _check_word(word: str, what: str) -> None:
    if not word or word.split() != [word]:
        raise DataError(f"{what} {word!r} is empty or has white space in it, which a run file cannot hold")

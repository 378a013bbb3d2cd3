"""`kdfw.evaluate`: measures of a run file, as `kdfw evaluate` prints them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfw.types import Qrels, Run

if TYPE_CHECKING:
    from kdfw.data.runs import RunFormat
    from kdfw.evaluation.measures import Measure


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measures of one run."""

    measures: Mapping[str, float]
    """Means over all queries of the qrels, by the name as asked for."""
    queries: int
    """Queries of the qrels: what the means divide by."""
    missing: int
    """Of these, how many the run does not have; they count as 0."""
    unjudged_queries: int
    """Queries of the run that are not in the qrels; they do not count."""
    depth: int
    """Longest list of the run."""
    judged: float | None
    """Share of the first 10 results that are judged, mean over the queries present; None where nothing is judged."""
    per_query: Mapping[str, Mapping[str, float]]
    """Measure -> query id -> value."""

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints; without the per-query values."""
        return {
            "measures": dict(self.measures),
            "queries": self.queries,
            "missing_queries": self.missing,
            "unjudged_queries": self.unjudged_queries,
            "depth": self.depth,
            "judged@10": self.judged,
        }


def evaluate(
    run: Run | str | Path,
    qrels: Qrels | str | Path,
    measures: str | Iterable[str | Measure],
    *,
    per_query: str | Path | None = None,
    run_format: RunFormat = "auto",
    remove_query: bool = False,
) -> Evaluation:
    """Measure a run, as trec_eval would, over every query of the qrels.

    Args:
        run: a run file in any layout `kdfw.data.runs.read_run` reads, or query id -> passage id -> score.
        qrels: a file of judgements, or query id -> passage id -> grade.
        measures: names such as `nDCG@10 RR(rel=2)@10 AP R@1000`, in one string or a list.
        per_query: file for per-query values, one JSON object a line: {"query": id, "nDCG@10": 0.5, ...}.
        remove_query: take a passage with the query's own id out of its results (ArguAna, Quora).
    Raises: DataError naming file and line, an unknown measure, or data that do not belong together.
    """
    from kdfw.data.runs import read_qrels, read_run
    from kdfw.evaluation.measures import Measure, parse_measures, score_run
    from kdfw.files import write_lines

    wanted = parse_measures(measures)
    results = read_run(Path(run), format=run_format, finite=False) if isinstance(run, (str, Path)) else run
    grades = read_qrels(Path(qrels)) if isinstance(qrels, (str, Path)) else qrels
    if remove_query:
        results = {q: {p: score for p, score in rows.items() if p != q} for q, rows in results.items()}
    share = Measure(kind="judged", cutoff=10, text="\0judged")
    values = score_run(results, grades, [*wanted, share])
    present = [query for query in grades if results.get(query)]
    judged = values.pop(share.text)
    if per_query is not None:
        write_lines(
            Path(per_query),
            (
                json.dumps({"query": query, **{name: found[query] for name, found in values.items()}}) + "\n"
                for query in grades
            ),
        )
    return Evaluation(
        measures={name: float(np.mean(list(found.values()))) for name, found in values.items()},
        queries=len(grades),
        missing=len(grades) - len(present),
        unjudged_queries=sum(query not in grades for query in results),
        depth=max(len(rows) for rows in results.values()),
        judged=float(np.mean([judged[query] for query in present])),
        per_query=values,
    )

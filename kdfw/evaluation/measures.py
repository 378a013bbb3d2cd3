"""Measures of ranked retrieval by the names the field writes, scored with ranx as trec_eval would.

ranx orders equal scores arbitrarily, so it is never handed ties: each query is ranked once in trec_eval's order
(`trec_order`) and ranx sees strictly decreasing scores. Means are over every query of the qrels; one that is missing
from the run, or has no relevant passage, counts as 0. Negative grades count as not relevant.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdfw.data.order import trec_order
from kdfw.errors import DataError, did_you_mean
from kdfw.types import Qrels

_KINDS = {
    "ndcg": "ndcg",
    "ndcg_burges": "ndcg_burges",
    "dcg": "dcg",
    "dcg_burges": "dcg_burges",
    "rr": "mrr",
    "mrr": "mrr",
    "recip_rank": "mrr",
    "ap": "map",
    "map": "map",
    "r": "recall",
    "recall": "recall",
    "p": "precision",
    "precision": "precision",
    "success": "hit_rate",
    "hit_rate": "hit_rate",
    "hits": "hits",
    "f1": "f1",
    "rprec": "r-precision",
    "r-precision": "r-precision",
    "bpref": "bpref",
    "rbp": "rbp",
    "judged": "judged",
}
"""What people write, in lower case -> ranx's name (`judged` is ours)."""

_SHOWN = [
    "nDCG@10",
    "RR@10",
    "MRR@10",
    "RR(rel=2)@10",
    "AP",
    "AP(rel=2)",
    "AP@1000",
    "MAP",
    "R@1000",
    "R(rel=2)@1000",
    "Recall@100",
    "P@10",
    "Success@5",
    "Judged@10",
    "Rprec",
    "Bpref",
    "ndcg@10",
    "ndcg_burges@10",
    "dcg@10",
    "mrr@10",
    "map@100",
    "recall@100",
    "precision@10",
    "hit_rate@10",
    "hits@10",
    "f1@10",
    "r-precision",
    "bpref",
    "rbp.95",
]
_NAME = re.compile(r"([a-z][a-z0-9_-]*?)(?:\((.*)\))?(?:@(\d+))?(?:-l(\d+))?", re.I)
_TREC_EVAL = re.compile(r"(ndcg_cut|map_cut|recall|P|success)_(\d+)")
_RBP = re.compile(r"rbp[.@](\d+)(?:-l(\d+))?", re.I)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure, told apart from how it was written."""

    kind: str
    """ranx's name of it, or `judged`."""
    cutoff: int | None = None
    """Ranks looked at; None for all."""
    rel: int = 1
    """Least grade that counts as relevant."""
    persistence: float | None = None
    """Of rank-biased precision, in (0, 1)."""
    text: str = ""
    """As it was asked for: the key of results."""

    @property
    def ranx_name(self) -> str:
        """How ranx writes it; empty for `judged`."""
        if self.kind == "judged":
            return ""
        head = f"rbp{str(self.persistence)[1:]}" if self.kind == "rbp" else self.kind
        return head + (f"@{self.cutoff}" if self.cutoff else "") + (f"-l{self.rel}" if self.rel != 1 else "")


def parse_measure(text: str) -> Measure:
    """The measure a name stands for: ir_measures' names, trec_eval's (`ndcg_cut_10`), or ranx's (`ndcg@10-l2`).

    Raises: DataError with the nearest known name.
    """
    name = text.strip()
    rbp = _RBP.fullmatch(name)
    if rbp:
        if int(rbp[1]) == 0:
            raise DataError(f"measure {text!r}: the persistence after the dot must be above 0, as in rbp.95")
        return Measure(kind="rbp", persistence=float(f"0.{rbp[1]}"), rel=_level(text, rbp[2]), text=text)
    trec_eval = _TREC_EVAL.fullmatch(name)
    if trec_eval:
        name = f"{trec_eval[1].removesuffix('_cut')}@{trec_eval[2]}"
    match = _NAME.fullmatch(name)
    kind = _KINDS.get(match[1].lower()) if match else None
    if match is None or kind is None or kind == "rbp":
        near = did_you_mean(name, _SHOWN) or did_you_mean(name.lower(), _SHOWN)
        raise DataError(f"no measure {text!r}; {near} Known: {', '.join(_SHOWN)}".replace(";  ", "; "))
    cutoff = int(match[3]) if match[3] else None
    if cutoff == 0:
        raise DataError(f"measure {text!r}: the cutoff must be at least 1")
    if cutoff and kind in ("bpref", "r-precision"):
        raise DataError(f"measure {text!r}: {match[1]} has no cutoff")
    rel = _level(text, match[4])
    for part in filter(None, (part.strip() for part in (match[2] or "").split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key == "rel" and value.isdigit():
            if kind in ("ndcg", "dcg", "judged", "ndcg_burges", "dcg_burges"):
                raise DataError(f"measure {text!r}: {match[1]} uses the grades themselves and takes no rel=")
            rel = _level(text, value)
        elif key == "dcg" and kind in ("ndcg", "dcg") and value.strip("'\"") in ("log2", "exp-log2"):
            kind += "_burges" if value.strip("'\"") == "exp-log2" else ""
        else:
            raise DataError(f"measure {text!r}: unknown parameter {part!r}; known: rel=GRADE, as in AP(rel=2)")
    return Measure(kind=kind, cutoff=cutoff, rel=rel, text=text)


def parse_measures(measures: str | Iterable[str | Measure]) -> list[Measure]:
    """Several measures: a list, or one string separated by spaces (or commas outside of parentheses).

    Raises: DataError for an unknown name, or when none is given.
    """
    if isinstance(measures, str):
        measures = [part for part in re.split(r"(?:\s|,)+(?![^()]*\))", measures.strip()) if part]
    found: dict[str, Measure] = {}
    for measure in measures:
        parsed = measure if isinstance(measure, Measure) else parse_measure(measure)
        found.setdefault(parsed.text, parsed)
    if not found:
        raise DataError("no measure asked for; write for example 'nDCG@10 RR@10 R@1000'")
    return list(found.values())


def _level(text: str, value: str | None) -> int:
    level = int(value) if value else 1
    if level < 1:
        raise DataError(f"measure {text!r}: relevance starts at grade 1 or above, found {level}")
    return level


def score_run(
    run: Mapping[str, Mapping[str, float]], qrels: Qrels, measures: Sequence[Measure]
) -> dict[str, dict[str, float]]:
    """Per-query values: measure as it was written -> query id -> value, for every query of the qrels.

    Raises: DataError when the qrels are empty, when no query of the run is judged, or for a score that is not a number.
    """
    if not qrels:
        raise DataError("no judgements: the qrels have no query")
    present = [query for query in qrels if run.get(query)]
    if not present:
        first, other = next(iter(run), None), next(iter(qrels))
        found = f"the run starts with query {first!r}, the qrels with {other!r}" if first is not None else "it is empty"
        raise DataError(f"no query of the run is in the qrels ({found}); are they of the same data set?")
    judged: list[np.ndarray] = []
    ranked: list[np.ndarray] = []
    for query in present:
        grades = qrels[query]
        index = {passage: number for number, passage in enumerate(grades)}
        order = trec_order(run[query], query)
        size = len(order)
        results = np.empty((size, 2))
        # ranx matches passages by number; whatever is not judged shares the number -1, which matches nothing
        results[:, 0] = np.fromiter((index.get(passage, -1) for passage in order), dtype=np.float64, count=size)
        results[:, 1] = np.arange(size, 0, -1)
        ranked.append(results)
        known = np.empty((len(grades), 2))
        known[:, 0] = np.arange(len(grades))
        known[:, 1] = np.fromiter(grades.values(), dtype=np.float64, count=len(grades))
        judged.append(known[np.argsort(-known[:, 1], kind="stable")])
    values = _score_lists(judged, ranked, measures)
    position = {query: number for number, query in enumerate(present)}
    return {
        text: {query: float(scores[position[query]]) if query in position else 0.0 for query in qrels}
        for text, scores in values.items()
    }


def _score_lists(
    judged: Sequence[np.ndarray], ranked: Sequence[np.ndarray], measures: Sequence[Measure]
) -> dict[str, np.ndarray]:
    """ranx's value of each measure for lists of (passage number, grade) and (passage number, score) rows."""
    switch, typed_list = _ranx()
    # trec_eval takes a negative grade for a passage outside the pool: neither relevant nor judged non-relevant
    relevance = [rows[rows[:, 1] >= 0] for rows in judged]
    qrels, results = typed_list(relevance), typed_list(ranked)
    found: dict[str, np.ndarray] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, about its own casts
        for measure in measures:
            if measure.kind == "judged":
                ones = typed_list([np.column_stack([rows[:, 0], np.ones(len(rows))]) for rows in judged])
                hits = switch("hits")(ones, results, measure.cutoff or 0, 1)
                depths = np.array([len(rows) for rows in ranked], dtype=np.float64)
                values = hits / np.minimum(depths, measure.cutoff or np.inf)
            elif measure.kind == "bpref":
                values = _bpref(switch, typed_list, relevance, ranked, measure)
            else:
                argument = measure.persistence if measure.kind == "rbp" else measure.cutoff or 0
                values = switch(measure.kind)(qrels, results, argument, measure.rel)
            found[measure.text] = np.asarray(values, dtype=np.float64)
    return found


def _bpref(
    switch: Any, typed_list: Any, judged: Sequence[np.ndarray], ranked: Sequence[np.ndarray], measure: Measure
) -> np.ndarray:
    """bpref of ranx where it is defined; like trec_eval recall without judged non-relevant, 0 without relevant."""
    relevant = np.array([(rows[:, 1] >= measure.rel).sum() for rows in judged])
    others = np.array([len(rows) for rows in judged]) - relevant
    recall = switch("recall")(typed_list(judged), typed_list(ranked), 0, measure.rel)
    values = np.where(relevant > 0, recall, 0.0)
    usual = np.flatnonzero((relevant > 0) & (others > 0)).tolist()
    if usual:
        some = typed_list([judged[number] for number in usual]), typed_list([ranked[number] for number in usual])
        values[usual] = switch("bpref")(*some, 0, measure.rel)
    return values


def _ranx() -> tuple[Any, Any]:
    """ranx's table of measures and numba's list, imported when first needed (ranx compiles on first use)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from numba.typed import List as typed_list
        from ranx.metrics import metric_switch
    return metric_switch, typed_list

"""The second implementation the measures are held to: pytrec_eval, asked measure by measure."""

from __future__ import annotations

from kdfw.evaluation.measures import Measure
from kdfw.types import Qrels, Run


def trec_eval(run: Run, qrels: Qrels, measure: Measure) -> dict[str, float]:
    """Per-query values over all queries of the qrels; a query missing from the run is 0."""
    import pytrec_eval

    cutoff = measure.cutoff
    name = {
        "ndcg": f"ndcg_cut.{cutoff}" if cutoff else "ndcg",
        "map": f"map_cut.{cutoff}" if cutoff else "map",
        "recall": f"recall.{cutoff}",
        "precision": f"P.{cutoff}",
        "hit_rate": f"success.{cutoff}",
        "bpref": "bpref",
        "r-precision": "Rprec",
        "mrr": "recip_rank",
    }[measure.kind]
    found = pytrec_eval.RelevanceEvaluator(qrels, {name}, relevance_level=measure.rel).evaluate(run)
    values = {query: found.get(query, {}).get(name.replace(".", "_"), 0.0) for query in qrels}
    if measure.kind == "mrr" and cutoff:  # trec_eval has no cut reciprocal rank
        values = {query: value if value > 1 / (cutoff + 0.5) else 0.0 for query, value in values.items()}
    return values


COMPARED = (
    "nDCG@10 nDCG@100 nDCG AP AP(rel=2) AP@1000 AP(rel=2)@100 R@1000 R(rel=2)@1000 R@100 P@10 P@30 P(rel=2)@10 "
    "Success@5 RR RR@10 RR(rel=2) RR(rel=2)@10 MRR@10 Rprec Bpref Bpref(rel=2)"
)

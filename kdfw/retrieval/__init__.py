"""Search of a corpus: BM25, dense, sparse, late interaction, given runs, re-ranking, fusion; and mining with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdfw.retrieval.bm25 import BM25
from kdfw.retrieval.dense import Dense
from kdfw.retrieval.encode_stage import Encode
from kdfw.retrieval.filter import Filter
from kdfw.retrieval.fusion import Fusion
from kdfw.retrieval.given import RunFile, Triples
from kdfw.retrieval.maxsim import LateInteraction
from kdfw.retrieval.mining import Mine
from kdfw.retrieval.rerank import Rerank
from kdfw.retrieval.sparse import Sparse

if TYPE_CHECKING:
    from kdfw.components import Retriever, Stage
    from kdfw.context import StageContext
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import RankingData
    from kdfw.types import TextSource

RETRIEVERS: Mapping[str, type[Retriever]] = {
    "bm25": BM25,
    "dense": Dense,
    "sparse": Sparse,
    "late-interaction": LateInteraction,
    "run-file": RunFile,
    "triples": Triples,
    "rerank": Rerank,
    "fusion": Fusion,
}
SEARCHES: Mapping[str, str] = {"dense": "dense", "sparse": "sparse", "maxsim": "late-interaction"}
"""Which retriever searches with a model, by the model's `search`."""
STAGES: Mapping[str, type[Stage]] = {"mine": Mine, "filter": Filter, "encode": Encode}


def retriever_for(model: str, search: str) -> Retriever:
    """The retriever that searches with a model, by its `search` attribute.

    Raises: ConfigError for a model that cannot encode a text by itself.
    """
    from kdfw.errors import ConfigError

    if search in SEARCHES:
        retriever: Any = RETRIEVERS[SEARCHES[search]]
        return retriever(model=model)  # type: ignore[no-any-return]
    raise ConfigError(
        f"model {model!r} cannot search a corpus: it scores a query and a passage together; "
        "let it re-rank: {type: rerank, first: bm25, model: " + model + "}"
    )


def search_with(
    model: str,
    data: RankingData,
    queries: TextSource,
    depth: int,
    context: StageContext,
    first: Retriever | None = None,
    first_depth: int = 100,
) -> Ranking:
    """Search with any model: by its vectors, or, where it has none, by re-ranking what `first` (BM25) finds."""
    search = context.model(model).search
    if search:
        return retriever_for(model, search).search(data, queries, depth, context)
    again = Rerank(first=first or BM25(), model=model, depth=first_depth)
    return again.search(data, queries, depth, context)


__all__ = [
    "BM25",
    "RETRIEVERS",
    "SEARCHES",
    "STAGES",
    "Dense",
    "Encode",
    "Filter",
    "Fusion",
    "LateInteraction",
    "Mine",
    "Rerank",
    "RunFile",
    "Sparse",
    "retriever_for",
    "search_with",
]

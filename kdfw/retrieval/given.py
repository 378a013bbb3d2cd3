"""Results that are given: a run file as a first stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from kdfw.components import Retriever
from kdfw.data.order import ranked
from kdfw.data.ranking import Ranking
from kdfw.errors import DataError
from kdfw.retrieval.queries import as_ranking

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import RankingData
    from kdfw.types import TextSource


class RunFile(Retriever):
    """The results in a run file: a first stage made elsewhere."""

    def __init__(
        self,
        *,
        path: Annotated[
            Path,
            Field(description="TREC run `qid Q0 pid rank score tag`, or MS MARCO `qid pid rank`; .gz is read"),
        ],
    ) -> None:
        self.path = path

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """The file's bytes."""
        from kdfw.data.store import remembered_digest

        return {"file": remembered_digest(self.path)}

    def search(self, data: RankingData, queries: TextSource, depth: int, context: StageContext) -> Ranking:
        """The file's lists in kdfw's order; an empty list for a query that is not in the file."""
        from kdfw.data.runs import read_run

        run = read_run(self.path)
        lists = []
        for query in (queries.id(number) for number in range(len(queries))):
            results = run.get(query, {})
            try:
                rows = np.asarray([data.corpus.row(passage) for passage in results], dtype=np.int64)
            except KeyError as error:
                raise DataError(
                    f"{self.path}: query {query!r}: no passage {error.args[0]!r} in the corpus of {data.name!r}"
                ) from None
            lists.append(ranked(rows, np.asarray(list(results.values()), dtype=np.float32), data.corpus, depth))
        return as_ranking(lists, [queries.id(number) for number in range(len(queries))])

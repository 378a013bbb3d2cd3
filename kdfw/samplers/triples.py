"""Given triples: query, positive, negative, as a data set lists them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfw.amounts import Amount, Sizes
from kdfw.components import Sampler
from kdfw.errors import DataError
from kdfw.samplers.judged import Judged, example, ranking_data
from kdfw.types import Clock, Example

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import Data
    from kdfw.errors import Problem


class Triples(Sampler):
    """The triples of the data set, one example each: the first passage is the positive, whatever the judgements say."""

    num_candidates = 2

    def check(self, plan: Any) -> Iterator[Problem]:
        """That the data set, where it tells, has triples of the split that is trained on."""
        split, known = plan.stage.split, plan.triples
        if known is not None and split not in known:
            fix = "name a file of triples in the data set's options, or use the sampler `mined`"
            have = f" (splits with triples: {', '.join(sorted(known)) or 'none'})"
            yield plan.problem(found=f"no triples for the split {split!r}{have}", fix=fix)

    def bind(self, data: Data, split: str, context: StageContext) -> None:
        self.data = ranking_data(data, split, "triples")
        self.split = split
        if split not in data.triples:  # type: ignore[union-attr]
            have = ", ".join(sorted(self.data.triples)) or "none"
            raise DataError(
                f"data {data.name!r} has no triples for split {split!r} (splits with triples: {have}); name a file of "
                "triples in the data set's options, or use the sampler `mined`"
            )
        self.triples = self.data.triples[split]
        self.queries = _Ids(self.data.queries[split].ids(), self.triples)

    def expected_items(self, sizes: Sizes, split: str) -> Amount:
        return sizes.of(sizes.triples, split)

    def items(self) -> Sequence[str]:
        return self.queries

    def draw(self, item: int, clock: Clock, rng: np.random.Generator) -> Example:
        query, positive, negative = (int(row) for row in self.triples[item])
        good = Judged(rows=np.asarray([positive]), grades=np.ones(1, dtype=np.float32))
        return example(self.data, self.split, query, good, np.asarray([negative]), {})


class _Ids(Sequence[str]):
    """Query id of each triple, looked up when asked: there may be 400 million triples."""

    def __init__(self, ids: list[str], triples: np.ndarray) -> None:
        self.ids, self.triples = ids, triples

    def __len__(self) -> int:
        return len(self.triples)

    def __getitem__(self, item):  # type: ignore[no-untyped-def]
        if isinstance(item, slice):
            return [self.ids[int(row)] for row in self.triples[item, 0]]
        return self.ids[int(self.triples[item, 0])]

"""The stage `encode`: the vectors of passages or queries as a plain array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdfw.amounts import Amount, Workload
from kdfw.components import Model, Stage
from kdfw.errors import DataError, Problem
from kdfw.files import write_lines
from kdfw.references import DataRef, ModelRef
from kdfw.retrieval.encode import DType, encode_vectors

if TYPE_CHECKING:
    from kdfw.context import StageContext
    from kdfw.data.sets import RankingData
    from kdfw.types import TextSource

BLOCK = 16_384
"""Vectors copied at once."""
STAND_INS = 16
"""Texts of a check."""


class Encode(Stage):
    """Vectors of all passages, or of a split's queries: `vectors.npy` (N, H) and `ids.txt`, one id a line."""

    def __init__(
        self,
        *,
        model: Annotated[ModelRef, Field(description="a model that gives each text one vector")],
        data: Annotated[DataRef | None, Field(description="default: the recipe's data set")] = None,
        of: Annotated[Literal["passages", "queries"], Field(description="which texts")] = "passages",
        split: Annotated[str, Field(description="whose queries; passages belong to no split")] = "test",
        dtype: Annotated[DType, Field(description="type of the numbers in the file")] = "float32",
    ) -> None:
        self.model = model
        self.data = data
        self.of = of
        self.split = split
        self.dtype: DType = dtype

    def check(self, plan: Any) -> Iterator[Problem]:
        """The data are for ranking, the split exists, the model gives one vector a text."""
        if plan.task != "ranking":
            yield plan.problem("type", found=f"data for {plan.task}", fix="it encodes passages and queries")
        if self.of == "queries" and plan.splits and self.split not in plan.splits:
            known = ", ".join(plan.splits)
            yield plan.problem("split", found=f"no split {self.split!r}", fix=f"the data have: {known}")
        model = plan.model(self.model)
        if isinstance(model, Model) and model.search != "dense":
            fix = "name a bi-encoder"
            yield plan.problem("model", found=f"{self.model!r} does not give each text one vector", fix=fix)

    def estimate(self, plan: Any) -> Workload:
        """Every text once, and a vector of each on disk."""
        sizes, none = plan.sizes, Amount(0)
        queries = sizes.of(sizes.items, self.split) if self.of == "queries" else none
        passages = sizes.passages if self.of == "passages" else none
        work: Workload = plan.encoding(self.model, queries=queries, passages=passages, split=self.split)
        stored: Workload = plan.vectors(self.model, queries + passages, np.dtype(self.dtype).itemsize)
        return work + stored

    def run(self, context: StageContext) -> None:
        """Write `vectors.npy` and `ids.txt`, in the order of the data."""
        texts = self._texts(context)
        vectors = encode_vectors(self.model, texts, self._role, context)
        if not context.workers.main:
            return
        shape = (len(texts), vectors.width if len(texts) else 0)
        with (context.folder / "vectors.npy").open("wb") as stream:
            header = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for begin in range(0, len(texts), BLOCK):
                block = vectors.block(begin, min(begin + BLOCK, len(texts)))
                stream.write(block.astype(self.dtype, copy=False).tobytes())
        write_lines(context.folder / "ids.txt", (f"{texts.id(row)}\n" for row in range(len(texts))))
        context.summary({"texts": shape[0], "width": shape[1]})

    def preflight(self, context: StageContext) -> Mapping[str, Any]:
        """A few texts through the model; nothing is kept."""
        from kdfw.models.forward import encode_blocks
        from kdfw.models.precision import autocast_dtype

        texts = self._texts(context)
        rows = range(min(STAND_INS, len(texts)))
        model, autocast = context.model(self.model), autocast_dtype(context.precision)
        blocks = encode_blocks(model, texts, self._role, rows=rows, device=context.device, autocast=autocast)
        return {"texts": len(texts), "encoded": sum(len(found["embedding"]) for _, found in blocks)}

    @property
    def _role(self) -> str:
        return "query" if self.of == "queries" else "passage"

    def _texts(self, context: StageContext) -> TextSource:
        data: RankingData = context.data(self.data)  # type: ignore[assignment]
        if self.of == "passages":
            return data.corpus
        if self.split not in data.queries:
            raise DataError(f"data {data.name!r}: no queries for split {self.split!r}; it has: {sorted(data.queries)}")
        return data.queries[self.split]

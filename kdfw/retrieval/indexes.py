"""Nearest neighbours in embeddings: exact, and the approximate indexes of faiss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kdfw.data.order import ranked
from kdfw.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    import torch

    from kdfw.retrieval.encode import Vectors
    from kdfw.types import TextSource

TIES = 16
"""Asked for beyond the wanted depth, so that equal scores at the cut are ordered by id, not by where they stand."""
BLOCK_ROWS = 262_144
"""Vectors copied and searched at once; a multiple of the 1,024 rows that faiss multiplies at once, so cuts change no
bit. Vectors that are searched where they are mapped, without a copy, come four times as many."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Flat(_Options):
    """Exact search."""

    type: Literal["flat"] = "flat"


class IVF(_Options):
    """Inverted file: vectors in lists by their nearest centroid, some lists searched exactly."""

    type: Literal["ivf"] = "ivf"
    lists: int | None = Field(default=None, ge=1, description="centroids; default 4 * sqrt(passages)")
    probes: int = Field(default=32, ge=1, description="lists searched for a query")


class HNSW(_Options):
    """Graph of neighbours. Built by one thread, so that it is the same each time."""

    type: Literal["hnsw"] = "hnsw"
    links: int = Field(default=32, ge=4, description="neighbours of a vector; M")
    ef_construction: int = Field(default=80, ge=4, description="breadth of the search while building")
    ef_search: int = Field(default=128, ge=1, description="breadth of the search; at least the depth is used")


class PQ(_Options):
    """Product quantisation: every vector as a few bytes, compared with all; the best are scored again exactly."""

    type: Literal["pq"] = "pq"
    bytes_per_vector: int = Field(default=48, ge=1, description="must divide the width of the embeddings")
    rescore: int = Field(default=4, ge=0, description="candidates a result, scored again exactly; 0: none")


class IVFPQ(_Options):
    """Inverted file with product quantisation of what remains after the centroid."""

    type: Literal["ivf-pq"] = "ivf-pq"
    lists: int | None = Field(default=None, ge=1, description="centroids; default 4 * sqrt(passages)")
    probes: int = Field(default=32, ge=1, description="lists searched for a query")
    bytes_per_vector: int = Field(default=48, ge=1, description="must divide the width of the embeddings")
    rescore: int = Field(default=4, ge=0, description="candidates a result, scored again exactly; 0: none")


def _named(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


IndexOptions = Annotated[
    Flat | IVF | HNSW | PQ | IVFPQ,
    Field(discriminator="type", description="flat (exact), ivf, hnsw, pq or ivf-pq, with options"),
    BeforeValidator(_named),  # after the discriminator, so that it runs before it
]

Found = tuple[np.ndarray, np.ndarray]
"""(rows (Q, n) int64, scores (Q, n) float32); row -1 where there is no result."""


def load_faiss() -> Any:
    """The module; raises MissingDependencyError."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError("faiss-cpu", "dense search") from error
    return faiss


def nearest(queries: np.ndarray, vectors: Vectors, rows: range, depth: int, device: torch.device) -> Found:
    """Exact search of some rows by inner product: the best `depth + TIES` of each query, unordered.

    Args:
        queries: (Q, H) float32.
        rows: searched in blocks of `BLOCK_ROWS`; start and stop lie on borders of windows.
    """
    want = depth + TIES
    found: list[Found] = []
    size = BLOCK_ROWS * (4 if vectors.dtype == "float32" and device.type == "cpu" else 1)
    for begin in range(rows.start, rows.stop, size):
        block = vectors.block(begin, min(begin + size, rows.stop))
        best, scores = _block_best(queries, block, min(want, len(block)), device)
        found.append((np.where(best >= 0, best + begin, -1), scores))
        if len(found) == 8:
            found = [narrow(found, want)]
    return narrow(found, want) if found else _nothing(len(queries))


def _block_best(queries: np.ndarray, block: np.ndarray, depth: int, device: torch.device) -> Found:
    if device.type == "cuda":
        return torch_best(queries, block, depth, device)
    faiss = load_faiss()
    scores, indices = faiss.knn(queries, block, depth, metric=faiss.METRIC_INNER_PRODUCT)
    return indices, scores


def torch_best(queries: np.ndarray, block: np.ndarray, depth: int, device: torch.device) -> Found:
    """The best `depth` rows of a block, unordered, by torch: exact search on a GPU needs no GPU build of faiss."""
    import torch

    with torch.inference_mode():
        there = torch.tensor(block, device=device)
        tops = [
            torch.topk(torch.tensor(queries[at : at + 1024], device=device) @ there.T, depth, dim=1, sorted=False)
            for at in range(0, len(queries), 1024)
        ]
        indices = torch.cat([top.indices for top in tops]).cpu().numpy()
        return indices, torch.cat([top.values for top in tops]).cpu().numpy()


def narrow(found: list[Found], want: int) -> Found:
    """The best `want` of each query over several parts of the corpus, unordered."""
    rows = np.concatenate([part[0] for part in found], axis=1)
    scores = np.concatenate([part[1] for part in found], axis=1)
    if rows.shape[1] > want:
        keep = np.argpartition(-scores, want - 1, axis=1)[:, :want]
        rows, scores = np.take_along_axis(rows, keep, 1), np.take_along_axis(scores, keep, 1)
    return rows, scores


def _nothing(count: int) -> Found:
    return np.full((count, 1), -1, dtype=np.int64), np.full((count, 1), -np.inf, dtype=np.float32)


def build_index(vectors: Vectors, options: IVF | HNSW | PQ | IVFPQ, folder: Path) -> None:
    """Train and fill an approximate index of all vectors; writes `index.faiss`."""
    faiss = load_faiss()
    total, width = vectors.num_rows, vectors.width
    metric = faiss.METRIC_INNER_PRODUCT
    threads = faiss.omp_get_max_threads()
    if isinstance(options, (PQ, IVFPQ)):
        if width % options.bytes_per_vector:
            raise ConfigError(
                f"index: bytes_per_vector {options.bytes_per_vector} does not divide the width {width}; "
                f"some that do: {[size for size in (16, 24, 32, 48, 64, 96) if width % size == 0]}"
            )
        if total < 256:
            raise ConfigError(f"index: {options.type} needs at least 256 passages, found {total}; use flat")
    if isinstance(options, (IVF, IVFPQ)):
        lists = min(options.lists or max(1, int(4 * total**0.5)), total)
        coarse = faiss.IndexFlatIP(width)
        if isinstance(options, IVF):
            index = faiss.IndexIVFFlat(coarse, width, lists, metric)
        else:
            index = faiss.IndexIVFPQ(coarse, width, lists, options.bytes_per_vector, 8, metric)
    elif isinstance(options, PQ):
        index = faiss.IndexPQ(width, options.bytes_per_vector, 8, metric)
    else:
        index = faiss.IndexHNSWFlat(width, options.links, metric)
        index.hnsw.efConstruction = options.ef_construction
    # on few passages faiss warns on the terminal, once for each sub-vector, and does the same
    for clustering in (getattr(index, "cp", None), getattr(getattr(index, "pq", None), "cp", None)):
        if clustering is not None:
            clustering.min_points_per_centroid = 1
    if not index.is_trained:
        wanted = max(64 * getattr(index, "nlist", 0), 256 * 256)
        sample = np.linspace(0, total - 1, min(wanted, total)).astype(np.int64)  # spread evenly, no chance in it
        index.train(np.ascontiguousarray(vectors.array[sample], dtype=np.float32))
    try:
        if isinstance(options, HNSW):
            faiss.omp_set_num_threads(1)
        for begin in range(0, total, BLOCK_ROWS):
            index.add(vectors.block(begin, min(begin + BLOCK_ROWS, total)))
    finally:
        faiss.omp_set_num_threads(threads)
    faiss.write_index(index, str(folder / "index.faiss"))


class Approximate:
    """An opened approximate index."""

    def __init__(self, folder: Path, options: IVF | HNSW | PQ | IVFPQ, vectors: Vectors, device: torch.device) -> None:
        faiss = load_faiss()
        self.options = options
        self.vectors = vectors
        self._index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        if isinstance(options, (IVF, IVFPQ)):
            self._index.nprobe = min(options.probes, self._index.nlist)
        if device.type == "cuda" and getattr(faiss, "get_num_gpus", lambda: 0)() and not isinstance(options, HNSW):
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, device.index or 0, self._index)

    def search(self, queries: np.ndarray, depth: int) -> Found:
        """At least `depth` candidates of each query, with exact scores where the options say so."""
        faiss = load_faiss()
        rescore = getattr(self.options, "rescore", 0)
        want = min((depth * rescore if rescore else depth) + TIES, self.vectors.num_rows)
        if isinstance(self.options, HNSW):
            wide = faiss.SearchParametersHNSW(efSearch=max(self.options.ef_search, want))
            scores, rows = self._index.search(queries, want, params=wide)
        else:
            scores, rows = self._index.search(queries, want)
        if rescore:
            for query in range(len(queries)):
                real = np.flatnonzero(rows[query] >= 0)
                there = np.asarray(self.vectors.array[rows[query, real]], dtype=np.float32)
                scores[query, real] = there @ queries[query]
        return rows, scores


def in_order(found: Found, corpus: TextSource, depth: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per query the best `depth`, in order."""
    order = np.argsort(-found[1], axis=1)
    rows, scores = np.take_along_axis(found[0], order, 1), np.take_along_axis(found[1], order, 1)
    real = rows >= 0
    falling = scores[:, 1:] < scores[:, :-1]  # a difference of two -inf would be NaN
    plain = np.logical_and(real.all(axis=1), falling.all(axis=1))
    lists = []
    for query in range(len(rows)):
        if plain[query]:  # no ties: sorted is all there is to do
            lists.append((rows[query, :depth], scores[query, :depth]))
        else:
            some = real[query]
            lists.append(ranked(rows[query, some], scores[query, some], corpus, depth))
    return lists

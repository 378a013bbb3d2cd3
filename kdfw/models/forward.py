"""The one road from rows to representations: training, scoring and encoding all go through `represent`.

Rows are sorted by length and cut into micro-batches by token budget, so that little is padding; the cut depends on the
lengths alone. Each process computes some of the micro-batches, or parts of them where they are few, and all of them get
every representation, in the order of the rows.

Parameters used inside `Model.encode` get on each process the gradient of its own rows: the trainer sums them over the
processes. Parameters used outside (in `Model.signals`, in losses) get the whole gradient everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdfw.components import Model
from kdfw.context import Workers
from kdfw.models.dropout import Part, drawing
from kdfw.models.rows import Joined, MicroBatch, RowGroup, padded_length
from kdfw.types import Batch, Signals, Text, TextSource

log = logging.getLogger(__name__)

Representations = dict[str, dict[str, Tensor]]
"""By group, then by name: tensors whose first dimension is the group's rows."""


@dataclass
class Budget:
    """How much goes through a model at once. Shrinks when memory runs out, and stays so."""

    tokens: int | None = None
    """Largest number of tokens of a micro-batch, padding included; None: what suits the device."""
    max_rows: int = 1024
    pieces: int = 1
    """Into how many pieces each micro-batch is cut because memory ran out."""
    activations: float = math.inf
    """Bytes that gradient caching keeps of its first pass for the backward pass; the rest is computed again there."""
    kept: float = 0.0
    """Bytes kept so far; whoever begins a step sets it to 0."""

    def tokens_on(self, device: torch.device) -> int:
        """`tokens`, decided. What fits the caches of a CPU is faster there: encoding 1,024 passages with a 6-layer
        model took 3.2 s in micro-batches of 2,048 tokens, 3.5 s of 4,096 and 3.6 s of 8,192."""
        if self.tokens is not None:
            return self.tokens
        return 2048 if device.type == "cpu" else 8192

    def shrink(self, *, say: bool = True) -> None:
        """Halve what goes through at once, and keep half of what was kept, then nothing. Says so the first time."""
        if self.pieces == 1 and say:
            log.warning("out of memory: micro-batches are halved from here on (same results, a little slower)")
        self.activations = min(self.activations, self.kept) / 2 if self.pieces == 1 else 0.0
        self.pieces *= 2


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A micro-batch, or a part of one, before it is assembled."""

    group: int
    rows: np.ndarray
    """Row numbers within the group."""
    owner: int
    """Rank of the process that computes it."""
    number: int
    """Of the micro-batch that it belongs to, within the step."""
    whole: np.ndarray
    """Row numbers of that micro-batch: the cut of one process."""
    begin: int = 0
    """Where `rows` begin among them."""


def micro_batches(lengths: np.ndarray, token_budget: int, max_rows: int = 1 << 30) -> list[np.ndarray]:
    """Row numbers sorted by length (longest first, ties by number), cut so that rows x longest <= `token_budget`.

    A row longer than the budget gets a micro-batch of its own: this is never a reason to fail.
    """
    lengths = np.asarray(lengths)
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    found = []
    begin = 0
    while begin < len(order):
        longest = max(int(lengths[order[begin]]), 1)
        count = max(1, min(token_budget // longest, max_rows))
        found.append(order[begin : begin + count])
        begin += count
    return found


def share_of(
    lengths: Sequence[np.ndarray], workers: Workers, budget: Budget, device: torch.device | str = "cpu"
) -> list[Piece]:
    """Every micro-batch of a step with the process that computes it: the same list on every process.

    Micro-batches are those of one process, dealt out by their padded tokens, the largest first, each to the process
    with the least so far. When too few of them make the shares uneven, they are cut into parts.

    Args:
        lengths: for each group (R,) tokens of its rows.
    """
    size = workers.world_size
    whole = [
        (number, rows)
        for number, group in enumerate(lengths)
        for rows in micro_batches(group, budget.tokens_on(torch.device(device)), budget.max_rows)
    ]
    parts = 1
    while True:
        cut = [
            Piece(group=group, rows=part, owner=0, number=number, whole=rows, begin=begin)
            for number, (group, rows) in enumerate(whole)
            for begin, part in _parts(rows, parts)
        ]
        costs = np.asarray([len(p.rows) * int(lengths[p.group][p.whole].max()) for p in cut], dtype=np.int64)
        loads = np.zeros(size, dtype=np.int64)
        owners = np.zeros(len(cut), dtype=np.int64)
        for piece in np.lexsort((np.arange(len(cut)), -costs)):
            owners[piece] = int(loads.argmin())
            loads[owners[piece]] += costs[piece]
        finest = all(len(piece.rows) == 1 for piece in cut)
        if size == 1 or finest or loads.max() * size <= 1.2 * loads.sum() or len(cut) >= 8 * size:
            break
        parts *= 2
    return [replace(piece, owner=int(owner)) for piece, owner in zip(cut, owners, strict=True)]


def assemble(
    group: RowGroup, rows: np.ndarray, device: torch.device, pad_id: int = 0, beside: np.ndarray | None = None
) -> MicroBatch:
    """Rows of a group, padded on the right to one length. The mask is None when nothing is padded.

    Args:
        beside: rows that would fit beside them, `rows` among them; default: `rows`.
    """
    if group.pictures is not None:
        return MicroBatch(group=group.name, tensor=_to(group.pictures.read(rows), device))
    if group.tensor is not None:
        chosen = group.tensor[torch.from_numpy(rows).to(group.tensor.device)]
        return MicroBatch(group=group.name, tensor=chosen.to(device, non_blocking=True))
    beside = rows if beside is None else beside
    width = padded_length(_longest(group.ids, beside), group.max_tokens)
    ids, mask, lengths = _pad([group.ids[row] for row in rows], pad_id, width)
    types = None
    if group.type_ids is not None:
        types = _to(_pad([group.type_ids[row] for row in rows], 0, width)[0], device)
    targets = None
    if group.targets is not None:
        targets = _to(_pad([group.targets[row] for row in rows], -100, _longest(group.targets, beside))[0], device)
    return MicroBatch(
        group=group.name,
        ids=_to(ids, device),
        mask=None if mask.all() else _to(mask, device),
        type_ids=types,
        lengths=_to(lengths, device),
        targets=targets,
    )


def _longest(rows: Sequence[np.ndarray], some: np.ndarray) -> int:
    length = rows.length if isinstance(rows, Joined) else lambda row: len(rows[row])
    return max((length(row) for row in some), default=0)


def _pad(rows: Sequence[np.ndarray], fill: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    mask = np.arange(width) < lengths[:, None]
    padded = np.full(mask.shape, fill, dtype=np.int64)
    padded[mask] = np.concatenate(rows)
    return padded, mask, lengths


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# ---------------------------------------------------------------- the road


def represent(
    model: Model,
    groups: Sequence[RowGroup],
    need: frozenset[str],
    *,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    workers: Workers | None = None,
    rng_key: tuple[int, ...] | None = None,
    autocast: torch.dtype | None = None,
) -> Representations:
    """Representations of all rows of the step, with a graph when gradients are enabled.

    Args:
        rng_key: (seed, step, ...) from which the dropout of every micro-batch is drawn, so that a resumed run and a
            second pass over the same rows repeat bit for bit; None draws from torch's generator as it stands.
        autocast: dtype of the matrix products (`kdfw.models.precision.autocast_dtype`); results are float32.
    Returns: by group name and representation name, (R, ...) in the order of the rows. Where micro-batches differ in
    their second dimension (tokens), shorter ones are filled up with zeros.
    """
    run = _Run(model, groups, need, device, budget, workers, rng_key, autocast)
    own = run.own_representations()
    return run.complete(own)


@dataclass
class Cached:
    """What `represent_cached` leaves for `backward_cached`."""

    reps: Representations
    """Leaves: a loss computed from them puts its gradient into their `.grad`."""
    run: _Run


def represent_cached(
    model: Model,
    groups: Sequence[RowGroup],
    need: frozenset[str],
    *,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    workers: Workers | None = None,
    rng_key: tuple[int, ...] | None = None,
    autocast: torch.dtype | None = None,
) -> Cached:
    """First pass of gradient caching (arXiv:2101.06983), for any loss: representations without the graph behind them.

    Compute signals and losses from `Cached.reps`, call backward, then `backward_cached`: the gradients are those of
    `represent`. Micro-batches keep their activations as long as `budget.activations` lasts; those beyond are computed
    a second time, so that memory is bound by that and one micro-batch. `rng_key` is required where the model draws
    dropout.
    """
    run = _Run(model, groups, need, device, budget, workers, rng_key, autocast)
    if model.training and rng_key is None:
        raise ValueError("gradient caching needs `rng_key`: the second pass must draw the same dropout")
    with torch.no_grad():
        own = run.own_representations(keep=True)
        reps = run.complete(own)
    for named in reps.values():
        for name, value in named.items():
            if value.is_floating_point():
                named[name] = value.detach().requires_grad_()
    return Cached(reps=reps, run=run)


def backward_cached(cached: Cached) -> None:
    """Second pass: the stored gradients through each own micro-batch: as it was kept, or made again with a graph."""
    run = cached.run
    with _frozen_statistics(run.model), run.casting():
        for number, piece in run.own:  # in this order whatever was kept: sums are rounded alike
            leaves = cached.reps[run.groups[piece.group].name]
            if number in run.graphs:
                _send(run.graphs.pop(number), leaves, piece.rows)
                continue
            for part in run.parts(number, piece):
                _send(run.encode(part), leaves, part.rows)


def _send(found: Mapping[str, Tensor], leaves: Mapping[str, Tensor], rows: np.ndarray) -> None:
    """The gradients of some rows of a group's leaves, through the graph that made these rows."""
    outputs, gradients = [], []
    for name, value in found.items():
        gradient = leaves[name].grad
        if gradient is None or not value.requires_grad:
            continue
        own = gradient.index_select(0, torch.from_numpy(rows).to(gradient.device))
        if own.dim() > 1 and own.shape[1] != value.shape[1]:
            own = own[:, : value.shape[1]]
        outputs.append(value)
        gradients.append(own)
    if outputs:
        torch.autograd.backward(outputs, gradients)


def _storages(model: nn.Module) -> set[int]:
    """Addresses of a model's weights."""
    return {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}


@contextlib.contextmanager
def _kept_bytes(seen: set[int]) -> Iterator[Callable[[], int]]:
    """Counts the bytes that autograd keeps of what is computed inside, but for storages seen before."""
    total = 0

    def pack(value: Tensor) -> Tensor:
        nonlocal total
        if value.layout is torch.strided:
            storage = value.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        # not the tensor itself: an output kept by the node that made it would never be freed where no gradient comes
        # by (a pooler that no loss reads), and hold what is before it
        return value.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield lambda: total


@contextlib.contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics of normalisation layers as they were: the second pass must not count the rows again."""
    kept = [
        (buffer, buffer.clone())
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    yield
    for buffer, value in kept:
        buffer.copy_(value)


@dataclass
class _Own:
    """Representations of this process's micro-batches, in the order of the plan."""

    parts: list[dict[str, Tensor]]


class _Run:
    """One pass of some groups through a model: the plan, and what both passes of gradient caching share."""

    def __init__(
        self,
        model: Model,
        groups: Sequence[RowGroup],
        need: frozenset[str],
        device: torch.device | str,
        budget: Budget | None,
        workers: Workers | None,
        rng_key: tuple[int, ...] | None,
        autocast: torch.dtype | None,
    ) -> None:
        self.model, self.groups, self.need = model, list(groups), need
        self.device = torch.device(device)
        self.budget = budget or Budget()
        self.workers = workers or Workers()
        self.rng_key = rng_key if model.training else None
        self.autocast = autocast
        self.pad_id = int(getattr(model, "pad_id", 0))
        self.pieces = share_of([group.widths() for group in self.groups], self.workers, self.budget, self.device)
        self.own = [(n, piece) for n, piece in enumerate(self.pieces) if piece.owner == self.workers.rank]
        self.cuts: dict[int, int] = {}
        """Into how many parts each own micro-batch was cut."""
        self.graphs: dict[int, dict[str, Tensor]] = {}
        """For gradient caching: what own micro-batches gave, with the graph behind it, where that is kept."""
        names = [group.name for group in self.groups]
        assert len(set(names)) == len(names), f"two groups of one name: {names}"

    def casting(self) -> contextlib.AbstractContextManager[Any]:
        """Entered once around all micro-batches, so that weights are cast once."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def parts(self, number: int, piece: Piece) -> Iterator[Piece]:
        """A micro-batch in as many parts as memory asked for when it was first computed."""
        for begin, rows in _parts(piece.rows, self.cuts.setdefault(number, self.budget.pieces)):
            yield replace(piece, rows=rows, begin=piece.begin + begin)

    def encode(self, piece: Piece) -> dict[str, Tensor]:
        """One micro-batch through the model; floating values come back as float32."""
        beside = None if self.rng_key is None else piece.whole
        micro = assemble(self.groups[piece.group], piece.rows, self.device, self.pad_id, beside)
        with self.drawing(piece):
            found = self.model.encode(micro, self.need)
        return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}

    @contextlib.contextmanager
    def drawing(self, piece: Piece) -> Iterator[None]:
        """Dropout of a micro-batch depends on the step and on its number alone."""
        if self.rng_key is None:
            yield
            return
        compiled = hasattr(self.model.encode, "_torchdynamo_orig_callable")
        part = None if compiled else Part(begin=piece.begin, rows=len(piece.rows), whole=len(piece.whole))
        with _seeded((*self.rng_key, piece.number), self.device), drawing(part):
            yield

    def own_representations(self, *, keep: bool = False) -> _Own:
        """Representations of this process's micro-batches.

        Args:
            keep: for gradient caching: keep the graphs of the first ones, as many as the budget allows.
        """
        done: list[dict[str, Tensor]] = []
        before, seen = self.budget.kept, _storages(self.model) if keep else set()

        def work(number: int, piece: Piece) -> dict[str, Tensor]:
            self.cuts.pop(number, None)
            if not keep or self.budget.kept >= self.budget.activations:
                return self._encode_piece(number, piece)
            with torch.enable_grad(), _kept_bytes(seen) as count:
                found = self.graphs[number] = self._encode_piece(number, piece)
            self.budget.kept += count()
            return {name: value.detach() for name, value in found.items()}

        def set_free() -> None:
            self.graphs.clear()
            self.budget.kept = before
            seen.intersection_update(_storages(self.model))

        with self.casting():
            for number, piece in self.own:
                once_more = functools.partial(work, number, piece)
                done.append(retry_out_of_memory(once_more, self.budget, len(piece.rows), set_free if keep else None))
        return _Own(parts=done)

    def _encode_piece(self, number: int, piece: Piece) -> dict[str, Tensor]:
        return _join([self.encode(part) for part in self.parts(number, piece)])

    def complete(self, own: _Own) -> Representations:
        """Own representations joined, exchanged between processes, and put in the order of the rows."""
        result: Representations = {}
        for group_number, group in enumerate(self.groups):
            if not len(group):
                result[group.name] = {}
                continue
            mine = [part for part, (_, piece) in zip(own.parts, self.own, strict=True) if piece.group == group_number]
            order = [piece.rows for piece in self.pieces if piece.group == group_number]
            if self.workers.world_size > 1:
                order = [
                    piece.rows
                    for rank in range(self.workers.world_size)
                    for piece in self.pieces
                    if piece.group == group_number and piece.owner == rank
                ]
                if not mine:
                    # nothing of this group here: one row shows which representations there are, and is dropped
                    with torch.no_grad(), self.casting():
                        first = next(piece for piece in self.pieces if piece.group == group_number)
                        probe = self.encode(replace(first, rows=first.whole[:1], begin=0))
                    mine = [{name: value[:0] for name, value in probe.items()}]
            joined = _join(mine)
            if self.workers.world_size > 1:
                joined = {name: gather_rows(joined[name], self.workers) for name in sorted(joined)}
            sequence = np.concatenate(order)
            back = np.empty(len(sequence), dtype=np.int64)
            back[sequence] = np.arange(len(sequence))
            index = torch.from_numpy(back).to(self.device)
            result[group.name] = {name: value.index_select(0, index) for name, value in joined.items()}
        return result


def _join(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenated along rows; second dimensions that differ are filled up with zeros."""
    if len(parts) == 1:
        return dict(parts[0])
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].dim() > 1:
            widest = max(value.shape[1] for value in values)
            values = [_widen(value, widest) for value in values]
        joined[name] = torch.cat(values)
    return joined


def _widen(value: Tensor, width: int) -> Tensor:
    missing = width - value.shape[1]
    if not missing:
        return value
    return torch.cat((value, value.new_zeros(value.shape[0], missing, *value.shape[2:])), dim=1)


@contextlib.contextmanager
def _seeded(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Draws inside depend on `key` alone, and leave torch's generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
        torch.manual_seed(seed)
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def retry_out_of_memory(
    work: Callable[[], dict[str, Tensor]],
    budget: Budget,
    smallest: int,
    set_free: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """`work()`, again with `budget` halved as often as memory runs out and there is something to halve.

    Args:
        smallest: rows of the micro-batch: it cannot be cut into more pieces.
        set_free: given where activations are kept: forgets what is kept so far.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            keeping = set_free is not None and budget.activations > 0
            if not is_out_of_memory(error) or (budget.pieces >= smallest and not keeping):
                raise
        # outside the handler: the exception would keep the tensors of the failed try alive
        budget.shrink()
        if set_free is not None:
            set_free()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# ---------------------------------------------------------------- between processes


def gather_rows(own: Tensor, workers: Workers) -> Tensor:
    """Rows of all processes in rank order; the gradient of a process's own rows comes back to it.

    Every process must compute the same function of the result: then no process needs another's gradient.
    """
    if workers.world_size == 1:
        return own
    result: Tensor = _Gather.apply(own, workers.rank, workers.world_size)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, world_size: int) -> Tensor:
        import torch.distributed as dist

        width = own.shape[1] if own.dim() > 1 else 0
        shape = torch.tensor([own.shape[0], width], dtype=torch.long, device=own.device)
        shapes = [torch.empty_like(shape) for _ in range(world_size)]
        dist.all_gather(shapes, shape)
        counts = [int(shape[0]) for shape in shapes]
        widest = max(int(shape[1]) for shape in shapes)
        ctx.rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        ctx.width = width
        kind = own.dtype
        sent = own.to(torch.uint8) if kind == torch.bool else own
        if own.dim() > 1:
            sent = _widen(sent, widest)
        padded = sent.new_zeros(max(counts), *sent.shape[1:])
        padded[: len(own)] = sent
        received = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(received, padded)
        whole = torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])
        whole = whole.to(kind)
        if not whole.is_floating_point():
            ctx.mark_non_differentiable(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        own = gradients[0][ctx.rows]
        if own.dim() > 1:
            own = own[:, : ctx.width]
        return own, None, None


# ---------------------------------------------------------------- what stages call


def signals_of(
    model: Model,
    batch: Batch,
    need: frozenset[str],
    *,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    workers: Workers | None = None,
    autocast: torch.dtype | None = None,
    graph: bool = False,
) -> Signals:
    """Signals of a batch in evaluation mode: what a frozen teacher says.

    Args:
        graph: keep the way back to the inputs, for a model that has made them and learns from this.
    """
    with torch.set_grad_enabled(graph), evaluating(model):
        reps = represent(
            model, model.rows(batch, need), need, device=device, budget=budget, workers=workers, autocast=autocast
        )
        return model.signals(reps, batch, need)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and as it was afterwards."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def sub_batch(batch: Batch, items: Sequence[int]) -> Batch:
    """Some items of a batch whose inputs have one row an item, for models with `local_signals`; `num_items` stays."""
    index = torch.as_tensor(list(items), dtype=torch.long)

    def pick(values: Any) -> Any:
        return values[index.to(values.device)] if isinstance(values, Tensor) else [values[item] for item in items]

    return replace(
        batch,
        ids=tuple(batch.ids[item] for item in items),
        inputs={role: pick(values) for role, values in batch.inputs.items()},
        labels=None if batch.labels is None else pick(batch.labels),
        kinds=tuple(batch.kinds[item] for item in items) if batch.kinds else (),
        extras={name: pick(value) for name, value in batch.extras.items()},
    )


def shares(model: Model, batch: Batch, need: frozenset[str], budget: Budget, workers: Workers) -> list[Batch]:
    """This process's share of a batch as micro-batches of items: the unit of work where signals are local."""
    (group,) = model.rows(batch, need)
    pieces = share_of([group.widths()], workers, budget)
    own = [part for piece in pieces if piece.owner == workers.rank for _, part in _parts(piece.rows, budget.pieces)]
    return [sub_batch(batch, [int(row) for row in rows]) for rows in own]


def _parts(rows: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows in at most so many parts of about one size, each with the place where it begins."""
    begin = 0
    for part in np.array_split(rows, min(count, len(rows))):
        yield begin, part
        begin += len(part)


def encode_blocks(
    model: Model,
    texts: Sequence[Text] | TextSource,
    role: str,
    *,
    name: str = "embedding",
    rows: range | None = None,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    autocast: torch.dtype | None = None,
    block: int = 4096,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Representations of many texts, a block at a time: (number of the block's first text, tensors on the CPU).

    The next block is tokenized while this one is computed. Texts are neither compared nor de-duplicated.

    Args:
        texts: texts, or a stored source of which `rows` (default: all) are taken.
        role: `query` or `passage`.
        name: the representation wanted; those of a block that accompany it come along.
    """
    total = rows if rows is not None else range(len(texts))
    run_budget = budget or Budget()

    def prepare(begin: int) -> RowGroup:
        part = total[begin : begin + block]
        if isinstance(texts, Sequence):
            some = [texts[row] for row in part]
        else:
            some = [Text(source=texts, row=row) for row in part]
        group: RowGroup = model.text_rows(some, role)  # type: ignore[operator]
        return group

    starts = range(0, len(total), block)
    if not starts:
        return
    with ThreadPoolExecutor(max_workers=1) as pool, evaluating(model):
        waiting = pool.submit(prepare, starts[0])
        for begin in starts:
            group = waiting.result()
            if begin + block < len(total):
                waiting = pool.submit(prepare, begin + block)
            with torch.inference_mode():
                reps = represent(
                    model, [group], frozenset({name}), device=device, budget=run_budget, autocast=autocast
                )[group.name]
                yield begin, {key: value.cpu() for key, value in reps.items()}


def encode_texts(
    model: Model,
    texts: Sequence[Text] | TextSource,
    role: str,
    *,
    rows: range | None = None,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    autocast: torch.dtype | None = None,
    block: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """(texts, H) float32 embeddings of one-vector models, in the order of the texts."""
    found: list[np.ndarray] = []
    for _, reps in encode_blocks(
        model, texts, role, rows=rows, device=device, budget=budget, autocast=autocast, block=block
    ):
        found.append(reps["embedding"].numpy())
        if progress is not None:
            progress(len(found[-1]))
    if not found:
        return np.zeros((0, 0), dtype=np.float32)
    return np.concatenate(found)

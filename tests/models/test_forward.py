"""The one road: packing, order, dropout by key, gradient caching, processes, memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdfw.components import Model
from kdfw.context import Workers
from kdfw.models.forward import (
    Budget,
    Representations,
    assemble,
    backward_cached,
    encode_texts,
    is_out_of_memory,
    micro_batches,
    represent,
    represent_cached,
    share_of,
    shares,
    signals_of,
)
from kdfw.models.rows import MicroBatch, RowGroup
from kdfw.types import Batch
from tests.models.conftest import SENTENCES, made

STUDENTS = [
    ("bi-encoder", {}),
    ("bi-encoder", {"towers": "two", "projection": 8, "pooling": "last"}),
    ("cross-encoder", {"max_pair_tokens": 64}),
    ("late-interaction", {"projection": 8}),
    ("late-interaction", {"projection": 8, "expand_queries": False}),
    ("sparse", {}),
    ("text-classifier", {}),
    ("image-classifier", {}),
    ("image-text-encoder", {}),
    ("seq2seq", {}),
]


# ---------------------------------------------------------------- packing


def test_micro_batches_by_hand() -> None:
    # sorted: 9 | 5 5 | 4 2 1, budget 10: 1 x 9, 2 x 5, 2 x 4 (3 x 4 would be 12), then 1
    found = micro_batches(np.array([5, 1, 9, 5, 4, 2]), 10)
    assert [rows.tolist() for rows in found] == [[2], [0, 3], [4, 5], [1]]


def test_a_row_longer_than_the_budget_goes_alone_and_max_rows_holds() -> None:
    assert [rows.tolist() for rows in micro_batches(np.array([1, 50, 1, 1]), 10, max_rows=2)] == [[1], [0, 2], [3]]
    assert micro_batches(np.array([], dtype=np.int64), 10) == []


def test_shares_cover_every_row_once_and_are_balanced() -> None:
    lengths = [np.random.default_rng(0).integers(3, 60, 40), np.random.default_rng(1).integers(20, 256, 90)]
    for size in (1, 2, 3, 8):
        pieces = share_of(lengths, Workers(rank=0, world_size=size), Budget(tokens=4096))
        assert share_of(lengths, Workers(rank=size - 1, world_size=size), Budget(tokens=4096)) is not pieces
        for number, group in enumerate(lengths):
            rows = np.concatenate([piece.rows for piece in pieces if piece.group == number])
            assert sorted(rows) == list(range(len(group)))
        loads = np.zeros(size)
        for piece in pieces:
            loads[piece.owner] += len(piece.rows) * lengths[piece.group][piece.rows].max()
        assert loads.max() <= 1.3 * loads.mean()


def test_one_process_cuts_as_the_budget_says() -> None:
    lengths = [np.full(8, 10)]
    pieces = share_of(lengths, Workers(), Budget(tokens=40))
    assert [piece.rows.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_assemble_pads_on_the_right_and_leaves_the_mask_out_when_nothing_is_padded() -> None:
    group = RowGroup(name="text", ids=[np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7])])
    micro = assemble(group, np.array([0, 1]), torch.device("cpu"), pad_id=9)
    assert micro.ids is not None and micro.mask is not None
    assert micro.ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert micro.mask.tolist() == [[True, True, True], [True, False, False]]
    assert assemble(group, np.array([0, 2]), torch.device("cpu")).mask is None


# ---------------------------------------------------------------- the road


def total_loss(model: Model, reps: Representations, batch: Batch, need: frozenset[str]) -> Tensor:
    """A smooth function of every signal, different in each element."""
    signals = model.signals(reps, batch, need)
    values = [signals.logits, *signals.extra.values()]
    total = torch.zeros(())
    for value in values:
        assert value is not None
        weights = torch.linspace(0.1, 1.0, value.numel()).view(value.shape)
        total = total + (weights * torch.sin(value)).mean()
    return total


def gradients(model: Model) -> dict[str, Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], tolerance: float = 1e-6) -> None:
    assert set(first) == set(second) and first
    scale = max(float(value.abs().max()) for value in first.values())
    for name in first:
        assert float((first[name] - second[name]).abs().max()) <= tolerance * scale, name
    assert scale > 0


def set_dropout(model: Model, probability: float) -> None:
    from kdfw.models import checkpoint

    checkpoint.set_dropout(model, probability)


@pytest.mark.parametrize(("name", "options"), STUDENTS)
def test_micro_batches_change_nothing(
    name: str, options: dict[str, Any], build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    model, batch = build(name, ranking_batch, **options)
    model.eval()
    need = model.provides
    whole = signals_of(model, batch, need, budget=Budget(tokens=100_000))
    cut = signals_of(model, batch, need, budget=Budget(tokens=60, max_rows=2))
    assert whole.logits is not None and cut.logits is not None
    assert torch.allclose(whole.logits, cut.logits, atol=2e-5)
    assert set(whole.extra) == set(cut.extra) == set(need) - {"logits"}
    for signal in whole.extra:
        assert torch.allclose(whole.extra[signal], cut.extra[signal], atol=2e-5), signal
    if whole.labels is not None and cut.labels is not None:
        assert torch.equal(whole.labels, cut.labels)


@pytest.mark.parametrize("kept", ["nothing", "a part", "all"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("name", "options"), STUDENTS)
def test_gradient_caching_gives_the_gradients_of_the_direct_form(
    name: str,
    options: dict[str, Any],
    dropout: float,
    kept: str,
    build: Callable[..., tuple[Model, Batch]],
    ranking_batch: Batch,
) -> None:
    model, batch = build(name, ranking_batch, **options)
    model.train()
    set_dropout(model, dropout)
    need = model.provides
    groups = model.rows(batch, need)
    budget = Budget(tokens=80 if name != "image-classifier" else 5)
    direct_loss = total_loss(model, represent(model, groups, need, budget=budget, rng_key=(7, 3)), batch, need)
    direct_loss.backward()
    direct = gradients(model)
    if name == "image-classifier":
        again = copy.deepcopy(model.state_dict())
    budget.activations = {"nothing": 0.0, "a part": 1.0, "all": math.inf}[kept]
    cached = represent_cached(model, groups, need, budget=budget, rng_key=(7, 3))
    assert len(cached.run.own) > 1 or name == "image-classifier"  # which needs the statistics of the batch
    assert len(cached.run.graphs) == {"nothing": 0, "a part": 1, "all": len(cached.run.own)}[kept]
    assert (budget.kept > 0) == (kept != "nothing")
    loss = total_loss(model, cached.reps, batch, need)
    loss.backward()
    if name == "image-classifier":
        first_pass = model.state_dict()["body.norm.running_mean"].clone()
        assert not torch.equal(first_pass, again["body.norm.running_mean"])
    backward_cached(cached)
    if name == "image-classifier":  # the second pass must not count the images again
        assert torch.equal(model.state_dict()["body.norm.running_mean"], first_pass)
    assert loss.item() == pytest.approx(direct_loss.item(), rel=1e-6)
    assert_close(direct, gradients(model))
    if dropout and name not in ("image-classifier",):
        other = represent(model, groups, need, budget=budget, rng_key=(7, 4))
        assert total_loss(model, other, batch, need).item() != direct_loss.item()


def test_dropout_depends_on_the_key_alone(build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch) -> None:
    model, batch = build("bi-encoder", ranking_batch, dropout=0.3)
    model.train()
    groups = model.rows(batch, frozenset())

    def vectors(key: tuple[int, ...] | None) -> Tensor:
        with torch.no_grad():
            return represent(model, groups, frozenset(), rng_key=key)["passage"]["embedding"]

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = vectors((0, 1))
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own generator must not move"
    torch.manual_seed(2)
    assert torch.equal(vectors((0, 1)), first)
    assert not torch.equal(vectors((0, 2)), first)
    assert not torch.equal(vectors((1, 1)), first)
    assert not torch.equal(vectors(None), vectors(None))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["bi-encoder", "cross-encoder", "late-interaction", "sparse"])
def test_dropout_is_that_of_the_whole_micro_batch_however_it_is_cut(
    name: str, checkpointing: bool, build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    from kdfw.engine.training import _checkpoint_activations

    model, batch = build(name, ranking_batch)
    model.double().train()  # parts sum in another order, which shows in a loss near 0 in float32
    set_dropout(model, 0.3)
    need, groups = model.provides, model.rows(batch, model.provides)
    if checkpointing:
        _checkpoint_activations(model)
    found = {}
    for pieces in (1, 2, 3):
        for activations in (0.0, math.inf):
            budget = Budget(tokens=150, pieces=pieces, activations=activations)
            cached = represent_cached(model, groups, need, budget=budget, rng_key=(5,))
            loss = total_loss(model, cached.reps, batch, need)
            loss.backward()
            backward_cached(cached)
            found[pieces, activations] = loss.item(), gradients(model)
    assert len(cached.run.pieces) > 1 and max(len(piece.rows) for piece in cached.run.pieces) > 2
    expected_loss, expected = found[1, math.inf]
    for loss_value, each in found.values():
        assert loss_value == pytest.approx(expected_loss, rel=1e-9)
        assert_close(expected, each, 1e-9)
    set_dropout(model, 0.0)
    with torch.no_grad():
        assert total_loss(model, represent(model, groups, need), batch, need).item() != pytest.approx(expected_loss)


def test_a_compiled_encoder_keeps_its_own_dropout(
    build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    from torch.overrides import _get_current_function_mode_stack

    model, batch = build("bi-encoder", ranking_batch, dropout=0.3)
    model.train()
    modes: list[int] = []
    encode = model.encode

    def watched(micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        modes.append(len(_get_current_function_mode_stack()))
        return encode(micro, need)

    model.encode = watched  # type: ignore[method-assign]
    represent(model, model.rows(batch, frozenset()), frozenset(), rng_key=(1,))
    watched._torchdynamo_orig_callable = encode  # type: ignore[attr-defined]  # as torch.compile marks it
    represent(model, model.rows(batch, frozenset()), frozenset(), rng_key=(1,))
    assert modes == [1] * (len(modes) // 2) + [0] * (len(modes) // 2)


def test_gradient_caching_without_a_key_is_refused(
    build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    model, batch = build("bi-encoder", ranking_batch)
    model.train()
    with pytest.raises(ValueError, match="rng_key"):
        represent_cached(model, model.rows(batch, frozenset()), frozenset())


@pytest.mark.parametrize("kept", [None, 0.0, 1.0, math.inf])
def test_the_gradient_reaches_made_up_images(
    kept: float | None, build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    model, batch = build("image-classifier", ranking_batch)
    model.eval()
    seed = torch.zeros(3, requires_grad=True)
    images = batch.inputs["image"] + seed[None, :, None, None]  # type: ignore[operator]
    groups = [RowGroup(name="image", tensor=images)]
    need = frozenset({"logits"})
    if kept is not None:
        cached = represent_cached(model, groups, need, budget=Budget(tokens=2, activations=kept))
        total_loss(model, cached.reps, batch, need).backward()
        backward_cached(cached)
    else:
        total_loss(model, represent(model, groups, need, budget=Budget(tokens=2)), batch, need).backward()
    assert seed.grad is not None
    made_up = torch.zeros(3, requires_grad=True)
    logits = model.body(batch.inputs["image"] + made_up[None, :, None, None])  # type: ignore[operator]
    total_loss(model, {"image": {"logits": model.head(logits)}}, batch, need).backward()  # type: ignore[operator]
    assert made_up.grad is not None and float(made_up.grad.abs().min()) > 1e-3
    assert torch.allclose(seed.grad, made_up.grad, rtol=1e-4, atol=1e-6)


def test_bfloat16_compute_gives_float32_representations_near_those_of_float32(
    build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    model, batch = build("bi-encoder", ranking_batch)
    exact = signals_of(model, batch, frozenset({"logits"})).logits
    rough = signals_of(model, batch, frozenset({"logits"}), autocast=torch.bfloat16).logits
    assert exact is not None and rough is not None
    assert rough.dtype == torch.float32
    assert 0 < float((exact - rough).abs().max()) < 0.03


# ---------------------------------------------------------------- memory


class Fussy(torch.nn.Module):
    """Runs out of memory for more than two rows at once."""

    training = False
    pad_id = 0

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        assert micro.ids is not None
        if len(micro.ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
        self.seen.append(len(micro.ids))
        return {"sum": micro.ids.sum(1).float()}


def test_out_of_memory_halves_the_micro_batch_says_so_once_and_gives_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = RowGroup(name="text", ids=[np.array([row]) for row in range(9)])
    model: Any = Fussy()
    budget = Budget(tokens=1000)
    found = represent(model, [group], frozenset(), budget=budget)
    assert found["text"]["sum"].tolist() == [float(row) for row in range(9)]
    assert budget.pieces == 8
    assert max(model.seen) == 2
    assert [record.message for record in caplog.records] == [
        "out of memory: micro-batches are halved from here on (same results, a little slower)"
    ]


def test_what_is_kept_is_counted_and_bounded(build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch) -> None:
    """A linear map over T tokens of width H keeps its input, and nothing is counted twice."""

    class Wide(torch.nn.Module):
        pad_id = 0

        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(16, 256)
            self.map = torch.nn.Linear(256, 256)

        def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
            states = self.words(micro.ids)
            return {"sum": (self.map(states) + self.map(states)).sum((1, 2))}

    model: Any = Wide()
    group = RowGroup(name="text", ids=[np.full(4, row % 16) for row in range(8)])
    tokens_of_two_rows = 2 * 4
    bytes_of_two_rows = tokens_of_two_rows * (256 * 4 + 8)  # the map's input, and the ids for the embedding's gradient
    for allowed, kept in [(math.inf, 4), (0.0, 0), (1.0, 1), (bytes_of_two_rows, 1), (bytes_of_two_rows + 1, 2)]:
        budget = Budget(tokens=tokens_of_two_rows, activations=allowed)
        cached = represent_cached(model, [group], frozenset(), budget=budget, rng_key=(0,))
        assert len(cached.run.graphs) == kept
        assert budget.kept == kept * bytes_of_two_rows


def test_what_is_kept_changes_no_bit(build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch) -> None:
    model, batch = build("bi-encoder", ranking_batch, dropout=0.3)
    model.train()
    need, groups = model.provides, model.rows(batch, model.provides)
    found = []
    for allowed in (0.0, 1.0, 50_000.0, math.inf):
        cached = represent_cached(model, groups, need, budget=Budget(tokens=60, activations=allowed), rng_key=(1,))
        total_loss(model, cached.reps, batch, need).backward()
        backward_cached(cached)
        found.append(gradients(model))
    for other in found[1:]:
        assert found[0].keys() == other.keys() and all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_activations_that_do_not_fit_are_computed_again(
    limit: int, build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory that holds the graphs of so many micro-batches; halving alone would not help."""
    import weakref

    model, batch = build("bi-encoder", ranking_batch)
    need, groups = model.provides, model.rows(batch, model.provides)
    expected = total_loss(model, represent(model, groups, need, budget=Budget(tokens=60)), batch, need)
    expected.backward()
    direct = gradients(model)
    encode, alive = type(model).encode, list[Any]()

    def fussy(self: Model, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
        alive[:] = [reference for reference in alive if reference() is not None]
        if len(alive) >= limit and torch.is_grad_enabled():
            raise MemoryError
        found = encode(self, micro, need)
        if torch.is_grad_enabled():
            alive.append(weakref.ref(found["embedding"]))
        return found

    monkeypatch.setattr(type(model), "encode", fussy)
    budget = Budget(tokens=60)
    for _ in range(4):  # as the trainer does: a step whose backward pass runs out of memory is taken again
        budget.kept = 0.0
        try:
            cached = represent_cached(model, groups, need, budget=budget, rng_key=(0,))
            loss = total_loss(model, cached.reps, batch, need)
            loss.backward()
            backward_cached(cached)
            break
        except MemoryError:
            model.zero_grad()
            cached.run.graphs.clear()
        budget.shrink()
    assert len(cached.run.own) > limit
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_close(direct, gradients(model))
    assert budget.activations < math.inf


def test_out_of_memory_with_a_single_row_is_an_error() -> None:
    class Full(Fussy):
        def encode(self, micro: MicroBatch, need: frozenset[str]) -> dict[str, Tensor]:
            raise RuntimeError("CUDA out of memory.")

    model: Any = Full()
    with pytest.raises(RuntimeError, match="out of memory"):
        represent(model, [RowGroup(name="text", ids=[np.array([1]), np.array([2])])], frozenset())


def test_other_errors_are_not_taken_for_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


# ---------------------------------------------------------------- encoding many texts


def test_encode_texts_in_blocks_equals_all_at_once(
    build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    model, _ = build("bi-encoder", ranking_batch)
    texts = [made(text) for text in SENTENCES]
    whole = encode_texts(model, texts, "passage")
    seen: list[int] = []
    blocks = encode_texts(model, texts, "passage", block=5, budget=Budget(tokens=50), progress=seen.append)
    assert whole.shape == (len(SENTENCES), 32) and whole.dtype == np.float32
    assert np.allclose(whole, blocks, atol=1e-6)
    assert seen == [5, 5, 2]
    assert np.allclose(encode_texts(model, texts, "passage", rows=range(3, 7)), whole[3:7], atol=1e-6)
    assert len(encode_texts(model, [], "passage")) == 0


def test_shares_of_a_translation_batch_together_give_the_loss_of_the_whole(
    build: Callable[..., tuple[Model, Batch]], ranking_batch: Batch
) -> None:
    model, batch = build("seq2seq", ranking_batch)
    model.eval()
    need = frozenset({"logits"})
    whole = signals_of(model, batch, need)
    assert whole.logits is not None and whole.labels is not None
    expected = torch.nn.functional.cross_entropy(whole.logits, whole.labels, reduction="sum")
    for size in (1, 2):
        total, tokens = 0.0, 0
        for rank in range(size):
            for part in shares(model, batch, need, Budget(tokens=60), Workers(rank=rank, world_size=size)):
                found = signals_of(model, part, need)
                assert found.logits is not None and found.labels is not None
                total += torch.nn.functional.cross_entropy(found.logits, found.labels, reduction="sum").item()
                tokens += len(found.labels)
        assert total == pytest.approx(expected.item(), rel=1e-5)
        count: Any = model
        assert tokens == len(whole.labels) == count.num_items(batch)


# ---------------------------------------------------------------- processes


def _worker(rank: int, size: int, meeting: str, folder: str, name: str, dropout: float, cached: bool) -> None:
    import torch.distributed as dist

    from kdfw.models.checkpoint import load_model

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    model = load_model(Path(folder))
    batch = torch.load(Path(folder) / "batch.pt", weights_only=False)  # written by this very test
    loss = step(model, batch, cached, Workers(rank=rank, world_size=size), dropout)
    found = gradients(model)
    for value in (value for key, value in sorted(found.items())):
        dist.all_reduce(value)
    if rank == 0:
        torch.save({"loss": loss, "gradients": found}, Path(folder) / f"out-{cached}.pt")
    dist.destroy_process_group()


def step(model: Model, batch: Batch, cached: bool, workers: Workers, dropout: float) -> float:
    model.train(dropout > 0)
    set_dropout(model, dropout)
    need = model.provides
    groups = model.rows(batch, need)
    budget = Budget(tokens=400)  # so few micro-batches that each must be cut
    if cached:
        kept = represent_cached(model, groups, need, budget=budget, workers=workers, rng_key=(3,))
        loss = total_loss(model, kept.reps, batch, need)
        loss.backward()
        backward_cached(kept)
    else:
        reps = represent(model, groups, need, budget=budget, workers=workers, rng_key=(3,))
        loss = total_loss(model, reps, batch, need)
        loss.backward()
    for parameter in model.parameters():  # every process must join the sum, with rows or without
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return loss.item()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("name", "dropout"), [("bi-encoder", 0.0), ("bi-encoder", 0.3), ("late-interaction", 0.3)])
def test_two_processes_give_the_loss_and_gradient_of_one(
    name: str,
    dropout: float,
    cached: bool,
    build: Callable[..., tuple[Model, Batch]],
    ranking_batch: Batch,
    tmp_path: Path,
) -> None:
    import torch.multiprocessing as multiprocessing

    options: dict[str, Any] = {"projection": 8} if name == "late-interaction" else {}
    model, batch = build(name, ranking_batch, **options)
    model.save(tmp_path)
    torch.save(batch, tmp_path / "batch.pt")
    loss = step(model, batch, cached, Workers(), dropout)
    alone = gradients(model)
    multiprocessing.spawn(_worker, args=(2, str(tmp_path / "meeting"), str(tmp_path), name, dropout, cached), nprocs=2)
    together = torch.load(tmp_path / f"out-{cached}.pt", weights_only=True)
    assert together["loss"] == pytest.approx(loss, rel=1e-6)
    assert_close(alone, together["gradients"])


def test_what_is_kept_for_the_backward_pass_is_freed_after_it() -> None:
    import gc

    from kdfw.models.forward import _kept_bytes

    layer, pooler = nn.Linear(4, 4), nn.Linear(4, 4)

    def step() -> None:
        with _kept_bytes(set()) as count:
            states = layer(torch.randn(3, 4))
            pooler(states).tanh()  # no gradient comes here
        assert count() > 0
        states.sum().backward()

    def alive() -> int:
        gc.collect()

        return sum(type(each) is Tensor and each.grad_fn is not None for each in gc.get_objects())

    step()
    before = alive()
    for _ in range(5):
        step()
    assert alive() == before

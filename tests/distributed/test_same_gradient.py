"""N processes give the loss and the gradient of one, for every loss, weighting, schedule and kind of student."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_steps import CLOCK, TASK, Case, Models, Outcome, cases, run_case
from filelock import FileLock
from run_processes import Together
from tiny import write_bert

from kdfw.context import Workers
from kdfw.plugins import registry

CASES = cases()
RELATIVE = 1e-6
"""Of the loss, and of each gradient measured against the largest gradient of the step."""


def run_all(bases: Path, out: Path) -> None:
    """Every case, on one of several processes."""
    from kdfw.engine.launch import start_processes

    workers, _ = start_processes()
    models = Models(bases)
    found = {}
    for case in CASES:
        outcome = run_case(case, models, workers)
        found[case.name] = {"loss": torch.tensor(outcome.loss, dtype=torch.float64), **outcome.gradients}
    torch.save(found, out / f"{workers.rank}.pt")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One process against two."""

    loss: float
    losses: tuple[float, float]
    """Of both processes."""
    largest: float
    """The largest gradient of the step."""
    apart: float
    """The largest difference of any gradient between one process and the first of two."""
    apart_between: float
    """The same between the two."""
    same_parameters: bool


def agreement(alone: Outcome, both: list[dict[str, torch.Tensor]]) -> Agreement:
    main, other = both
    losses = main.pop("loss").item(), other.pop("loss").item()
    one = alone.gradients
    return Agreement(
        loss=alone.loss,
        losses=losses,
        largest=max((float(gradient.abs().max()) for gradient in one.values()), default=0.0),
        apart=max(float((one[name] - main[name]).abs().max()) for name in one if name in main),
        apart_between=max(float((other[name] - main[name]).abs().max()) for name in main),
        same_parameters=set(one) == set(main) == set(other),
    )


def compare(root: Path) -> dict[str, Agreement]:
    """By case. The two processes start once for all cases, while this one computes its own."""
    write_bert(root / "bert-0", layers=2, seed=1)
    write_bert(root / "bert-1", layers=2, seed=2)
    started = Together(root).start(2, run_all, root, root)
    models = Models(root)
    alone = {case.name: run_case(case, models, Workers()) for case in CASES}
    assert started.codes(timeout=300) == [0, 0], started.errors()
    both = [torch.load(root / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {name: agreement(outcome, [found[name] for found in both]) for name, outcome in alone.items()}


@pytest.fixture(scope="module")
def agreements(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Agreement]:
    """By case; of several workers of one test run the first computes it for all, for it takes minutes."""
    own = tmp_path_factory.getbasetemp()
    shared = (own if worker_id == "master" else own.parent) / "gradients"
    with FileLock(shared.with_suffix(".lock")):
        if not (shared / "agreements.json").exists():
            shared.mkdir()
            found = {name: dataclasses.asdict(each) for name, each in compare(shared).items()}
            (shared / "agreements.json").write_text(json.dumps(found), encoding="utf-8")
    found = json.loads((shared / "agreements.json").read_text(encoding="utf-8"))
    return {name: Agreement(**{**each, "losses": tuple(each["losses"])}) for name, each in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_take_the_step_of_one(case: Case, agreements: dict[str, Agreement]):
    found = agreements[case.name]
    assert found.largest > 0
    assert found.losses[0] == pytest.approx(found.loss, rel=RELATIVE)
    assert found.losses[1] == found.losses[0]
    assert found.same_parameters
    assert found.apart <= RELATIVE * found.largest
    assert found.apart_between == 0


def _names(raw: Any, kind: str) -> Iterable[str]:
    for key, value in raw.items() if isinstance(raw, Mapping) else ():
        if key == kind and isinstance(value, Mapping):
            yield value["type"]


def test_every_loss_weighting_and_schedule_of_every_plugin_was_tried():
    known = registry()
    losses = [loss for case in CASES for loss in case.losses]
    assert {loss["type"] for loss in losses} == set(known.names("loss"))
    assert {name for loss in losses for name in _names(loss, "weighting")} == set(known.names("weighting"))
    tried = {name for loss in losses for key in ("temperature", "weight") for name in _names(loss, key)}
    assert tried == set(known.names("schedule"))
    offering = {origin for (kind, _), origin in known.origins.items() if kind == "loss"}
    assert {known.origins["loss", loss["type"]] for loss in losses} == offering
    assert len(offering) >= 15
    assert {case.student for case in CASES} == set(TASK) >= set(known.names("student"))
    assert sum(case.cached for case in CASES) > 150
    assert CLOCK.step > 0

"""Properties that hold for losses whatever they are, tried on every registered one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_steps import CLOCK, Step, Wide, by_columns, class_step, padded, part_of, ranking_step
from torch import Tensor

from kdfw.components import Constant, Loss, Schedule
from kdfw.losses import LOSSES, WEIGHTINGS
from kdfw.types import Clock, Signals


class Learned(Schedule, torch.nn.Module):
    """A temperature with a graph, one for each item."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.raw = torch.nn.Parameter(torch.linspace(0.5, 2.0, 6, dtype=torch.float64))

    def at(self, clock: Clock, student: Signals | None = None, teachers: Any = ()) -> Tensor:
        return self.raw


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "kl": ("kl", {}),
    "kl-hot": ("kl", {"temperature": 3.0}),
    "kl-reverse": ("kl", {"direction": "reverse", "temperature": 2.0, "scale_by_temperature": False}),
    "kl-two-temperatures": ("kl", {"temperature": 2.0, "student_temperature": Constant(value=0.5)}),
    "kl-batch": ("kl", {"signal": "batch_logits"}),
    "margin-mse": ("margin-mse", {}),
    "margin-mse-all": ("margin-mse", {"pairs": "all", "temperature": 2.0}),
    "margin-mse-batch": ("margin-mse", {"signal": "batch_logits"}),
    "margin-mse-scaled": ("margin-mse", {"teacher_scale": "min-max", "student_scale": "z-score", "pairs": "all"}),
    "mse": ("mse", {}),
    "mse-sigmoid": ("mse", {"teacher_activation": "sigmoid"}),
    "mse-labels": ("mse", {"target": "labels"}),
    "bce": ("bce", {}),
    "bce-sigmoid": ("bce", {"teacher_activation": "sigmoid", "temperature": 2.0}),
    "bce-labels": ("bce", {"target": "labels"}),
    "embedding-mse": ("embedding-mse", {}),
    "embedding-cosine": ("embedding-mse", {"distance": "cosine", "of": ["passage_embeddings"]}),
    "embedding-projected": ("embedding-mse", {"projection": True}),
    "hidden-mse": ("hidden-mse", {}),
    "hidden-pairs": ("hidden-mse", {"layers": [(0, 3), (-1, 1)], "normalise": True, "projection": True}),
    "info-nce": ("info-nce", {"temperature": 0.5}),
    "info-nce-batch": ("info-nce", {"in_batch": True}),
    "info-nce-sum": ("info-nce", {"in_batch": True, "positives": "sum"}),
    "info-nce-symmetric": ("info-nce", {"in_batch": True, "symmetric": True, "temperature": 2.0}),
    "info-nce-teacher": ("info-nce", {"in_batch": True, "false_negative_margin": 0.1}),
    "info-nce-student": ("info-nce", {"false_negative_margin": -0.5, "false_negatives_by": "student"}),
    "localized-contrastive": ("localized-contrastive", {}),
    "ranknet": ("ranknet", {}),
    "ranknet-soft": ("ranknet", {"soft": True, "temperature": 2.0}),
    "ranknet-labels": ("ranknet", {"target": "labels"}),
    "listnet": ("listnet", {"temperature": 2.0}),
    "listnet-labels": ("listnet", {"target": "labels"}),
    "lambda-loss": ("lambda-loss", {}),
    "lambda-rank": ("lambda-loss", {"scheme": "lambdarank", "cutoff": 2}),
    "lambda-teacher": ("lambda-loss", {"target": "teacher", "scheme": "ndcg-loss2"}),
    "hinge": ("pairwise-hinge", {"margin": 0.3}),
    "hinge-negatives": ("pairwise-hinge", {"with_positives": False, "min_gap": 0.2}),
    "hinge-positive": ("pairwise-hinge", {"pairs": "positive", "margin": 1.0}),
    "hinge-pairs": ("pairwise-hinge", {"mean": "pairs", "margin": 0.5}),
    "flops": ("flops", {"query_weight": 0.5}),
    "cross-entropy": ("cross-entropy", {}),
    "cross-entropy-smooth": ("cross-entropy", {"label_smoothing": 0.1}),
    "kl-classes": ("kl", {"temperature": 4.0}),
    "mse-classes": ("mse", {}),
    "bce-classes": ("bce", {"target": "labels"}),
}
CLASSES = {"cross-entropy", "cross-entropy-smooth", "kl-classes", "mse-classes", "bce-classes"}
RANKING = sorted(set(VARIANTS) - CLASSES)

ZERO_AT_TEACHER = {
    "kl", "kl-hot", "kl-reverse", "kl-batch", "kl-classes", "margin-mse", "margin-mse-all", "margin-mse-batch",
    "mse", "mse-classes", "hinge-negatives", "embedding-mse", "embedding-cosine", "hidden-mse",
}  # fmt: skip
SHIFT_INVARIANT = {
    *(name for name in RANKING if not name.startswith(("mse", "bce", "embedding", "hidden", "flops"))),
    "cross-entropy", "cross-entropy-smooth", "kl-classes",
}  # fmt: skip
NO_SCORES = {"embedding-mse", "embedding-cosine", "embedding-projected", "hidden-mse", "hidden-pairs", "flops"}
TEACHER_LOGITS = [
    name
    for name in RANKING
    if VARIANTS[name][0] in ("kl", "margin-mse", "mse", "bce", "ranknet", "listnet", "pairwise-hinge", "lambda-loss")
    and "batch" not in name
    and "labels" not in name
    and name not in ("lambda-loss", "lambda-rank", "hinge-positive")
]


def make(name: str) -> Loss:
    kind, options = VARIANTS[name]
    torch.manual_seed(5)
    loss: Loss = LOSSES[kind](**options)
    loss.setup(Wide(), [Wide()])  # type: ignore[arg-type, list-item]
    return loss.double()


def step_for(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Step:
    return class_step(seed, dtype) if name in CLASSES else ranking_step(seed, dtype)


def value(loss: Loss, step: Step) -> float:
    return float(step.run(loss).total.detach())


def test_every_registered_loss_is_tried() -> None:
    assert len(LOSSES) >= 14
    assert {kind for kind, _ in VARIANTS.values()} == set(LOSSES)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_value_is_a_finite_scalar_with_a_gradient_into_what_it_needs_and_none_into_the_teacher(name: str) -> None:
    loss, step = make(name), step_for(name).leaves()
    total = step.run(loss).total
    assert total.shape == () and torch.isfinite(total)
    total.backward()
    for signal in loss.needs.student:
        gradient = step.student[signal].grad
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().sum() > 0, signal
    assert {signal for signal, values in step.student.items() if values.grad is not None} == loss.needs.student
    assert all(values.grad is None for values in step.teacher.values())


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_declared_needs_are_enough(name: str) -> None:
    loss, step = make(name), step_for(name)
    whole = value(loss, step)
    step.student = {signal: step.student[signal] for signal in {"logits", *loss.needs.student}}
    step.teacher = {signal: step.teacher[signal] for signal in {"logits", *loss.needs.teacher}}
    assert value(loss, step) == whole
    if not loss.needs.teacher:
        terms = loss(step.signals(step.student, step.student_mask), [], step.batch, CLOCK)
        assert float(terms.total.detach()) == whole


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_zero_exactly_where_it_should_be(name: str) -> None:
    loss, step = make(name), step_for(name)
    apart = value(loss, step)
    step.teacher = step.student
    same = value(loss, step)
    if name in ZERO_AT_TEACHER:
        assert same == pytest.approx(0.0, abs=1e-12) and apart > 1e-3
    else:
        assert abs(same) > 1e-6


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - NO_SCORES))
def test_constant_shift_of_the_students_scores(name: str) -> None:
    loss, step = make(name), step_for(name)
    before = value(loss, step)
    shift = torch.linspace(-2.0, 3.0, len(step.batch), dtype=torch.float64)[:, None]
    if "symmetric" in name:  # columns are compared too: only one shift for all
        shift = torch.full_like(shift, 1.5)
    for signal in ("logits", "batch_logits"):
        if signal in step.student:
            step.student[signal] = step.student[signal] + shift
    if name in SHIFT_INVARIANT:
        assert value(loss, step) == pytest.approx(before, abs=1e-10)
    else:
        assert abs(value(loss, step) - before) > 1e-3


@pytest.mark.parametrize("name", RANKING)
def test_order_of_candidates_does_not_matter(name: str) -> None:
    loss, step = make(name), step_for(name)
    draw = torch.Generator().manual_seed(3)
    width = step.student["logits"].shape[1]
    order = torch.stack([torch.randperm(width, generator=draw) for _ in range(len(step.batch))])
    assert value(loss, by_columns(step, order)) == pytest.approx(value(loss, step), abs=1e-12)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_order_of_items_does_not_matter(name: str) -> None:
    loss, step = make(name), step_for(name)
    if "hidden" in step.student and name.startswith("hidden"):
        pytest.skip("rows, not items")
    turned = part_of(step, list(reversed(range(len(step.batch)))))
    straight = part_of(step, range(len(step.batch)))
    assert value(loss, turned) == pytest.approx(value(loss, straight), abs=1e-12)


@pytest.mark.parametrize("filling", [float("nan"), 1e4, float("-inf")])
@pytest.mark.parametrize("name", RANKING)
def test_padding_changes_neither_value_nor_gradient(name: str, filling: float) -> None:
    loss, step = make(name), step_for(name).leaves()
    step.run(loss).total.backward()
    wider = padded(step_for(name), 3, filling).leaves()
    total = wider.run(loss).total
    assert float(total.detach()) == pytest.approx(value(loss, step), abs=1e-12)
    total.backward()
    for signal in loss.needs.student:
        before, after = step.student[signal].grad, wider.student[signal].grad
        assert before is not None and after is not None
        torch.testing.assert_close(after[:, : before.shape[1]], before)
        assert not after[:, before.shape[1] :].any()


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_step_is_the_sum_of_its_shares(name: str) -> None:
    loss, step = make(name), step_for(name)
    if loss.needs.whole_batch:
        pytest.skip("the value depends on other items")
    whole = value(loss, step)
    shares = [value(loss, part_of(step, rows)) for rows in ([0, 1], [2, 3, 4], range(5, len(step.batch)))]
    assert sum(shares) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_whole_batch_is_declared_only_where_it_is_true(name: str) -> None:
    loss, step = make(name), step_for(name)
    if loss.needs.whole_batch and name not in ("hidden-mse", "hidden-pairs"):
        shares = [value(loss, part_of(step, rows)) for rows in ([0, 1], [2, 3, 4, 5])]
        assert abs(sum(shares) - value(loss, step)) > 1e-6
    else:
        assert loss.needs.whole_batch == name.startswith("hidden")


@pytest.mark.parametrize("name", TEACHER_LOGITS)
def test_candidate_without_a_teacher_score_is_as_if_it_were_not_there(name: str) -> None:
    loss = make(name)
    gone = torch.zeros(6, 5, dtype=torch.bool)
    gone[0, 3] = gone[3, 1] = True
    results = []
    for how in ("student mask", "teacher mask", "nan", "inf"):
        step = step_for(name)
        assert step.student_mask is not None and step.teacher_mask is not None
        if how == "student mask":
            step.student_mask = step.student_mask & ~gone
        elif how == "teacher mask":
            step.teacher_mask = step.teacher_mask & ~gone
        else:
            step.teacher["logits"] = step.teacher["logits"].masked_fill(gone, float(how))
        results.append(value(loss, step))
    assert results == pytest.approx([results[0]] * 4, abs=1e-12)
    assert abs(results[0] - value(loss, step_for(name))) > 1e-4


@pytest.mark.parametrize("name", TEACHER_LOGITS)
def test_item_without_any_teacher_score_adds_nothing(name: str) -> None:
    loss, step = make(name), step_for(name)
    if loss.needs.whole_batch:
        pytest.skip("the mean over pairs has fewer pairs")
    rest = value(loss, part_of(step, [0, 1, 3, 4, 5]))
    step.teacher["logits"][2] = float("nan")
    step = step.leaves()
    total = step.run(loss).total
    total.backward()
    assert float(total.detach()) == pytest.approx(rest, abs=1e-12)
    gradient = step.student["logits"].grad
    assert gradient is not None and not gradient[2].any() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["kl-classes", "mse-classes"])
def test_class_distribution_with_a_hole_leaves_the_item_out(name: str) -> None:
    loss, step = make(name), step_for(name)
    rest = value(loss, part_of(step, [0, 1, 2, 3, 5, 6]))
    step.teacher["logits"][4, 2] = float("nan")
    assert value(loss, step) == pytest.approx(rest, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    loss = make(name).float()
    step = step_for(name)
    # scores as large as cross-encoders and MaxSim give them
    for side in (step.student, step.teacher):
        for signal in ("logits", "batch_logits"):
            if signal in side:
                side[signal] = side[signal] * 20
    half = step.to(dtype)
    got = half.run(loss).total
    assert got.dtype == torch.float32
    assert float(got.detach()) == pytest.approx(value(loss, half.to(torch.float32)), rel=1e-6)
    assert torch.isfinite(got)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_gradient_equals_finite_differences(name: str) -> None:
    loss, step = make(name), step_for(name, seed=2)
    for signal in sorted(loss.needs.student):

        def total(values: Tensor, signal: str = signal) -> Tensor:
            changed = replace(step, student={**step.student, signal: values})
            return changed.run(loss).total

        values = step.student[signal].detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(total, (values,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", ["kl", "mse", "listnet", "ranknet-soft", "margin-mse"])
def test_learned_temperature_of_each_item_gets_a_gradient(name: str) -> None:
    kind, options = VARIANTS[name]
    build: Callable[..., Loss] = LOSSES[kind]
    schedule = Learned()
    terms = step_for(name).run(build(**{**options, "temperature": schedule}))
    terms.total.backward()
    assert schedule.raw.grad is not None and (schedule.raw.grad != 0).all()
    assert float(terms.parts["temperature"]) == pytest.approx(1.25)


@pytest.mark.parametrize("name", ["kl", "mse", "margin-mse", "bce", "listnet", "ranknet", "hinge"])
def test_weightings_share_a_term_among_teachers(name: str) -> None:
    step, other = step_for(name), step_for(name, seed=9)
    kind, options = VARIANTS[name]
    build: Callable[..., Loss] = LOSSES[kind]
    student = step.signals(step.student, step.student_mask)
    teachers = [step.signals(step.teacher, step.teacher_mask), step.signals(other.teacher, step.teacher_mask)]
    alone = [float(build(**options)(student, [teacher], step.batch, CLOCK).total) for teacher in teachers]
    assert abs(alone[0] - alone[1]) > 1e-3

    def both(**more: Any) -> float:
        return float(build(**options, **more)(student, teachers, step.batch, CLOCK).total)

    assert both() == pytest.approx(sum(alone) / 2)
    assert both(weighting=WEIGHTINGS["uniform"]()) == pytest.approx(sum(alone) / 2, rel=1e-6)
    fixed: Any = WEIGHTINGS["fixed"]
    assert both(weighting=fixed(weights=[3, 1])) == pytest.approx(0.75 * alone[0] + 0.25 * alone[1], rel=1e-6)
    assert both(weighting=fixed(weights=[2, 0.5], normalise=False)) == pytest.approx(2 * alone[0] + 0.5 * alone[1])

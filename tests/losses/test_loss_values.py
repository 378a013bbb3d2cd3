"""Values of each loss: by hand, against a second implementation, and against sentence-transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_steps import CLOCK, LAYERS, H, Step, Wide, class_step, ranking_step
from torch import Tensor

from kdfw.components import Constant
from kdfw.errors import ConfigError, DataError, PluginError, TrainingError
from kdfw.losses import LOSSES, WEIGHTINGS
from kdfw.losses.bce import binary_cross_entropy
from kdfw.losses.contrastive import contrastive, likely_positive
from kdfw.losses.cross_entropy import cross_entropy
from kdfw.losses.flops import flops
from kdfw.losses.kl import kl_divergence, temperature_factor
from kdfw.losses.listwise import gains, lambda_loss, lambda_weights, listnet, ranks
from kdfw.losses.margin_mse import margin_mse, positive_pairs
from kdfw.losses.masking import scaled
from kdfw.losses.pairwise import ordered_pairs, pairwise_hinge, ranknet, soft_ranknet
from kdfw.losses.representation import layer_pairs
from kdfw.types import Batch, Signals

LOG2 = math.log(2.0)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def all_real(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def build(kind: str, **options: Any) -> Any:
    return LOSSES[kind](**options)


# ---------------------------------------------------------------- by hand


def test_kl_by_hand_in_both_directions() -> None:
    teacher = row(math.log(3.0), 0.0)  # p = (3/4, 1/4)
    student = row(0.0, 0.0)  # q = (1/2, 1/2)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2.0)
    mask = all_real(student)
    assert kl_divergence(student, teacher, mask).item() == pytest.approx(forward)
    assert kl_divergence(student, teacher, mask, "reverse").item() == pytest.approx(reverse)
    assert forward != pytest.approx(reverse)


def one_item(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Signals, Signals, Batch]:
    size = student.shape[1]
    batch = Batch(
        task="ranking",
        ids=("q",),
        inputs={},
        num_items=1.0,
        candidates=torch.arange(size)[None],
        mask=torch.ones(1, size, dtype=torch.bool),
        labels=labels,
        passage_ids=tuple(f"p{place}" for place in range(size)),
    )
    return Signals(logits=student, labels=labels), Signals(logits=teacher), batch


def test_kl_with_temperatures_by_hand() -> None:
    teacher, student = 2 * row(math.log(3.0), 0.0), 4 * row(math.log(2.0), 0.0)  # q at 4: (2/3, 1/3)
    value = 0.75 * math.log(0.75 / (2 / 3)) + 0.25 * math.log(0.25 / (1 / 3))
    ours, theirs, batch = one_item(student, teacher, row(1.0, 0.0))
    loss = build("kl", temperature=2.0, student_temperature=Constant(value=4.0))
    assert loss(ours, [theirs], batch, CLOCK).total.item() == pytest.approx(16 * value)
    plain = build("kl", temperature=2.0, student_temperature=Constant(value=4.0), scale_by_temperature=False)
    assert plain(ours, [theirs], batch, CLOCK).total.item() == pytest.approx(value)


def test_the_factor_keeps_the_gradient_as_the_temperature_grows() -> None:
    def gradient(temperature: float, **options: Any) -> float:
        student = row(0.3, -0.2, 0.1).requires_grad_()
        ours, theirs, batch = one_item(student, row(1.0, 0.0, -1.0), row(1.0, 0.0, 0.0))
        build("kl", temperature=temperature, **options)(ours, [theirs], batch, CLOCK).total.backward()
        assert student.grad is not None
        return float(student.grad.abs().sum())

    assert gradient(50.0) == pytest.approx(gradient(100.0), rel=0.02)
    assert gradient(50.0, scale_by_temperature=False) > 3.9 * gradient(100.0, scale_by_temperature=False)


@pytest.mark.parametrize(
    ("temperature", "squared", "factor"),
    [(4.0, None, 16.0), (0.05, None, 1.0), (0.05, True, 0.0025), (4.0, False, 1.0), (1.0, None, 1.0)],
)
def test_a_temperature_that_scales_a_similarity_does_not_shrink_the_term(
    temperature: float, squared: bool | None, factor: float
) -> None:
    ours, theirs, batch = one_item(row(0.3, 0.1), row(0.2, 0.6), row(1.0, 0.0))
    unscaled = build("kl", temperature=temperature, scale_by_temperature=False)(ours, [theirs], batch, CLOCK).total
    loss = build("kl", temperature=temperature, scale_by_temperature=squared)
    assert loss(ours, [theirs], batch, CLOCK).total.item() == pytest.approx(factor * unscaled.item())


def test_the_factor_of_learned_temperatures_has_a_gradient_above_one_only() -> None:
    learned = torch.tensor([0.5, 2.0], requires_grad=True)
    factors = temperature_factor(learned)
    assert isinstance(factors, Tensor) and factors.tolist() == [1.0, 4.0]
    (gradient,) = torch.autograd.grad(factors.sum(), learned)
    assert gradient.tolist() == [0.0, 4.0]


def test_margin_mse_by_hand() -> None:
    student, teacher = row(3.0, 1.0, 2.0), row(5.0, 1.0, 4.5)
    # margins of the student 2 and 1, of the teacher 4 and 0.5: ((2 - 4)^2 + (1 - 0.5)^2) / 2
    ours, theirs, batch = one_item(student, teacher, row(1.0, 0.0, 0.0))
    assert build("margin-mse")(ours, [theirs], batch, CLOCK).total.item() == pytest.approx((4 + 0.25) / 2)
    # the third pair: 1 - 2 = -1 against 1 - 4.5 = -3.5
    every = build("margin-mse", pairs="all")(ours, [theirs], batch, CLOCK).total.item()
    assert every == pytest.approx((4 + 0.25 + 6.25) / 3)
    # two positives: (0, 2) and (1, 2)
    ours, theirs, batch = one_item(student, teacher, row(1.0, 1.0, 0.0))
    assert build("margin-mse")(ours, [theirs], batch, CLOCK).total.item() == pytest.approx((0.25 + 6.25) / 2)


def test_scales_by_hand() -> None:
    scores, mask = row(4.0, 2.0, 3.0, 99.0), torch.tensor([[True, True, True, False]])
    assert scaled(scores, mask, "none") is scores
    assert scaled(scores, mask, "min-max").tolist()[0] == pytest.approx([1.0, 0.0, 0.5, 0.0])
    deviation = math.sqrt(2 / 3)
    assert scaled(scores, mask, "z-score").tolist()[0] == pytest.approx([1 / deviation, -1 / deviation, 0, 0])
    for how in ("min-max", "z-score"):
        flat = torch.full((1, 3), 7.0, requires_grad=True)
        out = scaled(flat, all_real(flat), how)
        out.sum().backward()
        assert out.tolist() == [[0.0, 0.0, 0.0]]
        assert flat.grad is not None and torch.isfinite(flat.grad).all()


def test_mse_by_hand() -> None:
    ours, theirs, batch = one_item(row(1.0, 2.0), row(3.0, 1.0), row(1.0, 0.0))
    assert build("mse")(ours, [theirs], batch, CLOCK).total.item() == pytest.approx((4 + 1) / 2)
    assert build("mse", target="labels")(ours, [], batch, CLOCK).total.item() == pytest.approx((0 + 4) / 2)
    value = build("mse", teacher_activation="sigmoid", student_activation="sigmoid")(ours, [theirs], batch, CLOCK)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = ((sigmoid(1) - sigmoid(3)) ** 2 + (sigmoid(2) - sigmoid(1)) ** 2) / 2
    assert value.total.item() == pytest.approx(expected)


def test_bce_takes_negative_targets_as_they_are() -> None:
    logits, target = row(0.5, -1.0), row(0.8, -0.3)
    expected = (math.log1p(math.exp(0.5)) - 0.5 * 0.8 + math.log1p(math.exp(-1.0)) - 0.3) / 2
    assert binary_cross_entropy(logits, target, all_real(logits)).item() == pytest.approx(expected)
    leaf = row(0.5, -1.0).requires_grad_()
    binary_cross_entropy(leaf, target, all_real(leaf)).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, (leaf.detach().sigmoid() - target) / 2)


def test_bce_of_labels_equals_torch() -> None:
    step = class_step()
    value = build("bce", target="labels")(step.signals(step.student, None), [], step.batch, CLOCK).total
    assert step.batch.labels is not None
    known = step.batch.labels >= 0
    hot = torch.nn.functional.one_hot(step.batch.labels[known], 5).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(step.student["logits"][known], hot)
    assert value.item() == pytest.approx(expected.item() * 6 / 7)


def test_bce_takes_grades_as_yes_or_no_and_refuses_gold_scores_that_are_no_probabilities() -> None:
    loss = build("bce", target="labels")
    ours, _, graded = one_item(row(0.0, 2.0), row(0.0, 0.0), row(0.0, 3.0))
    assert loss(ours, [], graded, CLOCK).total.item() == pytest.approx((LOG2 + math.log1p(math.exp(-2.0))) / 2)
    ours, _, scored = one_item(row(0.0, 2.0), row(0.0, 0.0), row(0.25, 1.0))
    expected = (LOG2 + math.log1p(math.exp(-2.0))) / 2
    assert loss(ours, [], replace(scored, task="pairs"), CLOCK).total.item() == pytest.approx(expected)
    for label in (4.75, -1.0):
        ours, _, batch = one_item(row(0.0, 0.0), row(0.0, 0.0), row(label, 1.0))
        with pytest.raises(DataError, match=f"labels from {min(label, 1):g} to {max(label, 1):g}.*gold_range"):
            loss(ours, [], replace(batch, task="pairs"), CLOCK)


def test_ranknet_by_hand() -> None:
    student, teacher = row(0.0, math.log(3.0)), row(2.0, 1.0)  # the student has them the wrong way round
    pairs = ordered_pairs(teacher, all_real(teacher))
    assert pairs.tolist() == [[[False, True], [False, False]]]
    assert ranknet(student, pairs).item() == pytest.approx(math.log(1 + 3.0))
    assert not ordered_pairs(row(1.0, 1.0), all_real(teacher)).any()
    target = 1 / (1 + math.exp(-1.0))
    expected = target * math.log(4.0) + (1 - target) * math.log(4 / 3)
    assert soft_ranknet(student, teacher, all_real(teacher)).item() == pytest.approx(expected)


def test_hinge_by_hand() -> None:
    student, teacher = row(1.0, 0.5, 2.0), row(3.0, 2.0, 1.0)
    # pairs (0,1): 1 - 0.5 ok by 0.5; (0,2): behind by 1; (1,2): behind by 1.5
    ours, theirs, batch = one_item(student, teacher, row(1.0, 0.0, 0.0))

    def value(**options: Any) -> float:
        return float(build("pairwise-hinge", **options)(ours, [theirs], batch, CLOCK).total)

    assert value() == pytest.approx((0 + 1 + 1.5) / 3)
    assert value(margin=0.7) == pytest.approx((0.2 + 1.7 + 2.2) / 3)
    assert value(min_gap=1.5) == pytest.approx(1.0)
    assert value(with_positives=False) == pytest.approx(1.5)
    assert value(pairs="positive") == pytest.approx((0 + 1) / 2)
    assert value(target="labels") == pytest.approx((0 + 1) / 2)
    # over 0.5 the student is behind by 2 and by 3; the gaps of the target stay as they are
    assert value(temperature=0.5, min_gap=1.0) == pytest.approx((0 + 2 + 3) / 3)
    assert value(temperature=4, student_temperature=Constant(value=0.5), margin=1.2) == pytest.approx(
        (0.2 + 3.2 + 4.2) / 3
    )


def test_hinge_over_all_pairs_of_the_step_weighs_pairs_alike() -> None:
    student = torch.tensor([[0.0, 3.0, 9.0], [0.0, 1.0, 2.0]])
    teacher = torch.tensor([[2.0, 1.0, 0.0], [3.0, 2.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    batch = Batch(
        task="ranking", ids=("a", "b"), inputs={}, num_items=2.0, mask=mask, candidates=torch.zeros(2, 3).long()
    )
    ours, theirs = Signals(logits=student, mask=mask), Signals(logits=teacher, mask=mask)
    by_item = build("pairwise-hinge")(ours, [theirs], batch, CLOCK).total.item()
    by_pair = build("pairwise-hinge", mean="pairs")(ours, [theirs], batch, CLOCK).total.item()
    assert by_item == pytest.approx((3 + (1 + 2 + 1) / 3) / 2)
    assert by_pair == pytest.approx((3 + 1 + 2 + 1) / 4)


def test_localized_contrastive_at_equal_scores_is_the_log_of_the_list() -> None:
    ours, _, batch = one_item(row(0.0, 0.0, 0.0, 0.0), row(0, 0, 0, 0), row(1.0, 0.0, 0.0, 0.0))
    assert build("localized-contrastive")(ours, [], batch, CLOCK).total.item() == pytest.approx(math.log(4.0))


def test_several_positives_by_hand() -> None:
    scores = row(math.log(2.0), math.log(3.0), 0.0, math.log(4.0))  # e^s = 2, 3, 1, 4
    targets = torch.tensor([[True, True, False, False]])
    others = torch.tensor([[False, False, True, True]])
    each = (math.log((2 + 5) / 2) + math.log((3 + 5) / 3)) / 2
    assert contrastive(scores, targets, others).item() == pytest.approx(each)
    assert contrastive(scores, targets, others, "sum").item() == pytest.approx(math.log(10 / 5))
    assert contrastive(scores, targets, others, "first").item() == pytest.approx(math.log(7 / 2))
    assert contrastive(scores, targets & False, others).item() == 0.0
    assert contrastive(scores, targets & False, others, "sum").item() == 0.0


def test_likely_positives_are_those_above_the_best_positive_less_the_margin() -> None:
    scores, targets = row(1.0, 3.0, 2.7, 2.4), torch.tensor([[True, True, False, False]])
    assert likely_positive(scores, targets, 0.5)[0, 2:].tolist() == [True, False]
    assert likely_positive(scores, targets, -0.5)[0, 2:].tolist() == [False, False]
    assert not likely_positive(scores, targets & False, 0.5).any()


def test_cross_entropy_equals_torch_with_and_without_smoothing() -> None:
    step = class_step()
    assert step.batch.labels is not None
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(
            step.student["logits"], step.batch.labels, label_smoothing=smoothing, ignore_index=-1, reduction="none"
        )
        torch.testing.assert_close(cross_entropy(step.student["logits"], step.batch.labels, smoothing), expected)
    loss = build("cross-entropy")(step.signals(step.student, None), [], step.batch, CLOCK)
    plain = torch.nn.functional.cross_entropy(step.student["logits"], step.batch.labels, ignore_index=-1)
    assert loss.total.item() == pytest.approx(plain.item() * 6 / 7)


def test_translation_reads_the_labels_that_the_model_filled_in_and_divides_by_all_tokens() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    batch = Batch(task="translation", ids=("s",), inputs={}, num_items=10.0)
    value = build("cross-entropy")(Signals(logits=logits, labels=labels), [], batch, CLOCK).total.item()
    first = math.log(math.exp(2) + 1 + math.e) - 2
    assert value == pytest.approx((first + math.log(3.0)) / 10)
    kl = build("kl")(Signals(logits=logits), [Signals(logits=logits.flip(0))], batch, CLOCK).total.item()
    one = kl_divergence(logits, logits.flip(0), all_real(logits))
    assert kl == pytest.approx(one.sum().item() / 10)
    assert build("kl", weighting=WEIGHTINGS["uniform"]())(
        Signals(logits=logits), [Signals(logits=logits.flip(0))], batch, CLOCK
    ).total.item() == pytest.approx(kl, rel=1e-6)


def test_flops_by_hand() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])  # means 2, 0, 1
    assert flops(weights).item() == pytest.approx(4 + 0 + 1)


# ---------------------------------------------------------------- second implementations


def lists(step: Step) -> list[tuple[list[float], list[float], list[float]]]:
    """(student scores, teacher scores, labels) of the real candidates of every query."""
    assert step.batch.mask is not None and step.batch.labels is not None
    found = []
    for q, real in enumerate(step.batch.mask.tolist()):
        keep = [c for c, ok in enumerate(real) if ok]
        found.append(
            tuple(
                [float(values[q, c]) for c in keep]
                for values in (step.student["logits"], step.teacher["logits"], step.batch.labels)
            )
        )
    return found  # type: ignore[return-value]


def slow_lambda(scores: list[float], grades: list[float], scheme: str, mu: float, cutoff: int | None) -> float:
    """LambdaLoss one pair at a time, from the definitions of the paper."""
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    rank = {place: position + 1 for position, place in enumerate(order)}
    best = sorted(grades, reverse=True)[: cutoff or len(grades)]
    ideal = sum((2**grade - 1) / math.log2(1 + position + 1) for position, grade in enumerate(best))
    total = 0.0
    for a, b in itertools.permutations(range(len(scores)), 2):
        if grades[a] <= grades[b]:
            continue
        if cutoff is not None and rank[a] > cutoff and rank[b] > cutoff:
            continue
        gain = abs((2 ** grades[a] - 1) - (2 ** grades[b] - 1)) / ideal
        swap = abs(1 / math.log2(1 + rank[a]) - 1 / math.log2(1 + rank[b]))
        apart = abs(rank[a] - rank[b])
        bound = abs(1 / math.log2(1 + apart) - 1 / math.log2(2 + apart))
        weight = {"lambdarank": swap, "ndcg-loss2": bound, "ndcg-loss2++": swap + mu * bound}[scheme]
        total += weight * gain * math.log2(1 + math.exp(-(scores[a] - scores[b])))
    return total


@pytest.mark.parametrize("cutoff", [None, 2])
@pytest.mark.parametrize("scheme", ["lambdarank", "ndcg-loss2", "ndcg-loss2++"])
def test_lambda_loss_against_a_slow_one(scheme: str, cutoff: int | None) -> None:
    step = ranking_step(4)
    loss = build("lambda-loss", scheme=scheme, cutoff=cutoff, mu=3.0)
    expected = sum(slow_lambda(s, g, scheme, 3.0, cutoff) for s, _, g in lists(step)) / 6
    assert step.run(loss).total.item() == pytest.approx(expected, rel=1e-9)
    assert expected > 0.1


def test_lambda_loss_of_a_teacher_takes_its_ranks() -> None:
    step = ranking_step(4)
    expected = 0.0
    for scores, teacher, _ in lists(step):
        order = sorted(range(len(teacher)), key=lambda place, teacher=teacher: -teacher[place])
        grade = [math.log2(1 + 1 / (order.index(place) + 1)) for place in range(len(teacher))]  # 2**grade - 1 = 1/rank
        expected += slow_lambda(scores, grade, "lambdarank", 0.0, None) / 6
    loss = build("lambda-loss", target="teacher", scheme="lambdarank")
    assert step.run(loss).total.item() == pytest.approx(expected, rel=1e-9)


def test_lambda_loss_over_a_temperature_is_that_of_the_divided_scores() -> None:
    step = ranking_step(4)
    expected = sum(slow_lambda([one / 0.5 for one in s], g, "lambdarank", 0.0, None) for s, _, g in lists(step)) / 6
    for options in ({"temperature": 0.5}, {"temperature": 3.0, "student_temperature": Constant(value=0.5)}):
        loss = build("lambda-loss", scheme="lambdarank", **options)
        assert step.run(loss).total.item() == pytest.approx(expected, rel=1e-9)


def test_ranks_and_gains_put_masked_candidates_last() -> None:
    scores, mask = row(1.0, 9.0, 3.0, 2.0), torch.tensor([[True, False, True, True]])
    assert ranks(scores, mask).tolist() == [[3, 4, 1, 2]]
    assert gains(row(2.0, 5.0, 0.0, -1.0), mask, "exponential").tolist() == [[3.0, 0.0, 0.0, 0.0]]
    assert gains(row(2.0, 5.0, 0.5, -1.0), mask, "linear").tolist() == [[2.0, 0.0, 0.5, 0.0]]


def test_listnet_ranknet_and_kl_against_slow_ones() -> None:
    step = ranking_step(4)

    def softmax(values: list[float], temperature: float = 1.0) -> list[float]:
        weights = [math.exp(value / temperature) for value in values]
        return [weight / sum(weights) for weight in weights]

    net, rank, kl, soft = 0.0, 0.0, 0.0, 0.0
    for scores, teacher, _ in lists(step):
        p, q = softmax(teacher), softmax(scores)
        net -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 6
        p, q = softmax(teacher, 3.0), softmax(scores, 3.0)
        kl += 9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 6
        before = [(a, b) for a, b in itertools.permutations(range(len(scores)), 2) if teacher[a] > teacher[b]]
        rank += sum(math.log1p(math.exp(scores[b] - scores[a])) for a, b in before) / len(before) / 6
        part = 0.0
        for a, b in before:
            target = 1 / (1 + math.exp(teacher[b] - teacher[a]))
            model = 1 / (1 + math.exp(scores[b] - scores[a]))
            part -= target * math.log(model) + (1 - target) * math.log(1 - model)
        soft += part / len(before) / 6
    assert step.run(build("listnet")).total.item() == pytest.approx(net)
    assert step.run(build("kl", temperature=3.0)).total.item() == pytest.approx(kl)
    assert step.run(build("ranknet")).total.item() == pytest.approx(rank)
    assert step.run(build("ranknet", soft=True)).total.item() == pytest.approx(soft)


def slow_info_nce(step: Step, temperature: float, known: bool, symmetric: bool) -> float:
    """InfoNCE over all passages, one query and one positive at a time."""
    batch, scores = step.batch, (step.student["batch_logits"] / temperature).tolist()
    assert batch.candidates is not None and batch.labels is not None and batch.known_positives is not None
    relevant: list[set[int]] = []
    drawn: list[set[int]] = []
    for q in range(len(batch)):
        own = {int(p) for p, label in zip(batch.candidates[q], batch.labels[q], strict=True) if label > 0}
        drawn.append(own)
        relevant.append(own | {int(p) for p in batch.known_positives[q].nonzero()} if known else own)
    total = 0.0
    for q in range(len(batch)):
        part = 0.0
        for p in drawn[q]:
            against = [scores[q][n] for n in range(len(scores[q])) if n not in relevant[q]]
            value = -math.log(math.exp(scores[q][p]) / sum(map(math.exp, [scores[q][p], *against])))
            if symmetric:
                others = [scores[r][p] for r in range(len(batch)) if p not in relevant[r]]
                back = -math.log(math.exp(scores[q][p]) / sum(map(math.exp, [scores[q][p], *others])))
                value = (value + back) / 2
            part += value / len(drawn[q])
        total += part / len(batch)
    return total


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_in_batch_info_nce_against_a_slow_one(known: bool, symmetric: bool) -> None:
    step = ranking_step(4)
    loss = build("info-nce", in_batch=True, temperature=0.7, mask_known_positives=known, symmetric=symmetric)
    assert step.run(loss).total.item() == pytest.approx(slow_info_nce(step, 0.7, known, symmetric))
    assert slow_info_nce(step, 0.7, True, symmetric) != pytest.approx(slow_info_nce(step, 0.7, False, symmetric))


def test_info_nce_without_in_batch_is_localized_contrastive() -> None:
    step = ranking_step(4)
    for positives in ("each", "first", "sum"):
        own = step.run(build("info-nce", temperature=0.5, positives=positives)).total.item()
        assert own == pytest.approx(
            step.run(build("localized-contrastive", temperature=0.5, positives=positives)).total.item()
        )


@pytest.mark.parametrize("in_batch", [False, True])
def test_likely_false_negatives_lose_their_gradient_and_are_counted(in_batch: bool) -> None:
    step = ranking_step(4)
    step.teacher["logits"][:, 0] = 2.0
    step.teacher["logits"][:, 1:] = -2.0
    step.teacher["logits"][0, 3] = 1.9  # nearly as good as the positive
    step.teacher["logits"][4, 3] = 5.0  # padding: nobody's candidate
    step.teacher["logits"][1, 2] = 1.95  # a positive of its own
    step = step.leaves()
    terms = step.run(build("info-nce", in_batch=in_batch, false_negative_margin=0.5))
    terms.total.backward()
    assert terms.parts["false_negatives"].item() == 1
    name = "batch_logits" if in_batch else "logits"
    gradient = step.student[name].grad
    assert gradient is not None and step.batch.candidates is not None
    column = int(step.batch.candidates[0, 3]) if in_batch else 3
    assert gradient[0, column] == 0.0
    step = step.leaves()
    step.run(build("info-nce", in_batch=in_batch)).total.backward()
    gradient = step.student[name].grad
    assert gradient is not None and gradient[0, column] > 0.0


def test_embedding_losses_against_slow_ones() -> None:
    step = ranking_step(4)
    batch = step.batch
    assert batch.candidates is not None and batch.mask is not None
    mse, cosine = 0.0, 0.0
    for q in range(len(batch)):
        own = [int(p) for p, ok in zip(batch.candidates[q], batch.mask[q], strict=True) if ok]
        query = ((step.student["query_embeddings"][q] - step.teacher["query_embeddings"][q]) ** 2).mean().item()
        parts = [
            ((step.student["passage_embeddings"][p] - step.teacher["passage_embeddings"][p]) ** 2).mean().item()
            for p in own
        ]
        mse += (query + sum(parts) / len(parts)) / 2 / len(batch)
        a, b = step.student["query_embeddings"][q], step.teacher["query_embeddings"][q]
        cosine += (1 - float(a @ b / (a.norm() * b.norm()))) / len(batch)
    assert step.run(build("embedding-mse")).total.item() == pytest.approx(mse)
    only = build("embedding-mse", of=["query_embeddings"], distance="cosine")
    assert step.run(only).total.item() == pytest.approx(cosine)


def test_layers_are_paired_as_documented() -> None:
    assert layer_pairs("uniform", 4, 12) == [(0, 2), (1, 5), (2, 8), (3, 11)]
    assert layer_pairs("uniform", 6, 3) == [(1, 0), (3, 1), (5, 2)]
    assert layer_pairs("last", 2, 5) == [(0, 3), (1, 4)]
    assert layer_pairs([(0, 1), (-1, -1)], 3, 4) == [(0, 1), (2, 3)]
    with pytest.raises(TrainingError, match=r"\[3, 0\].*3 layers"):
        layer_pairs([(3, 0)], 3, 4)


def test_hidden_mse_by_hand() -> None:
    step = ranking_step(4)
    ours, theirs = step.student["hidden"], step.teacher["hidden"]
    expected = (((ours[:, 0] - theirs[:, 1]) ** 2).mean() + ((ours[:, 2] - theirs[:, LAYERS - 1]) ** 2).mean()) / 2
    loss = build("hidden-mse", layers=[(0, 1), (2, -1)])
    assert step.run(loss).total.item() == pytest.approx(expected.item())


def test_hidden_states_of_a_cross_encoder_are_compared_layer_by_layer_over_real_candidates() -> None:
    step = ranking_step(4)
    mask = step.batch.mask
    assert mask is not None
    ours, theirs = (torch.randn(*mask.shape, layers, H, dtype=torch.float64) for layers in (2, LAYERS))
    step.student["hidden"], step.teacher["hidden"] = ours, theirs
    loss = build("hidden-mse", layers="last")
    assert step.run(loss).total.item() == pytest.approx(((ours - theirs[:, :, -2:]) ** 2)[mask].mean().item())
    ours[~mask] = 1e6
    assert step.run(loss).total.item() < 10


# ---------------------------------------------------------------- sentence-transformers


def theirs(loss: str, embeddings: list[Tensor], labels: Tensor, **options: Any) -> float:
    """The value of a sentence-transformers loss on embeddings: what it does after its model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses as rival

    made: Any = getattr(rival, loss)(model=torch.nn.Module(), **options)
    assert SentenceTransformer is not None
    return float(made.compute_loss_from_embeddings(embeddings, labels))


def test_kl_and_margin_mse_equal_sentence_transformers() -> None:
    draw = torch.Generator().manual_seed(7)
    queries = torch.randn(8, 16, generator=draw)
    passages = [torch.randn(8, 16, generator=draw) for _ in range(5)]
    teacher = 3 * torch.randn(8, 5, generator=draw)
    student = torch.stack([(queries * passage).sum(-1) for passage in passages], dim=1)
    labels = torch.zeros(8, 5)
    labels[:, 0] = 1.0
    batch = Batch(
        task="ranking", ids=tuple("abcdefgh"), inputs={}, num_items=8.0, labels=labels,
        mask=torch.ones(8, 5, dtype=torch.bool), candidates=torch.arange(40).view(8, 5),
    )  # fmt: skip

    def ours(loss: Any) -> float:
        return float(loss(Signals(logits=student), [Signals(logits=teacher)], batch, CLOCK).total)

    assert ours(build("margin-mse")) == pytest.approx(theirs("MarginMSELoss", [queries, *passages], teacher), rel=1e-5)
    for mine, rival in (
        (build("kl"), {}),
        (build("kl", temperature=2.0), {"temperature": 2.0}),
    ):
        assert ours(mine) == pytest.approx(theirs("DistillKLDivLoss", [queries, *passages], teacher, **rival), rel=1e-5)


def test_lambda_loss_ranknet_and_listnet_equal_sentence_transformers() -> None:
    from sentence_transformers.cross_encoder import losses as rival

    step = ranking_step(4, torch.float32)
    found = lists(step)

    class Fake(torch.nn.Module):
        """Stands in for a cross-encoder: gives the scores of the step, one call after another."""

        num_labels = 1
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.place = 0
            self.scores = torch.tensor([score for scores, _, _ in found for score in scores])

        def preprocess(self, pairs: list[Any], **unused: Any) -> dict[str, Any]:
            return {"number": torch.tensor(len(pairs))}

        def forward(self, features: dict[str, Any]) -> dict[str, Tensor]:
            begin, self.place = self.place, self.place + int(features["number"])
            return {"scores": self.scores[begin : self.place]}

    def value(make: Callable[[Any], Any]) -> float:
        inputs = [["q"] * len(found), [["d"] * len(scores) for scores, _, _ in found]]
        return float(make(Fake())(inputs, [torch.tensor(labels) for _, _, labels in found]))

    pairs = sum(sum(a > b for a, b in itertools.permutations(labels, 2)) for _, _, labels in found)
    schemes = {
        "lambdarank": rival.LambdaRankScheme(), "ndcg-loss2": rival.NDCGLoss2Scheme(),
        "ndcg-loss2++": rival.NDCGLoss2PPScheme(),
    }  # fmt: skip
    for scheme, theirs_scheme in schemes.items():
        # they take the mean over all pairs of the batch, we the sum over pairs and the mean over items
        mean = value(lambda model, scheme=theirs_scheme: rival.LambdaLoss(model, weighting_scheme=scheme))
        ours = step.run(build("lambda-loss", scheme=scheme)).total.item()
        assert ours == pytest.approx(mean * pairs / 6, rel=1e-5)
    ours = step.run(build("listnet", target="labels")).total.item()
    assert ours == pytest.approx(value(rival.ListNetLoss), rel=1e-5)


# ---------------------------------------------------------------- mistakes


def test_shapes_that_differ_are_named() -> None:
    step = ranking_step()
    step.teacher["logits"] = step.teacher["logits"][:, :4]
    step.teacher_mask = None
    with pytest.raises(TrainingError, match=r"student has shape \(6, 5\) and the teacher \(6, 4\)"):
        step.run(build("kl"))
    step.teacher["query_embeddings"] = torch.zeros(6, H + 1)
    with pytest.raises(TrainingError, match="projection: true"):
        step.run(build("embedding-mse"))


def test_projection_into_a_wider_teacher_trains() -> None:
    class Wider:
        def width(self, signal: str) -> int:
            return H + 3

    step = ranking_step(dtype=torch.float32)
    step.teacher["query_embeddings"] = torch.randn(6, H + 3, generator=torch.Generator().manual_seed(0))
    loss = build("embedding-mse", of=["query_embeddings"], projection=True)
    loss.setup(Wide(), [Wider()])
    parameters = list(loss.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == [(H + 3, H)]
    step.run(loss).total.backward()
    assert parameters[0].grad is not None and parameters[0].grad.abs().sum() > 0
    with pytest.raises(PluginError, match="width"):
        build("embedding-mse", projection=True).setup(object(), [object()])


def test_labels_that_are_not_there_are_an_error() -> None:
    step = ranking_step()
    step.batch = replace(step.batch, labels=None)
    with pytest.raises(TrainingError, match="needs labels"):
        step.run(build("localized-contrastive"))


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="in_batch"):
        build("info-nce", symmetric=True)
    with pytest.raises(ConfigError, match="of"):
        build("embedding-mse", of=[])
    with pytest.raises(ConfigError, match="layers"):
        build("hidden-mse", layers=[])
    fixed: Any = WEIGHTINGS["fixed"]
    with pytest.raises(ConfigError, match="all weights are 0"):
        fixed(weights=[0.0, 0.0])
    step = ranking_step()
    with pytest.raises(ConfigError, match="2 weights for 1 teachers"):
        step.run(build("kl", weighting=fixed(weights=[1.0, 1.0])))
    assert fixed(weights=[1, 2]).needs.teachers == (2, 2)


def test_margin_and_pair_functions_ignore_masked_candidates() -> None:
    mask = torch.tensor([[True, True, False]])
    pairs = positive_pairs(torch.tensor([[True, False, True]]), mask)
    assert pairs.nonzero().tolist() == [[0, 0, 1]]
    assert margin_mse(row(1.0, 0.0, math.nan), row(3.0, 0.0, 0.0), pairs).item() == pytest.approx(4.0)
    assert listnet(row(0.0, 0.0, 5.0), row(0.0, 0.0, 9.0), mask).item() == pytest.approx(LOG2)
    weights = lambda_weights(row(0.0, 1.0, 2.0), row(1.0, 0.0, 0.0), mask, "lambdarank")
    assert weights[0, 0, 1].item() == pytest.approx(1 - 1 / math.log2(3))
    assert lambda_loss(row(0.0, 0.0, 0.0), pairs, weights).item() == pytest.approx(weights[0, 0, 1].item())
    assert pairwise_hinge(row(1.0, 3.0), 0.5)[0, 0, 1].item() == pytest.approx(2.5)

"""Invariants of CA-MKD (arXiv:2201.00007)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_bert
from torch import Tensor, nn

from kdfw.components import Model, Teacher
from kdfw.errors import ConfigError, TrainingError
from kdfw.losses.kl import KL
from kdfw.models.forward import represent, signals_of
from kdfw.models.text_classifier import TextClassifier
from kdfw.types import Batch, Clock, Signals, Text
from kdfw_plugins.ca_mkd.features import ConfidenceFeatures, as_map, feature_term, projection, resize
from kdfw_plugins.ca_mkd.weights import ConfidenceWeighting, confidence_weights, label_cross_entropy

LABELS = torch.tensor([1, 0, 3])


def clock(epoch: int = 5) -> Clock:
    return Clock(step=0, total_steps=1, epoch=epoch, total_epochs=9, steps_per_epoch=1, seed=0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch() -> Batch:
    return Batch(task="classification", ids=tuple("abc"), inputs={}, num_items=3, labels=LABELS)


def total(teachers: Tensor, student: Tensor, weighting: ConfidenceWeighting | None) -> Tensor:
    loss = KL(temperature=4.0, weighting=weighting)
    return loss(Signals(logits=student), [Signals(logits=one) for one in teachers], batch(), clock()).total


@given(teachers=st.integers(2, 6), seed=st.integers(0, 1000), size=st.floats(0, 50))
def test_weights_sum_to_one_and_fall_with_the_loss(teachers: int, seed: int, size: float) -> None:
    losses = normal(teachers, 3, seed=seed).abs() * size
    weights = confidence_weights(losses)
    assert torch.allclose(weights.sum(0), torch.ones(3, dtype=torch.float64))
    assert bool((weights >= 0).all()) and bool((weights <= 1 / (teachers - 1) + 1e-12).all())
    worse = losses[:, None] > losses[None]
    assert not bool((worse & (weights[:, None] > weights[None])).any())


@given(seed=st.integers(0, 1000))
def test_of_two_teachers_each_gets_the_softmax_of_the_other(seed: int) -> None:
    losses = normal(2, 3, seed=seed)
    assert torch.allclose(confidence_weights(losses), losses.softmax(0).flip(0))


@given(teachers=st.integers(2, 6), loss=st.floats(0, 1e6))
def test_equal_losses_have_equal_weights(teachers: int, loss: float) -> None:
    assert torch.allclose(confidence_weights(torch.full((teachers, 2), loss)), torch.tensor(1 / teachers))


def test_cross_entropy_of_classes_and_of_grades() -> None:
    logits = normal(4, 3, 5)
    hot = nn.functional.one_hot(LABELS, 5)
    by_class = label_cross_entropy(logits, LABELS)
    assert torch.allclose(by_class, label_cross_entropy(logits, 2.0 * hot))
    assert torch.allclose(by_class[1], nn.functional.cross_entropy(logits[1], LABELS, reduction="none"))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[:, 4] = False
    assert torch.allclose(label_cross_entropy(logits, hot, mask), label_cross_entropy(logits[..., :4], hot[:, :4]))


def test_identical_teachers_share_equally() -> None:
    teacher, student = normal(3, 5, seed=1), normal(3, 5, seed=2)
    same = teacher.expand(3, 3, 5)
    plain = total(teacher[None].expand(2, 3, 5), student, None)
    assert torch.allclose(total(same, student, ConfidenceWeighting()), plain / 3)
    assert torch.allclose(total(same, student, ConfidenceWeighting(scale="paper")), plain)


def test_gradient_of_the_logit_term_is_that_of_the_card() -> None:
    teachers, student = normal(3, 3, 5, seed=1), normal(3, 5, seed=2).requires_grad_()
    (gradient,) = torch.autograd.grad(total(teachers, student, ConfidenceWeighting()), student)
    weights = confidence_weights(label_cross_entropy(teachers, LABELS))
    apart = (student / 4).softmax(-1) - (teachers / 4).softmax(-1)
    assert torch.allclose(gradient, (4 / 9 * (weights[..., None] * apart).sum(0)).detach(), atol=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(3)), items=st.permutations(range(3)))
def test_the_order_of_teachers_and_of_items_does_not_matter(seed: int, order: list[int], items: list[int]) -> None:
    teachers, student = normal(3, 3, 5, seed=seed), normal(3, 5, seed=seed + 1)
    weighting = ConfidenceWeighting()
    value = total(teachers, student, weighting)
    assert torch.allclose(value, total(teachers[order], student, weighting))
    loss = KL(temperature=4.0, weighting=weighting)
    other = Batch(task="classification", ids=tuple("abc"), inputs={}, num_items=3, labels=LABELS[items])
    signals = [Signals(logits=teacher[items]) for teacher in teachers]
    assert torch.allclose(value, loss(Signals(logits=student[items]), signals, other, clock()).total)


def test_a_student_like_every_teacher_has_no_gradient_and_teachers_never_have() -> None:
    teacher = normal(3, 5, seed=1)
    student = teacher.clone().requires_grad_()
    teachers = [teacher.clone().requires_grad_(), teacher.clone().requires_grad_()]
    loss = KL(temperature=4.0, weighting=ConfidenceWeighting())
    loss(Signals(logits=student), [Signals(logits=one) for one in teachers], batch(), clock()).total.backward()
    assert student.grad is not None and torch.allclose(student.grad, torch.zeros_like(student), atol=1e-12)
    assert all(one.grad is None for one in teachers)


def test_one_teacher_is_refused_by_needs() -> None:
    assert KL(weighting=ConfidenceWeighting()).needs.teachers[0] == 2


def test_a_bad_teacher_counts_less_in_ranking() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    good, bad = Signals(logits=torch.tensor([[5.0, 0.0, 0.0]])), Signals(logits=torch.tensor([[0.0, 5.0, 0.0]]))
    ranking = Batch(task="ranking", ids=("q",), inputs={}, num_items=1, labels=labels)
    weights = ConfidenceWeighting().weights(Signals(logits=torch.zeros(1, 3)), [good, bad], ranking, clock())
    assert float(weights[0, 0]) > 0.99 * 0.5 > 0.01 > float(weights[1, 0])


def ranked(*scores: list[float], mask: list[bool] | None = None, first: float = 1.0) -> Tensor:
    """Weights of teachers with these scores for one query whose first candidate is relevant."""
    labels = torch.tensor([[first, 0.0, 0.0]])
    ranking = Batch(task="ranking", ids=("q",), inputs={}, num_items=1, labels=labels)
    student = Signals(logits=torch.zeros(1, 3), mask=None if mask is None else torch.tensor([mask]))
    teachers = [Signals(logits=torch.tensor([row])) for row in scores]
    return ConfidenceWeighting(scale="paper").weights(student, teachers, ranking, clock())[:, 0]


def test_a_teacher_that_did_not_score_the_relevant_candidate_counts_nothing() -> None:
    lacking = [float("nan"), 5.0, 0.0]
    assert ranked([0.0, 5.0, 0.0], lacking).tolist() == [1.0, 0.0]
    assert ranked(lacking, lacking).tolist() == [0.5, 0.5]
    # a negative without a score is as a candidate that is not there
    assert torch.allclose(ranked([1.0, 0.0, float("nan")], [0.0, 1.0, 3.0]), ranked([1.0, 0.0, -1e4], [0.0, 1.0, 3.0]))


def test_padding_and_items_without_a_label_weigh_alike() -> None:
    assert torch.allclose(
        ranked([1.0, 0.0, 99.0], [0.0, 1.0, -99.0], mask=[True, True, False]),
        ranked([1.0, 0.0, -1e4], [0.0, 1.0, -1e4]),
    )
    assert ranked([5.0, 0.0, 0.0], [0.0, 5.0, 0.0], first=0.0).tolist() == [0.5, 0.5]
    unknown = Batch(task="classification", ids=tuple("abc"), inputs={}, num_items=3, labels=torch.tensor([1, -1, 3]))
    teachers = [Signals(logits=normal(3, 5, seed=seed)) for seed in (1, 2)]
    weights = ConfidenceWeighting(scale="paper").weights(Signals(logits=normal(3, 5)), teachers, unknown, clock())
    assert weights[:, 1].tolist() == pytest.approx([1 / 6, 1 / 6]) and abs(float(weights[0, 0]) - 1 / 6) > 1e-3


def test_feature_weights_are_not_detached() -> None:
    projected, teachers = normal(3, 3, 2, 4, 4, seed=1), normal(3, 3, 2, 4, 4, seed=2)
    logits = normal(3, 3, 5, seed=3).requires_grad_()
    values, _ = feature_term(list(projected), list(teachers), logits, LABELS)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    shares = label_cross_entropy(logits, LABELS).softmax(0)
    distances = (projected - teachers).square().flatten(2).mean(-1) / (3 * 2)
    towards = -shares * (distances - (distances * shares).sum(0))
    hot = nn.functional.one_hot(LABELS, 5)
    assert torch.allclose(gradient, (towards[..., None] * (logits.softmax(-1) - hot)).detach(), atol=1e-12)


def test_resize_averages_down_and_interpolates_up() -> None:
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize(features, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(resize(features, 4), features)
    assert resize(features, 8).shape == (1, 1, 8, 8)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
def test_the_feature_term_goes_with_its_teachers(seed: int, order: list[int]) -> None:
    projected, teachers = normal(3, 3, 2, 4, 4, seed=seed), normal(3, 3, 2, 4, 4, seed=seed + 1)
    logits = normal(3, 3, 5, seed=seed + 2)
    values, weights = feature_term(list(projected), list(teachers), logits, LABELS)
    moved, moved_weights = feature_term(list(projected[order]), list(teachers[order]), logits[order], LABELS)
    assert torch.allclose(moved, values[order]) and torch.allclose(moved_weights, weights[order])
    assert torch.allclose(values, weights * (projected - teachers).square().flatten(2).mean(-1) / 3)


class Net(Model):
    """Feature maps as they come; the head is one linear layer over the average."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.output = nn.Linear(channels, 5).double()
        torch.nn.init.normal_(self.output.weight, generator=torch.Generator().manual_seed(seed))

    def width(self, signal: str) -> int:
        return self.output.in_features

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(features.mean((2, 3)))
        return logits


def test_the_feature_loss_trains_projections_and_never_teachers() -> None:
    torch.manual_seed(0)
    loss = ConfidenceFeatures()
    loss.setup(Net(4, 0), [Net(2, 1), Net(3, 2)])
    loss.double()
    own = normal(3, 4, 8, 8).requires_grad_()
    maps = [normal(3, 2, 4, 4, seed=1).requires_grad_(), normal(3, 3, 8, 8, seed=2).requires_grad_()]
    teachers = [Signals(extra={"features": one}) for one in maps]
    student = Signals(extra={"features": own})
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"projections"}
    result = loss(student, teachers, batch(), clock()).total
    gradients = torch.autograd.grad(result, [own, *maps], allow_unused=True)
    assert gradients[0] is not None and gradients[1] is None and gradients[2] is None
    assert loss(student, teachers, batch(), clock(epoch=0)).total.item() == 0.0
    assert result.item() > 0.0


def test_the_first_epoch_is_that_of_the_option() -> None:
    loss = ConfidenceFeatures(first_epoch=1)
    loss.setup(Net(4, 0), [Net(2, 1), Net(3, 2)])
    loss.double()
    teachers = [Signals(extra={"features": normal(3, width, 4, 4, seed=width)}) for width in (2, 3)]
    student = Signals(extra={"features": normal(3, 4, 8, 8)})
    assert loss(student, teachers, batch(), clock(epoch=0)).total.item() > 0.0


def test_projections_end_as_asked() -> None:
    kinds = [type(layer) for layer in projection(4, 6, bottleneck=True)]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    assert [type(layer) for layer in projection(4, 6, activation="none")] == [nn.Conv2d, nn.BatchNorm2d]


def test_features_of_another_shape_and_teachers_without_any_are_refused() -> None:
    assert as_map(normal(3, 4)).shape == (3, 4, 1, 1) and as_map(normal(3, 4).bfloat16()).dtype == torch.float32
    with pytest.raises(TrainingError, match=r"\(3, 4, 5\)"):
        as_map(normal(3, 4, 5))
    with pytest.raises(ConfigError, match="teacher 1 is not a model"):
        ConfidenceFeatures().setup(Net(4, 0), [Net(2, 1), Teacher()])


def classifier(folder: Path, seed: int, width: int) -> TextClassifier:
    model = TextClassifier(base=str(write_bert(folder / str(seed), layers=1, width=width, seed=seed)))
    model.fit_data(SimpleNamespace(classes=["a", "b", "c"]))
    model.load()
    return model.eval()


def test_text_classifiers_learn_from_each_others_features(tmp_path: Path) -> None:
    student, *teachers = [classifier(tmp_path, seed, width) for seed, width in ((1, 16), (2, 32), (3, 32))]
    texts = [Text(source=None, made=text) for text in ("water stone", "river bridge light", "engine", "stone")]
    labels = torch.tensor([0, 1, 2, 1])
    step = Batch(task="classification", ids=tuple("abcd"), inputs={"text": texts}, num_items=4, labels=labels)
    need = frozenset({"logits", "features"})
    loss = ConfidenceFeatures(activation="none")
    torch.manual_seed(0)
    loss.setup(student, teachers)
    said = [signals_of(teacher, step, need).detached() for teacher in teachers]
    student.requires_grad_(True)
    reps = represent(student, student.rows(step, need), need)
    result = loss(student.signals(reps, step, need), said, step, clock()).total
    result.backward()
    assert result.item() > 0.0
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert student.output.weight.grad is None  # the student's own last layer is not asked
    assert any(parameter.grad is not None and bool(parameter.grad.abs().sum()) for parameter in student.parameters())
    alone = Batch(task="classification", ids=("a",), inputs={"text": texts[:1]}, num_items=1, labels=labels[:1])
    one = [signals_of(model, alone, need) for model in (student, *teachers)]
    assert loss(one[0], one[1:], alone, clock()).total.item() == 0.0

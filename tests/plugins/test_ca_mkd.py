"""Invariants of CA-MKD (arXiv:2201.00007)."""

import pytest
import torch
from torch import Tensor, nn

from kdfw.components import Model
from kdfw.losses.kl import KL
from kdfw.types import Batch, Clock, Signals
from kdfw_plugins.ca_mkd.features import ConfidenceFeatures, feature_term, resize
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


@pytest.mark.parametrize("teachers", [2, 3, 6])
def test_weights_sum_to_one_and_fall_with_the_loss(teachers: int) -> None:
    losses = normal(teachers, 3).abs()
    weights = confidence_weights(losses)
    assert torch.allclose(weights.sum(0), torch.ones(3, dtype=torch.float64))
    assert bool((weights >= 0).all()) and bool((weights <= 1 / (teachers - 1)).all())
    for column in range(3):
        assert torch.equal(losses[:, column].argsort(), weights[:, column].argsort(descending=True))


def test_of_two_teachers_each_gets_the_softmax_of_the_other() -> None:
    losses = normal(2, 3)
    assert torch.allclose(confidence_weights(losses), losses.softmax(0).flip(0))


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


def test_the_order_of_teachers_does_not_matter() -> None:
    teachers, student = normal(3, 3, 5, seed=1), normal(3, 5, seed=2)
    weighting = ConfidenceWeighting()
    assert torch.allclose(total(teachers, student, weighting), total(teachers[[2, 0, 1]], student, weighting))


def test_one_teacher_is_refused_by_needs() -> None:
    assert KL(weighting=ConfidenceWeighting()).needs.teachers[0] == 2


def test_a_bad_teacher_counts_less_in_ranking() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    good, bad = Signals(logits=torch.tensor([[5.0, 0.0, 0.0]])), Signals(logits=torch.tensor([[0.0, 5.0, 0.0]]))
    ranking = Batch(task="ranking", ids=("q",), inputs={}, num_items=1, labels=labels)
    weights = ConfidenceWeighting().weights(Signals(logits=torch.zeros(1, 3)), [good, bad], ranking, clock())
    assert float(weights[0, 0]) > 0.99 * 0.5 > 0.01 > float(weights[1, 0])


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

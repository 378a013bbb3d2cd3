"""Invariants of ADAM as reconstructed here (arXiv:2212.10192)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfw.errors import ConfigError
from kdfw.losses.contrastive import InfoNCE, LocalizedContrastive
from kdfw.losses.kl import KL, kl_divergence
from kdfw.types import Batch, Candidate, Clock, Example, Signals, Text
from kdfw_plugins.adam.dark import count_of, mask_tokens, mix_tokens
from kdfw_plugins.adam.examples import DarkExamples
from kdfw_plugins.adam.loss import DarkDistillation
from kdfw_plugins.adam.selection import SelfPaced, confidence, most_confident, threshold_at

PLAIN, DARK = 4, 3


def clock(step: int = 0) -> Clock:
    return Clock(step=step, total_steps=10, epoch=0, total_epochs=1, steps_per_epoch=10, seed=0)


def scores(seed: int, items: int = 5, width: int = PLAIN + DARK) -> Tensor:
    return torch.randn(items, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def batch(items: int = 5, dark: int = DARK) -> Batch:
    kinds = ("positive", *["negative"] * (PLAIN - 1), *["dark"] * dark)
    ids = tuple(map(str, range(items)))
    return Batch(task="ranking", ids=ids, inputs={}, num_items=items, kinds=(kinds,) * items)


def value(student: Tensor, teacher: Tensor, dark: int = DARK, step: int = 0, **options: Any) -> Tensor:
    loss = DarkDistillation(**options)
    given_batch = batch(len(student), dark)
    return loss(Signals(logits=student), [Signals(logits=teacher)], given_batch, clock(step)).total


@pytest.mark.parametrize("unselected", ["skip", "plain"])
def test_without_dark_examples_and_with_all_selected_it_is_plain_kl(unselected: str) -> None:
    student, teacher = scores(1, width=PLAIN), scores(2, width=PLAIN)
    everything = torch.ones_like(student, dtype=torch.bool)
    got = value(student, teacher, dark=0, start=0.0, end=0.0, unselected=unselected)
    assert torch.allclose(got, kl_divergence(student, teacher, everything).mean())


def test_nothing_selected_is_zero_or_plain_distillation() -> None:
    student, teacher = scores(1).requires_grad_(), scores(2)
    skipped = value(student, teacher, start=1.1, end=1.1)
    (gradient,) = torch.autograd.grad(skipped, student)
    assert skipped.item() == 0.0 and torch.equal(gradient, torch.zeros_like(student))
    mask = torch.ones(5, PLAIN, dtype=torch.bool)
    plain = kl_divergence(student[:, :PLAIN], teacher[:, :PLAIN], mask).mean()
    assert torch.allclose(value(student, teacher, start=1.1, end=1.1, unselected="plain"), plain)


def test_gradient_of_skip_is_that_of_the_card() -> None:
    student, teacher, tau = scores(1).requires_grad_(), scores(2), 2.0
    total = value(student, teacher, start=0.05, end=0.05, temperature=tau, scale_by_temperature=False)
    (gradient,) = torch.autograd.grad(total, student)
    chosen = teacher[:, :PLAIN].softmax(-1)[:, 0] >= 0.05
    assert 0 < int(chosen.sum()) < 5
    apart = (student / tau).softmax(-1) - (teacher / tau).softmax(-1)
    by_hand = chosen[:, None] * apart / (tau * chosen.sum())
    assert torch.allclose(gradient, by_hand.detach(), atol=1e-12)
    assert torch.allclose(gradient.sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12)


def test_the_weighting_does_to_kl_what_the_loss_does() -> None:
    student, teacher = scores(1), scores(2)
    weighted = KL(weighting=SelfPaced(start=0.05, end=0.05))
    got = weighted(Signals(logits=student), [Signals(logits=teacher)], batch(), clock()).total
    assert torch.allclose(got, value(student, teacher, start=0.05, end=0.05))


def test_confidence_reads_the_plain_list_only() -> None:
    teacher = scores(2)
    plain = torch.ones(5, PLAIN + DARK, dtype=torch.bool)
    plain[:, PLAIN:] = False
    sure = confidence(teacher, plain)
    moved = teacher.clone()
    moved[:, PLAIN:] += 100.0
    assert torch.equal(confidence(moved, plain), sure)
    assert torch.allclose(confidence(teacher + 7.0, plain), sure)
    assert bool((sure > 0).all()) and bool((sure < 1).all())


def test_threshold_falls_and_the_selection_grows() -> None:
    levels = [threshold_at(step, 10, 0.6, 0.2) for step in range(15)]
    assert levels == sorted(levels, reverse=True) and levels[10:] == [0.2] * 5 and levels[0] == 0.6
    sure = torch.tensor([0.1, 0.3, 0.5, 0.7])
    sets = [set(torch.nonzero(sure >= level).flatten().tolist()) for level in levels]
    assert all(before <= after for before, after in zip(sets, sets[1:], strict=False)) and sets[0] != sets[-1]


def test_topk_keeps_a_share_and_at_least_one() -> None:
    sure = torch.tensor([0.1, 0.9, 0.5, 0.5])
    assert most_confident(sure, 0.5).tolist() == [False, True, True, False]
    assert most_confident(sure, 0.01).tolist() == [False, True, False, False]
    assert most_confident(sure, 1.0).all()


def test_permuting_dark_examples_or_negatives_changes_nothing() -> None:
    student, teacher = scores(1), scores(2)
    order = torch.tensor([0, 3, 1, 2, 6, 4, 5])
    for unselected in ("skip", "plain"):
        options = {"start": 0.05, "end": 0.05, "unselected": unselected}
        moved = value(student[:, order], teacher[:, order], **options)
        assert torch.allclose(moved, value(student, teacher, **options))


@pytest.mark.parametrize("in_batch", [True, False])
def test_dark_examples_never_enter_the_contrastive_term(in_batch: bool) -> None:
    full = batch(3)
    candidates = torch.arange(3 * (PLAIN + DARK)).reshape(3, PLAIN + DARK)
    plain_rows = candidates[:, :PLAIN].flatten()
    labels = torch.zeros(3, PLAIN + DARK)
    labels[:, 0] = 1.0
    everything = scores(1, 3, 3 * (PLAIN + DARK))
    with_dark = replace(full, candidates=candidates, labels=labels)
    without = replace(batch(3, dark=0), candidates=torch.arange(3 * PLAIN).reshape(3, PLAIN), labels=labels[:, :PLAIN])
    first = Signals(logits=everything.gather(1, candidates), extra={"batch_logits": everything})
    own = first["logits"][:, :PLAIN]
    second = Signals(logits=own, extra={"batch_logits": everything[:, plain_rows]})
    loss = InfoNCE(in_batch=in_batch)
    got = loss(first, [], with_dark, clock()).total
    assert torch.allclose(got, loss(second, [], without, clock()).total)
    assert not torch.allclose(got, loss(first, [], replace(with_dark, kinds=()), clock()).total)
    if not in_batch:
        assert torch.allclose(LocalizedContrastive()(first, [], with_dark, clock()).total, got)


tokens = st.lists(st.integers(0, 50), min_size=1, max_size=30)
shares = st.floats(0.01, 0.99)


@settings(max_examples=60, deadline=None)
@given(tokens, shares, st.integers(0, 100))
def test_masking_touches_exactly_its_positions(body: list[int], share: float, seed: int) -> None:
    made = mask_tokens(body, -1, share, np.random.default_rng(seed))
    assert len(made) == len(body)
    masked = [at for at, token in enumerate(made) if token == -1]
    assert len(masked) == (min(count_of(share, len(body)), len(body) - 1) if len(body) > 1 else 0)
    assert all(made[at] == body[at] for at in range(len(body)) if at not in masked)
    assert made == mask_tokens(body, -1, share, np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(tokens, tokens, shares, st.integers(0, 100))
def test_mixing_copies_one_span_and_keeps_the_length(
    positive: list[int], negative: list[int], share: float, seed: int
) -> None:
    positive = [100 + at for at in range(len(positive))]  # every token tells where it came from
    made = mix_tokens(positive, negative, share, np.random.default_rng(seed))
    assert len(made) == len(negative)
    places = [at for at, token in enumerate(made) if token >= 100]
    assert len(places) == count_of(share, min(len(positive), len(negative)))
    assert places == list(range(places[0], places[0] + len(places)))
    copied = [made[at] for at in places]
    assert copied == list(range(copied[0], copied[0] + len(copied)))
    assert all(made[at] == negative[at] for at in range(len(negative)) if at not in places)


def example() -> Example:
    texts = ["the red fox jumps over the lazy dog", "one two three four five six", "seven eight nine ten eleven"]
    kinds = ["positive", "negative", "negative"]
    return Example(
        id="q",
        candidates=tuple(
            Candidate(id=str(at), text=Text(source=None, made=text), label=float(at == 0), kind=kind)
            for at, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        ),
    )


def test_the_augmenter_appends_and_leaves_the_rest_alone() -> None:
    augmenter = DarkExamples(reinforced=3, noisy=2)
    made = augmenter.apply(example(), clock(), np.random.default_rng(1))
    assert made.candidates[:3] == example().candidates
    dark = made.candidates[3:]
    assert [one.kind for one in dark] == ["dark"] * 5 and all(one.label == 0.0 for one in dark)
    mixed, noisy = [str(one.text).split() for one in dark[:3]], [str(one.text).split() for one in dark[3:]]
    red = set("the red fox jumps over the lazy dog".split())
    assert all(red & set(words) and set(words) - red for words in mixed)
    assert all(len(words) == 8 and "[MASK]" in words and set(words) & red for words in noisy)
    again = augmenter.apply(example(), clock(), np.random.default_rng(1))
    assert again == made and again != augmenter.apply(example(), clock(), np.random.default_rng(2))


def test_without_a_positive_nothing_is_made() -> None:
    lonely = Example(id="q", candidates=example().candidates[1:])
    assert DarkExamples().apply(lonely, clock(), np.random.default_rng(0)) == lonely


def test_shares_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="mask_share"):
        DarkExamples(mask_share=(0.5, 1.0))

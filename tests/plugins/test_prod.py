"""Invariants of PROD (arXiv:2209.13335)."""

import itertools
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.recipe_losses import list_batch, term_values
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_beir, write_bert
from torch import Tensor
from torch.nn.functional import cross_entropy
from whole_runs import results, run

import kdfw
from kdfw.data.datasets import DATASETS
from kdfw.data.ranking import Ranking
from kdfw.engine.training import Trainer
from kdfw.errors import ConfigError
from kdfw.retrieval.filter import Filter
from kdfw.types import Signals
from kdfw_plugins.prod.losses import hard_loss, stage_losses
from kdfw_plugins.prod.method import Prod
from kdfw_plugins.prod.selection import (
    first_rank,
    negative_pool,
    select_queries,
    teacher_ahead,
    teacher_right_student_nearly,
)

ranks = st.one_of(st.none(), st.integers(1, 40))


def test_the_terms_of_both_losses() -> None:
    first = stage_losses(in_batch=True)
    assert [(term["type"], term["weight"]) for term in first] == [("info-nce", 0.1), ("kl", 0.9)]
    assert first[0]["in_batch"] and first[1]["signal"] == "batch_logits" and "temperature" not in first[0]
    second = stage_losses(reg_weight=1.0)
    assert second[:2] == stage_losses()
    assert second[2] == {**second[1], "name": "stay", "weight": 1.0, "teachers": [1]}
    assert stage_losses(distance="logit")[1]["weight"] == pytest.approx(0.45)
    apart = stage_losses(reg_weight=1.0, temperature={"type": "ctkd"}, reg_temperature=2.0)
    assert [term.get("temperature") for term in apart] == [None, {"type": "ctkd"}, 2.0]
    assert hard_loss(in_batch=True)["weight"] == 1.0


def scores(seed: int, items: int = 4, width: int = 6) -> Tensor:
    return 3 * torch.randn(items, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def total(student: Tensor, *others: Tensor, **weights: float | None) -> Tensor:
    teachers = [Signals(logits=other) for other in others]
    terms = stage_losses(**weights)  # type: ignore[arg-type]
    return term_values(terms, Signals(logits=student), teachers, list_batch(*student.shape))["loss"]


seeds = st.integers(0, 2**20)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_terms_without_weight_fall_away(seed: int) -> None:
    student, teacher, frozen = (scores(seed + number) for number in range(3))
    with_copy = total(student, teacher, frozen, reg_weight=0.0)
    assert torch.allclose(with_copy, total(student, teacher))
    labels = torch.zeros(len(student), dtype=torch.long)
    alone = total(student, teacher, frozen, kd_weight=0.0, reg_weight=0.0, ce_weight=0.3)
    assert torch.allclose(alone, 0.3 * cross_entropy(student, labels))


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(-50, 50))
def test_constants_and_the_order_of_negatives_change_nothing(seed: int, constant: float) -> None:
    rows = [scores(seed + number) for number in range(3)]
    value = total(*rows, reg_weight=1.0)
    for moved in range(3):
        shifted = [row + constant * torch.arange(4)[:, None] if n == moved else row for n, row in enumerate(rows)]
        assert torch.allclose(total(*shifted, reg_weight=1.0), value)
    order = torch.tensor([0, *(1 + torch.randperm(5, generator=torch.Generator().manual_seed(seed))).tolist()])
    assert torch.allclose(total(*(row[:, order] for row in rows), reg_weight=1.0), value)


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.5, 1.0, 4.0]))
def test_the_gradient_is_the_papers_and_reaches_the_student_alone(seed: int, tau: float) -> None:
    student, teacher, frozen = (scores(seed + number).requires_grad_() for number in range(3))
    value = total(student, teacher, frozen, reg_weight=1.0, temperature=tau)
    found = torch.autograd.grad(value, [student, teacher, frozen], allow_unused=True)
    assert found[1] is None and found[2] is None
    positive = torch.zeros_like(student)
    positive[:, 0] = 1.0
    soft = [(row.detach() / tau).softmax(-1) for row in (student, teacher, frozen)]
    hard = 0.1 * (student.detach().softmax(-1) - positive)
    by_hand = (hard + 0.9 * tau * (soft[0] - soft[1]) + tau * (soft[0] - soft[2])) / len(student)
    assert torch.allclose(found[0], by_hand, atol=1e-12)
    assert torch.allclose(found[0].sum(-1), torch.zeros(len(student), dtype=torch.float64), atol=1e-12)


def test_an_equal_copy_pulls_nowhere_and_any_other_costs_something() -> None:
    student = scores(1).requires_grad_()
    only = {"ce_weight": 0.0, "kd_weight": 0.0, "reg_weight": 1.0}
    same = total(student, scores(2), student.detach() + 7.0, **only)
    (gradient,) = torch.autograd.grad(same, student)
    assert abs(same.item()) < 1e-12 and float(gradient.abs().max()) < 1e-12
    assert total(student, scores(2), scores(3), **only).item() > 0.01


def test_at_a_high_temperature_the_divergence_is_half_the_centred_squared_difference() -> None:
    student, teacher = scores(1), scores(2)
    value = total(student, teacher, ce_weight=0.0, kd_weight=1.0, temperature=1e4)
    apart = teacher - student
    limit = ((apart - apart.mean(-1, keepdim=True)) ** 2).mean(-1).mean() / 2
    assert value.item() == pytest.approx(limit.item(), rel=1e-3)


@given(ranks, ranks)
def test_the_passage_rule_by_its_words(student: int | None, teacher: int | None) -> None:
    kept = teacher_right_student_nearly(student, teacher)
    assert kept == (student in range(2, 16) and teacher == 1)


@given(ranks, ranks)
def test_the_answer_rule_by_its_words(student: int | None, teacher: int | None) -> None:
    from_zero = [float("inf") if rank is None else rank - 1 for rank in (student, teacher)]
    assert teacher_ahead(student, teacher) == (from_zero[1] < from_zero[0] and from_zero[1] < 15)


@settings(max_examples=50)
@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(0, 12))
def test_the_pool_has_no_positive_and_keeps_the_order(ranking: list[int], positives: set[int], size: int) -> None:
    pool = negative_pool(ranking, positives, size)
    assert not set(pool) & positives
    assert pool == sorted(pool, key=ranking.index)
    assert len(pool) == min(size, 12 - len(positives))
    assert all(one in pool or one in positives for one in ranking[: len(pool)])


def test_first_rank_counts_from_one_and_knows_absence() -> None:
    assert first_rank("abc", {"b", "c"}) == 2 and first_rank("abc", {"z"}) is None


def test_negatives_of_a_kept_query_hold_everything_ranked_above_its_positive() -> None:
    rng = np.random.default_rng(0)
    student = {query: [int(at) for at in rng.permutation(40)] for query in range(200)}
    teacher = {query: sorted(passages, key=lambda at: at != 7) for query, passages in student.items()}
    kept = select_queries(student, teacher, lambda query: {7}, teacher_right_student_nearly)
    assert 20 < len(kept) < 180
    for query in kept:
        above = student[query][: student[query].index(7)]
        assert above and set(above) <= set(negative_pool(student[query], {7}, 15))
    everything = partial(teacher_right_student_nearly, student_from=1, student_to=40)
    assert select_queries(student, teacher, lambda query: {7}, everything) == list(student)


@settings(max_examples=100)
@given(ranks, ranks)
def test_the_core_filter_keeps_what_the_rules_keep(student: int | None, teacher: int | None) -> None:
    own, other = (math.inf if rank is None else float(rank) for rank in (student, teacher))
    passages = Filter(of="search", scores="scores", ranks=(2, 15), score_ranks=(1, 1))
    assert passages.wanted(own, other) == teacher_right_student_nearly(student, teacher)
    answers = Filter(of="search", scores="scores", score_ranks=(1, 15), improves=True)
    assert answers.wanted(own, other) == teacher_ahead(student, teacher)


THREE = [{"model": "dual", "candidates": "in-batch"}, {"model": "base"}, {"model": "large", "train": {"lr": 5e-6}}]


def by_name(teachers: Sequence[dict[str, Any]] = THREE, **options: Any) -> dict[str, dict[str, Any]]:
    """The stages a recipe's method expands into, through the checks a recipe goes through."""
    from kdfw.errors import Problem
    from kdfw.options import check
    from kdfw.plugins import registry

    problems: list[Problem] = []
    raw = {"type": "prod", "teachers": list(teachers), **options}
    spec = check("method", raw, (), registry(), str, problems)
    assert spec is not None, problems
    method = spec.build()
    assert isinstance(method, Prod)
    return {stage["name"]: stage for stage in method.expand({})}


def test_the_plan_has_teachers_in_order_and_one_copy_for_each_stage() -> None:
    stages = by_name(rounds=2, first_retriever={"type": "triples"}, evaluate={"split": "dev"})
    assert list(stages) == [
        *("refresh-0", "warm-student", "warm-teacher-1", "refresh-1", "continued-student", "continued-teacher-1"),
        "distil-1",
        *("refresh-2", "teacher-2", "scores-2", "distil-2", "refresh-3", "teacher-3", "scores-3", "distil-3"),
        *("search-1", "ranked-1", "select-1", "round-1", "search-2", "ranked-2", "select-2", "round-2", "result"),
    ]
    assert stages["refresh-0"]["retriever"] == {"type": "triples"}
    students = {name: stage["student"] for name, stage in stages.items() if stage["type"] == "train"}
    assert students["warm-teacher-1"] == "dual" and students["teacher-2"] == "base"
    chain = ["student", "warm-student", "continued-student", "distil-1", "distil-2", "distil-3", "round-1", "round-2"]
    assert all(students[after] == before for before, after in itertools.pairwise(chain))
    assert "teachers" not in stages["warm-student"] and stages["distil-1"]["teachers"] == ["continued-teacher-1"]
    assert stages["distil-2"]["teachers"] == ["scores-2", "frozen"]
    assert stages["distil-3"]["teachers"] == ["scores-3", "frozen"] and stages["scores-3"]["teacher"] == "teacher-3"
    assert stages["round-2"]["teachers"] == ["ranked-2", "frozen"] and stages["ranked-2"]["teacher"] == "teacher-3"
    searchers = {
        name: stage["retriever"]["model"] for name, stage in stages.items() if name[-1] > "0" and "retriever" in stage
    }
    assert searchers == {"refresh-1": "warm-teacher-1", "refresh-2": "continued-teacher-1", "refresh-3": "distil-2",
                         "search-1": "distil-3", "search-2": "round-1"}  # fmt: skip
    assert [len(stages[name]["losses"]) for name in ("distil-1", "distil-2", "round-1")] == [2, 3, 3]
    assert stages["result"]["models"] == ["continued-student", "round-2"] and stages["result"]["split"] == "dev"


def test_the_settings_are_those_of_the_released_commands() -> None:
    stages = by_name([THREE[0], THREE[1], {"model": "large", "train": {"lr": 5e-6, "warmup": 600}}])
    table = {  # lr, warm-up, steps, queries, negatives, draw
        "warm-student": (2e-5, 4000, 40000, 128, 1, "random"),
        "warm-teacher-1": (2e-5, 4000, 40000, 128, 1, "random"),
        "continued-student": (2e-5, 1000, 10000, 128, 1, "random"),
        "teacher-2": (1e-5, 1000, 6000, 256, 15, "random"),
        "teacher-3": (5e-6, 600, 6000, 256, 15, "random"),
        "distil-1": (5e-5, 4000, 40000, 128, 1, "random"),
        "distil-2": (5e-5, 4000, 40000, 64, 15, "random"),
        "distil-3": (5e-5, 4000, 40000, 64, 15, "random"),
        "round-1": (1e-5, 200, 2000, 64, 15, "top"),
    }
    for name, (lr, warmup, steps, queries, negatives, draw) in table.items():
        settings_, sampler = stages[name]["train"], stages[name]["sampler"]
        assert settings_ == {
            **{"weight_decay": 0.0, "clip": 2.0, "lr": lr, "warmup": warmup, "steps": steps, "batch_size": queries}
        }, name
        assert (sampler["negatives"], sampler.get("draw", "random")) == (negatives, draw), name
    assert stages["refresh-3"]["depth"] == 200 and stages["refresh-3"]["limit"] == 100
    assert stages["search-1"]["limit"] == 200 and not stages["search-1"]["drop_positives"]
    assert stages["select-1"]["ranks"] == [2, 15] and stages["select-1"]["score_ranks"] == [1, 1]
    terms = stages["distil-3"]["losses"]
    assert [(term["weight"], term.get("temperature")) for term in terms] == [(0.1, None), (0.9, 4.0), (1.0, 4.0)]


def test_kind_number_and_order_of_teachers_are_the_recipes() -> None:
    ready = [{"model": "hub-ranker", "ready": True}, {"model": "dual", "candidates": "in-batch"}]
    stages = by_name(ready, rounds=0, distil_train={"epochs": 1}, stored=False)
    assert list(stages) == ["refresh-0", "warm-student", "warm-teacher-2", "refresh-1", "continued-student",
                            "continued-teacher-2", "distil-1", "refresh-2", "distil-2"]  # fmt: skip
    assert (
        stages["distil-1"]["teachers"] == ["hub-ranker"] and stages["refresh-1"]["retriever"]["model"] == "warm-student"
    )
    assert stages["distil-2"]["teachers"] == ["continued-teacher-2", "frozen"]
    assert stages["distil-2"]["losses"][2]["signal"] == "batch_logits"
    assert "steps" not in stages["distil-2"]["train"] and stages["distil-2"]["train"]["epochs"] == 1


def test_without_a_warm_up_everything_starts_from_what_is_given() -> None:
    teachers = [{"model": "dual", "candidates": "in-batch", "ready": True}, {"model": "rank", "ready": True}]
    stages = by_name(teachers, student="warm", warm_up=False, searcher="student", evaluate={})
    assert list(stages) == ["refresh-1", "distil-1", "refresh-2", "scores-2", "distil-2", "search-1", "ranked-1",
                            "select-1", "round-1", "result"]  # fmt: skip
    assert stages["refresh-1"]["retriever"] == {"type": "dense", "model": "warm"}
    assert stages["refresh-2"]["retriever"]["model"] == "distil-1" and stages["scores-2"]["teacher"] == "rank"
    assert stages["result"]["models"] == ["warm", "round-1"]
    assert stages["scores-2"]["on_missing"] == "error"
    files = by_name(teachers, on_missing="mask")
    assert files["scores-2"]["on_missing"] == files["ranked-1"]["on_missing"] == "mask"


def test_rounds_may_train_the_teacher_on() -> None:
    stages = by_name(rounds=2, retrain=True, retrain_train={"steps": 5})
    assert list(stages)[-12:-6] == ["search-1", "pool-1", "retrained-1", "ranked-1", "select-1", "round-1"]
    assert [stages[f"retrained-{number}"]["student"] for number in (1, 2)] == ["teacher-3", "retrained-1"]
    assert stages["retrained-2"]["train"]["steps"] == 5 and stages["retrained-2"]["sampler"]["of"] == ["pool-2"]
    assert stages["ranked-2"]["teacher"] == "retrained-2" and stages["pool-2"]["retriever"]["model"] == "round-1"


def test_the_answer_rule_and_graded_judgements_reach_the_stages() -> None:
    stages = by_name(rule="teacher-ahead", min_grade=2, relevant_grade=1)
    assert stages["select-1"]["improves"] and stages["select-1"]["score_ranks"] == [1, 15]
    assert "ranks" not in stages["select-1"] and stages["select-1"]["min_grade"] == 1
    assert stages["distil-3"]["sampler"]["min_grade"] == 2 and stages["refresh-3"]["min_grade"] == 1
    assert by_name(student_ranks=[1, 9], teacher_ranks=[1, 3])["select-1"]["ranks"] == [1, 9]
    assert by_name(min_grade=2)["search-1"]["min_grade"] == 2
    assert stages["distil-3"]["sampler"]["positives_choice"] == "first"
    assert by_name(positives_choice="random")["round-1"]["sampler"]["positives_choice"] == "random"


def test_a_trained_temperature_is_the_teachers_alone() -> None:
    terms = by_name(temperature={"type": "ctkd"})["distil-2"]["losses"]
    assert [term.get("temperature") for term in terms] == [None, {"type": "ctkd"}, 4.0]


@pytest.mark.parametrize(("teachers", "found"), [([], "teachers"), ([{"model": "a", "kind": "list"}], "kind")])
def test_a_wrong_teacher_is_a_fault_at_its_line(teachers: list[Any], found: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    method = json.dumps({"type": "prod", "teachers": teachers})
    recipe.write_text(f"data: {{type: pydocs, packages: [stdlib]}}\nmethod: {method}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"recipe.yaml:2: method.teachers.*{found}|recipe.yaml:2: method.{found}"):
        kdfw.plan(recipe)


# ---------------------------------------------------------------- a whole run

RECIPE = """\
kdfw: 1
name: prod
seed: 42
precision: fp32
data: {{type: beir, folder: {root}/beir}}
models:
  student: {{type: bi-encoder, base: {root}/one, similarity: dot, towers: two, max_passage_tokens: 32}}
  dual: {{type: bi-encoder, base: {root}/two, similarity: dot, max_passage_tokens: 32}}
  base: {{type: cross-encoder, base: {root}/one, max_pair_tokens: 48}}
  large: {{type: cross-encoder, base: {root}/two, max_pair_tokens: 48}}
  frozen: {{type: frozen-student}}
train: {{precision: fp32, dropout: false, log_every: 1}}
method:
  type: prod
  teachers: [{{model: dual, candidates: in-batch}}, {{model: base}}, {{model: large}}]
  rounds: 2
  retrain: true
  depth: 30
  pool: 12
  negatives: 5
  student_ranks: [2, 20]
  teacher_ranks: [1, 12]
  warm_train: {{steps: 4, batch_size: 8, lr: 1.0e-3, warmup: 0}}
  continue_train: {{steps: 2, batch_size: 8, lr: 1.0e-3, warmup: 0}}
  teacher_train: {{steps: 4, batch_size: 4, lr: 1.0e-3, warmup: 0}}
  distil_train: {{steps: 4, batch_size: 4, lr: 1.0e-3, warmup: 0}}
  retrain_train: {{steps: 2, batch_size: 4, lr: 1.0e-3, warmup: 0}}
  round_train: {{steps: 3, batch_size: 4, lr: 1.0e-3, warmup: 0}}
  evaluate: {{split: test, measures: [RR@10]}}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prod")
    write_bert(root / "one", layers=1, seed=1)
    write_bert(root / "two", layers=2, seed=2)
    write_beir(root / "beir", passages=50, queries=40)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root), encoding="utf-8")
    return root


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(workspace: Path) -> tuple[Path, dict[str, list[bool]]]:
    """A whole run; and for each stage with a frozen copy whether the copy was the student at the start and at the end,
    and whether it still was what it had been."""
    held: dict[str, list[bool]] = {}
    train = Trainer.train

    def watched(trainer: Trainer) -> None:
        copies = [slot.model for slot in trainer.slots if slot.reference == "frozen"]
        if not copies or copies[0] is None:
            return train(trainer)
        student, copy = trainer.models["student"], copies[0]
        before = {name: value.clone() for name, value in copy.state_dict().items()}
        held[trainer.context.planned.folder] = [same(before, student.state_dict()), not copy.training]
        train(trainer)
        held[trainer.context.planned.folder] += [same(before, copy.state_dict()), same(before, student.state_dict())]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", watched)
        run(workspace / "recipe.yaml", workspace / "whole")
    return workspace / "whole", held


def folder_of(out: Path, stage: str) -> Path:
    (found,) = (out / "stages").glob(f"[0-9][0-9]-{stage}")
    return found


def test_the_frozen_copy_is_the_student_at_the_start_of_its_stage_and_never_moves(
    whole: tuple[Path, dict[str, list[bool]]],
) -> None:
    out, held = whole
    assert len(held) == 4  # two teachers after the first, two rounds
    assert all(facts == [True, True, True, False] for facts in held.values())
    for stage in ("distil-2", "distil-3", "round-1", "round-2"):
        lines = (folder_of(out, stage) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        stay = [json.loads(line)["stay"] for line in lines]
        assert abs(stay[0]) < 1e-5 < max(stay), stage  # nothing to stay near to before the first step


def test_every_part_of_the_method_is_a_stage_with_its_result(whole: tuple[Path, dict[str, list[bool]]]) -> None:
    names = [path.name[3:] for path in sorted((whole[0] / "stages").iterdir()) if path.name[:2].isdigit()]
    assert names[:7] == ["refresh-0", "warm-student", "warm-teacher-1", "refresh-1", "continued-student",
                         "continued-teacher-1", "distil-1"]  # fmt: skip
    assert names[-7:] == ["search-2", "pool-2", "retrained-2", "ranked-2", "select-2", "round-2", "result"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_keeps_the_queries_the_rule_keeps_with_negatives_in_rank_order(
    whole: tuple[Path, dict[str, list[bool]]], workspace: Path, number: int, tmp_path: Path
) -> None:
    data = DATASETS["beir"](folder=workspace / "beir").open(tmp_path)
    positives = {query: set(data.corpus.rows(ids).tolist()) for query, ids in data.positives("train").items()}
    found, scored, kept = (
        Ranking.load(folder_of(whole[0], f"{part}-{number}")) for part in ("search", "ranked", "select")
    )
    student = {query: found.of(at)[0].tolist() for at, query in enumerate(found.query_ids)}
    teacher = {}
    for at, query in enumerate(scored.query_ids):
        rows, values = scored.of(at)
        ranked = [int(row) for row in rows[np.argsort(-values, kind="stable")]]
        teacher[query] = [row for row in ranked if row in student[query]]  # added positives are not in the list
    rule = partial(teacher_right_student_nearly, student_to=20)
    right = [
        query
        for query in student
        if any(rule(first_rank(student[query], positives[query]), first_rank(teacher[query], positives[query]),
                    teacher_at=at) for at in range(1, 13))
    ]  # fmt: skip
    assert list(kept.query_ids) == right and 0 < len(right) < len(student)
    for at, query in enumerate(kept.query_ids):
        assert kept.of(at)[0].tolist() == negative_pool(student[query], positives[query], size=30)
        assert first_rank(student[query], positives[query]) != 1


def test_a_refreshed_pool_has_no_positive_and_at_most_its_size(
    whole: tuple[Path, dict[str, list[bool]]], workspace: Path, tmp_path: Path
) -> None:
    data = DATASETS["beir"](folder=workspace / "beir").open(tmp_path)
    for stage in ("refresh-0", "refresh-1", "refresh-2", "refresh-3", "pool-1"):
        pool = Ranking.load(folder_of(whole[0], stage))
        for at, query in enumerate(pool.query_ids):
            rows, values = pool.of(at)
            assert len(rows) <= 12 and (np.diff(values) <= 0).all()
            assert not set(rows.tolist()) & set(data.corpus.rows(data.positives("train").get(query, [])).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distil-1", "round-2"])
def test_interrupted_in_any_stage_it_goes_on_to_the_same_bytes(
    whole: tuple[Path, dict[str, list[bool]]], workspace: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def stopped(trainer: Trainer, batch: Any, clock: Any) -> Any:
        if stage in trainer.context.planned.folder and clock.step == 1:
            trainer._stop = True
        return step(trainer, batch, clock)

    out = workspace / f"stopped-{stage}"
    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(workspace / "recipe.yaml", out, cache=workspace / f"cache-{stage}")
    monkeypatch.undo()
    run(workspace / "recipe.yaml", out, cache=workspace / f"cache-{stage}")
    assert results(out) == results(whole[0])

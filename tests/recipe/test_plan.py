"""Plans: every fault at once with its line, references, repeats, fingerprints. With toy components: nothing loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from kdfw.amounts import Amount, Sizes, Workload
from kdfw.components import Dataset, Loss, Method, Model, Schedule, Stage, Teacher
from kdfw.errors import ConfigError, Problem
from kdfw.hookspecs import hookimpl
from kdfw.plugins import Registry, build_registry
from kdfw.recipe.plan import Plan, make_plan
from kdfw.recipe.recipe import build
from kdfw.recipe.source import override, parse
from kdfw.recipe.view import Kept
from kdfw.references import CandidatesRef, DataRef, ModelRef, TeacherRef
from kdfw.types import Needs


class ToyData(Dataset):
    def __init__(self, *, size: int = 1) -> None:
        self.size = size

    def fingerprint(self) -> str:
        return f"data{self.size}"

    def splits(self) -> list[str]:
        return ["train", "test"]

    def sizes(self, cache: Path) -> Sizes:
        return Sizes(passages=Amount(7))


class ToyModel(Model):
    def __init__(self, *, base: str, width: Annotated[int, Field(gt=0)] = 4) -> None:
        super().__init__()
        self.base = base

    def base_fingerprint(self) -> str:
        return self.base


class ToyFile(Teacher):
    def __init__(self, *, path: Path) -> None:
        self.path = path

    def fingerprint(self) -> str:
        return str(self.path)


class ToyLoss(Loss):
    def __init__(self, *, temperature: Schedule | float = 1.0, inner: Loss | None = None) -> None:
        super().__init__()

    @property
    def needs(self) -> Needs:
        return Needs()


class Mine(Stage):
    produces = frozenset({"candidates"})

    def __init__(self, *, depth: Annotated[int, Field(ge=1)] = 10, model: ModelRef | None = None) -> None:
        self.depth = depth

    def estimate(self, plan: Any) -> Workload:
        return Workload(amounts={"candidates": plan.sizes.passages * self.depth})


class Train(Stage):
    produces = frozenset({"model"})
    seeded = True

    def __init__(
        self,
        *,
        student: ModelRef,
        losses: list[Loss],
        teachers: list[TeacherRef] = [],  # noqa: B006
        of: CandidatesRef | None = None,
        data: DataRef | None = None,
        split: str = "train",
    ) -> None:
        self.student, self.split, self.data = student, split, data

    def trained_models(self) -> dict[str, str]:
        return {"student": self.student}

    def check(self, plan: Any) -> Iterator[Problem]:
        if self.split not in plan.splits:
            yield plan.problem("split", found=f"no split {self.split!r}")


class Twice(Method):
    def __init__(self, *, rounds: int = 2) -> None:
        if rounds > 5:
            raise ConfigError("at most 5 rounds")
        self.rounds = rounds

    def expand(self, recipe: Any) -> list[dict[str, Any]]:
        train = {"type": "train", "student": "student", "losses": ["toy"]}
        return [{"name": f"round-{number}", **train} for number in range(1, self.rounds + 1)]


class Toys:
    @hookimpl
    def kdfw_datasets(self) -> Any:
        return {"toy": ToyData}

    @hookimpl
    def kdfw_students(self) -> Any:
        return {"toy-model": ToyModel}

    @hookimpl
    def kdfw_teachers(self) -> Any:
        return {"toy-file": ToyFile}

    @hookimpl
    def kdfw_losses(self) -> Any:
        return {"toy": ToyLoss}

    @hookimpl
    def kdfw_stages(self) -> Any:
        return {"mine": Mine, "train": Train}

    @hookimpl
    def kdfw_methods(self) -> Any:
        return {"twice": Twice}

    @hookimpl
    def kdfw_schedules(self) -> Any:
        from kdfw.components import Constant

        return {"constant": Constant}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry([("toys", Toys(), "toys", "1")])


GOOD = """\
kdfw: 1
name: good
data: {type: toy}
models:
  student: {type: toy-model, base: a}
  file: {type: toy-file, path: scores.tsv}
stages:
  - {name: first, type: mine, depth: 5}
  - name: fit
    type: train
    student: student
    of: first
    losses:
      - {type: toy, weight: 0.5}
  - {name: second, type: mine, model: fit}
"""


def plan(text: str, registry: Registry, *settings: str, kept: Kept | None = None) -> Plan:
    return make_plan(build(override(parse(text, "r.yaml"), settings), registry), kept)


def problems(text: str, registry: Registry) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(text, registry)
    return [str(problem) for problem in caught.value.problems]


def test_a_plan_knows_order_inputs_and_work(registry: Registry):
    made = plan(GOOD, registry)
    assert [stage.name for stage in made.stages] == ["first", "fit", "second"]
    assert made.stage("fit").inputs == ("first",)
    assert made.stage("second").inputs == ("fit",)
    assert made.stage("first").work == Workload()  # not asked for
    assert made.stage("second").folder == "03-second"


def test_a_plan_estimates_when_it_is_told_where_to_look(registry: Registry, tmp_path: Path):
    made = plan(GOOD, registry, kept=Kept(cache=tmp_path, find=lambda kind, fingerprint: None))
    assert str(made.stage("first").work) == "35 candidates"
    assert str(made.stage("fit").work) == ""


def test_every_fault_comes_at_once_with_its_line(registry: Registry):
    text = """\
kdfw: 1
nmae: x
data: {type: toy, size: large}
models:
  student: {type: toy-model, base: a, widht: 3}
  other: {type: toy-modle}
stages:
  - {name: first, type: mine, depth: 0}
  - name: fit
    type: train
    student: studnet
    split: trian
    losses:
      - {type: tpy}
      - {type: toy, temperature: hot}
  - {name: fit, type: mine}
  - {type: mine, model: third}
"""
    found = problems(text, registry)
    expected = [
        ("r.yaml:2: nmae", "did you mean 'name'?"),
        ("r.yaml:3: data.size", "integer"),
        ("r.yaml:5: models.student.widht", "did you mean 'width'?"),
        ("r.yaml:6: models.other.type", "did you mean 'toy-model'?"),
        ("r.yaml:8: stages[0].depth", "greater than or equal to 1"),
        ("r.yaml:14: stages[1].losses[0].type", "did you mean 'toy'?"),
        ("r.yaml:15: stages[1].losses[1].temperature.type", "no schedule 'hot'"),
        ("r.yaml:16: stages[2]", "stage name 'fit' again"),
        ("r.yaml:17: stages[3].model", "no model 'third'"),
    ]
    for where, what in expected:
        assert any(line.startswith(where) and what in line for line in found), (where, found)
    assert len(found) == len(expected)


def test_cross_checks_and_references_of_good_stages_are_reported_together(registry: Registry):
    text = GOOD.replace("    of: first\n", "    of: frist\n").replace(
        "  - {name: second, type: mine, model: fit}\n",
        "  - {name: again, type: train, student: fit, losses: [toy], split: dev}\n"
        "  - {name: early, type: mine, model: late}\n"
        "  - {name: late, type: train, student: file, losses: [toy]}\n",
    )
    found = problems(text, registry)
    assert found == [
        "r.yaml:12: stages[1].of: no stage with candidates 'frist' at this point; did you mean 'first'? Known: first",
        "r.yaml:15: stages[2].split: no split 'dev'",
        "r.yaml:16: stages[3].model: no model 'late' at this point; the stage of that name comes later; move it up, or "
        "write `late | NAME` for a first cycle",
        "r.yaml:17: stages[4].student: no model 'file' at this point; Known: again, fit, student",
    ]


def test_repeats_resolve_to_the_latest_earlier_occurrence(registry: Registry):
    text = """\
data: {type: toy}
models: {student: {type: toy-model, base: a}}
stages:
  - repeat: 2
    stages:
      - {name: look, type: mine, model: fit | student}
      - {name: fit, type: train, student: fit | student, of: look, losses: [toy]}
  - {name: end, type: mine, model: "fit#1"}
"""
    made = plan(text, registry)
    assert [stage.name for stage in made.stages] == ["look#1", "fit#1", "look#2", "fit#2", "end"]
    assert made.stage("look#1").targets["fit | student"].name == "student"
    assert made.stage("look#2").targets["fit | student"].name == "fit#1"
    assert made.stage("fit#2").inputs == ("fit#1", "look#2")
    assert made.stage("end").inputs == ("fit#1",)


def test_more_stages_than_can_be_planned_in_time_are_refused(registry: Registry):
    inner = "".join(f"      - {{name: m{number}, type: mine}}\n" for number in range(100))
    text = f"data: {{type: toy}}\nstages:\n  - repeat: 101\n    stages:\n{inner}"
    (found,) = problems(text, registry)
    assert "101 cycles of 100 stages; at most 10000 stages in all" in found


def test_faults_in_a_repeated_block_are_reported_once(registry: Registry):
    text = "data: {type: toy}\nstages:\n  - repeat: 3\n    stages:\n      - {type: mine, depht: 1}\n"
    found = problems(text, registry)
    assert len(found) == 1 and "did you mean 'depth'?" in found[0]


def test_what_a_method_refuses_has_its_place(registry: Registry):
    text = "data: {type: toy}\nmodels: {student: {type: toy-model, base: a}}\nmethod: {type: twice, rounds: 9}\n"
    found = problems(text, registry)
    assert len(found) == 1 and found[0].startswith("r.yaml:3: method") and "at most 5 rounds" in found[0]


def test_a_method_expands_into_visible_stages(registry: Registry):
    text = "data: {type: toy}\nmodels: {student: {type: toy-model, base: a}}\nmethod: {type: twice, rounds: 3}\n"
    made = plan(text, registry)
    assert [stage.name for stage in made.stages] == ["round-1", "round-2", "round-3"]
    assert [stage["name"] for stage in made.recipe.resolved["stages"]] == ["round-1", "round-2", "round-3"]


def test_a_method_among_the_stages_is_written_out_in_its_place(registry: Registry):
    text = GOOD + "  - method: {type: twice, rounds: 2}\n  - {name: last, type: mine, model: round-2}\n"
    made = plan(text, registry, "stages.3.method.rounds=3")
    assert [stage.name for stage in made.stages] == ["first", "fit", "second", "round-1", "round-2", "round-3", "last"]
    assert [stage["name"] for stage in made.recipe.resolved["stages"]] == [stage.name for stage in made.stages]
    assert made.stage("last").inputs == ("round-2",)


def test_faults_of_a_method_among_the_stages_name_its_line(registry: Registry):
    found = problems(GOOD + "  - method: {type: twice, round: 2}\n    name: mine\n", registry)
    assert len(found) == 2
    assert "r.yaml:17" in found[0] and "unknown key 'name'" in found[0]
    assert "r.yaml:16: stages[3].method.round: unknown key" in found[1]
    nested = problems("data: {type: toy}\nstages:\n  - repeat: 2\n    stages: [{method: twice}]\n", registry)
    assert len(nested) == 1 and "a method in a repeated block" in nested[0]


def prints(made: Plan) -> dict[str, str]:
    return {stage.name: stage.fingerprint for stage in made.stages}


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("stages.first.depth=6", {"first", "fit", "second"}),
        ("stages.fit.losses.0.weight=0.7", {"fit", "second"}),
        ("stages.fit.losses.0.temperature=2", {"fit", "second"}),
        ("stages.second.depth=3", {"second"}),
        ("seed=14", {"fit", "second"}),
        ("models.student.base=b", {"fit", "second"}),
        ("data.size=2", {"first", "fit", "second"}),
        ("name=other", set()),
        ("stages.fit.losses.0.temperature=1.0", set()),  # the default, written out
        ("stages.fit.losses.0.name=shown", {"fit", "second"}),
    ],
)
def test_a_change_reaches_exactly_what_depends_on_it(registry: Registry, setting: str, changed: set[str]):
    before, after = prints(plan(GOOD, registry)), prints(plan(GOOD, registry, setting))
    assert {name for name in before if before[name] != after[name]} == changed


def test_stages_models_and_data_share_one_set_of_names(registry: Registry):
    text = GOOD.replace("name: first", "name: student")
    assert any("name 'student' is taken" in line for line in problems(text, registry))


def test_short_form_without_a_student_says_what_to_give(registry: Registry):
    assert problems("data: {type: toy}\n", registry) == [
        "r.yaml:1: no `student`, no `stages`, no `method`; give `student` (short form), `stages` or `method`"
    ]

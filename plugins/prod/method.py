"""PROD as a list of plain stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdfw.components import Method
from kdfw_plugins.prod.losses import Distance, Temperature, hard_loss, stage_losses

Settings = dict[str, Any]
Stage = dict[str, Any]
Own = Annotated[Settings, Field(description="`train` settings that differ from the defaults of this step")]
Ranks = tuple[int, int]

# the released commands for MS MARCO passages
_COMMON: Settings = {"weight_decay": 0.0, "clip": 2.0}
_WARM: Settings = {"lr": 2e-5, "steps": 40000, "warmup": 4000, "batch_size": 128}
_CONTINUE: Settings = {"lr": 2e-5, "steps": 10000, "warmup": 1000, "batch_size": 128}
_TEACHER: Settings = {"lr": 1e-5, "steps": 6000, "warmup": 1000, "batch_size": 256}
_DISTIL: dict[str, Settings] = {
    "in-batch": {"lr": 5e-5, "steps": 40000, "warmup": 4000, "batch_size": 128},
    "list": {"lr": 5e-5, "steps": 40000, "warmup": 4000, "batch_size": 64},
}
_ROUND: Settings = {"lr": 1e-5, "steps": 2000, "warmup": 200, "batch_size": 64}
_RULES: dict[str, tuple[Ranks | None, Ranks, bool]] = {
    "near-miss": ((2, 15), (1, 1), False),
    "teacher-ahead": (None, (1, 15), True),
}
"""Ranks of the student, ranks of the teacher, and whether the teacher's must be the better one."""


class TeacherStep(BaseModel):
    """One teacher and the student's stage with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="name under `models:`, or of an earlier stage")
    candidates: Literal["in-batch", "list"] = Field(
        default="list", description="what it scores: every passage of the step, or the query's own candidates"
    )
    ready: bool = Field(default=False, description="taken as it is; else trained first, see the method")
    train: Settings = Field(default_factory=dict, description="`train` settings of its own training")
    distil: Settings = Field(default_factory=dict, description="`train` settings of the student's stage with it")


class Prod(Method):
    """Warm-up, refreshed negatives, teachers of growing strength, then rounds on selected queries.

    A teacher that is not `ready` is trained first: one that scores `in-batch` (a bi-encoder) beside the student from
    the warm-up on, any other listwise, on the negatives refreshed for it.

    Stage names. Warm-up: `refresh-0`, `warm-student`, `warm-teacher-K`, `refresh-1`, `continued-student`,
    `continued-teacher-K`. Teacher K: `refresh-K`, `teacher-K`, `scores-K`, `distil-K`. Round R: `search-R`, `pool-R`
    and `retrained-R` with `retrain`, `ranked-R` (the teacher's scores of what was found), `select-R`, `round-R`. The
    last `round-R` (or `distil-K`, with no rounds) is the result; `result` evaluates it.

    Args:
        student: name of the model under `models:`, or of an earlier stage
        teachers: weakest first: `{model, candidates: in-batch or list, ready, train, distil}`
        frozen: name of a model of type `frozen-student`
        first_retriever: whose negatives the warm-up uses (`{type: triples}`: those the data's triples name)
        retriever: how negatives are refreshed: a retriever without its `model`, which is filled in
        searcher: whose negatives: the strongest in-batch teacher until a list teacher has been learned from, or always
            the student
        rounds: of data progressive distillation
        retrain: the last teacher goes on training, on the newest negatives, before it judges a round
        rule: which queries a round keeps. `near-miss` (MS MARCO): the teacher ranks a positive first, the student in
            `student_ranks`. `teacher-ahead` (Natural Questions): the teacher ranks one higher than the student does,
            and in `teacher_ranks`.
        student_ranks: [first, last] rank the student may give the positive; default: [2, 15], or any for teacher-ahead
        teacher_ranks: the same of the teacher; default: [1, 1], or [1, 15] for teacher-ahead
        depth: results retrieved for each training query
        pool: negatives kept from them
        negatives: of each query in the list stages
        batch_negatives: of each query in the in-batch stages
        positives_choice: which of a query's positives it trains on; the released code takes the first
        stored: a list teacher scores its candidates once, in a stage; false: in every step, as the released code does
        on_missing: a candidate that a stored teacher has no score for (a score file): stop, or leave it out of the
            distillation
        distance: kl, or the ablation logit: 0.5 * mean squared difference of scores
        temperature: tau of the teacher's term; a number or a schedule (`{type: ctkd}`)
        reg_temperature: tau of the frozen copy's term; default: `temperature`, or 4 where that is a schedule
        min_grade: grade from which a passage is a positive to train on
        relevant_grade: grade from which a passage is no negative, and a hit for the rule; default: `min_grade`
    """

    paper = "arXiv:2209.13335"

    def __init__(
        self,
        *,
        teachers: Annotated[list[TeacherStep], Field(min_length=1)],
        student: str = "student",
        frozen: str = "frozen",
        warm_up: Annotated[
            bool, Field(description="train student and in-batch teachers first; false: they are taken as they are")
        ] = True,
        first_retriever: str | dict[str, Any] = "bm25",
        retriever: dict[str, Any] = {"type": "dense"},  # noqa: B006
        searcher: Literal["strongest", "student"] = "strongest",
        rounds: Annotated[int, Field(ge=0)] = 1,
        retrain: bool = False,
        rule: Literal["near-miss", "teacher-ahead"] = "near-miss",
        student_ranks: tuple[int, int] | None = None,
        teacher_ranks: tuple[int, int] | None = None,
        depth: Annotated[int, Field(ge=1)] = 200,
        pool: Annotated[int, Field(ge=1)] = 100,
        negatives: Annotated[int, Field(ge=1)] = 15,
        batch_negatives: Annotated[int, Field(ge=0)] = 1,
        positives_choice: Literal["first", "random"] = "first",
        stored: bool = True,
        on_missing: Literal["error", "mask"] = "error",
        distance: Distance = "kl",
        temperature: Annotated[float, Field(gt=0)] | str | dict[str, Any] = 4.0,
        reg_temperature: Annotated[float | None, Field(gt=0)] = None,
        ce_weight: Annotated[float, Field(ge=0, description="w_ce, of the hard labels")] = 0.1,
        kd_weight: Annotated[float, Field(ge=0, description="w_kd, of the teacher")] = 0.9,
        reg_weight: Annotated[float, Field(ge=0, description="w_reg, of the frozen copy")] = 1.0,
        min_grade: Annotated[int, Field(ge=1)] = 1,
        relevant_grade: Annotated[int | None, Field(ge=1)] = None,
        split: Annotated[str, Field(description="training split")] = "train",
        warm_train: Own = {},  # noqa: B006
        continue_train: Own = {},  # noqa: B006
        teacher_train: Own = {},  # noqa: B006
        distil_train: Own = {},  # noqa: B006
        retrain_train: Own = {},  # noqa: B006
        round_train: Own = {},  # noqa: B006
        evaluate: Annotated[
            dict[str, Any] | None, Field(description="options of a closing `evaluate` stage; null: none")
        ] = None,
    ) -> None:
        self.teachers = list(teachers)
        self.student = student
        self.frozen = frozen
        self.warm_up = warm_up
        self.first_retriever = first_retriever
        self.retriever = retriever
        self.searcher = searcher
        self.rounds = rounds
        self.retrain = retrain
        usual_student, usual_teacher, self.improves = _RULES[rule]
        self.student_ranks = usual_student if student_ranks is None else student_ranks
        self.teacher_ranks = usual_teacher if teacher_ranks is None else teacher_ranks
        self.depth = depth
        self.pool = pool
        self.negatives = negatives
        self.batch_negatives = batch_negatives
        self.positives_choice = positives_choice
        self.stored = stored
        self.on_missing = on_missing
        self.distance: Distance = distance
        self.temperature: Temperature = temperature
        if reg_temperature is None:
            reg_temperature = temperature if isinstance(temperature, (int, float)) else 4.0
        self.reg_temperature = reg_temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.reg_weight = reg_weight
        self.min_grade = min_grade
        self.relevant_grade = min_grade if relevant_grade is None else relevant_grade
        self.split = split
        self.warm_train = warm_train
        self.continue_train = continue_train
        self.teacher_train = teacher_train
        self.distil_train = distil_train
        self.retrain_train = retrain_train
        self.round_train = round_train
        self.evaluate = evaluate

    def expand(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """Warm-up, teacher progression, data progression, evaluation."""
        student, forms = self.student, [step.model for step in self.teachers]
        stages: list[Stage] = []
        if self.warm_up:
            warm, student, forms = self._warm_up()
            stages += warm
        plain = student
        for number in range(1, len(self.teachers) + 1):
            step, student, forms = self._learn_from(number, student, forms)
            stages += step
        for number in range(1, self.rounds + 1):
            step, student, forms = self._round(number, student, forms)
            stages += step
        if self.evaluate is not None:
            stages.append({"name": "result", "type": "evaluate", "models": [plain, student], **self.evaluate})
        return stages

    # ------------------------------------------------------------ the three parts

    def _warm_up(self) -> tuple[list[Stage], str, list[str]]:
        """Student and in-batch teachers on given negatives, then on refreshed ones."""
        student, forms = self.student, [step.model for step in self.teachers]
        stages: list[Stage] = []
        losses = [hard_loss(in_batch=True)]
        for prefix, refresh, usual, given in (
            ("warm", "refresh-0", _WARM, self.warm_train),
            ("continued", "refresh-1", _CONTINUE, self.continue_train),
        ):
            found_by = self.first_retriever if prefix == "warm" else self._search(1, student, forms)
            stages.append(self._mine(refresh, found_by))
            sampler = self._draws(refresh, "in-batch")
            stages.append(self._train(f"{prefix}-student", student, sampler, losses, usual, given))
            student = f"{prefix}-student"
            for number, step in enumerate(self.teachers, start=1):
                if step.candidates == "in-batch" and not step.ready:
                    name = f"{prefix}-teacher-{number}"
                    stages.append(self._train(name, forms[number - 1], sampler, losses, usual, given, step.train))
                    forms[number - 1] = name
        return stages, student, forms

    def _learn_from(self, number: int, student: str, forms: list[str]) -> tuple[list[Stage], str, list[str]]:
        """One teacher: negatives refreshed for it, its training, the student's stage."""
        step, forms = self.teachers[number - 1], list(forms)
        refresh, name = f"refresh-{number}", f"distil-{number}"
        stages: list[Stage] = []
        if number > 1 or not self.warm_up:  # the warm-up has refreshed for the first one
            stages.append(self._mine(refresh, self._search(number, student, forms)))
        if step.candidates == "list" and not step.ready:
            trained = f"teacher-{number}"
            stages.append(self._fit(trained, forms[number - 1], refresh, self.teacher_train, step.train))
            forms[number - 1] = trained
        scorer = forms[number - 1]
        if step.candidates == "list" and self.stored:
            stages.append(self._score(f"scores-{number}", scorer, refresh))
            scorer = f"scores-{number}"
        teachers = [scorer] if number == 1 else [scorer, self.frozen]
        losses = self._losses(step.candidates, regularised=number > 1)
        sampler, usual = self._draws(refresh, step.candidates), _DISTIL[step.candidates]
        given = (self.distil_train, step.distil)
        stages.append(self._train(name, student, sampler, losses, usual, *given, teachers=teachers))
        return stages, name, forms

    def _round(self, number: int, student: str, forms: list[str]) -> tuple[list[Stage], str, list[str]]:
        """Search with the student, judge with the last teacher, train on the queries that are kept."""
        search, scores, select, name = (f"{part}-{number}" for part in ("search", "ranked", "select", "round"))
        teacher, retriever = forms[-1], {**self.retriever, "model": student}
        stages = [{**self._mine(search, retriever), "drop_positives": False, "limit": self.depth}]
        if self.retrain:
            pool, trained = f"pool-{number}", f"retrained-{number}"
            stages.append(self._mine(pool, retriever))
            stages.append(self._fit(trained, teacher, pool, self.retrain_train))
            teacher = trained
        stages.append(self._score(scores, teacher, search))
        kept = {"ranks": self.student_ranks, "score_ranks": self.teacher_ranks}
        stages.append({"name": select, "type": "filter", "of": search, "scores": scores, "split": self.split,
                       "min_grade": self.relevant_grade, "improves": self.improves,
                       **{key: list(ranks) for key, ranks in kept.items() if ranks is not None}})  # fmt: skip
        teachers = [scores if self.stored else teacher, self.frozen]
        sampler = {**self._draws(select, "list"), "draw": "top"}
        losses = self._losses("list", regularised=True)
        stages.append(self._train(name, student, sampler, losses, _ROUND, self.round_train, teachers=teachers))
        return stages, name, [*forms[:-1], teacher]

    # ------------------------------------------------------------ single stages

    def _search(self, number: int, student: str, forms: Sequence[str]) -> dict[str, Any]:
        """The retriever that refreshes for teacher `number`."""
        learned = self.teachers[: max(1, number - 1)]
        by_teacher = self.searcher == "strongest" and all(step.candidates == "in-batch" for step in learned)
        return {**self.retriever, "model": forms[len(learned) - 1] if by_teacher else student}

    def _mine(self, name: str, retriever: Any) -> Stage:
        return {"name": name, "type": "mine", "retriever": retriever, "split": self.split, "depth": self.depth,
                "limit": self.pool, "min_grade": self.relevant_grade}  # fmt: skip

    def _draws(self, of: str, candidates: str) -> dict[str, Any]:
        number = self.batch_negatives if candidates == "in-batch" else self.negatives
        return {"type": "mined", "of": [of], "negatives": number, "min_grade": self.min_grade,
                "positives_choice": self.positives_choice}  # fmt: skip

    def _losses(self, candidates: str, *, regularised: bool) -> list[dict[str, Any]]:
        return stage_losses(
            ce_weight=self.ce_weight,
            kd_weight=self.kd_weight,
            reg_weight=self.reg_weight if regularised else None,
            temperature=self.temperature,
            reg_temperature=self.reg_temperature,
            in_batch=candidates == "in-batch",
            distance=self.distance,
        )

    def _fit(self, name: str, model: str, of: str, *given: Settings) -> Stage:
        """A list teacher's own training: find the positive among the candidates."""
        losses = [{"type": "localized-contrastive", "positives": "first"}]
        return self._train(name, model, self._draws(of, "list"), losses, _TEACHER, *given)

    def _score(self, name: str, teacher: str, of: str) -> Stage:
        return {"name": name, "type": "score", "teacher": teacher, "of": [of], "split": self.split,
                "on_missing": self.on_missing}  # fmt: skip

    def _train(
        self,
        name: str,
        model: str,
        sampler: dict[str, Any],
        losses: list[dict[str, Any]],
        *settings: Settings,
        teachers: Sequence[str] = (),
    ) -> Stage:
        stage = {"name": name, "type": "train", "student": model, "split": self.split, "sampler": sampler,
                 "losses": losses, "train": _joined(_COMMON, *settings)}  # fmt: skip
        return {**stage, "teachers": list(teachers)} if teachers else stage


def _joined(*settings: Settings) -> Settings:
    """Later settings replace earlier ones; a length given in epochs replaces one in steps, and the other way round."""
    found: Settings = {}
    for given in settings:
        for length, other in (("steps", "epochs"), ("epochs", "steps")):
            if given.get(length) is not None:
                found.pop(other, None)
        found |= given
    return found

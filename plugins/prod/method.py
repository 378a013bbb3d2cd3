"""PROD as a list of plain stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from kdfw.components import Method
from kdfw_plugins.prod.losses import stage_losses

Value = float | int | str | bool | None
Settings = dict[str, Value]
Described = Annotated[Settings, Field(description="`train` settings that differ from the defaults of this step")]

_COMMON: Settings = {"weight_decay": 0.0, "clip": 2.0}
_WARM: Settings = {"lr": 2e-5, "steps": 40000, "warmup": 4000, "batch_size": 128}
_CONTINUE: Settings = {"lr": 2e-5, "steps": 10000, "warmup": 1000, "batch_size": 128}
_RANKER: Settings = {"lr": 1e-5, "steps": 6000, "warmup": 1000, "batch_size": 256}
_DISTIL: Settings = {"lr": 5e-5, "steps": 40000, "warmup": 4000, "batch_size": 128}
_LIST_DISTIL: Settings = {"lr": 5e-5, "steps": 40000, "warmup": 4000, "batch_size": 64}
_SELECTED: Settings = {"lr": 1e-5, "steps": 2000, "warmup": 200, "batch_size": 64}


class Prod(Method):
    """Warm-up, refreshed negatives, teachers of growing strength, then rounds on selected queries.

    Stage names: `warm-*`, `refresh-N`, `ranker-N`, `distil-N`, and for each round `search-N`, `scores-N`, `select-N`,
    `round-N`. The last `round-N` (or `distil-N`, with no rounds) is the result.

    Args:
        student: name of the model under `models:`
        dual_teacher: name of the first teacher, a larger bi-encoder
        rankers: names of the cross-encoders, weakest first; each is trained on refreshed negatives
        frozen: name of a model of type `frozen-student`
        first_retriever: whose negatives the warm-up uses
        rounds: of data progressive distillation
        depth: results retrieved for each training query
        pool: negatives kept from them
        negatives: of each query in the list stages
        student_ranks: where the student must have the positive for a query to be kept
        temperature: of teacher and frozen copy
    """

    paper = "arXiv:2209.13335"

    def __init__(
        self,
        *,
        student: str = "student",
        dual_teacher: str = "dual-teacher",
        rankers: Annotated[list[str], Field(min_length=1)] = ["ranker-base", "ranker-large"],  # noqa: B006
        frozen: str = "frozen",
        first_retriever: str = "bm25",
        rounds: Annotated[int, Field(ge=0)] = 1,
        depth: Annotated[int, Field(ge=1)] = 200,
        pool: Annotated[int, Field(ge=1)] = 100,
        negatives: Annotated[int, Field(ge=1)] = 15,
        student_ranks: tuple[int, int] = (2, 15),
        temperature: Annotated[float, Field(gt=0)] = 4.0,
        ce_weight: Annotated[float, Field(ge=0, description="of the hard labels")] = 0.1,
        kd_weight: Annotated[float, Field(ge=0, description="of the teacher")] = 0.9,
        reg_weight: Annotated[float, Field(ge=0, description="of the frozen copy")] = 1.0,
        split: Annotated[str, Field(description="training split")] = "train",
        warm_train: Described = {},  # noqa: B006
        continue_train: Described = {},  # noqa: B006
        ranker_train: Described = {},  # noqa: B006
        distil_train: Described = {},  # noqa: B006
        round_train: Described = {},  # noqa: B006
        evaluate: Annotated[
            dict[str, Any] | None, Field(description="options of a closing `evaluate` stage; null: none")
        ] = None,
    ) -> None:
        self.student = student
        self.dual_teacher = dual_teacher
        self.rankers = list(rankers)
        self.frozen = frozen
        self.first_retriever = first_retriever
        self.rounds = rounds
        self.depth = depth
        self.pool = pool
        self.negatives = negatives
        self.student_ranks = student_ranks
        self.weights = {"ce_weight": ce_weight, "kd_weight": kd_weight, "temperature": temperature}
        self.reg_weight = reg_weight
        self.split = split
        self.warm_train = warm_train
        self.continue_train = continue_train
        self.ranker_train = ranker_train
        self.distil_train = distil_train
        self.round_train = round_train
        self.evaluate = evaluate

    def expand(self, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
        stages = [self._mine("refresh-0", self.first_retriever)]
        plain = [{"type": "info-nce", "in_batch": True, "positives": "first", "mask_known_positives": False}]
        student, teacher = "warm-student", "warm-teacher"
        for name, model in ((student, self.student), (teacher, self.dual_teacher)):
            stages.append(self._train(name, model, "refresh-0", plain, _WARM, self.warm_train, negatives=1))
        stages.append(self._mine("refresh-1", {"type": "dense", "model": teacher}))
        for name, model in (("continued-student", student), ("continued-teacher", teacher)):
            stages.append(self._train(name, model, "refresh-1", plain, _CONTINUE, self.continue_train, negatives=1))
        student, teacher = "continued-student", "continued-teacher"
        losses = stage_losses(in_batch=True, **self.weights)
        stages.append(
            self._train("distil-1", student, "refresh-1", losses, _DISTIL, self.distil_train, [teacher], negatives=1)
        )
        student, searcher = "distil-1", teacher
        losses = stage_losses(reg_weight=self.reg_weight, **self.weights)
        for number, ranker in enumerate(self.rankers, start=2):
            refresh, trained, distil = f"refresh-{number}", f"ranker-{number - 1}", f"distil-{number}"
            stages.append(self._mine(refresh, {"type": "dense", "model": searcher}))
            own = [{"type": "localized-contrastive", "positives": "first"}]
            stages.append(self._train(trained, ranker, refresh, own, _RANKER, self.ranker_train))
            teachers = [trained, self.frozen]
            stages.append(self._train(distil, student, refresh, losses, _LIST_DISTIL, self.distil_train, teachers))
            student, searcher, teacher = distil, distil, trained
        for number in range(1, self.rounds + 1):
            search, scores, select = f"search-{number}", f"scores-{number}", f"select-{number}"
            retriever = {"type": "dense", "model": student}
            stages.append({**self._mine(search, retriever), "drop_positives": False, "limit": self.depth})
            stages.append({"name": scores, "type": "score", "teacher": teacher, "of": [search], "split": self.split,
                           "include_positives": False})  # fmt: skip
            stages.append({"name": select, "type": "filter", "of": search, "scores": scores, "split": self.split,
                           "ranks": list(self.student_ranks), "score_ranks": [1, 1]})  # fmt: skip
            name, teachers = f"round-{number}", [teacher, self.frozen]
            stages.append(self._train(name, student, select, losses, _SELECTED, self.round_train, teachers, draw="top"))
            student = name
        if self.evaluate is not None:
            stages.append({"name": "result", "type": "evaluate", "models": [student], **self.evaluate})
        return stages

    def _mine(self, name: str, retriever: Any) -> dict[str, Any]:
        return {"name": name, "type": "mine", "retriever": retriever, "split": self.split, "depth": self.depth,
                "limit": self.pool}  # fmt: skip

    def _train(
        self,
        name: str,
        model: str,
        of: str,
        losses: list[dict[str, Any]],
        usual: Settings,
        given: Settings,
        teachers: list[str] | None = None,
        *,
        negatives: int | None = None,
        draw: str = "random",
    ) -> dict[str, Any]:
        sampler = {"type": "mined", "of": [of], "negatives": negatives or self.negatives, "draw": draw}
        settings = {**_COMMON, **usual, **given}
        if given.get("epochs") is not None:  # one length: the given one
            settings.pop("steps", None)
        stage: dict[str, Any] = {"name": name, "type": "train", "student": model, "split": self.split}
        if teachers:
            stage["teachers"] = teachers
        return {**stage, "sampler": sampler, "losses": losses, "train": settings}

"""The cycles as a list of plain stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from kdfw.components import Method
from kdfw.errors import ConfigError

Value = float | int | str | bool | None
Settings = dict[str, Value]

_COMMON: Settings = {"weight_decay": 0.01, "clip": 1.0}
_CROSS: Settings = {"lr": 2e-5, "epochs": 1, "batch_size": 32, "warmup": 0.1}
_BI: Settings = {"lr": 5e-5, "epochs": 10, "batch_size": 128, "warmup": 0.0}


class TransEncoder(Method):
    """Bi to cross with binary cross-entropy, cross to bi with squared error, in cycles, without labels.

    Stage names: `cross-C` and `bi-C` for cycle C; with two lines `cross-C-1`, `cross-C-2` and so on. Every student
    starts from its model under `models:`, whatever happened before, unless `continue_weights` says otherwise. With
    several lines (mutual distillation) each student learns from the teachers of all lines.

    Args:
        bi: names of the starting bi-encoders, one for each line
        cross: names of the cross-encoders, one for each line
        symmetric: the cross-encoder sees each pair in both orders
        dev: split that chooses the checkpoint of each stage
    """

    paper = "arXiv:2109.13059"

    def __init__(
        self,
        *,
        bi: Annotated[list[str], Field(min_length=1)] = ["bi"],  # noqa: B006
        cross: Annotated[list[str], Field(min_length=1)] = ["cross"],  # noqa: B006
        cycles: Annotated[int, Field(ge=1)] = 3,
        symmetric: bool = True,
        continue_weights: Annotated[
            bool, Field(description="a student goes on from its own weights of the previous cycle")
        ] = False,
        split: Annotated[str, Field(description="unlabelled pairs")] = "train",
        dev: str | None = "dev",
        eval_every: Annotated[int, Field(ge=1, description="steps between evaluations on the dev split")] = 200,
        cross_train: Annotated[Settings, Field(description="`train` settings that differ from the paper's")] = {},  # noqa: B006
        bi_train: Annotated[Settings, Field(description="`train` settings that differ from the paper's")] = {},  # noqa: B006
        evaluate: Annotated[
            dict[str, Any] | None,
            Field(description="options of a closing `evaluate` stage over all cycles; null: none"),
        ] = None,
    ) -> None:
        if len(bi) != len(cross):
            raise ConfigError(
                f"method trans-encoder: {len(bi)} bi-encoders and {len(cross)} cross-encoders; give one of each a line"
            )
        self.bi = list(bi)
        self.cross = list(cross)
        self.cycles = cycles
        self.symmetric = symmetric
        self.continue_weights = continue_weights
        self.split = split
        self.dev = dev
        self.eval_every = eval_every
        self.cross_train = cross_train
        self.bi_train = bi_train
        self.evaluate = evaluate

    def expand(self, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
        stages: list[dict[str, Any]] = []
        teachers, starts = self.bi, {"cross": self.cross, "bi": self.bi}
        trained: dict[str, list[str]] = {"cross": [], "bi": []}
        for cycle in range(1, self.cycles + 1):
            for kind in ("cross", "bi"):
                names = [self._name(kind, cycle, line) for line in range(1, len(self.bi) + 1)]
                stages += [
                    self._stage(kind, name, start, teachers) for name, start in zip(names, starts[kind], strict=True)
                ]
                teachers = names
                trained[kind] += names
                if self.continue_weights:
                    starts[kind] = names
        if self.evaluate is not None:
            models = [*self.bi, *trained["bi"], *trained["cross"]]
            stages.append({"name": "result", "type": "evaluate", "models": models, **self.evaluate})
        return stages

    def _name(self, kind: str, cycle: int, line: int) -> str:
        return f"{kind}-{cycle}" if len(self.bi) == 1 else f"{kind}-{cycle}-{line}"

    def _stage(self, kind: str, name: str, start: str, teachers: list[str]) -> dict[str, Any]:
        usual, given = (_CROSS, self.cross_train) if kind == "cross" else (_BI, self.bi_train)
        settings = {**_COMMON, **usual, **given}
        if given.get("steps") is not None:  # one length: the given one
            settings.pop("epochs", None)
        # raw cosines for the cross-encoder; sigmoid probabilities for the bi-encoder
        loss = {"type": "bce"} if kind == "cross" else {"type": "mse", "teacher_activation": "sigmoid"}
        stage: dict[str, Any] = {
            "name": name,
            "type": "train",
            "student": start,
            "teachers": list(teachers),
            "split": self.split,
            "sampler": {"type": "pairs", "symmetric": self.symmetric and kind == "cross"},
            "losses": [loss],
            "train": settings,
        }
        return stage if self.dev is None else {**stage, "dev": self.dev, "dev_every": self.eval_every}

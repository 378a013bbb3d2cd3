"""The cycles as a list of plain stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from kdfw.components import Method
from kdfw.errors import ConfigError

Stage = dict[str, Any]
Settings = dict[str, Any]
Start = Literal["none", "simcse", "mirror"]

# what the official code passes to sentence-transformers; 1e-6 is the eps of the AdamW it used
_COMMON: Settings = {"weight_decay": 0.01, "clip": 1.0, "eps": 1e-6}
_CROSS: Settings = {"lr": 2e-5, "epochs": 1, "batch_size": 32, "warmup": 0.1}
_BI: Settings = {"lr": 5e-5, "epochs": 10, "batch_size": 128, "warmup": 0.0}
_STARTS: Mapping[str, tuple[Settings, Settings, list[Settings]]] = {
    # settings, loss and augmenters of arXiv:2104.08821 (BERT-base) and of arXiv:2104.08027 (sentences)
    "simcse": (
        {"lr": 3e-5, "epochs": 1, "batch_size": 64, "warmup": 0.0, "weight_decay": 0.0, "clip": 1.0},
        {"temperature": 0.05},
        [],
    ),
    "mirror": (
        {
            "lr": 2e-5, "epochs": 1, "batch_size": 200, "warmup": 0.0, "decay": "constant",
            "weight_decay": 0.01, "decay_all": True, "clip": None,
        },
        {"temperature": 0.04, "symmetric": True},
        [{"type": "distort", "mask_characters": 5}],
    ),
}  # fmt: skip
_PAIRS_AT_ONCE = 512
"""Pairs of a score stage that are labelled together."""


class TransEncoder(Method):
    """Bi to cross with binary cross-entropy, cross to bi with squared error, in cycles, without labels.

    Stages of cycle C: `bi-B-scores` (cosines of the bi-encoder before, B = C - 1), `cross-C` (trained on them),
    `cross-C-scores` (its probabilities), `bi-C` (trained on those); `bi-0` is the unsupervised start, if there is one.
    Labels are computed once a cycle, by the checkpoint that was best on the dev split. At the end `best-bi` and
    `best-cross` are the best of their kind over the cycles.

    Every student starts anew: a cross-encoder from its model under `models:`, a bi-encoder from its model there or from
    `bi-0`. With several lines (mutual distillation) names end in `-1`, `-2` and so on; each line has its own students,
    and all of them learn from the mean of the lines' labels (`bi-B-scores`, an ensemble of `bi-B-scores-1`, ...).

    Args:
        bi: names of the starting bi-encoders, one for each line; any model whose scores are cosines
        cross: names of the cross-encoders, one for each line
        start: how the bi-encoders are made ready without labels, one for all lines or one for each. `simcse`: a text
            and itself with other dropout; `mirror`: also with a span masked; `none`: they are sentence encoders already
        symmetric: the cross-encoder sees each pair in both orders; false where order matters (question and answer)
        continue_weights: a student starts with the transformer of the model that labelled for it, in its other form,
            instead of anew
        split: unlabelled pairs
        dev: split with gold scores that chooses the checkpoint of each stage and the best cycle; null: the last of each
        dev_measure: what they are chosen by; default: Spearman, `auc` for binary tasks
        eval_every: steps between evaluations on the dev split, which is also done at the end of each epoch
        evaluate: options of a closing stage `test` over the starts, all cycles and the best; null: no such stage. With
            several lines also the means of their best models' scores, `ensemble-bi` and `ensemble-cross`
    """

    paper = "arXiv:2109.13059"

    def __init__(
        self,
        *,
        bi: Annotated[list[str], Field(min_length=1)] = ["bi"],  # noqa: B006
        cross: Annotated[list[str], Field(min_length=1)] = ["cross"],  # noqa: B006
        cycles: Annotated[int, Field(ge=1, description="of labelling and training, cross-encoder then bi-encoder")] = 3,
        start: Start | list[Start] = "none",
        symmetric: bool = True,
        continue_weights: bool = False,
        split: str = "train",
        dev: str | None = "dev",
        dev_measure: str | None = None,
        eval_every: Annotated[int, Field(ge=1)] = 200,
        start_train: Annotated[Settings, Field(description="`train` settings of the start that differ")] = {},  # noqa: B006
        cross_train: Annotated[Settings, Field(description="`train` settings that differ from the paper's")] = {},  # noqa: B006
        bi_train: Annotated[Settings, Field(description="`train` settings that differ from the paper's")] = {},  # noqa: B006
        evaluate: dict[str, Any] | None = None,
    ) -> None:
        if len(bi) != len(cross):
            raise ConfigError(
                f"method trans-encoder: {len(bi)} bi-encoders and {len(cross)} cross-encoders; give one of each a line"
            )
        starts = start if isinstance(start, list) else [start] * len(bi)
        if len(starts) != len(bi):
            raise ConfigError(
                f"method trans-encoder: {len(starts)} starts for {len(bi)} lines; give one, or one a line"
            )
        self.bi = list(bi)
        self.cross = list(cross)
        self.cycles = cycles
        self.starts = starts
        self.symmetric = symmetric
        self.continue_weights = continue_weights
        self.split = split
        self.dev = dev
        self.dev_measure = dev_measure
        self.eval_every = eval_every
        self.start_train = start_train
        self.cross_train = cross_train
        self.bi_train = bi_train
        self.evaluate = evaluate

    def expand(self, recipe: Mapping[str, Any]) -> list[Stage]:
        _check_models(recipe.get("models") or {}, self.bi, self.cross)
        stages: list[Stage] = []
        beginnings = self._begin(stages)
        teachers = beginnings
        trained: dict[str, list[list[str]]] = {"bi": [], "cross": []}
        for cycle in range(1, self.cycles + 1):
            labels = self._label(stages, f"bi-{cycle - 1}", teachers, "none")
            teachers = self._train(stages, "cross", cycle, self.cross, teachers, labels)
            trained["cross"].append(teachers)
            labels = self._label(stages, f"cross-{cycle}", teachers, "sigmoid")
            teachers = self._train(stages, "bi", cycle, beginnings, teachers, labels)
            trained["bi"].append(teachers)
        best = {kind: self._select(stages, kind, names) for kind, names in trained.items()}
        if self.evaluate is not None:
            self._evaluate(stages, beginnings, trained, best)
        return stages

    # ------------------------------------------------------------ parts of a cycle

    def _begin(self, stages: list[Stage]) -> list[str]:
        """The bi-encoders that label first and that students start from: as they come, or made ready here."""
        names = []
        for model, start, name in zip(self.bi, self.starts, self._names("bi-0"), strict=True):
            if start == "none":
                names.append(model)
                continue
            settings, options, changes = _STARTS[start]
            loss = {"type": "info-nce", "in_batch": True, **options}
            stage = {"name": name, "type": "train", "student": model, "split": self.split, "sampler": {"type": "views"}}
            made = {"augment": changes, "losses": [loss], "train": _merged(settings, self.start_train)}
            stages.append({**stage, **made, **self._choice()})
            names.append(name)
        return names

    def _label(self, stages: list[Stage], giver: str, teachers: list[str], activation: str) -> str:
        """Score stages of all lines, and their mean; the name of the labels to train on."""
        names = self._names(f"{giver}-scores")
        for name, teacher in zip(names, teachers, strict=True):
            stages.append(self._scores(name, teacher, self.split, activation))
        if len(names) > 1:
            stages.append({"name": f"{giver}-scores", "type": "ensemble", "of": names})
        return f"{giver}-scores"

    def _train(
        self, stages: list[Stage], kind: str, cycle: int, students: list[str], teachers: list[str], labels: str
    ) -> list[str]:
        """One student of every line, trained on the labels; their names."""
        names = self._names(f"{kind}-{cycle}")
        usual, given = (_CROSS, self.cross_train) if kind == "cross" else (_BI, self.bi_train)
        for name, student, teacher in zip(names, students, teachers, strict=True):
            stage: Stage = {
                "name": name,
                "type": "train",
                "student": student,
                "teachers": [labels],
                "split": self.split,
                "sampler": {"type": "pairs", "symmetric": self.symmetric and kind == "cross"},
                # tolerant of the labels' scale one way, exact the other way; the labels are used raw
                "losses": [{"type": "bce" if kind == "cross" else "mse"}],
                "train": _merged({**_COMMON, **usual}, given),
                **self._choice(),
            }
            stages.append({**stage, "encoder_from": teacher} if self.continue_weights else stage)
        return names

    def _select(self, stages: list[Stage], kind: str, cycles: list[list[str]]) -> list[str]:
        """The best cycle of each line; without a dev split the last one."""
        if self.dev is None:
            return cycles[-1]
        names = self._names(f"best-{kind}")
        for line, name in enumerate(names):
            stage = {"name": name, "type": "select", "of": [cycle[line] for cycle in cycles], "split": self.dev}
            stages.append(stage if self.dev_measure is None else {**stage, "measure": self.dev_measure})
        return names

    def _evaluate(
        self,
        stages: list[Stage],
        beginnings: list[str],
        trained: Mapping[str, list[list[str]]],
        best: Mapping[str, list[str]],
    ) -> None:
        assert self.evaluate is not None
        split = self.evaluate.get("split", "test")
        means = []
        if len(self.bi) > 1:
            for kind, names in best.items():
                members = [f"{name}-{split}" for name in names]
                for member, name in zip(members, names, strict=True):
                    stages.append(self._scores(member, name, split, "none" if kind == "bi" else "sigmoid"))
                means.append(f"ensemble-{kind}")
                stages.append({"name": means[-1], "type": "ensemble", "of": members})
        cycles = [name for kind in ("bi", "cross") for names in trained[kind] for name in names]
        chosen = [] if self.dev is None else [*best["bi"], *best["cross"]]
        models = [*dict.fromkeys([*self.bi, *beginnings]), *cycles, *chosen]
        systems = {"models": models, "against": means, "baseline": self.bi[0]}
        if "models" in self.evaluate:
            del systems["baseline"]
        stages.append({"name": "test", "type": "evaluate", **systems, **self.evaluate})

    # ------------------------------------------------------------ what stages share

    def _names(self, base: str) -> list[str]:
        return [base] if len(self.bi) == 1 else [f"{base}-{line}" for line in range(1, len(self.bi) + 1)]

    def _choice(self) -> Stage:
        """How the checkpoint of a training stage is chosen."""
        if self.dev is None:
            return {}
        chosen: Stage = {"dev": self.dev, "dev_every": [self.eval_every, "epoch"]}
        return chosen if self.dev_measure is None else {**chosen, "dev_measure": self.dev_measure}

    def _scores(self, name: str, teacher: str, split: str, activation: str) -> Stage:
        stage = {"name": name, "type": "score", "teacher": teacher, "split": split, "activation": activation}
        return {**stage, "queries_per_block": _PAIRS_AT_ONCE}


def _merged(usual: Settings, given: Settings) -> Settings:
    """Settings with those given in the place of the usual ones; one length: the given one."""
    length = {"epochs", "steps"} & {name for name, value in given.items() if value is not None}
    return {name: value for name, value in usual.items() if name != "epochs" or not length} | given


def _check_models(models: Mapping[str, Any], bi: list[str], cross: list[str]) -> None:
    """Raises ConfigError for a model in the wrong role, and for scores that are no cosines."""
    for role, names, other in (("bi", bi, "cross-encoder"), ("cross", cross, "bi-encoder")):
        for name in names:
            model = models.get(name)
            if not isinstance(model, Mapping):
                continue  # an earlier stage, or a fault that the plan reports
            if model.get("type") == other:
                raise ConfigError(f"method trans-encoder: {role}: {name!r} is a {other}")
            if role == "bi" and (model.get("similarity", "cosine") != "cosine" or model.get("scale", 1) != 1):
                raise ConfigError(
                    f"method trans-encoder: bi: the scores of {name!r} are no cosines, and cosines are the labels; "
                    "leave out its `similarity` and `scale`"
                )

"""What a stage may ask about the rest of the plan: references, splits, signals, and how much there is of everything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdfw.amounts import UNREAD, Amount, Shape, Sizes, Workload, unknown
from kdfw.components import Model, Retriever, Stage, Teacher
from kdfw.data.ranking import Ranking
from kdfw.errors import ArtifactError, KdfwError, Problem

if TYPE_CHECKING:
    from kdfw.recipe.plan import Target, _Planner
    from kdfw.recipe.recipe import StageEntry
    from kdfw.recipe.source import RecipePath


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Where earlier runs have left what an estimate may look at."""

    cache: Path
    find: Callable[[str, str], Path | None]
    """(stage type, fingerprint) -> folder of the artifact, when there is one."""


class UnresolvedReferenceError(KdfwError):
    """What was asked about is a fault that has been reported: a reference to nothing, or to something with a fault."""


class PlanView:
    """What `Stage.check` and `Stage.estimate` may ask about the rest of the plan."""

    def __init__(self, planner: _Planner, entry: StageEntry, targets: Mapping[str, Target], data: str) -> None:
        self._planner = planner
        self._entry = entry
        self._targets = targets
        self._path = entry.path
        self.data_name = data

    def at(self, path: RecipePath) -> PlanView:
        """The same for a component of the stage, whose options stand at `path`."""
        view = copy.copy(self)
        view._path = path
        return view

    @property
    def stage(self) -> Stage:
        """The stage itself."""
        return self._planner.built[self._entry.name]

    def where(self, *path: str | int) -> str:
        """`file:line: key` of an option of this component."""
        return self._planner.recipe.source.where((*self._path, *path))

    def problem(self, *path: str | int, found: str, fix: str = "") -> Problem:
        """A fault at an option of this component."""
        return Problem(where=self.where(*path), found=found, fix=fix)

    def as_far_as_known(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """The faults found before one that depends on a reference which is a fault itself.

        A check that is made of independent parts passes each of them through this, so that all the others are made.
        """
        try:
            yield from problems
        except UnresolvedReferenceError:
            return

    @property
    def task(self) -> str:
        """Task of the stage's data set."""
        return self._planner.datasets[self.data_name].task

    @property
    def splits(self) -> Sequence[str]:
        """Splits of the stage's data set; empty when they cannot be known without the data."""
        try:
            return self._planner.datasets[self.data_name].splits()
        except KdfwError:
            return ()

    @property
    def triples(self) -> Sequence[str] | None:
        """Splits of the stage's data set that come with triples; None when it does not tell."""
        return self._planner.datasets[self.data_name].triples()

    @property
    def without_labels(self) -> frozenset[str]:
        """Splits of the stage's data set that have no labels, as far as its options say so."""
        return self._planner.datasets[self.data_name].without_labels

    def target(self, name: str) -> Target:
        """What a reference of this stage points to."""
        target = self._targets.get(name)
        if target is None or target.kind == "faulty":
            raise UnresolvedReferenceError(name)
        return target

    def model(self, name: str) -> Model | Teacher | None:
        """The model behind a reference (built, not loaded): itself, or what the stage it names starts from.

        None when the reference names stored scores, candidates or a retriever.
        """
        return self._planner.model_behind(self.target(name))

    def scorer(self, name: str) -> Model | Teacher | None:
        """Whose scores, as it gives them, a reference to stored scores points to; None where that is no one teacher."""
        stage = self.stage_of(name)
        written_by = getattr(stage, "teacher", None) if getattr(stage, "activation", "none") == "none" else None
        behind = self._planner.stage_targets.get(self.target(name).name, {}).get(written_by or "")
        return None if behind is None else self._planner.model_behind(behind)

    def reader(self, name: str) -> Model | Teacher | None:
        """Who reads what is asked of a reference: the model behind it, or behind the stored scores it points to."""
        return self.model(name) or self.scorer(name)

    def scores_made_texts(self, part: Model | Teacher | None) -> bool:
        """Whether a model or teacher, with all it is made of, can score texts that are made on the fly."""
        return part is not None and self._planner.scores_made_texts(part)

    def stage_of(self, name: str) -> Stage | None:
        """The earlier stage a reference points to, or None for a model or a data set."""
        target = self.target(name)
        return self._planner.built.get(target.name) if target.kind == "stage" else None

    def provides(self, name: str) -> frozenset[str]:
        """Names of the signals a model or teacher gives; stored scores give `logits`."""
        model = self.model(name)
        return frozenset({"logits"}) if model is None else model.provides

    def unfit(self, part: Model | Retriever | Teacher | None) -> tuple[str, str] | None:
        """What keeps a model or retriever from serving the stage's data (`does not serve ...`), and what it does.

        None when nothing does; other sources of scores are not judged.
        """
        if isinstance(part, Model) and self.task not in part.tasks:
            return f"does not serve the task {self.task}", f"it serves: {', '.join(sorted(part.tasks))}"
        holds = self._planner.datasets[self.data_name].holds
        if isinstance(part, (Model, Retriever)) and not holds <= part.reads:
            what = f"reads no {' and no '.join(sorted(holds - part.reads))}"
            return what, f"the data hold: {', '.join(sorted(holds))}"
        return None

    # ------------------------------------------------------------ estimates

    @property
    def sizes(self) -> Sizes:
        """How much the stage's data set holds."""
        return self._planner.sizes_of(self.data_name)

    def lists(self, name: str) -> tuple[Amount, Amount]:
        """(queries, candidates) of the lists a reference names: counted if they are there, else what was estimated."""
        target = self.target(name)
        if target.kind == "data":
            rankings = self._planner.sizes_of(target.name).rankings
            return rankings.get(target.part, (unknown(UNREAD), unknown(UNREAD)))
        amounts = self._planner.works[target.name].amounts if target.name in self._planner.works else {}
        later = unknown(f"{target.name} is done")
        alone = amounts.get("pairs", later)  # of sentences: an item with one candidate
        return amounts.get("queries", alone), amounts.get("candidates", alone)

    def encoding(self, name: str, *, queries: Amount, passages: Amount, split: str) -> Workload:
        """What it takes a model to encode the queries of a split and passages, one by one."""
        shape = self._shape(name)
        amounts = {"texts encoded": queries + passages}
        if shape is not None:
            asked = queries * self.sizes.item_tokens(split, shape.limits.get("query", 512))
            tokens = asked + passages * self.sizes.passage_tokens(shape.limits.get("passage", 512))
            amounts |= {"tokens": tokens, "FLOP": tokens * shape.flop_per_token}
        return Workload(amounts=amounts)

    def scoring(self, name: str, *, queries: Amount, pairs: Amount, split: str) -> Workload:
        """What it takes a model to score pairs of queries of a split and passages; of stored scores, who gave them.

        A model with vectors encodes each text once, any other reads every pair.
        """
        model = self.reader(name)
        if isinstance(model, Model) and model.search:
            return self.encoding(name, queries=queries, passages=pairs.within(self.sizes.passages), split=split)
        amounts = {"pairs read": pairs}
        shape = self._shape(name)
        if shape is not None:
            limit = shape.limits.get("pair", 512)
            row = self.sizes.item_tokens(split, limit) + self.sizes.passage_tokens(limit)
            tokens = pairs * row.within(limit)
            amounts |= {"tokens": tokens, "FLOP": tokens * shape.flop_per_token}
        return Workload(amounts=amounts)

    def reading(self, name: str, *, items: Amount, split: str) -> Workload:
        """What it takes a model to read items of a split that are no queries: texts, pairs, sentences."""
        shape = self._shape(name)
        if shape is None:
            return Workload()
        tokens = items * self.sizes.item_tokens(split, sum(shape.limits.values()) or 512)
        return Workload(amounts={"tokens": tokens, "FLOP": tokens * shape.flop_per_token})

    def vectors(self, name: str, texts: Amount, bytes_per_number: int = 4) -> Workload:
        """Disk space of one vector a text."""
        shape = self._shape(name)
        if shape is None:
            return Workload()
        return Workload(amounts={"bytes of vectors": texts * shape.width * bytes_per_number})

    def _shape(self, name: str) -> Shape | None:
        model = self.reader(name)
        return model.shape() if isinstance(model, Model) else None


def counted_lists(folder: Path) -> dict[str, Amount]:
    """Queries and candidates of the lists in an artifact; nothing for an artifact without lists."""
    try:
        ranking = Ranking.load(folder)
    except ArtifactError:
        return {}
    return {"queries": Amount(len(ranking)), "candidates": Amount(len(ranking.passages))}

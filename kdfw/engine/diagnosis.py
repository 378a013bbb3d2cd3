"""What is known of the teachers of each stage of a run: their scores, what losses make of them, what the student made.

docs/diagnose.md defines every number; they are computed in `kdfw/evaluation/diagnostics.py`. Here they are brought
together from what stages left: scored lists, the sample that training kept (`kdfw/engine/probe.py`), and the systems
that an evaluation compared.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import nn

from kdfw.components import Constant, DistillationLoss
from kdfw.data.ranking import Ranking
from kdfw.data.sets import Data, LabelledData, PairData, RankingData
from kdfw.engine.probe import Probe, load_probe, probe_before, why_not
from kdfw.engine.runtime import Context, Runtime
from kdfw.engine.train_stage import STUDENT, Train
from kdfw.engine.training import Trainer
from kdfw.errors import ConfigError, Problem, one_of
from kdfw.evaluation import diagnostics
from kdfw.evaluation.diagnostics import ScoredList, warn
from kdfw.files import read_json, write_json
from kdfw.models.precision import numerics
from kdfw.recipe.plan import Plan, PlannedStage, Target
from kdfw.teachers.score_stage import Score
from kdfw.types import TextSource

log = logging.getLogger("kdfw")
FILE = "diagnosis.json"
MAX_LISTS = 5000
"""Lists of a score stage that are looked at, evenly spaced."""
EXAMPLES = 10
"""Suspected false negatives that are given with their texts."""
TEXT = 400
"""Characters of a text that are kept."""


def write_diagnosis(runtime: Runtime) -> None:
    """Write `diagnosis.json` into a run folder, from what its stages left; no model is loaded.

    A fault is logged and the run goes on: it has done its work.
    """
    try:
        found = [diagnosed(runtime, subject) for subject in subjects(runtime.plan)]
        write_json(runtime.out / FILE, result(runtime.plan, "run", [], found))
    except Exception as error:
        log.warning("the run could not be diagnosed: %s: %s", type(error).__name__, error)


def subjects(planned: Plan, stage: str | None = None) -> list[PlannedStage]:
    """Training stages with teachers, and stages with scores that no such stage reads; or those of one name.

    Raises: ConfigError when there is none of that name.
    """
    training = [one for one in planned.stages if isinstance(one.stage, Train) and one.stage.teachers]
    read = {name for one in training for name in one.inputs}
    for one in planned.stages:
        read |= set(one.inputs) if writes_scores(one) else set()
    found = [one for one in planned.stages if one in training or (writes_scores(one) and one.name not in read)]
    if stage is None:
        return found
    chosen = [one for one in found if stage in (one.name, one.entry.base)]
    if not chosen:
        fix = one_of(stage, [one.name for one in found])
        raise ConfigError(Problem(where="--stage", found=f"no stage with a teacher named {stage!r}", fix=fix))
    return chosen


def writes_scores(planned: PlannedStage) -> bool:
    """Whether a stage writes teacher scores."""
    return "scores" in planned.stage.produces


def result(planned: Plan, source: str, worked: list[dict[str, str]], found: list[dict[str, Any]]) -> dict[str, Any]:
    """The diagnosis of a whole plan; `worked` says which stages were run or taken from the cache for it."""
    notes = [] if found else ["no stage of it has a teacher, so there is nothing to diagnose"]
    return {"name": planned.recipe.name, "source": source, "worked": worked, "stages": found, "notes": notes}


def heading(subject: PlannedStage) -> dict[str, Any]:
    """Which stage it is."""
    return {"stage": subject.name, "type": subject.kind, "split": getattr(subject.stage, "split", "")}


def diagnosed(runtime: Runtime, subject: PlannedStage, ask: bool = False) -> dict[str, Any]:
    """Everything known about one stage. `ask`: models may be loaded for what no stage has left."""
    return _Diagnosis(runtime, subject, ask).result()


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    """A teacher of one stage, with its scores."""

    name: str
    lists: Sequence[ScoredList]
    of: str
    """Where the lists come from, in words."""
    total: int
    """How many lists there are; `lists` may be some of them."""
    missing: float
    """Share of the alternatives without a score."""


class _Diagnosis:
    def __init__(self, runtime: Runtime, subject: PlannedStage, ask: bool) -> None:
        self.runtime = runtime
        self.plan = runtime.plan
        self.subject = subject
        self.stage: Any = subject.stage
        self.split: str = getattr(subject.stage, "split", "train")
        self.data: Any = runtime.data(subject.data)
        self.warnings: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.trainer: Trainer | None = None
        self.probe = self._probe(ask)
        self.teachers = list(self._teachers())

    def result(self) -> dict[str, Any]:
        pairs = isinstance(self.data, PairData)
        found: dict[str, Any] = {**heading(self.subject), "task": self.data.task}
        found["teachers"] = [self._scores_of_pairs(t) if pairs else self._scores(t) for t in self.teachers]
        found["targets"] = [] if pairs else list(self._targets())
        if pairs:
            self.notes.append("one score a pair: there is no distribution to soften, so no entropy and no temperature")
        found["between_teachers"] = list(self._between())
        found["student"] = [*self._student_on_sample(), *self._student_in_evaluations()]
        for row in found["student"]:
            self._judge_student(row)
        return {**found, "warnings": self.warnings, "notes": list(dict.fromkeys(self.notes))}

    # ------------------------------------------------------------ what there is

    def _probe(self, ask: bool) -> Probe | None:
        if not isinstance(self.stage, Train):
            return None
        student = self.plan.models.get(self.plan.start_of(self.subject.targets[self.stage.student]))
        reason = why_not(self.stage, student)
        if reason:
            self.notes.append(f"no sample of what training sees: {reason}")
            return None
        folder = self.runtime.artifacts.get(self.subject.name)
        probe = None if folder is None else load_probe(folder)
        if probe is None and ask:
            probe = self._ask()
        if probe is None:
            self.notes.append("no sample of what training sees: the stage has not run, or an older kdfw ran it")
            return None
        self.notes += [f"teacher {name!r} is not in the sample: {why}" for name, why in probe.skipped.items()]
        return probe

    def _ask(self) -> Probe:
        with tempfile.TemporaryDirectory(prefix="kdfw-diagnose-") as scratch:
            context = Context(self.runtime, self.subject, Path(scratch))
            try:
                with numerics(self.runtime.precision, self.runtime.device):
                    self.trainer = Trainer(self.stage, context)
                    return probe_before(self.trainer)
            finally:
                context.release()

    def _teachers(self) -> Iterator[_Teacher]:
        if not isinstance(self.stage, Train):
            yield from self._with_members(self.subject)
            return
        for reference in self.stage.teachers:
            scored = self._scored(reference)
            if scored is not None and scored.name in self.runtime.artifacts:
                yield from self._with_members(scored)
            elif self.probe is not None and reference in self.probe.teachers:
                yield self._sampled(_shown(reference), reference)

    def _with_members(self, scored: PlannedStage) -> Iterator[_Teacher]:
        """The scores of a stage; where it combines those of others, theirs too."""
        yield self._stored(scored)
        if not isinstance(scored.stage, Score):
            for name in scored.inputs:
                member = self.plan.stage(name)
                if writes_scores(member) and name in self.runtime.artifacts:
                    yield from self._with_members(member)

    def _stored(self, scored: PlannedStage) -> _Teacher:
        """All lists of a stage with scores, or some of very many."""
        ranking = Ranking.load(self.runtime.artifacts[scored.name])
        step = max(1, -(-len(ranking) // MAX_LISTS))
        split = getattr(scored.stage, "split", self.split)
        judged = _judgements(self.data, split)
        ids = _row_names(self.data, split)
        lists = []
        for number in range(0, len(ranking), step):
            rows, scores = (np.asarray(part) for part in ranking.of(number))
            known = np.isfinite(scores)
            names = _Names(rows[known], ids)
            lists.append(_labelled(ranking.query_ids[number], scores[known], names, judged))
        missing = float((~np.isfinite(ranking.scores)).mean()) if len(ranking.scores) else 0.0
        of = f"the lists of {scored.name}"
        return _Teacher(name=_named(scored), lists=lists, of=of, total=len(ranking), missing=missing)

    def _sampled(self, name: str, reference: str) -> _Teacher:
        """The training examples of the probe."""
        assert self.probe is not None
        scores, known = self.probe.teachers[reference]
        known = known & self.probe.mask
        lists = []
        for item, id in enumerate(self.probe.ids):
            keep = known[item]
            if isinstance(self.data, LabelledData):
                label = int(self.probe.labels[item])
                positive = np.arange(scores.shape[1]) == label
                each = ScoredList(
                    item=id,
                    scores=scores[item][keep],
                    positive=positive[keep],
                    negative=np.zeros(int(keep.sum()), dtype=bool),
                    alternatives=[name for name, kept in zip(self.data.classes, keep, strict=True) if kept],
                )
            elif isinstance(self.data, RankingData):
                names = [name for name, kept in zip(self.probe.alternatives[item], keep, strict=False) if kept]
                each = _labelled(id, scores[item][keep], names, _judgements(self.data, self.split))
            else:
                each = _labelled(id, scores[item][keep], [id] * int(keep.sum()), {})
            lists.append(each)
        real = int(self.probe.mask.sum())
        missing = 1.0 - int(known.sum()) / real if real else 0.0
        of = f"{len(lists)} training examples"
        return _Teacher(name=name, lists=lists, of=of, total=len(lists), missing=missing)

    # ------------------------------------------------------------ teachers

    def _scores(self, teacher: _Teacher) -> dict[str, Any]:
        lists = [each for each in teacher.lists if len(each.scores)]
        spread, labels = diagnostics.spread(lists), diagnostics.labels(lists)
        self.warnings += warn("missing-scores", teacher.missing, teacher=teacher.name)
        self.warnings += warn("constant-lists", spread.get("constant_share"), teacher=teacher.name)
        self.warnings += warn("positive-not-on-top", labels.get("positive_not_on_top"), teacher=teacher.name)
        doubted = diagnostics.false_negatives(lists, EXAMPLES)
        doubted["examples"] = [self._with_texts(row) for row in doubted["examples"]]
        return {
            "name": teacher.name, "of": teacher.of, "lists": len(teacher.lists), "lists_in_all": teacher.total,
            "missing": teacher.missing, "distribution": diagnostics.distribution(lists), "spread": spread,
            "judgements": labels, "suspected_false_negatives": doubted,
        }  # fmt: skip

    def _scores_of_pairs(self, teacher: _Teacher) -> dict[str, Any]:
        """One score a pair: its distribution, and its rank correlation with the gold scores."""
        gold = _gold(self.data, self.split)
        known = [each for each in teacher.lists if len(each.scores)]
        both = [(float(each.scores[0]), gold[each.item]) for each in known if np.isfinite(gold.get(each.item, np.nan))]
        left, right = (np.array([row[side] for row in both]) for side in (0, 1))
        self.warnings += warn("missing-scores", teacher.missing, teacher=teacher.name)
        correlation = {"items": len(both), "spearman": diagnostics.correlation(left, right)}
        return {
            "name": teacher.name, "of": teacher.of, "lists": len(teacher.lists), "lists_in_all": teacher.total,
            "missing": teacher.missing, "distribution": diagnostics.distribution(known), "judgements": correlation,
        }  # fmt: skip

    def _with_texts(self, row: dict[str, Any]) -> dict[str, Any]:
        """The texts of an item, of its positive and of the doubted alternative; classes are their own text."""
        data, split = self.data, self.split
        if isinstance(data, LabelledData):
            texts = data.splits[split].texts
            found = "" if texts is None else _text(texts, row["item"])
            return {**row, "text": found, "alternative_text": row["alternative"], "positive_text": row["positive"]}
        return {
            **row,
            "text": _text(data.queries[split], row["item"]),
            "alternative_text": _text(data.corpus, row["alternative"]),
            "positive_text": _text(data.corpus, row["positive"]),
        }

    def _between(self) -> Iterator[dict[str, Any]]:
        """Each two teachers on what both have scored."""
        for number, left in enumerate(self.teachers):
            for right in self.teachers[number + 1 :]:
                shared = _shared(left.lists, right.lists)
                if not shared:
                    self.notes.append(f"{left.name} and {right.name} have no scored item in common")
                    continue
                if isinstance(self.data, PairData):
                    columns = [np.concatenate(side) for side in zip(*shared, strict=True)]
                    row: dict[str, Any] = {"items": len(shared), "spearman": diagnostics.correlation(*columns)}
                else:
                    row = diagnostics.agreement(shared)
                    names = {"teacher": left.name, "other": right.name}
                    self.warnings += warn("teachers-disagree", row["kendall_tau"], **names)
                    self.warnings += warn("teachers-alike", row["kendall_tau"], **names)
                yield {"teachers": [left.name, right.name], **row}

    # ------------------------------------------------------------ losses

    def _targets(self) -> Iterator[dict[str, Any]]:
        """What each loss makes of each of its teachers: softness of the targets, suggested temperature."""
        if self.probe is None:
            return
        for name, loss in self._losses():
            positions = range(len(self.stage.teachers)) if loss.settings.teachers is None else loss.settings.teachers
            for reference in (self.stage.teachers[position] for position in positions):
                if reference not in self.probe.teachers:
                    continue
                lists = [each for each in _vectors(self.probe, reference) if len(each) > 1]
                if not lists:
                    self.notes.append(f"{name}: one alternative an item, so there is no distribution to soften")
                    continue
                yield self._target(name, loss, self._name(reference), lists)

    def _target(self, name: str, loss: DistillationLoss, teacher: str, lists: list[np.ndarray]) -> dict[str, Any]:
        values = self._temperatures(name, loss)
        suggestion = diagnostics.suggested_temperature(lists)
        row: dict[str, Any] = {
            "loss": name, "teacher": teacher, "compares": loss.compares, "temperatures": values,
            "suggested_temperature": suggestion,
            "at": [{"temperature": value, **diagnostics.softness(lists, value)} for value in values],
        }  # fmt: skip
        said = f"At {suggestion:.3g} the median item would have half of it." if suggestion else ""
        for softness in row["at"] if loss.compares == "distributions" else []:
            facts = {"loss": name, "teacher": teacher, "temperature": softness["temperature"], "suggestion": said}
            for rule in ("nearly-one-hot", "nearly-uniform"):
                self.warnings += warn(rule, softness["entropy"]["mean"], **facts)
        return row

    def _losses(self) -> Iterator[tuple[str, DistillationLoss]]:
        """The student's losses that compare its scores with those of teachers."""
        for name, loss in zip(self.stage.loss_names, self.stage.losses, strict=True):
            if isinstance(loss, DistillationLoss) and loss.needs.teacher and loss.settings.model in (None, STUDENT):
                if loss.signal == "logits":
                    yield name, loss
                else:
                    self.notes.append(f"{name} compares {loss.signal!r}, which the sample does not hold")

    def _temperatures(self, name: str, loss: DistillationLoss) -> list[float]:
        """Temperature of the teacher's scores at the start and at the end; once where it is one number."""
        if isinstance(loss.temperature, Constant):
            return [loss.temperature.value]
        folder = self.runtime.artifacts.get(self.subject.name)
        logged = [] if folder is None else _logged(folder / "metrics.jsonl", f"{name}/temperature")
        if logged:
            return [logged[0], logged[-1]]
        if self.trainer is None or isinstance(loss.temperature, nn.Module):
            self.notes.append(f"{name}: its temperature is learned, and known once the stage has run")
            return []
        feed = self.trainer.feed
        return [float(loss.temperature(feed.clock(step))) for step in (0, max(0, feed.total_steps - 1))]

    # ------------------------------------------------------------ student

    def _student_on_sample(self) -> Iterator[dict[str, Any]]:
        """Student and teachers on the training examples of the sample, before and after."""
        if self.probe is None:
            return
        for reference in self.probe.teachers:
            row: dict[str, Any] = {
                "teacher": self._name(reference),
                "basis": f"{len(self.probe.ids)} training examples",
            }
            for when in ("before", "after"):
                student = getattr(self.probe, when)
                if student is not None:
                    row[when] = self._compared(reference, student)
            yield row

    def _compared(self, reference: str, student: np.ndarray) -> dict[str, Any]:
        assert self.probe is not None
        scores, known = self.probe.teachers[reference]
        keep = known & self.probe.mask & np.isfinite(student)
        if isinstance(self.data, PairData):
            rows = keep[:, 0]
            return {
                "items": int(rows.sum()), "spearman": diagnostics.correlation(scores[rows, 0], student[rows, 0])
            }  # fmt: skip
        return diagnostics.agreement([(scores[i][keep[i]], student[i][keep[i]]) for i in range(len(scores))])

    def _student_in_evaluations(self) -> Iterator[dict[str, Any]]:
        """Student and teachers on the queries of evaluations that measured both."""
        if not isinstance(self.stage, Train):
            return
        own = Target(kind="stage", name=self.subject.name)
        start = self.subject.targets[self.stage.student]
        measured = False
        for later in self.plan.stages[self.subject.number :]:
            folder = self.runtime.artifacts.get(later.name)
            found = None if folder is None else _read(folder / "agreement.json")
            if found is None:
                continue
            names = {target: _shown(reference) for reference, target in later.targets.items()}
            for reference in self.stage.teachers:
                teacher = names.get(self._source(reference)) or names.get(self.subject.targets[reference])
                against = found.get("pairs", {}).get(teacher or "", {})
                row = {
                    when: against[names[t]]
                    for when, t in (("before", start), ("after", own))
                    if names.get(t) in against
                }
                if row:
                    measured = True
                    basis = f"{found['queries']} queries of {getattr(later.stage, 'split', '')} ({later.name})"
                    yield {"teacher": self._name(reference), "basis": basis, "evaluation": later.name, **row}
        if not measured and isinstance(self.data, RankingData) and self.subject.name in self.runtime.artifacts:
            self.notes.append(
                "no evaluation measured teacher and student side by side: add the teacher to its `against` for the "
                "overlap of their results"
            )

    def _scored(self, reference: str) -> PlannedStage | None:
        """The stage with scores that a teacher's reference names."""
        target = self.subject.targets[reference]
        found = self.plan.stage(target.name) if target.kind == "stage" else None
        return found if found is not None and writes_scores(found) else None

    def _name(self, reference: str) -> str:
        scored = self._scored(reference)
        return _shown(reference) if scored is None else _named(scored)

    def _source(self, reference: str) -> Target:
        """The model behind stored scores, or the reference's own target."""
        scored = self._scored(reference)
        if scored is None or not isinstance(scored.stage, Score):
            return self.subject.targets[reference]
        return scored.targets[scored.stage.teacher]

    def _judge_student(self, row: Mapping[str, Any]) -> None:
        before, after = row.get("before", {}), row.get("after", {})
        for key in ("kendall_tau", "spearman"):
            if before.get(key) is not None and after.get(key) is not None:
                change = after[key] - before[key]
                self.warnings += warn("no-closer", change, teacher=row["teacher"], basis=row["basis"])
        if "evaluation" in row:
            return
        for name, loss in self._losses():
            ratio = after.get("spread_ratio")
            if loss.compares == "scores" and ratio is not None and loss.student_temperature is None and _raw(loss):
                self.warnings += warn("scale", ratio, loss=name, teacher=row["teacher"])


# ---------------------------------------------------------------- reading


class _Names(Sequence[str]):
    """Ids of rows, looked up when asked for: most never are."""

    def __init__(self, rows: np.ndarray, name: Callable[[int], str]) -> None:
        self.rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self.name(int(row)) for row in self.rows[place]]
        return self.name(int(self.rows[place]))


def _named(scored: PlannedStage) -> str:
    """A teacher by its stored scores: `teacher (scores)`; a combination of several by its stage."""
    return f"{_shown(scored.stage.teacher)} ({scored.name})" if isinstance(scored.stage, Score) else scored.name


def _shown(reference: str) -> str:
    """The name shown for a reference: `scores | teacher` is `scores`."""
    return reference.split("|")[0].strip()


def _raw(loss: DistillationLoss) -> bool:
    """Whether scores are compared as they are, not brought to one scale first."""
    options = ("teacher_scale", "student_scale", "teacher_activation", "student_activation")
    return all(getattr(loss, option, "none") == "none" for option in options)


def _labelled(
    item: str, scores: np.ndarray, names: Sequence[str], judged: Mapping[str, Mapping[str, int]]
) -> ScoredList:
    """A list of passages with the grades of its query: 1 and more relevant, others judged not relevant."""
    grades = judged.get(item, {})
    places = {name: place for place, name in enumerate(names)} if grades else {}
    positive, negative = np.zeros(len(scores), dtype=bool), np.zeros(len(scores), dtype=bool)
    for name, grade in grades.items():
        if name in places:
            (positive if grade >= 1 else negative)[places[name]] = True
    return ScoredList(item=item, scores=scores, positive=positive, negative=negative, alternatives=names)


def _judgements(data: Data, split: str) -> Mapping[str, Mapping[str, int]]:
    return data.qrels.get(split, {}) if isinstance(data, RankingData) else {}


def _row_names(data: Data, split: str) -> Callable[[int], str]:
    """Id of a row of a stored ranking: of a passage, or of the pair itself."""
    if isinstance(data, PairData):
        ids = data.splits[split].ids
        return lambda row: ids[row]
    assert isinstance(data, RankingData)
    return data.corpus.id


def _gold(data: PairData, split: str) -> dict[str, float]:
    pairs = data.splits[split]
    return {} if pairs.gold is None else dict(zip(pairs.ids, pairs.gold.tolist(), strict=True))


def _text(source: TextSource, id: str) -> str:
    try:
        text = source.text(source.row(id))
    except KeyError:
        return ""
    return text if len(text) <= TEXT else text[: TEXT - 1] + "\u2026"


def _vectors(probe: Probe, reference: str) -> list[np.ndarray]:
    """Each item's known scores of a teacher."""
    scores, known = probe.teachers[reference]
    return [row[keep] for row, keep in zip(scores, known & probe.mask, strict=True)]


def _shared(left: Sequence[ScoredList], right: Sequence[ScoredList]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two teachers' scores of the alternatives that both have scored, item by item."""
    others = {each.item: each for each in right}
    found = []
    for each in left:
        other = others.get(each.item)
        if other is None:
            continue
        places = {name: place for place, name in enumerate(other.alternatives)}
        both = [(mine, places[name]) for mine, name in enumerate(each.alternatives) if name in places]
        if both:
            mine, theirs = (list(side) for side in zip(*both, strict=True))
            found.append((each.scores[mine], other.scores[theirs]))
    return found


def _logged(path: Path, key: str) -> list[float]:
    """The values of one key in a metrics file."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [float(line[key]) for line in lines if isinstance(line.get(key), (int, float))]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""Evaluators of tasks other than ranking: plain functions of predictions, and the loop that gets predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from kdfw.data.sets import ClassMeasure, RankingData
from kdfw.errors import DataError, one_of

if TYPE_CHECKING:
    import torch

    from kdfw.components import Model
    from kdfw.context import Workers
    from kdfw.data.ranking import Ranking
    from kdfw.data.sets import Data, PairData, Pairs
    from kdfw.models.forward import Budget
    from kdfw.types import Batch

DEFAULT_MEASURES = {
    "pairs": ("spearman", "pearson"),
    "classification": ("accuracy", "macro-f1"),
    "translation": ("bleu", "chrf"),
}
MEASURES = {
    "pairs": ("spearman", "pearson", "macro-spearman", "auc"),
    "classification": get_args(ClassMeasure),
    "translation": ("bleu", "chrf", "token accuracy"),
}


@dataclass(frozen=True, kw_only=True)
class TaskValues:
    """Measures of a model on one split."""

    measures: Mapping[str, float]
    ids: Sequence[str]
    per_item: Mapping[str, np.ndarray]
    """By name, (Q,) or (Q, S): for pairs the `score`, the `gold` and the number of the `group`; for classes the
    `predicted` one and the `label`, and whether the label is the best or among the five best; for translations BLEU and
    chrF of the sentence, and the counts that those of the corpus are made of."""
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Measures of each subset, where the data have subsets."""
    answers: Sequence[str] = ()
    """(Q,) the texts that the model wrote, where it writes texts."""


# ---------------------------------------------------------------- pairs


def average_ranks(values: np.ndarray) -> np.ndarray:
    """(Q,) ranks from 1; equal values share the mean of their ranks."""
    codes = _in_order(values)
    counts = np.bincount(codes)  # longer than the values where ranks are drawn: look up first, compute then
    ranks: np.ndarray = np.cumsum(counts)[codes] - (counts[codes] - 1) / 2
    return ranks


def _in_order(values: np.ndarray) -> np.ndarray:
    """(Q,) whole numbers from 0 in the same order. Ranks and grades are near each other: they need not be sorted."""
    doubled = 2 * np.asarray(values, dtype=np.float64)
    low, high = (doubled.min(), doubled.max()) if len(doubled) else (0.0, 0.0)
    if high - low <= 8 * len(doubled) and bool((doubled == np.rint(doubled)).all()):
        return (doubled - low).astype(np.int64)
    codes: np.ndarray = np.unique(values, return_inverse=True)[1]
    return codes


def pearson(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's correlation x 100; NaN when one side is constant."""
    a, b = left - left.mean(dtype=np.float64), right - right.mean(dtype=np.float64)
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return 100 * float((a * b).sum()) / norm if norm > 0 else float("nan")


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation x 100, ties with average ranks; NaN when one side is constant."""
    return pearson(average_ranks(left), average_ranks(right))


def auc(scores: np.ndarray, gold: np.ndarray) -> float:
    """Area under the ROC curve x 100: how often a pair of the higher of two gold values has the higher score.

    Equal scores count half. NaN unless `gold` has two values.
    """
    values = np.unique(gold)
    if len(values) != 2:
        return float("nan")
    positive = gold == values[1]
    number = int(positive.sum())
    above = float(average_ranks(scores)[positive].sum()) - number * (number + 1) / 2
    return 100 * above / (number * (len(gold) - number))


def pair_measures(
    scores: np.ndarray, gold: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Measures x 100: of all pairs concatenated (the `all` setting of STS), and of each group.

    `macro-spearman` is the plain mean over the groups, `auc` is there where gold has two values only. Pairs whose gold
    score is NaN are left out.
    """
    known = ~np.isnan(gold)
    by_group: dict[str, dict[str, float]] = {}
    if groups is not None:
        names = np.asarray(groups)
        for name in dict.fromkeys(groups):
            inside = known & (names == name)
            if inside.any():
                by_group[name] = _of_pairs(scores[inside], gold[inside])
    overall = _of_pairs(scores[known], gold[known])
    each = [values["spearman"] for values in by_group.values()]
    return {**overall, "macro-spearman": float(np.mean(each)) if each else overall["spearman"]}, by_group


def _of_pairs(scores: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    found = {"spearman": spearman(scores, gold), "pearson": pearson(scores, gold)}
    area = auc(scores, gold)
    return found if np.isnan(area) else {**found, "auc": area}


def gold_of(data: Data, split: str, measures: Sequence[str]) -> np.ndarray:
    """(Q,) float64 gold scores of a split of sentence pairs, NaN where there is none.

    Raises: DataError for a split without gold scores, or not of two values where `auc` is wanted.
    """
    rows = getattr(data, "splits", {}).get(split)
    if rows is None or rows.gold is None or np.isnan(rows.gold).all():
        raise DataError(f"data {data.name!r}: the split {split!r} has no gold scores to compare with")
    gold = np.asarray(rows.gold, dtype=np.float64)
    values = len(np.unique(gold[~np.isnan(gold)]))
    if "auc" in measures and values != 2:
        raise DataError(f"data {data.name!r}: auc needs two gold values, the split {split!r} has {values}")
    return gold


# ---------------------------------------------------------------- classification


def top_k(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """(Q,) bool: the label is among the k best classes of (Q, D) logits; of equal logits the first class is better."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    hit: np.ndarray = (best == labels[:, None]).any(axis=1)
    return hit


def f1_of(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(D,) F1 of each class; 0 for a class that is never right."""
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    total = np.bincount(predicted, minlength=num_classes) + np.bincount(labels, minlength=num_classes)
    values: np.ndarray = np.divide(2.0 * right, total, out=np.zeros(num_classes), where=total > 0)
    return values


def macro_f1(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Mean F1 over the classes that are labelled or predicted at all (as scikit-learn has it)."""
    seen = np.union1d(predicted, labels)
    return float(f1_of(predicted, labels, num_classes)[seen].mean())


def micro_f1(predicted: np.ndarray, labels: np.ndarray, without: int | None = None) -> float:
    """F1 over all decisions; `without` is a class that counts neither as found nor as missed (`no relation`)."""
    right = int(((predicted == labels) & (labels != without)).sum())
    total = int((predicted != without).sum()) + int((labels != without).sum())
    return 2 * right / total if total else 0.0


_DIRECTED = re.compile(r"(.+)\((e1,e2|e2,e1)\)")


def has_relations(classes: Sequence[str]) -> bool:
    """Whether `relation-f1` means anything with classes of these names."""
    return any(_DIRECTED.fullmatch(name) for name in classes)


def relation_f1(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> float:
    """SemEval-2010 task 8's official measure: macro-F1 over the relations, `Other` left out, direction counted.

    A prediction of the right relation in the wrong direction is wrong, and counts against the relation's precision
    and recall (the (9+1)-way evaluation taking directionality into account, S10-1006).
    """
    if not has_relations(classes):
        raise DataError("relation-f1 needs classes named like `Cause-Effect(e1,e2)`")
    matches = [_DIRECTED.fullmatch(name) for name in classes]
    relations = list(dict.fromkeys(match[1] for match in matches if match))
    owner = np.array([relations.index(match[1]) if match else -1 for match in matches])
    values = []
    for relation in range(len(relations)):
        found, wanted = owner[predicted] == relation, owner[labels] == relation
        total = int(found.sum()) + int(wanted.sum())
        values.append(2 * int((found & (predicted == labels)).sum()) / total if total else 0.0)
    return float(np.mean(values))


# ---------------------------------------------------------------- translation


def translation_measures(hypotheses: Sequence[str], references: Sequence[str]) -> TaskValues:
    """BLEU and chrF of sacrebleu with its default settings, of the corpus and of each sentence.

    Raises: MissingDependencyError without sacrebleu.
    """
    sacrebleu = _sacrebleu()
    lines = list(zip(hypotheses, references, strict=True))
    bleu = [sacrebleu.sentence_bleu(ours, [theirs]) for ours, theirs in lines]
    return TaskValues(
        measures={
            "bleu": float(sacrebleu.corpus_bleu(list(hypotheses), [list(references)]).score),
            "chrf": float(sacrebleu.corpus_chrf(list(hypotheses), [list(references)]).score),
        },
        ids=[str(number) for number in range(len(lines))],
        per_item={
            "bleu": np.array([found.score for found in bleu]),
            "chrf": np.array([sacrebleu.sentence_chrf(ours, [theirs]).score for ours, theirs in lines]),
            "bleu counts": np.array([[*found.counts, *found.totals, found.sys_len, found.ref_len] for found in bleu]),
            "chrf counts": np.array(
                sacrebleu.metrics.CHRF()._extract_corpus_statistics(list(hypotheses), [list(references)])
            ),
        },
    )


def bleu_of_counts(counts: np.ndarray) -> float:
    """BLEU of a corpus from (10,) sums: matches of 1- to 4-grams, 1- to 4-grams, tokens, reference tokens."""
    matches, totals = counts[:4].tolist(), counts[4:8].tolist()
    bleu = _sacrebleu().metrics.BLEU
    return float(bleu.compute_bleu(matches, totals, int(counts[8]), int(counts[9]), smooth_method="exp").score)


def chrf_of_counts(counts: np.ndarray) -> float:
    """chrF of a corpus from (18,) sums: character n-grams of the hypothesis, of the reference, and common ones, for n
    from 1 to 6 (beta 2, W15-3049; orders that do not occur are left out, as sacrebleu has it)."""
    hypothesis, reference, common = counts.reshape(6, 3).astype(np.float64).T
    there = (hypothesis > 0) & (reference > 0)
    if not there.any():
        return 0.0
    precision, recall = float((common / hypothesis)[there].mean()), float((common / reference)[there].mean())
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        from kdfw.errors import MissingDependencyError

        raise MissingDependencyError("sacrebleu", "BLEU", "translation") from error
    return sacrebleu


# ---------------------------------------------------------------- predictions of a model


def evaluate_split(
    model: Model,
    data: Data,
    split: str,
    measures: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    workers: Workers | None = None,
    autocast: torch.dtype | None = None,
    items_at_once: int = 512,
    beam: int = 4,
    progress: Callable[[int], None] | None = None,
) -> TaskValues:
    """Measures of a model on a split of pairs, classes or translations.

    Every process calls it and gets the same values; the forward passes are shared out.
    Raises: DataError for a split without gold labels, or an unknown measure.
    """
    known = MEASURES.get(data.task, ())
    for name in measures:
        if name not in known:
            raise DataError(f"no measure {name!r} for {data.task}; {one_of(name, known)}")
    road: dict[str, Any] = {"device": device, "budget": budget, "workers": workers, "autocast": autocast}
    values = _EVALUATORS[data.task](model, data, split, list(measures), road, items_at_once, beam, progress)
    return replace(values, measures={name: values.measures[name] for name in measures})


def evaluate_scores(scores: Ranking, data: PairData, split: str, measures: Sequence[str]) -> TaskValues:
    """Measures of scores that a stage stored for the pairs of a split.

    Raises: DataError when pairs of the split have no score.
    """
    gold, rows = gold_of(data, split, measures), data.splits[split]
    found = dict(zip(scores.query_ids, scores.scores.tolist(), strict=True))
    values = np.asarray([found.get(id, np.nan) for id in rows.ids])
    missing = [rows.ids[number] for number in np.flatnonzero(np.isnan(values) & ~np.isnan(gold)).tolist()]
    if missing:
        raise DataError(
            f"data {data.name!r}: the stored scores lack {len(missing)} of {len(rows.ids)} pairs of the split "
            f"{split!r}, first {missing[0]!r}; they must be scores of that split"
        )
    all_values = _values_of_pairs(values, rows, gold)
    return replace(all_values, measures={name: all_values.measures[name] for name in measures})


def measure_split(model: Model, data: Data, split: str, name: str, **road: Any) -> float:
    """One measure of a model on a split, for the choice of a checkpoint."""
    return evaluate_split(model, data, split, [name], **road).measures[name]


def first_batch(data: Data, split: str, items: int = 4, depth: int = 8) -> Batch:
    """A few items of a split as a batch, with random candidates where the task has them: what a check tries."""
    if isinstance(data, RankingData):
        from kdfw.retrieval.mining import stand_in
        from kdfw.teachers.scoring import ranking_batch
        from kdfw.types import Text

        lists = stand_in(data, split, depth, include_positives=True)
        queries = data.queries[split]
        rows = [lists.of(number)[0] for number in range(min(items, len(lists)))]
        ids = lists.query_ids[: len(rows)]
        return ranking_batch(
            list(ids),
            [Text(source=queries, row=queries.row(id)) for id in ids],
            [[Text(source=data.corpus, row=int(row)) for row in part] for part in rows],
            [[data.corpus.id(int(row)) for row in part] for part in rows],
        )
    batch: Batch = next(_batches(data, split, items)[1]())
    return batch


def _batches(data: Data, split: str, size: int) -> tuple[list[str], Callable[[], Any], Any]:
    """(item ids, generator of batches in order, the sampler bound to the split)."""
    from kdfw.samplers import rows
    from kdfw.samplers.collate import collate, item_rng
    from kdfw.types import Clock

    kind = {"pairs": rows.Pairs, "classification": rows.Labelled, "translation": rows.Parallel}[data.task]
    sampler: Any = kind()
    sampler.bind(data, split, None)
    ids = list(sampler.items())
    if not ids:
        raise DataError(f"data {data.name!r}: the split {split!r} is empty")
    clock = Clock(step=0, total_steps=0, epoch=0, total_epochs=0, steps_per_epoch=0, seed=0)
    rng = item_rng(0, 0, "evaluation")  # nothing is drawn: the samplers' plain options draw no random number

    def batches() -> Any:
        for begin in range(0, len(ids), size):
            numbers = range(begin, min(begin + size, len(ids)))
            yield collate([sampler.draw(number, clock, rng) for number in numbers], data.task, data)

    return ids, batches, sampler


def _logits(
    model: Model, data: Data, split: str, road: Mapping[str, Any], size: int, progress: Callable[[int], None] | None
) -> tuple[list[str], np.ndarray, Any]:
    from kdfw.models.forward import signals_of

    ids, batches, sampler = _batches(data, split, size)
    found = []
    for batch in batches():
        found.append(signals_of(model, batch, frozenset({"logits"}), **road)["logits"].float().cpu().numpy())
        if progress is not None:
            progress(len(batch))
    return ids, np.concatenate(found), sampler.rows


def _pairs(model: Model, data: Data, split: str, measures: Any, road: Any, size: int, _: int, tell: Any) -> TaskValues:
    ids, logits, rows = _logits(model, data, split, road, size, tell)
    assert ids == list(rows.ids)
    return _values_of_pairs(logits[:, 0], rows, gold_of(data, split, measures))


def _values_of_pairs(scores: np.ndarray, rows: Pairs, gold: np.ndarray) -> TaskValues:
    """Measures of (Q,) scores of a split's pairs, in stored order."""
    scores = scores.astype(np.float64)
    overall, groups = pair_measures(scores, gold, rows.groups)
    known = np.flatnonzero(~np.isnan(gold))
    per_item = {"score": scores[known], "gold": gold[known]}
    if rows.groups is not None:
        codes = np.unique(np.asarray(rows.groups), return_inverse=True)[1]
        per_item["group"] = codes.astype(np.float64)[known]
    return TaskValues(
        measures=overall, ids=[rows.ids[number] for number in known.tolist()], per_item=per_item, groups=groups
    )


def _classes(model: Model, data: Any, split: str, measures: Any, road: Any, size: int, _: int, tell: Any) -> TaskValues:
    ids, logits, rows = _logits(model, data, split, road, size, tell)
    labels = np.asarray(rows.labels)
    known = labels >= 0
    if not known.any():
        raise DataError(f"data {data.name!r}: the split {split!r} has no labels to compare with")
    ids = [id for id, keep in zip(ids, known, strict=True) if keep]
    logits, labels = logits[known], labels[known]
    predicted = logits.argmax(axis=1)
    right, near = top_k(logits, labels), top_k(logits, labels, 5)
    values = {
        "accuracy": float(right.mean()),
        "accuracy@5": float(near.mean()),
        "macro-f1": macro_f1(predicted, labels, logits.shape[1]),
        "micro-f1": micro_f1(predicted, labels),
    }
    if "relation-f1" in measures:
        values["relation-f1"] = relation_f1(predicted, labels, data.classes)
    per_item = {"accuracy": right.astype(np.float64), "accuracy@5": near.astype(np.float64)}
    return TaskValues(measures=values, ids=ids, per_item={**per_item, "predicted": predicted, "label": labels})


def _translations(
    model: Any, data: Any, split: str, measures: Any, road: Any, size: int, beam: int, tell: Any
) -> TaskValues:
    ids, batches, _ = _batches(data, split, size)
    measured: dict[str, float] = {}
    per_item: dict[str, np.ndarray] = {}
    hypotheses: list[str] = []
    if "token accuracy" in measures:
        per_item["token accuracy"] = _token_accuracy(model, batches(), road)
        right, total = per_item["token accuracy"].T
        measured["token accuracy"] = float(right.sum() / total.sum())
        per_item = {}
    if {"bleu", "chrf"} & set(measures):
        references: list[str] = []
        for batch in batches():
            sources = batch.inputs["source"]
            hypotheses += model.translate(sources, beam, device=road["device"], budget=road["budget"])
            references += [str(text) for text in batch.inputs["target"]]
            if tell is not None:
                tell(len(batch))
        found = translation_measures(hypotheses, references)
        measured |= found.measures
        per_item = dict(found.per_item)
    return TaskValues(measures=measured, ids=ids, per_item=per_item, answers=hypotheses)


def _token_accuracy(model: Model, batches: Any, road: Mapping[str, Any]) -> np.ndarray:
    """(steps, 2): target tokens that the model ranks first given the reference before them, and all target tokens."""
    from kdfw.models.forward import signals_of

    counts = []
    for batch in batches:
        for part in _cut(batch, 32):  # a vocabulary per token: only a few sentences fit at once
            signals = signals_of(model, part, frozenset({"logits"}), **{**road, "workers": None})
            assert signals.labels is not None
            hit = signals["logits"].argmax(-1) == signals.labels
            if signals.mask is not None and signals.mask.shape == hit.shape:
                hit = hit[signals.mask]
            counts.append((int(hit.sum()), hit.numel()))
    return np.asarray(counts, dtype=np.float64)


def _cut(batch: Batch, size: int) -> list[Batch]:
    from kdfw.samplers.collate import take

    return [take(batch, range(begin, min(begin + size, len(batch)))) for begin in range(0, len(batch), size)]


_EVALUATORS: Mapping[str, Callable[..., TaskValues]] = {
    "pairs": _pairs,
    "classification": _classes,
    "translation": _translations,
}

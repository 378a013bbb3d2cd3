"""A diagnosis as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdfw.evaluation.agreement import CUTOFF

Found = Mapping[str, Any]
SHOWN = 3
"""Suspected false negatives that are printed; JSON has more."""
WIDTH = 110


def diagnosis_text(found: Found) -> str:
    """What `kdfw diagnose` prints. `found` is as `kdfw.diagnose` returns it."""
    lines = [f"{found['name']}: teacher diagnostics of the {found['source']}"]
    for state, words in (("run", "run for this"), ("cached", "taken from the cache")):
        names = [row["name"] for row in found["worked"] if row["state"] == state]
        if names:
            lines.append(f"stages {words}: {', '.join(names)}")
    for stage in found["stages"]:
        lines += ["", f"{stage['stage']} ({stage['type']}, split {stage['split']})"]
        lines += [f"  {line}" for line in _stage(stage)]
    warnings = [f"{stage['stage']}: {row['text']}" for stage in found["stages"] for row in stage["warnings"]]
    if warnings:
        lines += [
            "",
            f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}:",
            *(f"  ! {line}" for line in warnings),
        ]
    elif found["stages"]:
        lines += ["", "no warnings"]
    return "\n".join([*lines, *found["notes"]])


def _stage(stage: Found) -> Iterator[str]:
    for teacher in stage.get("teachers", ()):
        yield from _teacher(teacher, stage["task"])
    for target in stage.get("targets", ()):
        yield from _target(target)
    for row in stage.get("between_teachers", ()):
        yield f"{' and '.join(row['teachers'])}: {_agreement(row)}, {row['items']} items"
    for row in stage.get("student", ()):
        yield f"student and {row['teacher']}, {row['basis']}"
        for when in ("before", "after"):
            if when in row:
                yield f"  {when + ' training':<16} {_agreement(row[when])}"
    for note in stage["notes"]:
        yield f"note: {note}"


def _teacher(teacher: Found, task: str) -> Iterator[str]:
    scores = teacher["distribution"]
    some = "" if teacher["lists"] == teacher["lists_in_all"] else f" (of {teacher['lists_in_all']:,})"
    yield f"teacher {teacher['name']}: {scores['scores']:,} scores, {teacher['of']}: {teacher['lists']:,}{some}"
    if not scores["scores"]:
        return
    low, high = _number(scores["lowest"]), _number(scores["highest"])
    yield (
        f"  scores           mean {_number(scores['mean'])}, standard deviation "
        f"{_number(scores['standard_deviation'])}, from {low} to {high}"
    )
    marks = ", ".join(f"{q} %: {_number(value)}" for q, value in scores["quantiles"].items())
    yield f"  quantiles        {marks}"
    spread = teacher.get("spread", {})
    if spread.get("items"):
        row = spread["range"]
        yield (
            f"  of an item       highest minus lowest {_number(row['median'])} (median; 90 % from "
            f"{_number(row['p5'])} to {_number(row['p95'])}), standard deviation "
            f"{_number(spread['standard_deviation']['median'])}; {spread['constant_items']} constant"
        )
    judged = teacher["judgements"]
    if judged.get("items") and "spearman" in judged:
        yield f"  gold scores      Spearman correlation {_or_none(judged['spearman'])} over {judged['items']:,} pairs"
    elif judged.get("items"):
        yield (
            f"  judgements       the positive is not on top in {judged['positive_not_on_top']:.1%} of "
            f"{judged['items']:,} items; mean reciprocal rank of the best positive {judged['reciprocal_rank']:.3f}"
        )
    yield from _doubted(teacher.get("suspected_false_negatives", {}), task)


def _doubted(doubted: Found, task: str) -> Iterator[str]:
    if not doubted.get("items"):
        return
    share, items = f"{doubted['share_of_unjudged']:.1%}", f"in {doubted['items_with_any']:,} items"
    if task == "classification":
        yield f"  doubted labels   {doubted['suspected']:,} classes above the label ({share} of the others), {items}"
        for row in doubted["examples"][:SHOWN]:
            scores = (
                f"{row['score']:.3f} {row['alternative']}, {row['positive_score']:.3f} {row['positive']} (the label)"
            )
            yield ": ".join(part for part in (f"    {row['item']}", scores, _cut(row["text"])) if part)
        return
    number = f"{doubted['suspected']:,}"
    yield f"  false negatives? {number} unjudged above every positive ({share} of the unjudged), {items}"
    for row in doubted["examples"][:SHOWN]:
        yield f"    {row['item']}: {_cut(row['text'])}"
        yield f"      {row['score']:.3f} unjudged {row['alternative']}: {_cut(row['alternative_text'])}"
        yield f"      {row['positive_score']:.3f} positive {row['positive']}: {_cut(row['positive_text'])}"


def _target(target: Found) -> Iterator[str]:
    for softness in target["at"]:
        entropy = softness["entropy"]
        yield (
            f"loss {target['loss']} on {target['teacher']} at temperature {_number(softness['temperature'])}: entropy "
            f"{entropy['mean']:.2f} of the greatest (90 % from {entropy['p5']:.2f} to {entropy['p95']:.2f}), best "
            f"alternative {softness['top_weight']:.2f}, {softness['effective_alternatives']:.1f} effective of "
            f"{softness['alternatives']:.0f}"
        )
    suggested = target["suggested_temperature"]
    if target["compares"] == "distributions" and suggested is not None:
        yield f"  suggested temperature {_number(suggested)}: there the median item has half of the greatest entropy"
    elif target["compares"] == "distributions":
        yield "  no suggested temperature: most items have no order, or a tie on top"
    else:
        yield f"  this loss compares {target['compares']}: its temperature softens no distribution"


def _agreement(row: Found) -> str:
    named = (
        ("Kendall tau", "kendall_tau"), (f"overlap@{CUTOFF}", f"overlap@{CUTOFF}"), ("same best", "same_best"),
        ("Spearman", "spearman"), ("ratio of spreads", "spread_ratio"),
    )  # fmt: skip
    return ", ".join(f"{words} {_or_none(row[key])}" for words, key in named if row.get(key) is not None) or "undefined"


def _or_none(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"

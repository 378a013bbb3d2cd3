"""Teachers and student: what the teachers' scores look like, and how near the student came (`diagnosis.json`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdfw.report import figures
from kdfw.report.folder import RunView, mapping, mappings, numbers, strings
from kdfw.report.html import Child, Markup, element
from kdfw.report.numbers import as_number, short
from kdfw.report.tables import Cell, shown, table

AGREEMENTS = (
    ("kendall_tau", "Kendall tau"), ("overlap@10", "overlap@10"), ("same_best", "same best"), ("spearman", "Spearman"),
    ("spread_ratio", "ratio of spreads"),
)  # fmt: skip
Found = Mapping[str, Any]


def teaching(run: RunView) -> Iterator[Child]:
    """Of every stage that learned from a teacher: warnings, charts, numbers, doubted judgements."""
    stages = mappings(run.diagnosis.get("stages"))
    for stage in stages:
        name = str(stage.get("stage", ""))
        yield element("h3", name) if len(stages) > 1 else None
        yield _warnings(stage)
        charts = [*_score_charts(stage), *_entropy_charts(stage), *_tau_charts(stage)]
        yield element("div", [chart for chart in charts if chart], class_="charts")
        yield _student_table(stage)
        yield element("div", _teacher_table(stage), _target_table(stage), class_="charts")
        for teacher in mappings(stage.get("teachers")):
            yield _doubted(teacher, str(stage.get("task", "")))
        notes = strings(stage.get("notes"))
        yield element("p", "; ".join(notes), ".", class_="note") if notes else None
    if stages:
        words = "What each number is, is defined in docs/diagnose.md; `kdfw diagnose` prints them."
        yield element("p", words, class_="note")


def _warnings(stage: Found) -> Markup | None:
    texts = [str(row.get("text", "")) for row in mappings(stage.get("warnings"))]
    if not texts:
        return None
    return element("aside", element("ul", [element("li", text) for text in texts]), class_="warn")


# ---------------------------------------------------------------- charts


def _score_charts(stage: Found) -> Iterator[Markup]:
    for teacher in mappings(stage.get("teachers")):
        found = mapping(mapping(teacher.get("distribution")).get("histogram"))
        counts = {"all scores": _numbers(found.get("counts")), "labelled positives": _numbers(found.get("positives"))}
        total = sum(counts["all scores"])
        note = f"{short(total)} scores, {teacher.get('of', '')}"
        note += "; each curve by its own greatest bar" if any(counts["labelled positives"]) else ""
        yield figures.histogram(
            f"Scores of {teacher.get('name', '')}", _numbers(found.get("edges")), counts, "score", note=note
        )


def _entropy_charts(stage: Found) -> Iterator[Markup]:
    """Entropy of the targets of losses that compare distributions."""
    edges = [place / 20 for place in range(21)]
    for target in mappings(stage.get("targets")):
        if target.get("compares") != "distributions":
            continue
        suggested = as_number(target.get("suggested_temperature"))
        for row in mappings(target.get("at")):
            temperature = as_number(row.get("temperature"))
            if temperature is None:
                continue
            title = f"Targets of {target.get('loss', '')} at temperature {short(temperature)}"
            note = f"suggested temperature: {short(suggested)}" if suggested is not None else ""
            counts = {"items": _numbers(row.get("entropy_histogram"))}
            mean = as_number(mapping(row.get("entropy")).get("mean"))
            marks = {} if mean is None else {"mean": mean}
            label = "entropy of an item over the greatest: 0 one-hot, 1 uniform"
            yield figures.histogram(title, edges, counts, label, marks, note)


def _tau_charts(stage: Found) -> Iterator[Markup]:
    """How many items have which Kendall tau between student and teacher, before and after."""
    for row in mappings(stage.get("student")):
        counts = {
            f"{when} training": _numbers(mapping(row.get(when)).get("tau_histogram")) for when in ("before", "after")
        }
        bins = max(map(len, counts.values()))
        edges = [-1 + 2 * place / bins for place in range(bins + 1)] if bins else []
        title = f"Student and {row.get('teacher', '')}: order of the alternatives"
        yield figures.histogram(title, edges, counts, "Kendall tau of an item", note=str(row.get("basis", "")))


# ---------------------------------------------------------------- tables


def _student_table(stage: Found) -> Markup | None:
    rows: list[list[Child | Cell]] = []
    for row in mappings(stage.get("student")):
        before, after = numbers(row.get("before")), numbers(row.get("after"))
        for key, words in AGREEMENTS:
            old, new = before.get(key), after.get(key)
            if old is None and new is None:
                continue
            change = None if old is None or new is None else new - old
            kind = "" if change is None or key == "spread_ratio" else "gain" if change > 0 else "loss"
            moved = shown(change, "{:+.3f}")
            moved.kind = kind
            rows.append(
                [str(row.get("teacher", "")), str(row.get("basis", "")), words, shown(old, "{:.3f}"),
                 shown(new, "{:.3f}"), moved]
            )  # fmt: skip
    for row in mappings(stage.get("between_teachers")):
        for key, words in AGREEMENTS:
            value = numbers(row).get(key)
            if value is not None:
                pair = " and ".join(strings(row.get("teachers")))
                rows.append([pair, "between teachers", words, "", shown(value, "{:.3f}"), ""])
    if not rows:
        return None
    words = "Agreement with the teacher, before and after training; between teachers once."
    return table(words, ["teacher", "measured on", "agreement", "before", "after", "change"], rows, text_columns=3)


def _teacher_table(stage: Found) -> Markup | None:
    """A column for each teacher: there are few of them, and much to say of each."""
    columns = {}
    for teacher in mappings(stage.get("teachers")):
        scores, spread = numbers(teacher.get("distribution")), mapping(teacher.get("spread"))
        judged, doubted = numbers(teacher.get("judgements")), numbers(teacher.get("suspected_false_negatives"))
        low, high = scores.get("lowest"), scores.get("highest")
        labelled = "items with a label" if stage.get("task") == "classification" else "items with a labelled positive"
        if "spearman" in judged:
            labelled = "pairs with a gold score"
        above = "classes above the label" if stage.get("task") == "classification" else "unjudged above every positive"
        columns[str(teacher.get("name", ""))] = {
            "scores": _short(scores.get("scores")),
            "mean": _short(scores.get("mean")),
            "standard deviation": _short(scores.get("standard_deviation")),
            "lowest to highest": "" if low is None or high is None else f"{short(low)} to {short(high)}",
            "highest minus lowest of an item (median)": _short(numbers(spread.get("range")).get("median")),
            "items whose scores are all the same": _short(numbers(spread).get("constant_items")),
            labelled: _short(judged.get("items")),
            "of these, the positive is not on top in": _share(judged.get("positive_not_on_top")),
            "mean reciprocal rank of the best positive": _short(judged.get("reciprocal_rank")),
            "Spearman correlation with the gold scores": _short(judged.get("spearman")),
            above: _short(doubted.get("suspected")),
            "share of these alternatives": _share(doubted.get("share_of_unjudged")),
        }
    return _columns("Scores of the teachers.", columns)


def _target_table(stage: Found) -> Markup | None:
    """A column for each loss and temperature."""
    columns = {}
    for target in mappings(stage.get("targets")):
        for row in mappings(target.get("at")):
            temperature, entropy = as_number(row.get("temperature")), numbers(row.get("entropy"))
            name = f"{target.get('loss', '')} on {target.get('teacher', '')} at {_short(temperature)}"
            columns[name] = {
                "temperature": _short(temperature),
                "suggested temperature": _short(as_number(target.get("suggested_temperature"))),
                "mean entropy, as a share of the greatest": _short(entropy.get("mean")),
                "mean weight of the best alternative": _short(as_number(row.get("top_weight"))),
                "effective alternatives": _short(as_number(row.get("effective_alternatives"))),
                "alternatives": _short(as_number(row.get("alternatives"))),
                "the loss compares": str(target.get("compares", "")),
            }
    return _columns("What the losses make of the teachers' scores.", columns)


def _columns(caption: str, columns: Mapping[str, Mapping[str, str]]) -> Markup | None:
    """A table of things side by side, without rows that say nothing of any."""
    if not columns:
        return None
    names = next(iter(columns.values()))
    rows = [[name, *(each[name] for each in columns.values())] for name in names]
    kept = [row for row in rows if any(row[1:])]
    return table(caption, ["", *columns], kept, sortable=False) if kept else None


def _doubted(teacher: Found, task: str) -> Markup | None:
    """Alternatives that the teacher puts above every labelled positive, with their texts."""
    higher, best_words, title = "scored higher, not judged", "the best labelled positive", "Suspected false negatives"
    if task == "classification":
        higher, best_words, title = "scored higher", "the label", "Labels the teacher doubts"
    found = mapping(teacher.get("suspected_false_negatives"))
    blocks = []
    for row in mappings(found.get("examples")):
        score, best = as_number(row.get("score")), as_number(row.get("positive_score"))
        if score is None or best is None:
            continue
        columns = [
            _column(higher, row.get("alternative"), row.get("alternative_text"), score),
            _column(best_words, row.get("positive"), row.get("positive_text"), best),
        ]
        blocks.append(
            element(
                "li",
                element("p", element("strong", str(row.get("text", ""))), element("span", f" {row.get('item', '')}",
                                                                                   class_="note")),
                element("div", columns, class_="side-by-side"),
            )
        )  # fmt: skip
    if not blocks:
        return None
    words = f"{title}, of {teacher.get('name', '')}: the {len(blocks)} clearest"
    return element("details", element("summary", words), element("ol", blocks, class_="doubted"))


def _column(title: str, id: Any, text: Any, score: float) -> Markup:
    said = element("span", f"{short(score)} · {id}", class_="note")
    return element("div", element("p", element("strong", title)), element("p", str(text or ""), " ", said))


def _short(value: float | None) -> str:
    return "" if value is None else short(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _numbers(value: Any) -> list[float]:
    """A list of numbers; empty when it is something else."""
    found = [as_number(item) for item in value] if isinstance(value, list) else []
    return [item for item in found if item is not None] if None not in found else []

"""Tables of systems x measures: of one evaluate stage, and of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kdfw.errors import DataError
from kdfw.files import read_json

Style = Literal["text", "markdown", "latex"]
HUNDREDS = ("spearman", "pearson", "macro-spearman", "auc", "bleu", "chrf")
"""Measures from 0 (or -100) to 100."""


def read_result(folder: Path) -> dict[str, Any] | None:
    """What an `evaluate` stage found (`measures.json`), with the speed of each system; None for another folder.

    Raises: DataError for a damaged file.
    """
    path = folder / "measures.json"
    if not path.is_file():
        return None
    try:
        result: dict[str, Any] = read_json(path)
        timing = folder / "timing.json"
        if timing.is_file():
            for name, facts in read_json(timing).items():
                result["systems"][name] |= facts
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error}; run the stage again") from error
    return result


def measures_table(folder: Path) -> str:
    """The result of an `evaluate` stage as text; empty for a folder without one. `*`: Holm-corrected p < 0.05."""
    result = read_result(folder)
    if result is None:
        return ""
    rows = []
    for name in result.get("order", list(result["systems"])):
        system = result["systems"][name]
        cells = [name]
        for measure in result["measures"]:
            value = system["measures"].get(measure)
            against = system.get("against_baseline", {}).get(measure)
            star = "*" if against and against["holm"] < 0.05 else ""
            cells.append("" if value is None else number(measure, value) + star)
        cells.append(f"{system['parameters'] / 1e6:.1f}M" if "parameters" in system else "")
        for rate in ("queries_per_second", "passages_per_second", "items_per_second"):
            cells.append(f"{system[rate]:.0f}" if system.get(rate) else "")
        cells.append(system.get("setting", ""))
        cells.append(f"{system['depth']}" if "depth" in system else "")
        cells.append(f"{system['judged@10']:.0%}" if "judged@10" in system else "")
        rows.append(cells)
    head = ["system", *result["measures"], "size", "queries/s", "passages/s", "items/s"]
    head += ["setting", "depth", "judged@10"]
    keep = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    table = grid([head[column] for column in keep], [[row[column] for column in keep] for row in rows])
    note = f"{result['queries']} items of {result['split']}; * differs from {result['baseline']} (Holm, p < 0.05)"
    return f"{table}\n{note}{benchmark_note(result)}"


def benchmarks_table(folders: Sequence[Path]) -> str:
    """The main measure of every benchmark of a run, systems x benchmarks; empty for fewer than two.

    The forums of CQADupStack are one benchmark, their mean; of BEIR sets the last column is the mean.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    systems: dict[str, None] = {}
    for result in filter(None, map(read_result, folders)):
        found = result.get("benchmark")
        if not isinstance(found, Mapping) or not result["measures"]:
            continue
        name, measure = str(found["name"]), result["measures"][0]
        for system in result.get("order", list(result["systems"])):
            systems[system] = None
            value = result["systems"][system]["measures"].get(measure)
            column = f"{name.partition('/cqadupstack/')[0]}/cqadupstack" if "/cqadupstack/" in name else name
            columns.setdefault(f"{column} {measure}", {}).setdefault(system, []).append(value)
    means = {
        column: {system: sum(each) / len(each) for system, each in values.items() if None not in each}
        for column, values in columns.items()
    }
    if len(means) < 2:
        return ""
    beir = [column for column in means if column.startswith("beir/")]
    if len(beir) > 1:
        every = [system for system in systems if all(system in means[column] for column in beir)]
        label = f"mean of {len(beir)} beir"
        means[label] = {system: sum(means[column][system] for column in beir) / len(beir) for system in every}
    rows = []
    for system in systems:
        cells = [
            number(column.rpartition(" ")[2], values[system]) if system in values else ""
            for column, values in means.items()
        ]
        rows.append([system, *cells])
    return grid(["system", *means], rows)


def benchmark_note(result: Mapping[str, Any]) -> str:
    """The convention of a benchmark, and in what its data differ from the official ones; empty for other data."""
    found = result.get("benchmark")
    if not isinstance(found, Mapping):
        return ""
    differs = f"\nnot the official data: {found['differs']}; not to be compared with published values"
    return f"\n{found['name']}: {found['text']}{differs if found['differs'] else ''}"


def number(measure: str, value: float) -> str:
    """A value with the digits its measure is usually given with."""
    return f"{value:.2f}" if measure.lower() in HUNDREDS else f"{value:.4f}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], style: Style = "text") -> str:
    """A table: first column to the left, the others to the right."""
    if style == "latex":
        lines = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule"]
        lines += [" & ".join(map(_latex, head)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
    if style == "markdown":
        cells = [[_markdown(cell) for cell in row] for row in [head, *rows]]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )


def _markdown(text: str) -> str:
    return text.replace("|", r"\|")


_LATEX: dict[str, Any] = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)

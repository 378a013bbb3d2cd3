"""Retrieval measured by answers instead of judgements (DPR, arXiv:2004.04906): a passage that holds one counts."""

from __future__ import annotations

import ast
import csv
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from kdfw.data.ingest import IngestedDataset
from kdfw.data.lines import BadLines, read_lines
from kdfw.data.order import trec_order
from kdfw.data.ranking_sets import RankingBuilder, load_ranking
from kdfw.data.sets import RankingData
from kdfw.errors import DataError
from kdfw.evaluation.api import Evaluation, evaluate
from kdfw.evaluation.benchmarks import Benchmark, folders_of
from kdfw.evaluation.measures import Measure
from kdfw.types import Qrels, Run

TITLE_END = "\n"
"""Between title and text of a passage: an encoder reads both, an answer is looked for in the text alone."""


def has_answer(passage: str, answers: Sequence[str]) -> bool:
    """Whether a passage holds one of the answers as a run of whole tokens, as DPR matches them (arXiv:2004.04906)."""
    return _holds(_tokens(passage), [_tokens(answer) for answer in answers])


def _holds(tokens: Sequence[str], answers: Sequence[Sequence[str]]) -> bool:
    return any(
        wanted and any(tokens[at : at + len(wanted)] == wanted for at in range(len(tokens) - len(wanted) + 1))
        for wanted in answers
    )


def _tokens(text: str) -> list[str]:
    """DPR's simple tokens: runs of letters, digits and marks, and each other visible character; NFD, lower case."""
    found: list[str] = []
    word = ""
    for character in unicodedata.normalize("NFD", text).lower():
        category = unicodedata.category(character)
        if category[0] in "LNM":
            word += character
            continue
        if word:
            found.append(word)
        word = ""
        if category[0] not in "ZC":
            found.append(character)
    return [*found, word] if word else found


def first_answers(
    ranked: Mapping[str, Sequence[str]], answers: Mapping[str, Sequence[str]], text: Callable[[str], str], depth: int
) -> Qrels:
    """For each question grade 1 for its first passage that holds an answer, 0 for those before it.

    Args:
        ranked: question -> passages, best first.
        text: passage id -> text.
        depth: passages of a question that are looked at.
    """
    found: Qrels = {}
    for question, accepted in answers.items():
        wanted = [_tokens(answer) for answer in accepted]
        grades = found.setdefault(question, {})
        for passage in list(ranked.get(question, ()))[:depth]:
            title, end, body = text(passage).partition(TITLE_END)
            grades[passage] = int(_holds(_tokens(body if end else title), wanted))
            if grades[passage]:
                break
        if not grades:
            grades[""] = 0  # a question without results counts, and is wrong
    return found


def answer_measure(name: str) -> Measure:
    """Top-k accuracy, `accuracy@20`: any of the first k passages holds an answer. DataError for another measure."""
    head, _, cutoff = name.partition("@")
    if head != "accuracy" or not cutoff.isdigit() or int(cutoff) < 1:
        raise DataError(f"measure {name!r}: by answers there is accuracy@k alone, as in accuracy@20")
    return Measure(kind="hit_rate", cutoff=int(cutoff), text=name)


def evaluate_answers(
    run: Run, found: Benchmark, folder: Path | None, measures: Sequence[str], *, per_query: str | Path | None = None
) -> Evaluation:
    """Top-k accuracy of a run whose query ids are the lines of the questions, from 0.

    The file of passages is read once, and only those that the run needs are kept.

    Args:
        folder: where the benchmark's files are; default: looked for below $KDFW_DATA.
    Raises: DataError that says which files to put where, or for another measure.
    """
    wanted = [answer_measure(name) for name in measures]
    depth = max(measure.cutoff or 1 for measure in wanted)
    places = [folder] if folder is not None else folders_of(found)
    files = next((files for place in places if (files := found.locate(place)) is not None), None)
    if files is None:
        raise found.missing(folder, "no catalogue has it")
    bad = BadLines()
    answers = {str(line - 1): accepted for line, _, accepted in read_questions(files["questions"], bad)}
    ranked = {query: trec_order(rows, query)[:depth] for query, rows in run.items() if query in answers}
    needed = {passage for passages in ranked.values() for passage in passages}
    texts = {id: text for _, id, text in read_passages(files["passages"], bad) if id in needed}
    lost = next((id for id in needed if id not in texts), None)
    if lost is not None:
        raise DataError(f"{files['passages']}: no passage {lost!r}, which the run has")
    qrels = first_answers(ranked, answers, texts.__getitem__, depth)
    measured = evaluate(run, qrels, wanted, per_query=per_query)
    return replace(measured, judged=None)


def read_questions(path: Path, bad: BadLines) -> Iterator[tuple[int, str, list[str]]]:
    """(line, question, answers) of DPR's `*.qa.csv`: `question TAB ['answer', ...]`."""
    for line, row in _rows(path, bad):
        try:
            question, listed = row
            answers = ast.literal_eval(listed)
            if not isinstance(answers, (list, tuple)) or not all(isinstance(answer, str) for answer in answers):
                raise ValueError("the answers are no list of texts")
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            bad.report(path, line, str(error)[:80], "each line is `question TAB ['answer', ...]`")
            continue
        yield line, question, list(answers)


def read_passages(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str]]:
    """(line, id, title and text) of DPR's `psgs_w100.tsv`: `id TAB text TAB title`, after a header."""
    for line, row in _rows(path, bad):
        if line == 1 and row[:1] == ["id"]:
            continue
        if len(row) != 3:
            bad.report(path, line, f"{len(row)} columns", "each line is `id TAB text TAB title`")
            continue
        yield line, row[0], f"{row[2]}{TITLE_END}{row[1]}"


def _rows(path: Path, bad: BadLines) -> Iterator[tuple[int, list[str]]]:
    for line, content in read_lines(path, bad):
        try:
            row = next(csv.reader([content], delimiter="\t"))
        except csv.Error as error:
            bad.report(path, line, str(error), "fields are separated by tabs, and quoted where they hold one")
            continue
        yield line, row


class AnswerSet(IngestedDataset):
    """Wikipedia passages (`id TAB text TAB title`, with a header) and questions with answers, in DPR's files."""

    layout: ClassVar[str] = "dpr"

    def __init__(self, *, passages: Path, questions: Path, split: str, name: str) -> None:
        self._files = {"passages": passages, "questions": questions}
        self._split = split
        super().__init__(name=name, on_error="raise", decisive={"split": split})

    def files(self) -> Mapping[str, Path]:
        return self._files

    def splits(self) -> Sequence[str]:
        return [self._split]

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        builder = RankingBuilder(folder, bad, 0.0)
        passages, questions = self._files["passages"], self._files["questions"]
        builder.table("corpus", [(passages, read_passages(passages, bad))])
        rows = list(read_questions(questions, bad))
        # a question is called by its line, from 0
        queries = builder.table("queries.0", [(questions, ((line, str(line - 1), text) for line, text, _ in rows))])
        builder.split(self._split, "queries.0", queries, None, None)
        return {**builder.content(), "answers": {str(line - 1): answers for line, _, answers in rows}}

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> RankingData:
        data = load_ranking(folder, content, fingerprint, self.name or "dpr")
        return replace(data, answers={self._split: content["answers"]})

"""The model card of a trained student: what it is, what it learned from, how good it is, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import yaml

from kdfw import __version__
from kdfw.report.numbers import as_number, count, measure


class Facts(TypedDict, total=False):
    """What a card can say; every key may be left out."""

    name: str
    """Name of the model, mostly that of the run."""
    type: str
    """Kind of student: `bi-encoder`, `cross-encoder`, `late-interaction`, `sparse`, `text-classifier`, ..."""
    base: str
    """The model it started from."""
    parameters: int
    task: str
    """`ranking`, `pairs`, `classification`, `translation`."""
    teachers: Sequence[str]
    """Each teacher in a few words: name and base model."""
    data: Sequence[str]
    """Each data set in a few words: type, split, licence as given."""
    losses: Sequence[str]
    recipe: str
    """The resolved recipe as YAML."""
    measures: Mapping[str, Mapping[str, float]]
    """System -> measure -> value."""
    measured_on: str
    """`323 queries of the split test of pydocs`."""
    sentence_transformers: bool
    """Whether sentence-transformers loads the folder unchanged."""
    query_prefix: str
    passage_prefix: str
    max_query_tokens: int
    max_passage_tokens: int
    similarity: str
    language: str
    license: str
    """As given by the user; never guessed."""
    seed: int


PIPELINES = {
    "bi-encoder": "sentence-similarity",
    "cross-encoder": "text-ranking",
    "late-interaction": "sentence-similarity",
    "sparse": "feature-extraction",
    "text-classifier": "text-classification",
    "image-classifier": "image-classification",
    "seq2seq": "translation",
}
"""Task name on model hubs by kind of student."""


def write_card(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write `README.md` into a folder with a saved model, and return it.

    Args:
        facts: see `Facts`; keys that are absent leave their part of the card out.
    Raises: ArtifactError when the file cannot be written.
    """
    from kdfw.files import write_atomic

    path = folder / "README.md"
    write_atomic(path, model_card(facts))
    return path


def model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown with a YAML header."""
    header = yaml.safe_dump(_header(facts), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(_sections(facts)) + "\n"


def _header(facts: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(facts.get("type", ""))
    tags = ["kdfw", "knowledge-distillation"]
    header: dict[str, Any] = {}
    if facts.get("language"):
        header["language"] = _line(facts["language"])
    if facts.get("license"):
        header["license"] = _line(facts["license"])
    if facts.get("sentence_transformers"):
        header["library_name"] = "sentence-transformers"
        tags.insert(0, "sentence-transformers")
    else:
        header["library_name"] = "transformers"
    if kind in PIPELINES:
        header["pipeline_tag"] = PIPELINES[kind]
    base = str(facts.get("base", ""))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):  # a hub name; a folder of this machine says nothing to others
        header["base_model"] = base
    header["tags"] = tags
    return header


def _sections(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {_plain(facts.get('name') or 'student')}"
    yield _opening(facts)
    teachers, data, losses = (_list(facts.get(key)) for key in ("teachers", "data", "losses"))
    taught = []
    taught += [f"- teacher: {item}" for item in teachers]
    taught += [f"- data: {item}" for item in data]
    taught += [f"- loss: {item}" for item in losses]
    if taught:
        yield "## What it learned from"
        yield "\n".join(taught)
    table = _measures(facts)
    if table:
        yield "## How good it is"
        if facts.get("measured_on"):
            yield f"Measured on {_plain(facts['measured_on'])}."
        yield table
    yield "## How to use it"
    yield from _usage(facts)
    yield "## Limits"
    yield from _limits(facts, bool(table))
    if facts.get("recipe"):
        yield "## How it was made"
        seed = f", seed {facts['seed']}" if "seed" in facts else ""
        yield f"kdfw {__version__}{seed}. The recipe in full (`kdfw run recipe.yaml` repeats it):"
        yield _fenced(str(facts["recipe"]), "yaml")


def _opening(facts: Mapping[str, Any]) -> str:
    kind = str(facts.get("type", "model"))
    article = "An" if kind[:1] in "aeiou" else "A"
    text = f"{article} {_plain(kind)}"
    parameters = as_number(facts.get("parameters"))
    if parameters:
        text += f" with {count(parameters)} parameters"
    if facts.get("base"):
        text += f", started from {_code(facts['base'])}"
    taught = _list(facts.get("teachers"))
    text += (
        f", distilled from {len(taught)} teacher{'s' if len(taught) != 1 else ''} with kdfw"
        if taught
        else ", trained with kdfw"
    )
    return text + "."


def _measures(facts: Mapping[str, Any]) -> str:
    found = facts.get("measures")
    if not isinstance(found, Mapping) or not found:
        return ""
    systems = {str(name): values for name, values in found.items() if isinstance(values, Mapping)}
    names = list(dict.fromkeys(name for values in systems.values() for name in values))
    lines = ["| system | " + " | ".join(_plain(name) for name in names) + " |", "|---|" + "---:|" * len(names)]
    for system, values in systems.items():
        numbers = [as_number(values.get(name)) for name in names]
        cells = ["" if value is None else measure(name, value) for name, value in zip(names, numbers, strict=True)]
        lines.append(f"| {_plain(system)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _usage(facts: Mapping[str, Any]) -> Iterator[str]:
    kind = facts.get("type")
    prefix, passage_prefix = str(facts.get("query_prefix") or ""), str(facts.get("passage_prefix") or "")
    query, passage = prefix + "how do I sort a list?", passage_prefix + "sorted(x) returns a new list."
    if facts.get("sentence_transformers") and kind == "cross-encoder":
        yield _fenced(
            "from sentence_transformers import CrossEncoder\n\n"
            'model = CrossEncoder("PATH")\n'
            f"scores = model.predict([({query!r}, {passage!r})])",
            "python",
        )
    elif facts.get("sentence_transformers"):
        yield _fenced(
            "from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("PATH")\n'
            f"query = model.encode([{query!r}])\n"
            f"passages = model.encode([{passage!r}])\n"
            "scores = model.similarity(query, passages)",
            "python",
        )
    classes = {
        "cross-encoder": "AutoModelForSequenceClassification",
        "text-classifier": "AutoModelForSequenceClassification",
        "image-classifier": "AutoModelForImageClassification",
        "seq2seq": "AutoModelForSeq2SeqLM",
        "sparse": "AutoModelForMaskedLM",
    }
    cls = classes.get(str(kind), "AutoModel")
    second = "AutoImageProcessor" if kind == "image-classifier" else "AutoTokenizer"
    yield "With transformers alone:" if facts.get("sentence_transformers") else "With transformers:"
    yield _fenced(
        f"from transformers import {cls}, {second}\n\n"
        f'model, reader = {cls}.from_pretrained("PATH"), {second}.from_pretrained("PATH")',
        "python",
    )
    if prefix or passage_prefix:
        yield f"Queries begin with {_code(prefix)} and passages with {_code(passage_prefix)}, as in training."


def _limits(facts: Mapping[str, Any], measured: bool) -> Iterator[str]:
    items = []
    lengths = [
        f"{what} after {int(number)} tokens"
        for what, key in (("queries", "max_query_tokens"), ("passages", "max_passage_tokens"))
        if (number := as_number(facts.get(key)))
    ]
    if lengths:
        items.append(f"Texts are cut: {' and '.join(lengths)}.")
    if _list(facts.get("teachers")):
        items.append(
            "It imitates its teacher, mistakes and biases included, and knows best what its training data is like."
        )
    if not measured:
        items.append("It has not been measured in this run.")
    else:
        items.append("The figures above hold for that data; on other data, measure it (`kdfw evaluate`).")
    if not facts.get("license"):
        items.append("No licence was given. Those of the base model, the teachers and the data apply.")
    yield "\n".join(f"- {item}" for item in items)


def _line(value: Any) -> str:
    """On one line: readers of the header look for its end, a line of three hyphens, before they parse it."""
    return " ".join(str(value).split())


def _list(value: Any) -> list[str]:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else []


def _plain(value: Any) -> str:
    """Text that stays text in Markdown and on a page made of it."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`|\[\]])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def _code(value: Any) -> str:
    text = " ".join(str(value).split())
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _fenced(text: str, language: str) -> str:
    longest = max((len(found) for found in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"

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
    sentence_transformers: str
    """The class of sentence-transformers that loads the folder unchanged (`SentenceTransformer`); empty for none."""
    architecture: str
    """The class of transformers whose weights the folder holds (`BertModel`); empty where it is none."""
    image_processor: bool
    """Whether the folder has an image processor of transformers."""
    query_prefix: str
    passage_prefix: str
    truncation: str
    """Which text of a pair that is too long is cut, as tokenizers call it."""
    label: int
    """The output that is the score, where there are several."""
    first_tokens: str
    """Python that defines `first_tokens(text, count)` with a `tokenizer`."""
    left_out: Mapping[str, str]
    """Option -> what has to be done, of the options that other libraries do not follow."""
    max_query_tokens: int
    max_passage_tokens: int
    max_pair_tokens: int
    max_tokens: int
    max_text_tokens: int
    max_source_tokens: int
    max_target_tokens: int
    language: str
    license: str
    """Of this model, as the recipe gives it; never guessed."""
    licences: Sequence[str]
    """`WHAT: LICENCE` of base models and data, as their own cards give them."""
    seed: int


PIPELINES = {
    "bi-encoder": "sentence-similarity",
    "cross-encoder": "text-ranking",
    "late-interaction": "sentence-similarity",
    "sparse": "feature-extraction",
    "text-classifier": "text-classification",
    "image-classifier": "image-classification",
    "image-text-encoder": "feature-extraction",
    "seq2seq": "translation",
}
"""Task name on model hubs by kind of student."""
AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
}
"""The class that opens a transformers folder by the end of its architecture's name; any other: `AutoModel`."""
CUTS = (
    ("max_query_tokens", "queries"), ("max_passage_tokens", "passages"), ("max_pair_tokens", "pairs"),
    ("max_tokens", "texts"), ("max_text_tokens", "texts"), ("max_source_tokens", "sources"),
    ("max_target_tokens", "translations"),
)  # fmt: skip


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
    elif facts.get("architecture"):
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
    yield "## Licences"
    yield _licences(facts)
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
    """What opens the folder, as its own files say it."""
    library, architecture = str(facts.get("sentence_transformers") or ""), str(facts.get("architecture") or "")
    query, passage = "how do I sort a list?", "sorted(x) returns a new list."
    if library == "CrossEncoder":
        yield _fenced(_with_pairs(facts, query, passage), "python")
    elif library:
        yield _fenced(
            f"from sentence_transformers import {library}\n\n"
            f'model = {library}("PATH")\n'
            f"queries = model.encode_query([{query!r}])\n"
            f"passages = model.encode_document([{passage!r}])\n"
            "scores = model.similarity(queries, passages)",
            "python",
        )
    if architecture:
        yield "The transformer in it, with transformers alone:" if library else "With transformers:"
        yield _fenced(_with_transformers(facts, architecture), "python")
    if not library and not architecture:
        yield "Its network is one of kdfw's own, so kdfw opens it (`kdfw export` writes ONNX graphs of it):"
        yield _fenced(_with_kdfw(str(facts.get("type", ""))), "python")
    prefix, passage_prefix = str(facts.get("query_prefix") or ""), str(facts.get("passage_prefix") or "")
    if prefix or passage_prefix:
        named = (("queries", prefix), ("passages", passage_prefix))
        begin = " and ".join(f"{what} begin with {_code(repr(text))}" for what, text in named if text)
        if library == "CrossEncoder":
            who = "`predict` puts it before queries (from version 6 of sentence-transformers)" if prefix else ""
            who += " and " * bool(prefix and passage_prefix) + "you put it before passages" * bool(passage_prefix)
        else:
            who = "`encode_query` and `encode_document` put it there"
        yield f"As in training, {begin}: {who}."
    left_out = facts.get("left_out")
    if isinstance(left_out, Mapping) and left_out:
        yield "Other libraries do not follow these options of the model, so they are left to you:"
        yield "\n".join(f"- {_code(option)}: {_plain(instead)}" for option, instead in left_out.items())


def _with_pairs(facts: Mapping[str, Any], query: str, passage: str) -> str:
    """Lines that score a pair as in training, whatever the folder itself cannot say."""
    prefix, passage_prefix = str(facts.get("query_prefix") or ""), str(facts.get("passage_prefix") or "")
    count = as_number(facts.get("max_query_tokens"))
    text = 'from sentence_transformers import CrossEncoder\n\nmodel = CrossEncoder("PATH")\n'
    cut = ""
    if count is not None and facts.get("first_tokens"):
        text += f"tokenizer = model.tokenizer\n\n\n{facts['first_tokens']}\n\n"
        cut = f"query = first_tokens(query, {int(count)})\n"
        if prefix:
            cut = f"query = first_tokens({prefix!r} + query, {int(count)}).removeprefix({prefix!r})\n"
    text += f"query, passage = {query!r}, {f'{passage_prefix!r} + ' if passage_prefix else ''}{passage!r}\n{cut}"
    text += "scores = model.predict([(query, passage)])"
    label = as_number(facts.get("label"))
    return text if label is None else f"{text}.reshape(1, -1)[:, {int(label)}]"


def _with_kdfw(kind: str) -> str:
    opened = "from pathlib import Path\n\nfrom kdfw.models.checkpoint import load_model\n"
    if kind == "image-classifier":
        return (
            f"{opened}from kdfw.models.forward import signals_of\nfrom kdfw.types import Batch\n\n"
            'model = load_model(Path("PATH"))\n'
            "# images: a tensor (N, channels, height, width), scaled to [0, 1] and normalised as kdfw.json says\n"
            'batch = Batch(task="classification", ids=("",) * len(images), inputs={"image": images}, num_items=1.0)\n'
            'logits = signals_of(model, batch, frozenset({"logits"})).logits'
        )
    if kind == "image-text-encoder":
        return (
            f"{opened}from kdfw.models.forward import encode_texts\nfrom kdfw.types import Text\n\n"
            'model = load_model(Path("PATH"))\n'
            'vectors = encode_texts(model, [Text(source=None, made="a red square")], "passage")'
        )
    return f'{opened}\nmodel = load_model(Path("PATH"))'


def _with_transformers(facts: Mapping[str, Any], architecture: str) -> str:
    cls = next((auto for end, auto in AUTO.items() if architecture.endswith(end)), "AutoModel")
    readers = {} if facts.get("type") == "image-classifier" else {"tokenizer": "AutoTokenizer"}
    if facts.get("image_processor"):
        readers["processor"] = "AutoImageProcessor"
    names = ", ".join([cls, *readers.values()])
    opened = f'from transformers import {names}\n\nmodel = {cls}.from_pretrained("PATH")'
    for name, reader in readers.items():
        opened += f'\n{name} = {reader}.from_pretrained("PATH")'
    if cls == "AutoModelForSeq2SeqLM":
        longest = int(as_number(facts.get("max_target_tokens")) or 128)
        opened += (
            '\ntokens = tokenizer(["a sentence"], return_tensors="pt")\n'
            f"written = model.generate(**tokens, num_beams=4, max_new_tokens={longest})\n"
            "texts = tokenizer.batch_decode(written, skip_special_tokens=True)"
        )
    elif facts.get("sentence_transformers") == "CrossEncoder":
        begin = f"{facts['query_prefix']!r} + " if facts.get("query_prefix") else ""
        longest = int(as_number(facts.get("max_pair_tokens")) or 512)
        opened += (
            "\n# query and passage as above; for lists of them also padding=True"
            f"\ntokens = tokenizer({begin}query, passage, "
            f'truncation={facts.get("truncation") or "longest_first"!r}, max_length={longest}, return_tensors="pt")\n'
            f"logits = model(**tokens).logits[:, {int(as_number(facts.get('label')) or 0)}]"
        )
    elif facts.get("type") == "text-classifier":
        opened += (
            '\nlogits = model(**tokenizer(["a text"], return_tensors="pt")).logits\n'
            "names = [model.config.id2label[int(number)] for number in logits.argmax(-1)]"
        )
    return opened


def _limits(facts: Mapping[str, Any], measured: bool) -> Iterator[str]:
    items = []
    lengths = [f"{what} after {int(number)} tokens" for key, what in CUTS if (number := as_number(facts.get(key)))]
    if lengths:
        said = " and ".join([", ".join(lengths[:-1]), lengths[-1]]) if len(lengths) > 1 else lengths[0]
        items.append(f"Texts are cut: {said}.")
    if _list(facts.get("teachers")):
        items.append(
            "It imitates its teacher, mistakes and biases included, and knows best what its training data is like."
        )
    if not measured:
        items.append("It has not been measured in this run.")
    else:
        items.append("The figures above hold for that data; on other data, measure it (`kdfw evaluate`).")
    yield "\n".join(f"- {item}" for item in items)


def _licences(facts: Mapping[str, Any]) -> str:
    """As given, each by whom; what nobody has given is not made up."""
    own = f"This model: {_plain(facts['license'])}." if facts.get("license") else "For this model none was given."
    given = _list(facts.get("licences"))
    rest = "\n".join(f"- {item}" for item in given)
    words = f"{own} As given for what it was made of:\n\n{rest}\n\nWhatever" if given else f"{own} What"
    return f"{words} else it was made of (base models, teachers, data) has licences of its own, which apply too."


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

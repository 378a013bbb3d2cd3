"""A retrieval data set that is on every machine: the documentation strings of installed Python packages."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.metadata
import inspect
import logging
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kdfw.amounts import Amount, Sizes
from kdfw.data.ingest import IngestedDataset, in_share
from kdfw.data.lines import BadLines
from kdfw.data.ranking_sets import Name, RankingBuilder, load_ranking
from kdfw.data.sets import Data
from kdfw.data.table import TextTableWriter, hash_id
from kdfw.errors import DataError

log = logging.getLogger(__name__)

STANDARD_LIBRARY = "stdlib"
DEFAULT_PACKAGES = (
    STANDARD_LIBRARY, "accelerate", "fsspec", "huggingface_hub", "jinja2", "networkx", "numpy", "pydantic", "scipy",
    "sympy", "torch",
)  # fmt: skip
"""The standard library and packages that come with kdfw's own dependencies; those not installed are left out."""
_SKIPPED_FOLDERS = frozenset(
    "__pycache__ dist-packages distutils ensurepip idlelib lib2to3 lib-dynload pydoc_data site-packages test testing "
    "tests turtledemo _vendor vendor vendored".split()
)
_MAX_SOURCE_BYTES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class DocItem:
    """One documented thing: `torch.nn.Linear`, what its first sentence says, what the rest says."""

    id: str
    query: str
    passage: str


def split_docstring(docstring: str) -> tuple[str, str]:
    """(first sentence, rest) of a docstring, both cleaned of markup; empty strings where there is none."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip())
    # C extensions and numpy begin with the signature
    if paragraphs and re.match(r"^[\w.]+\([^\n]*\)(\s*->.*)?$", paragraphs[0].strip()):
        paragraphs = paragraphs[1:]
    if not paragraphs:
        return "", ""
    first = clean(paragraphs[0])
    end = _SENTENCE_END.search(first)
    sentence, left = (first[: end.end()], first[end.end() :]) if end else (first, "")
    rest = " ".join(part for part in (left.strip(), *(clean(p) for p in paragraphs[1:])) if part)
    return sentence.strip().rstrip(".").strip(), rest


_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)[.!?](?=\s+[^a-z\s]|\s*$)")
_ROLE = re.compile(r":[a-zA-Z:]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`")
_DIRECTIVE = re.compile(r"^\s*\.\. [\w-]+::.*$", re.M)
_RULE = re.compile(r"^\s*[-=~^*_]{3,}\s*$", re.M)


def clean(text: str) -> str:
    """Text without reStructuredText roles, directives, underlines and backticks, on one line."""
    text = _DIRECTIVE.sub(" ", text)
    text = _RULE.sub(" ", text)
    text = _ROLE.sub(r"\1", text)
    return " ".join(text.replace("`", "").split())


def documented(source: bytes, module: str) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a module and of everything public in it; nothing for source that does not parse.

    The source is parsed, never run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop()
        assert isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield name, docstring
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue  # what is defined inside a function cannot be looked up
        pending.extend(
            (f"{name}.{child.name}", child)
            for child in node.body
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and not child.name.startswith("_")
        )


def source_files(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    """(module name, file) of every public module below a package, in order of names."""
    for place, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith((".", "_")))
        parts = Path(place).relative_to(root).parts
        for name in sorted(names):
            stem, dot, suffix = name.rpartition(".")
            if not dot or suffix != "py" or (stem.startswith("_") and stem != "__init__") or stem == "conftest":
                continue
            own = () if stem == "__init__" else (stem,)
            module = ".".join((*((package,) if package else ()), *parts, *own))
            if module:
                yield module, Path(place) / name


def find_package(name: str) -> Path | None:
    """Folder of an installed package, found without importing it."""
    if name == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        found = importlib.machinery.PathFinder.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(places[0]) if places and Path(places[0]).is_dir() else None


def collect(packages: Mapping[str, Path], query_words: tuple[int, int], passage_words: int) -> list[DocItem]:
    """Every usable item, one for each query and passage, in order of ids.

    Left out: queries that stand for several things, and all but the first of passages that begin alike.
    """
    items: dict[str, DocItem] = {}
    for package, root in packages.items():
        for module, path in source_files(root, "" if package == STANDARD_LIBRARY else package):
            try:
                if path.stat().st_size > _MAX_SOURCE_BYTES:
                    continue
                source = path.read_bytes()
            except OSError:
                continue
            for name, docstring in documented(source, module):
                query, passage = split_docstring(docstring)
                if name not in items and usable(query, passage, query_words, passage_words):
                    items[name] = DocItem(id=name, query=query, passage=passage)
    meanings: dict[str, int] = {}
    for item in items.values():
        meanings[item.query.lower()] = meanings.get(item.query.lower(), 0) + 1
    kept: list[DocItem] = []
    beginnings: set[str] = set()
    for _, item in sorted(items.items()):
        beginning = " ".join(item.passage.lower().split()[:25])
        if meanings[item.query.lower()] == 1 and beginning not in beginnings:
            beginnings.add(beginning)
            kept.append(item)
    return kept


_NO_QUERY = re.compile(r">>>|::|:param|[{}<>|\\=]|\bdeprecated\b|\bcopyright\b|\bTODO\b|^(see|same as|alias)\b", re.I)


def usable(query: str, passage: str, query_words: tuple[int, int], passage_words: int) -> bool:
    """Whether a first sentence reads like something one would search for, and the rest says enough to be found."""
    if not query_words[0] <= len(query.split()) <= query_words[1] or not query[:1].isalpha() or _NO_QUERY.search(query):
        return False
    words = passage.split()
    if len(words) < passage_words or query.lower() in passage.lower():
        return False
    # tables, signatures and code are mostly something else than words
    return sum(word.strip(".,;:()'\"").isalpha() for word in words) >= 0.5 * len(words)


class PyDocs(IngestedDataset):
    """Known-item retrieval over documentation strings: the query is the first sentence, the passage the rest.

    The source files of installed packages are parsed, never imported. Each passage is the one relevant answer to its
    query, and all passages are the corpus of every split. Splits depend on a hash of the id (`torch.nn.Linear`).
    """

    layout: ClassVar[str] = "pydocs"

    def __init__(
        self,
        *,
        packages: Annotated[
            list[str] | None,
            Field(
                description=f"`stdlib` and names of packages; default, where installed: {', '.join(DEFAULT_PACKAGES)}"
            ),
        ] = None,
        exclude: Annotated[list[str] | None, Field(description="packages to leave out of the default")] = None,
        max_passages: Annotated[int, Field(ge=10, description="at most this many, chosen by a hash of the id")] = 8000,
        min_query_words: Annotated[int, Field(ge=1, description="shorter first sentences are left out")] = 4,
        max_query_words: Annotated[int, Field(ge=1, description="longer first sentences are left out")] = 30,
        min_passage_words: Annotated[int, Field(ge=1, description="shorter passages are left out")] = 25,
        dev_share: Annotated[float, Field(gt=0, lt=0.5, description="share of the queries in split dev")] = 0.1,
        test_share: Annotated[float, Field(gt=0, lt=0.5, description="share of the queries in split test")] = 0.1,
        name: Name = None,
    ) -> None:
        self._packages, self._exclude = packages, set(exclude or ())
        self._max_passages = max_passages
        self._query_words, self._passage_words = (min_query_words, max_query_words), min_passage_words
        self._dev_share, self._test_share = dev_share, test_share
        decisive = {"max_passages": max_passages, "query_words": self._query_words, "dev_share": dev_share}
        decisive |= {"passage_words": min_passage_words, "test_share": test_share}
        super().__init__(name=name or "pydocs", on_error="raise", decisive=decisive)

    def _found(self) -> dict[str, Path]:
        found = {}
        for package in self._packages if self._packages is not None else DEFAULT_PACKAGES:
            place = find_package(package)
            if package in self._exclude:
                continue
            if place is not None:
                found[package] = place
            elif self._packages is not None:
                raise DataError(
                    f"pydocs: no package {package!r} is installed; install it or leave it out of `packages`"
                )
        if not found:
            raise DataError("pydocs: no package is left; `packages` can name `stdlib`")
        return dict(sorted(found.items()))

    def files(self) -> Mapping[str, Path]:
        return {}

    def extra_fingerprint(self) -> Any:
        return {package: _package_version(package, place) for package, place in self._found().items()}

    def splits(self) -> Sequence[str]:
        return ["train", "dev", "test"]

    def counted(self) -> Sizes:
        """No more than the options allow; a query has one passage."""
        most = Amount(self._max_passages).at_most()
        shares = {"dev": self._dev_share, "test": self._test_share}
        shares = {"train": 1 - sum(shares.values()), **shares}
        queries = {split: (most * share).about() for split, share in shares.items()}
        return Sizes(passages=most, items=queries, judged=queries, positives=queries)

    def ingest(self, folder: Path, bad: BadLines) -> Mapping[str, Any]:
        items = collect(self._found(), self._query_words, self._passage_words)
        chosen = sorted(items, key=lambda item: hash_id(f"pydocs passages\0{item.id}".encode()))[: self._max_passages]
        chosen.sort(key=lambda item: item.id)
        parts: dict[str, list[DocItem]] = {"train": [], "dev": [], "test": []}
        for item in chosen:
            # one draw decides: [0, test) test, [test, test + dev) dev
            test = in_share(item.id, self._test_share, "pydocs")
            held_out = in_share(item.id, self._test_share + self._dev_share, "pydocs")
            parts["test" if test else "dev" if held_out else "train"].append(item)
        for split, part in parts.items():
            if not part:
                raise DataError(f"pydocs: {len(items)} usable docstrings leave split {split!r} empty; add `packages`")
        builder = RankingBuilder(folder, bad, 0.0)
        with TextTableWriter(folder / "corpus") as writer:
            for item in chosen:
                writer.add(item.id, item.passage)
        for number, (split, part) in enumerate(parts.items()):
            queries = builder.table(
                f"queries.{number}", [(Path(split), ((n, item.id, item.query) for n, item in enumerate(part, 1)))]
            )
            builder.split(split, f"queries.{number}", queries, None, {item.id: {item.id: 1} for item in part})
        log.info("pydocs: %d of %d usable docstrings", len(chosen), len(items))
        return builder.content()

    def load(self, folder: Path, content: Mapping[str, Any], fingerprint: str) -> Data:
        return load_ranking(folder, content, fingerprint, self.name or "pydocs")


def _package_version(package: str, place: Path) -> str:
    """Version of the distribution of that name; where there is none, a hash of the source files."""
    if package == STANDARD_LIBRARY:
        return f"{platform.python_implementation()} {platform.python_version()}"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        digest = hashlib.blake2b(digest_size=16)
        for module, path in source_files(place, package):
            digest.update(f"{module} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

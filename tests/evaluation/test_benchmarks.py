"""Benchmarks by name: their data from local folders and catalogues, what is official, and the stages they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import write_beir, write_bert

import kdfw
from kdfw.cli import main
from kdfw.data.sets import LabelledData, PairData, ParallelData, RankingData
from kdfw.errors import ConfigError, DataError
from kdfw.evaluation.benchmark_data import BenchmarkData
from kdfw.evaluation.benchmarks import benchmark, load_qrels, names
from kdfw.evaluation.table import benchmarks_table, measures_table


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No root folder and no network, unless a test says so."""
    monkeypatch.delenv("KDFW_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "ir_datasets"))
    monkeypatch.setattr("kdfw.engine.run.write_report", lambda out: None)  # the report has tests of its own


# ---------------------------------------------------------------- names


def test_every_benchmark_carries_its_convention_and_its_files() -> None:
    assert len(names()) > 45
    for name in names():
        found = benchmark(name)
        assert found.convention and found.measures and (found.files or found.parts), name
        assert found.items or found.parts, name
        assert found.places or found.parts, name
    assert benchmark("beir/arguana").remove_query and not benchmark("beir/scifact").remove_query
    assert len(benchmark("beir/cqadupstack").parts) == 12
    assert all(benchmark(part).parts == () for part in benchmark("beir/cqadupstack").parts)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("trec-dl-2019", "trec-dl-2019/passage"),
        ("scifact", "beir/scifact"),
        ("STSB", "sts/STSB"),
        ("nq", "nq"),
        ("beir/nq", "beir/nq"),
        ("cqadupstack/tex", "beir/cqadupstack/tex"),
    ],
)
def test_short_names(short: str, full: str) -> None:
    assert benchmark(short).name == full


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no benchmark 'scfact'; did you mean 'beir/scifact'\?"):
        benchmark("scfact")


def test_without_data_the_error_says_which_files_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"put corpus.jsonl, queries.jsonl, qrels/test.tsv .*KDFW_DATA, which is not set"
    ):
        BenchmarkData(name="robust04").fingerprint()
    monkeypatch.setenv("KDFW_DATA", str(tmp_path))
    wanted = rf"put collection.tsv, queries.dev.small.tsv, qrels.dev.small.tsv .* into {tmp_path}/msmarco-passage"
    with pytest.raises(DataError, match=wanted):
        BenchmarkData(name="msmarco-passage/dev").fingerprint()
    with pytest.raises(DataError, match=r"into /nowhere; in ir_datasets it is msmarco-passage/trec-dl-2019/judged"):
        BenchmarkData(name="trec-dl-2019", folder=Path("/nowhere")).fingerprint()
    with pytest.raises(DataError, match="mean of 12 others"):
        BenchmarkData(name="cqadupstack")


# ---------------------------------------------------------------- data


def opened(tmp_path: Path, name: str, folder: Path) -> Any:
    data = BenchmarkData(name=name, folder=folder)
    assert data.splits() == [benchmark(name).name]
    found = data.open(tmp_path / "cache")
    sizes = data.sizes(tmp_path / "cache")
    assert list(sizes.items) == [benchmark(name).name]
    return found


def test_a_beir_set_from_its_folder(data_dir: Path, tmp_path: Path) -> None:
    data = opened(tmp_path, "scifact", data_dir / "scifact/beir")
    assert isinstance(data, RankingData) and data.convention is not None
    assert len(data.queries["beir/scifact"]) == len(data.qrels["beir/scifact"]) == 300
    assert data.convention.measures == ("nDCG@10", "R@100") and data.convention.differs == ""


def test_a_part_of_a_collection_is_not_the_official_one(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "msmarco-dl"
    one, two = (BenchmarkData(name=f"trec-dl-{year}/passage", folder=folder) for year in (2019, 2020))
    assert one.fingerprint() == two.fingerprint()  # the collection is read once for both
    data = one.open(tmp_path / "cache")
    assert isinstance(data, RankingData) and data.convention is not None
    assert list(data.queries) == ["trec-dl-2019/passage"] and len(data.queries["trec-dl-2019/passage"]) == 43
    assert data.convention.differs == "24,884 of 8,841,823 passages"


def test_queries_without_judgements_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "collection.tsv").write_text("p1\twater\np2\tstone\n")
    (tmp_path / "msmarco-test2019-queries.tsv").write_text("1\twater\n2\tstone\n3\tfire\n")
    (tmp_path / "2019qrels-pass.txt").write_text("2 Q0 p2 3\n")
    data = opened(tmp_path, "trec-dl-2019", tmp_path)
    assert data.queries["trec-dl-2019/passage"].ids() == ["2"]
    assert data.convention.differs == "1 of 43 queries, 2 of 8,841,823 passages"


def test_sentence_pairs_and_translations(data_dir: Path, tmp_path: Path) -> None:
    pairs = opened(tmp_path, "STS13", data_dir / "sts")
    assert isinstance(pairs, PairData) and len(pairs.splits["sts/STS13"].ids) == 1500
    assert pairs.convention is not None and pairs.convention.differs == ""
    sick = opened(tmp_path, "SICK-R", data_dir / "sts")
    assert len(sick.splits["sts/SICK-R"].ids) == 4927
    lines = opened(tmp_path, "multi30k/de-en", data_dir / "multi30k")
    assert isinstance(lines, ParallelData) and lines.convention is not None and lines.convention.differs == ""
    part = lines.splits["multi30k/de-en"]
    assert len(part.source) == 1000 and (lines.source_language, lines.target_language) == ("de", "en")


def test_images_from_an_archive(data_dir: Path, tmp_path: Path) -> None:
    data = opened(tmp_path, "cifar10", data_dir / "cifar10-subset")
    assert isinstance(data, LabelledData) and data.convention is not None
    assert len(data.splits["cifar10"].ids) == 1000 and data.convention.differs == "1,000 of 10,000 items"


@pytest.mark.parametrize(("name", "labels_each"), [("cifar10", 1), ("cifar100", 2)])
def test_images_from_the_official_binary_files(tmp_path: Path, name: str, labels_each: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 3, (6, labels_each), dtype=np.uint8)
    file, classes = ("test_batch.bin", "batches.meta.txt") if labels_each == 1 else ("test.bin", "fine_label_names.txt")
    (tmp_path / file).write_bytes(np.concatenate([labels, images.reshape(6, -1)], axis=1).tobytes())
    (tmp_path / classes).write_text("ant\nbee\ncat\n\n")
    data = opened(tmp_path, name, tmp_path)
    part = data.splits[name]
    assert part.labels.tolist() == labels[:, -1].tolist() and data.classes == ["ant", "bee", "cat"]
    np.testing.assert_array_equal(part.images, images.transpose(0, 2, 3, 1))
    (tmp_path / file).write_bytes(b"\x00" * 100)
    with pytest.raises(DataError, match="no whole records"):
        BenchmarkData(name=name, folder=tmp_path).open(tmp_path / "cache")


def test_a_test_set_takes_the_classes_and_the_normalisation_of_the_training_data(tmp_path: Path) -> None:
    labels = np.array([[0], [1], [2]], dtype=np.uint8)
    (tmp_path / "test_batch.bin").write_bytes(np.concatenate([labels, np.zeros((3, 3072), np.uint8)], 1).tobytes())
    (tmp_path / "batches.meta.txt").write_text("ant\nbee\ncat\n")
    dataset = BenchmarkData(name="cifar10", folder=tmp_path)
    data = dataset.open(tmp_path / "cache")
    own = LabelledData(
        name="own", fingerprint="", splits={}, classes=["cat", "ant", "dog", "bee"], image_mean=[0.5], image_std=[0.1]
    )
    fitted = dataset.fitted(data, own)
    assert isinstance(fitted, LabelledData)
    assert fitted.splits["cifar10"].labels.tolist() == [1, 3, 0] and fitted.classes == own.classes
    assert (fitted.image_mean, fitted.image_std) == ([0.5], [0.1])
    with pytest.raises(DataError, match="class 'bee' is none of the data"):
        dataset.fitted(data, LabelledData(name="own", fingerprint="", splits={}, classes=["ant", "cat"]))


# ---------------------------------------------------------------- catalogues


def test_ir_datasets_when_there_is_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("ir_datasets")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    row = SimpleNamespace
    asked: list[str] = []
    fake = row(
        docs_iter=lambda: iter(
            [row(doc_id="d1", url="u", title="T", body="one"), row(doc_id="d2", title="", body="b")]
        ),
        queries_iter=lambda: iter([row(query_id="q1", text="first"), row(query_id="q2", text="second")]),
        qrels_iter=lambda: iter([row(query_id="q1", doc_id="d2", relevance=2)]),
        has_qrels=lambda: True,
    )

    def load(id: str) -> Any:
        asked.append(id)
        return fake

    monkeypatch.setattr(module, "load", load)
    dataset = BenchmarkData(name="msmarco-document/dev")
    assert dataset.downloads
    data = dataset.open(tmp_path / "cache")
    assert isinstance(data, RankingData)
    assert dict(data.corpus.iterate()) == {"d1": "T one", "d2": "b"}
    assert data.queries["msmarco-document/dev"].ids() == ["q1"] and set(asked) == {"msmarco-document/dev"}
    assert load_qrels("trec-dl-2019/document") == {"q1": {"d2": 2}}
    assert asked[-1] == "msmarco-document/trec-dl-2019/judged"


def test_images_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    pixels = [np.full((32, 32, 3), value, np.uint8) for value in (0, 100, 200)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    columns = {"img": [image.fromarray(each) for each in pixels], "label": [1, 0, 1]}
    table = datasets.Dataset.from_dict(columns, features=features)
    asked: list[tuple[str, str]] = []

    def load(path: str, split: str) -> Any:
        asked.append((path, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = BenchmarkData(name="cifar10").open(tmp_path / "cache")
    assert isinstance(data, LabelledData) and asked == [("uoft-cs/cifar10", "test")]
    assert data.splits["cifar10"].labels.tolist() == [1, 0, 1] and data.classes == ["ant", "bee"]
    images = data.splits["cifar10"].images
    assert images is not None and images[:, 0, 0, 0].tolist() == [0, 100, 200]


def test_pairs_and_translations_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    tables = {
        "mteb/sts12-sts": {"sentence1": ["a b", "c"], "sentence2": ["a", "d"], "score": [4.5, 0.0]},
        "bentrevett/multi30k": {"de": ["ein Hund"], "en": ["a dog"]},
    }

    def load(path: str, config: str | None, split: str, revision: str | None) -> Any:
        assert (config, split, revision) == (None, "test", None)
        return datasets.Dataset.from_dict(tables[path])

    monkeypatch.setattr(datasets, "load_dataset", load)
    pairs = BenchmarkData(name="STS12").open(tmp_path / "cache")
    assert isinstance(pairs, PairData) and pairs.convention is not None
    gold = pairs.splits["sts/STS12"].gold
    assert gold is not None and gold.tolist() == [4.5, 0.0] and pairs.convention.differs == "2 of 3,108 items"
    lines = BenchmarkData(name="multi30k/de-en").open(tmp_path / "cache")
    assert isinstance(lines, ParallelData)
    part = lines.splits["multi30k/de-en"]
    assert (part.source.text(0), part.target.text(0)) == ("ein Hund", "a dog")


def test_what_cannot_be_downloaded_is_said_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("ir_datasets")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {{type: beir, folder: {write_beir(tmp_path / 'beir')}}}\nstages:\n"
        "  - {name: mined, type: mine, retriever: bm25, depth: 5}\n"
        "  - {name: test, type: evaluate, models: [], against: [bm25], benchmarks: [fiqa]}\n"
    )

    def load(id: str) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(module, "load", load)
    kdfw.plan(recipe)
    with pytest.raises(DataError, match=r"'beir/fiqa'.*cannot be downloaded.*no route to host.*put corpus.jsonl"):
        kdfw.run(recipe, out=tmp_path / "out", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("artifacts/mine-*"))
    # without a network it is a fault of the recipe, with its line
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"r.yaml:4: stages\[1\].benchmarks\[0\]: benchmark 'beir/fiqa'.*\(offline\)"):
        kdfw.plan(recipe)


# ---------------------------------------------------------------- stages


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    """A recipe on made-up data with one evaluate stage, whose further keys are given."""

    def write(keys: str) -> Path:
        for name in ("beir", "nfcorpus"):
            if not (tmp_path / name).exists():
                write_beir(tmp_path / name, seed=len(name))
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"data: {{type: beir, folder: {tmp_path}/beir}}\n"
            f"models:\n  small: {{type: bi-encoder, base: {write_bert(tmp_path / 'bert')}, max_passage_tokens: 32}}\n"
            f"stages:\n  - name: test\n    type: evaluate\n{keys}"
        )
        return path

    return write


def test_each_benchmark_is_a_stage_of_its_own(tmp_path: Path, write_recipe: Callable[[str], Path]) -> None:
    path = write_recipe(
        "    models: [small]\n    against: [bm25]\n    split: test\n    measures: [RR@10]\n    depth: 20\n"
        "    benchmarks:\n"
        f"      - {{name: nfcorpus, folder: {tmp_path}/nfcorpus}}\n"
        f"      - {{name: scifact, folder: {tmp_path}/nfcorpus, candidates: {{type: bm25, k1: 1.2}}}}\n"
    )
    result = kdfw.run(path, out=tmp_path / "out", cache=tmp_path / "cache")
    assert result is not None
    assert list(result.stages) == ["test", "test-beir-nfcorpus", "test-beir-scifact-bm25", "test-beir-scifact"]
    found = {name: json.loads((folder / "measures.json").read_text()) for name, folder in result.stages.items()
             if (folder / "measures.json").exists()}  # fmt: skip
    assert found["test"]["measures"] == ["RR@10"] and "benchmark" not in found["test"]
    full, again = found["test-beir-nfcorpus"], found["test-beir-scifact"]
    assert full["measures"] == ["nDCG@10", "R@100", "RR@10"] and full["split"] == "beir/nfcorpus"
    assert full["benchmark"]["differs"] == "6 of 323 queries, 60 of 3,633 passages"
    small = full["systems"]["small"]
    assert (small["setting"], small["depth"]) == ("full retrieval", 20) and 0 < small["judged@10"] < 1
    assert again["systems"]["small"]["setting"] == "re-ranking of bm25"
    table = measures_table(result.stages["test-beir-nfcorpus"])
    assert "beir/nfcorpus: nDCG@10 with the grades as gains" in table
    assert "not the official data: 6 of 323 queries" in table
    assert "full retrieval     20" in table and "judged@10" in table
    overview = benchmarks_table(list(result.stages.values()))
    assert "beir/nfcorpus nDCG@10" in overview and "mean of 2 beir" in overview

    again_result = kdfw.run(path, ["stages.test.benchmarks=[]"], out=tmp_path / "out2", cache=tmp_path / "cache")
    assert again_result is not None and list(again_result.stages) == ["test"]


def test_a_given_run_is_re_ranked(tmp_path: Path, write_recipe: Callable[[str], Path]) -> None:
    write_recipe("    models: []\n")
    run = tmp_path / "first.trec"
    run.write_text("q3 Q0 p1 1 2 x\nq3 Q0 p2 2 1 x\nq7 Q0 p1 1 1 x\n")
    path = write_recipe(
        "    models: [small]\n    benchmarks:\n"
        f"      - {{name: nfcorpus, folder: {tmp_path}/nfcorpus, candidates: {{type: run-file, path: {run}}}}}\n"
    )
    result = kdfw.run(path, out=tmp_path / "out", cache=tmp_path / "cache")
    assert result is not None
    found = json.loads((result.stages["test-beir-nfcorpus"] / "measures.json").read_text())
    assert found["systems"]["small"]["setting"] == "re-ranking of first" and found["systems"]["small"]["depth"] == 2
    written = (result.stages["test-beir-nfcorpus"] / "run.small.trec").read_text().splitlines()
    assert sorted(line.split()[2] for line in written) == ["p1", "p1", "p2"]


def test_bm25_has_its_known_values_on_scifact(data_dir: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {{type: beir, folder: {data_dir}/scifact/beir}}\n"
        "stages:\n  - {name: test, type: evaluate, models: [], against: [bm25], benchmarks: [scifact]}\n"
    )
    result = kdfw.run(recipe, out=tmp_path / "out", cache=tmp_path / "cache")
    assert result is not None
    found = json.loads((result.stages["test-beir-scifact"] / "measures.json").read_text())
    # the folder of the recipe's own data is looked into first; BM25 (k1 0.9, b 0.4) as in Anserini, on title and text
    assert found["systems"]["bm25"]["measures"] == pytest.approx({"nDCG@10": 0.6762, "R@100": 0.9127}, abs=1e-4)
    assert found["benchmark"]["differs"] == ""


def test_other_tasks_leave_out_what_searches(data_dir: Path, write_recipe: Callable[[str], Path]) -> None:
    path = write_recipe(
        "    models: [small]\n    against: [bm25]\n    baseline: bm25\n    depth: 10\n    benchmarks:\n"
        f"      - {{name: STSB, folder: {data_dir}/sts}}\n"
    )
    (stage,) = kdfw.plan(path).stages
    assert stage.name == "test-sts-STSB"
    options: Any = stage.stage
    assert options.systems == ["small"] and options.baseline is None and options.measures is None


def test_faults_have_their_line(tmp_path: Path, write_recipe: Callable[[str], Path]) -> None:
    path = write_recipe(
        "    models: [small]\n    candidates: other\n    benchmarks:\n"
        "      - scfact\n"
        f"      - {{name: scifact, fodler: {tmp_path}}}\n"
        "      - 5\n"
        "      - robust04\n"
        f"      - {{name: nfcorpus, folder: {tmp_path}/nfcorpus, candidates: {{type: run-file, path: /nowhere}}}}\n"
    )
    with pytest.raises(ConfigError) as error:
        kdfw.plan(path)
    text = str(error.value)
    for line in (
        r"recipe.yaml:10: stages[0].benchmarks[0]: no benchmark 'scfact'; did you mean 'beir/scifact'",
        r"recipe.yaml:11: stages[0].benchmarks[1].fodler: unknown key 'fodler'; did you mean 'folder'",
        r"recipe.yaml:12: stages[0].benchmarks[2].name: found 5",
        r"recipe.yaml:13: stages[0].benchmarks[3]: benchmark 'beir/robust04': its files are not here",
        r"recipe.yaml:14: stages[0].benchmarks[4].retriever: /nowhere: cannot be read",
    ):
        assert line in text, (line, text)
    unknown = write_recipe("    models: [small]\n    against: [bm25]\n    benchmarks: 7\n")
    with pytest.raises(ConfigError, match=r"stages\[0\].benchmarks: found 7"):
        kdfw.plan(unknown)


def test_lists_of_other_data_are_refused(tmp_path: Path, write_recipe: Callable[[str], Path]) -> None:
    path = write_recipe(
        "    models: [small]\n    candidates: mined\n"
        f"    benchmarks: [{{name: nfcorpus, folder: {tmp_path}/nfcorpus}}]\n"
    )
    text = path.read_text().replace("stages:\n", "stages:\n  - {name: mined, type: mine, retriever: bm25}\n")
    path.write_text(text)
    with pytest.raises(ConfigError, match="candidates: lists for queries of other data; name them for each benchmark"):
        kdfw.plan(path)


def test_the_forums_of_cqadupstack_are_one_benchmark(tmp_path: Path) -> None:
    folders = []
    for name, value in (("cqadupstack/android", 0.2), ("cqadupstack/tex", 0.4), ("scifact", 0.9)):
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        about = {"name": f"beir/{name}", "text": "", "differs": "", "measures": ["nDCG@10"]}
        systems = {"bm25": {"measures": {"nDCG@10": value}}}
        result = {"measures": ["nDCG@10"], "systems": systems, "order": ["bm25"], "benchmark": about}
        (folder / "measures.json").write_text(json.dumps(result))
        folders.append(folder)
    head, row = benchmarks_table(folders).splitlines()
    assert head.split("  ")[0] == "system" and "beir/cqadupstack nDCG@10" in head
    assert row.split() == ["bm25", "0.3000", "0.9000", "0.6000"]
    assert benchmarks_table(folders[2:]) == ""


# ---------------------------------------------------------------- answers


@pytest.fixture
def wikipedia(tmp_path: Path) -> Path:
    """Four passages and three questions in DPR's files."""
    passages = [
        ("1", '"Reset the ""router"" by holding the button."', "Router"),
        ("2", "The river Rhine flows through Basel.", "Rhine"),
        ("3", "Basel lies in Switzerland.", "Basel"),
        ("4", "Stones are heavy.", "Stone"),
    ]
    lines = ["id\ttext\ttitle", *("\t".join(row) for row in passages)]
    folder = tmp_path / "dpr"
    folder.mkdir()
    (folder / "psgs_w100.tsv").write_text("\n".join(lines) + "\n")
    questions = [("through which city flows the rhine", ["Basel"]), ("router reset", ["Router"]), ("stones", ["light"])]
    (folder / "nq-test.qa.csv").write_text("".join(f"{text}\t{answers!r}\n" for text, answers in questions))
    return folder


def test_questions_are_measured_by_their_answers(wikipedia: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {{type: beir, folder: {write_beir(tmp_path / 'beir')}}}\n"
        "stages:\n  - {name: test, type: evaluate, models: [], against: [bm25], measures: [AP], "
        f"benchmarks: [{{name: nq, folder: {wikipedia}}}]}}\n"
    )
    result = kdfw.run(recipe, out=tmp_path / "out", cache=tmp_path / "cache")
    assert result is not None
    found = json.loads((result.stages["test-nq"] / "measures.json").read_text())
    values = found["systems"]["bm25"]["measures"]
    # the title `Router` holds the second question's answer and so does the text of passage 1; nothing holds `light`
    assert values["accuracy@1"] == pytest.approx(2 / 3) and values["accuracy@100"] == pytest.approx(2 / 3)
    assert found["benchmark"]["differs"] == "3 of 3,610 queries, 4 of 21,015,324 passages"
    assert "judged@10" not in found["systems"]["bm25"]


def test_a_run_file_of_questions(wikipedia: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.trec"
    run.write_text("0 Q0 4 1 3 x\n0 Q0 3 2 2 x\n1 Q0 2 1 1 x\n")
    arguments = ["evaluate", "--run", str(run), "--benchmark", "nq", "--folder", str(wikipedia)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measures"] == pytest.approx({"accuracy@1": 0, "accuracy@5": 1 / 3, "accuracy@20": 1 / 3,
                                               "accuracy@100": 1 / 3})  # fmt: skip
    assert (found["queries"], found["missing_queries"], found["judged@10"]) == (3, 1, None)
    assert main([*arguments, "--measures", "AP"]) == 2
    assert "accuracy@k alone" in capsys.readouterr().err
    run.write_text("0 Q0 99 1 3 x\n")
    assert main(arguments) == 2
    assert "no passage '99', which the run has" in capsys.readouterr().err
    (wikipedia / "nq-test.qa.csv").write_text("a question without answers\n")
    assert main(arguments) == 2
    assert "nq-test.qa.csv:1" in capsys.readouterr().err


# ---------------------------------------------------------------- run files


def test_a_run_file_is_measured_by_the_benchmarks_own_judgements(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = data_dir / "msmarco-dl/runs/bm25.dl19.trec.gz"
    arguments = ["evaluate", "--run", str(run), "--benchmark", "trec-dl-2019"]
    assert main([*arguments, "--folder", str(data_dir / "msmarco-dl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measures"]["nDCG@10"] == pytest.approx(0.5058, abs=5e-5) and found["queries"] == 43
    assert main([*arguments, "--folder", str(tmp_path)]) == 2
    assert "2019qrels-pass.txt" in capsys.readouterr().err
    dev = data_dir / "msmarco-dev/runs/bm25.ans-small.msmarco.tsv.gz"
    arguments = ["evaluate", "--run", str(dev), "--benchmark", "msmarco-passage/dev"]
    assert main([*arguments, "--folder", str(data_dir / "msmarco-dev")]) == 0
    assert "6875 of them missing from the run (counted as 0)" in capsys.readouterr().out
    assert main([*arguments, "--qrels", str(data_dir / "msmarco-dev/qrels.dev.ans-small.trec")]) == 0
    text = capsys.readouterr().out
    assert "RR@10   0.1591" in text and "not the official queries: 105 of 6,980" in text
    assert main(["evaluate", "--run", str(run), "--benchmark", "STSB"]) == 2
    assert "is no retrieval" in capsys.readouterr().err


def test_a_submission_needs_no_judgements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run.trec", tmp_path / "out.tsv"
    run.write_text("q1 Q0 a 1 2 t\nq1 Q0 b 2 1 t\n")
    assert main(["evaluate", "--run", str(run), "--write-msmarco", str(out)]) == 0
    assert out.read_text() == "q1\ta\t1\nq1\tb\t2\n"
    assert main(["evaluate", "--run", str(run)]) == 2
    assert "add --qrels FILE or --benchmark NAME" in capsys.readouterr().err
    qrels, mteb = tmp_path / "qrels", tmp_path / "m.json"
    qrels.write_text("q1 0 b 1\n")
    arguments = ["evaluate", "--run", str(run), "--qrels", str(qrels), "--write-mteb", str(mteb)]
    assert main(arguments) == 2 and "add --task NAME" in capsys.readouterr().err
    assert main([*arguments, "--task", "SciFact"]) == 0
    written = json.loads(mteb.read_text())
    assert written["task_name"] == "SciFact" and written["scores"]["test"][0]["main_score"] > 0

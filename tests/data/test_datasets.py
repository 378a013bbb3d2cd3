"""Data sets: real files in every layout, splits, fingerprints, and what is said when files are wrong."""

from __future__ import annotations

import gzip
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdfw.components import Dataset
from kdfw.data.datasets import DATASETS
from kdfw.data.hub_sets import HuggingFace, IrDatasets
from kdfw.data.labelled_sets import Images, TextClassification
from kdfw.data.pair_sets import ParallelText, Sts, TsvPairs
from kdfw.data.ranking_files import content_id
from kdfw.data.ranking_sets import Beir, JsonlRanking, MsMarco
from kdfw.data.runs import read_run
from kdfw.data.score_files import read_scores
from kdfw.data.sets import LabelledData, PairData, ParallelData, RankingData
from kdfw.errors import ConfigError, DataError, Problem
from kdfw.options import check, options_of
from kdfw.plugins import registry


def ranking(dataset: Dataset, cache: Path) -> RankingData:
    data = dataset.open(cache)
    assert isinstance(data, RankingData)
    return data


@pytest.mark.parametrize("name", DATASETS)
def test_every_option_is_typed_and_described(name: str) -> None:
    options = options_of(DATASETS[name])
    assert options
    assert [option.name for option in options.values() if not option.description] == []


# ---------------------------------------------------------------- retrieval


def test_scifact_is_the_same_in_both_layouts(data_dir: Path, tmp_path: Path) -> None:
    beir = ranking(Beir(folder=data_dir / "scifact" / "beir"), tmp_path)
    msmarco = ranking(MsMarco(folder=data_dir / "scifact" / "msmarco"), tmp_path)
    assert len(beir.corpus) == 5183
    # a TSV line cannot hold the line ends that 1,083 of the abstracts contain: equal but for repeated white space
    for (id, text), (other_id, other) in zip(beir.corpus.iterate(), msmarco.corpus.iterate(), strict=True):
        assert (id, " ".join(text.split())) == (other_id, " ".join(other.split()))
    assert list(beir.queries) == list(msmarco.queries) == ["train", "test"]
    for split, queries, judged in (("train", 809, 919), ("test", 300, 339)):
        texts = {id: " ".join(text.split()) for id, text in beir.queries[split].iterate()}
        assert texts == dict(msmarco.queries[split].iterate()) and len(texts) == queries
        assert beir.qrels[split] == msmarco.qrels[split]
        assert sum(map(len, beir.qrels[split].values())) == judged
    assert beir.positives("test")["1"] == ["31715818"]


def test_dev_is_carved_from_train_by_the_id_alone(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "scifact" / "beir"
    dataset = Beir(folder=folder, dev_share=0.2)
    assert dataset.splits() == ["train", "dev", "test"]
    data = ranking(dataset, tmp_path)
    train, dev = set(data.queries["train"].ids()), set(data.queries["dev"].ids())
    assert not train & dev and len(train | dev) == 809 and 120 < len(dev) < 205  # 162 expected, deviation 11
    assert set(data.qrels["dev"]) == dev and set(data.qrels["train"]) == train
    other = ranking(MsMarco(folder=data_dir / "scifact" / "msmarco", dev_share=0.2), tmp_path)
    assert set(other.queries["dev"].ids()) == dev
    assert set(ranking(Beir(folder=folder, dev_share=0.1), tmp_path).queries["dev"].ids()) < dev
    assert data.fingerprint != ranking(Beir(folder=folder), tmp_path).fingerprint
    with pytest.raises(DataError, match="needs a split `train`"):
        Beir(folder=folder, splits=["test"], dev_share=0.2).splits()


def test_msmarco_files_with_triples_negatives_and_runs(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "msmarco-dl"
    dataset = MsMarco(
        collection=folder / "collection.tsv.gz",
        queries={"train": folder / "queries.dl19.tsv", "test": folder / "queries.dl20.tsv"},
        qrels={"train": folder / "qrels.dl19.trec", "test": folder / "qrels.dl20.trec"},
        triples={"train": folder / "qidpidtriples.dl19.tsv.gz"},
        negatives={
            "train": folder / "teacher" / "hard-negatives.dl19.jsonl.gz",
            "test": folder / "teacher" / "hard-negatives.dl20.jsonl.gz",
        },
        runs={"first-stage": folder / "runs" / "bm25.dl20.trec.gz"},
    )
    data = ranking(dataset, tmp_path)
    assert len(data.corpus) == 24884 and len(data.queries["train"]) == 43
    assert sum(map(len, data.qrels["train"].values())) == 9260  # judgements of absent passages stay
    assert dataset.triples() == ["train"]
    triples = data.triples["train"]
    assert triples.shape == (10995, 3)
    query, positive, negative = triples[0].tolist()
    assert data.queries["train"].id(query) == "19335"
    assert (data.corpus.id(positive), data.corpus.id(negative)) == ("1729", "342431")
    bm25 = data.rankings["bm25"]
    assert len(bm25) == 43 + 54
    rows, scores = bm25.of(bm25.index()["19335"])
    assert [data.corpus.id(int(row)) for row in rows[:3]] == ["8635981", "7267248", "1726"]
    assert (np.diff(scores) <= 0).all()
    run = data.rankings["first-stage"].run(data.corpus)
    assert run["23849"]["4348282"] == pytest.approx(10.0663, abs=1e-4) and len(run) == 54


def test_text_triples_and_id_triples_name_the_same_passages(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "msmarco-dl"
    common: dict[str, Any] = {"queries": {"train": folder / "queries.dl19.tsv"}, "triples_hold": "texts"}
    triples = {"train": folder / "triples.dl19.small.tsv.gz"}
    stored = ranking(MsMarco(collection=folder / "collection.tsv.gz", triples=triples, **common), tmp_path)
    alone = ranking(MsMarco(triples=triples, **common), tmp_path)
    assert stored.triples["train"].shape == alone.triples["train"].shape == (1500, 3)
    for number in (0, 700, 1499):
        one, two = stored.triples["train"][number], alone.triples["train"][number]
        assert one[0] == two[0]
        for column in (1, 2):
            text = stored.corpus.text(int(one[column]))
            assert text == alone.corpus.text(int(two[column]))
            assert alone.corpus.id(int(two[column])) == content_id(text)


def test_teacher_files_of_msmarco(data_dir: Path) -> None:
    folder = data_dir / "msmarco-dl" / "teacher"
    margin = read_scores(folder / "margin-mse.dl19.pos_neg_scores_ids.tsv.gz")
    assert margin.layout == "margin" and len(margin.triples) == 10995
    assert margin.margin(*margin.triples[0]) == pytest.approx(-8.870548 - 7.050644)
    wins = np.mean([margin.margin(*triple) > 0 for triple in margin.triples])
    assert wins == pytest.approx(0.87, abs=0.005)  # as its publisher's notes say
    plain = read_scores(folder / "bert-cross-encoder.bm25-candidates.dl20.tsv.gz")
    assert plain.layout == "tsv" and sum(map(len, plain.scores.values())) == 8966
    listwise = read_scores(folder / "listwise-gpt-3.5-turbo.dl19.trec.gz")
    assert listwise.layout == "trec" and sum(map(len, listwise.scores.values())) == 4300


def test_msmarco_dev_run_keeps_the_published_order(data_dir: Path) -> None:
    run = read_run(data_dir / "msmarco-dev" / "runs" / "monot5.ans-small.msmarco.tsv.gz")
    qrels: dict[str, set[str]] = {}
    for line in (data_dir / "msmarco-dev" / "qrels.dev.ans-small.trec").read_text().splitlines():
        query, _, passage, _ = line.split()
        qrels.setdefault(query, set()).add(passage)
    total = 0.0
    for query, relevant in qrels.items():
        best = sorted(run[query], key=run[query].__getitem__, reverse=True)[:10]
        total += next((1 / rank for rank, passage in enumerate(best, 1) if passage in relevant), 0.0)
    assert total / len(qrels) == pytest.approx(0.39044217687074834, abs=1e-12)


def test_cacm_says_which_judgements_match_nothing(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = data_dir / "cacm"
    dataset = MsMarco(folder=folder / "msmarco", qrels={"test": folder / "qrels.as-distributed.trec"})
    with caplog.at_level(logging.WARNING):
        data = ranking(dataset, tmp_path)
    assert "55 of 796 judged passages are not in the corpus" in caplog.text
    assert sum(map(len, data.qrels["test"].values())) == 796


def test_jsonl_with_teacher_scores(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "msmarco-train-sample" / "bge-msmarco-10.jsonl"
    data = ranking(JsonlRanking(files={"train": path}), tmp_path)
    first = json.loads(path.read_text().split("\n")[0])
    query = content_id(first["query"])
    assert len(data.queries["train"]) == 10 and data.queries["train"].text(0) == first["query"]
    assert data.qrels["train"][query] == {content_id(text): 1 for text in first["pos"]}
    run = data.rankings["given"].run(data.corpus)[query]
    expected = dict(zip(first["pos"] + first["neg"], first["pos_scores"] + first["neg_scores"], strict=True))
    assert run == pytest.approx({content_id(text): score for text, score in expected.items()}, rel=1e-6)
    assert read_scores(path).scores[query][content_id(first["pos"][0])] == first["pos_scores"][0]


def write_jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def given(path: Path, cache: Path) -> dict[str, dict[str, float]]:
    data = ranking(JsonlRanking(files={"train": path}), cache)
    run = data.rankings["given"].run(data.corpus)
    return {query: {data.corpus.text(data.corpus.row(id)): score for id, score in found.items()}
            for query, found in run.items()}  # fmt: skip


def test_scores_of_a_query_are_the_teachers_or_the_labels_never_both(tmp_path: Path) -> None:
    scored = {"qid": "1", "query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [9.0], "neg_scores": [-2.0]}
    other = {"qid": "1", "query": "q", "pos": ["c"]}
    mixed = write_jsonl(tmp_path / "mixed.jsonl", scored, other)
    assert given(mixed, tmp_path / "cache") == {"1": {"a": 1.0, "b": 0.0, "c": 1.0}}
    whole = write_jsonl(tmp_path / "whole.jsonl", scored, {**other, "pos_scores": [3.0]}, {**other, "pos": ["a"]})
    assert given(whole, tmp_path / "cache") == {"1": {"a": 9.0, "b": -2.0, "c": 3.0}}
    twice = write_jsonl(tmp_path / "twice.jsonl", scored, {**scored, "neg_scores": [5.0]})
    with pytest.raises(DataError, match=r"twice\.jsonl:2: query '1': score 5 of passage 'b' after -2 before"):
        given(twice, tmp_path / "cache")


def test_a_query_in_two_splits_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", {"query": "same", "pos": ["a"]})
    two = write_jsonl(tmp_path / "two.jsonl", {"query": "new", "pos": ["a"]}, {"query": "same", "pos": ["b"]})
    files = {"train": one, "test": two}
    with pytest.raises(DataError, match=r"two\.jsonl:2: query 'same' \(id '\w+'\) is in split 'train', too"):
        JsonlRanking(files=files).open(tmp_path / "cache")
    data = ranking(JsonlRanking(files=files, on_error="skip"), tmp_path / "cache")
    assert len(data.queries["train"]) == len(data.queries["test"]) == 1


def test_keys_that_are_not_read_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"query": "q", "pos": ["a"], "negs": ["b"], "pos_score": [1]}
    ranking(JsonlRanking(files={"train": write_jsonl(tmp_path / "t.jsonl", record, record)}), tmp_path / "cache")
    assert caplog.text.count("t.jsonl:1: the key 'negs' is not read. did you mean 'neg'?") == 1
    assert caplog.text.count("the key 'pos_score' is not read. did you mean 'pos_scores'?") == 1
    assert "t.jsonl:2" not in caplog.text


def small_msmarco(folder: Path) -> Path:
    folder.mkdir()
    (folder / "collection.tsv").write_text("p1\tone\np2\ttwo\n")
    (folder / "queries.train.tsv").write_text("q1\tfirst\n")
    return folder


@pytest.mark.parametrize("role", ["triples", "negatives", "qrels"])
def test_files_for_a_split_without_queries_are_refused_before_anything_is_read(tmp_path: Path, role: str) -> None:
    folder = small_msmarco(tmp_path / "m")
    options: dict[str, Any] = {role: {"trian": folder / "collection.tsv"}}
    with pytest.raises(DataError, match=f"{role} for split 'trian', which has no queries; did you mean 'train'"):
        MsMarco(folder=folder, **options).fingerprint()


def test_lists_of_negatives_that_fit_nothing_are_bad_lines(tmp_path: Path) -> None:
    folder = small_msmarco(tmp_path / "m")
    line = {"qid": "q1", "neg": {"bm25": ["p2"]}}
    for wrong, complaint in (
        ({"qid": "q9", "neg": {"bm25": ["p2"]}}, ":2: query 'q9' is not among those of split 'train'"),
        ({"qid": "q1"}, ":2: `neg` is None instead of lists by system"),
        (line, ":2: two candidate lists of 'bm25' for query 'q1'"),
    ):
        negatives = {"train": write_jsonl(tmp_path / "n.jsonl", line, wrong)}
        with pytest.raises(DataError, match=complaint):
            MsMarco(folder=folder, negatives=negatives).open(tmp_path / "cache")
        data = ranking(MsMarco(folder=folder, negatives=negatives, on_error="skip"), tmp_path / "cache")
        assert data.rankings["bm25"].run(data.corpus) == {"q1": {"p2": 0.0}}


def test_two_files_for_the_same_thing_are_refused(tmp_path: Path) -> None:
    folder = small_msmarco(tmp_path / "m")
    for name in ("qrels.train.trec", "qrels.train.tsv"):
        (folder / name).touch()
    with pytest.raises(DataError, match=r"qrels\.train\.trec and qrels\.train\.tsv stand for the same"):
        MsMarco(folder=folder).fingerprint()


def test_a_packed_file_beside_the_unpacked_one_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="kdfw")
    folder = small_msmarco(tmp_path / "msmarco")
    expected = MsMarco(folder=folder).fingerprint()
    for name in ("queries.train.tsv.gz", "collection.tsv.gz"):
        assert (folder / name.removesuffix(".gz")).exists()
        (folder / name).write_bytes(gzip.compress(b"1\tanother text\n"))
    assert MsMarco(folder=folder).fingerprint() == expected
    folder = small_beir(tmp_path / "beir")
    (folder / "qrels" / "test.tsv.gz").write_bytes(gzip.compress(b""))
    assert list(Beir(folder=folder).splits()) == ["test"]
    assert any("is read, and not collection.tsv.gz beside it" in message for message in caplog.messages)


def small_beir(folder: Path, corpus: str = '{"_id": "p1", "text": "one"}\n{"_id": "p2", "text": "two"}\n') -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(corpus)
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "unjudged"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\n")
    return folder


def test_a_fingerprint_follows_bytes_and_options_but_not_the_place(tmp_path: Path) -> None:
    one, two = Beir(folder=small_beir(tmp_path / "one")), Beir(folder=small_beir(tmp_path / "two"))
    assert one.fingerprint() == two.fingerprint()
    assert Beir(folder=tmp_path / "two", title=False).fingerprint() != two.fingerprint()
    (tmp_path / "two" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp2\t1\n")
    assert one.fingerprint() != two.fingerprint()
    assert ranking(one, tmp_path / "c").qrels["test"] == {"q1": {"p1": 1}}
    assert ranking(two, tmp_path / "c").qrels["test"] == {"q1": {"p2": 1}}
    assert ranking(one, tmp_path / "c").queries["test"].ids() == ["q1"]


def test_bad_lines_stop_or_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = small_beir(tmp_path / "b", '{"_id": "p1", "text": "one"}\nrubbish\n{"_id": "p1", "text": "again"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: not valid JSON"):
        Beir(folder=folder).open(tmp_path / "cache")
    lenient = Beir(folder=folder, on_error="skip")
    assert lenient.skipped(tmp_path / "cache") == ()
    for _ in range(2):  # what is kept in the cache says it too
        caplog.clear()
        assert ranking(lenient, tmp_path / "cache").corpus.ids() == ["p1"]
        assert "corpus.jsonl: skipped 2 lines" in caplog.text and "line 2: not valid JSON" in caplog.text
        assert "line 3: " in caplog.text
    (skipped,) = lenient.skipped(tmp_path / "cache")
    assert skipped.count == 2 and [line for line, _ in skipped.first] == [2, 3]


def test_missing_files_say_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"what would do: corpus\.jsonl\[\.gz\]"):
        Beir(folder=tmp_path).fingerprint()
    with pytest.raises(DataError, match=r"queries\.<split>\.tsv"):
        MsMarco(folder=tmp_path).splits()
    with pytest.raises(ConfigError, match="give `folder`"):
        MsMarco()
    with pytest.raises(DataError, match="no judgements for split 'dev'; found: test"):
        Beir(folder=small_beir(tmp_path / "b"), splits=["dev"]).splits()
    (tmp_path / "b" / "qrels" / "test.tsv").write_text("q1\tp1\t1\nq1\tp1\t2\n")
    with pytest.raises(DataError, match=r"test\.tsv:2: .*grade 2 after 1"):
        Beir(folder=tmp_path / "b").open(tmp_path / "cache")


# ---------------------------------------------------------------- pairs, translation


def test_sts_sets_and_their_sizes(data_dir: Path, tmp_path: Path) -> None:
    dataset = Sts(folder=data_dir / "sts", unlabelled=data_dir / "sts" / "unlabeled-pairs.tsv.gz")
    data = dataset.open(tmp_path)
    assert isinstance(data, PairData)
    assert {split: len(pairs.left) for split, pairs in data.splits.items()} == {
        "train": 5749, "dev": 1500, "test": 2358 + 1500 + 3750 + 3000 + 1186 + 1379 + 4927, "unlabelled": 28287,
    }  # fmt: skip
    test = data.splits["test"]
    assert test.gold is not None and test.groups is not None and data.splits["unlabelled"].gold is None
    sizes = {name: test.groups.count(name) for name in set(test.groups)}
    assert sizes["STS12"] == 2358 and sizes["SICK-R"] == 4927 and sizes["STSB"] == 1379
    row = test.ids.index("STS12/MSRpar:2")
    assert test.gold[row] == pytest.approx(0.8) and test.left.text(row).startswith("the technology-laced nasdaq")
    assert test.right.id(row) == "STS12/MSRpar:2"


def test_gold_scores_can_be_put_on_the_scale_from_0_to_1(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("1\ta\tb\n4\tc\td\n5\te\tf\n", encoding="utf-8")
    data = TsvPairs(files={"train": file}, gold_range=(1, 5)).open(tmp_path / "cache")
    assert isinstance(data, PairData) and data.splits["train"].gold is not None
    assert data.splits["train"].gold.tolist() == [0.0, 0.75, 1.0]
    with pytest.raises(DataError, match=r"train.tsv:3: the score 5 is outside gold_range 1 to 4"):
        TsvPairs(files={"train": file}, gold_range=(1, 4)).open(tmp_path / "cache")
    with pytest.raises(ConfigError, match="gold_range"):
        TsvPairs(files={"train": file}, gold_range=(5, 1))


def test_a_limit_keeps_rows_at_even_distances(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("".join(f"{row}\tleft {row}\tright {row}\n" for row in range(10)), encoding="utf-8")

    def rows(limit: dict[str, int] | None, **options: float) -> PairData:
        data = TsvPairs(files={"train": file}, limit=limit, **options).open(tmp_path / "cache")  # type: ignore[arg-type]
        assert isinstance(data, PairData)
        return data

    few = rows({"train": 4}).splits["train"]
    assert few.gold is not None and few.gold.tolist() == [0, 2, 5, 7] and few.groups == ["train"] * 4
    assert [few.left.text(row)[5:] + few.right.text(row)[6:] for row in range(4)] == ["00", "22", "55", "77"]
    assert list(few.ids) == ["train:1", "train:3", "train:6", "train:8"]
    assert rows({"train": 50}).splits["train"].ids == rows(None).splits["train"].ids
    assert rows({"train": 4}).fingerprint != rows({"train": 5}).fingerprint != rows(None).fingerprint
    carved = rows({"train": 2, "dev": 1}, dev_share=0.4).splits
    assert (len(carved["train"].ids), len(carved["dev"].ids)) == (2, 1)
    sizes = TsvPairs(files={"train": file}, limit={"train": 4}).sizes(tmp_path / "elsewhere")
    assert sizes.items["train"].value == 4
    with pytest.raises(ConfigError, match="limit: no split 'tran'; did you mean 'train'"):
        TsvPairs(files={"train": file}, limit={"tran": 4})
    with pytest.raises(ConfigError, match="limit: no split 'unlabelled'"):
        Sts(folder=tmp_path, limit={"unlabelled": 4})


def test_pairs_in_other_columns_with_dev_and_groups(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "trecqa"
    dataset = TsvPairs(
        files={"train": folder / "train.tsv", "test": [folder / "test.tsv", folder / "dev.tsv"]},
        gold=2, left=0, right=1, dev_share=0.25,
    )  # fmt: skip
    data = dataset.open(tmp_path)
    assert isinstance(data, PairData)
    train, dev, test = (data.splits[split] for split in ("train", "dev", "test"))
    assert len(train.left) + len(dev.left) == 4718 and not set(train.ids) & set(dev.ids)
    assert train.gold is not None and dev.gold is not None and train.gold.sum() + dev.gold.sum() == 348
    assert test.groups is not None and test.groups.count("test") == 1517 and test.groups.count("dev") == 1148
    assert dev.right.id(0) == dev.left.id(0) == dev.ids[0]


def test_multi30k(data_dir: Path, tmp_path: Path) -> None:
    data = ParallelText(folder=data_dir / "multi30k", source="en", target="de").open(tmp_path)
    assert isinstance(data, ParallelData)
    sizes = {split: len(part.source) for split, part in data.splits.items()}
    assert sizes == {
        "train": 29000, "dev": 1014, "test_2016_flickr": 1000, "test_2017_flickr": 1000, "test_2017_mscoco": 461,
    }  # fmt: skip
    part = data.splits["dev"]
    assert len(part.target) == 1014 and part.source.ids() == part.target.ids()
    with gzip.open(data_dir / "multi30k" / "val.de.gz", "rt", encoding="utf-8") as stream:
        assert part.target.text(2) == stream.read().split("\n")[2]


# ---------------------------------------------------------------- classification


def test_semeval_keeps_entity_markers(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "semeval2010-task8"
    files = {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}
    data = TextClassification(files=files, dev_share=0.1, measure="macro-f1").open(tmp_path)
    assert isinstance(data, LabelledData)
    assert len(data.classes) == 19 and data.measure == "macro-f1"
    test = data.splits["test"]
    assert test.texts is not None
    assert test.texts.text(0) == "The most common <e1>audits</e1> were about <e2>waste</e2> and recycling."
    assert data.classes[test.labels[0]] == "Message-Topic(e1,e2)" and test.ids[0] == "8001"
    assert (test.labels == data.classes.index("Other")).sum() == 454
    train, dev = data.splits["train"], data.splits["dev"]
    assert (
        len(train.labels) + len(dev.labels) == 8000 and train.texts is not None and len(train.texts) == len(train.ids)
    )


def test_columns_classes_and_unlabelled_texts(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("10\tten\n2\ttwo\n2\tzwei\n")
    (tmp_path / "more.tsv").write_text("-\tthree\n")
    common: dict[str, Any] = {"text_column": 1, "label_column": 0}
    files = {"train": tmp_path / "train.tsv", "pool": tmp_path / "more.tsv"}
    data = TextClassification(files=files, unlabelled=["pool"], **common).open(tmp_path / "cache")
    assert isinstance(data, LabelledData)
    assert data.classes == ["2", "10"] and data.splits["train"].labels.tolist() == [1, 0, 0]
    assert data.splits["pool"].labels.tolist() == [-1]
    with pytest.raises(DataError, match=r"train\.tsv:1: the label '10' is not among"):
        TextClassification(files={"train": files["train"]}, classes=["2"], **common).open(tmp_path / "cache")


def test_cifar_from_its_archive(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    data = Images(path=data_dir / "cifar10-subset" / "cifar10-subset.zip", dev_share=0.1).open(tmp_path)
    assert isinstance(data, LabelledData)
    train, dev, test = (data.splits[split] for split in ("train", "dev", "test"))
    assert test.images is not None and test.images.shape == (1000, 32, 32, 3) and test.images.dtype == np.uint8
    assert len(train.labels) + len(dev.labels) == 5000 and np.bincount(test.labels).tolist() == [100] * 10
    assert data.classes[0] == "airplane" and test.ids[0] == "test/airplane/0000.jpg" and test.labels[0] == 0
    assert len(data.image_mean) == 3 and 0.4 < data.image_mean[0] < 0.6 and 0.2 < data.image_std[0] < 0.3


def test_mnist_digits_split_by_share(data_dir: Path, tmp_path: Path) -> None:
    dataset = Images(path=data_dir / "mnist-10k", test_share=0.2, dev_share=0.1)
    assert dataset.splits() == ["train", "dev", "test"]
    data = dataset.open(tmp_path)
    assert isinstance(data, LabelledData)
    assert sum(len(part.labels) for part in data.splits.values()) == 10000
    assert 1800 < len(data.splits["test"].labels) < 2200 and data.classes == [str(digit) for digit in range(10)]
    first = data.splits["train"].images
    assert first is not None and first.shape[1:] == (28, 28, 1) and first.max() == 255


def test_images_of_a_folder_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for place, size in (("train/cat/a.png", 4), ("train/dog/b.png", 4), ("val/cat/c.png", 6)):
        path = tmp_path / "images" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (size, size), (255, 0, 0)).save(path)
    with pytest.raises(DataError, match="6x6 among images of 4x4; set `size`"):
        Images(path=tmp_path / "images").open(tmp_path / "cache")
    data = Images(path=tmp_path / "images", size=4).open(tmp_path / "cache")
    assert isinstance(data, LabelledData)
    assert list(data.splits) == ["train", "dev"] and data.image_mean == [1.0, 0.0, 0.0]
    (tmp_path / "images" / "train" / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        Images(path=tmp_path / "images", size=4).open(tmp_path / "cache")
    (tmp_path / "broken.zip").write_bytes(b"PK rubbish")
    with pytest.raises(DataError, match="not a readable zip"):
        Images(path=tmp_path / "broken.zip").splits()


def test_options_of_classes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    files = {"train": tmp_path / "t.jsonl"}
    for make in (
        lambda classes: TextClassification(files=files, classes=classes),
        lambda classes: Images(path=tmp_path, classes=classes),
        lambda classes: HuggingFace(path="x", splits={"a": "b"}, task="classification", classes=classes),
    ):
        with pytest.raises(ConfigError, match="classes: 'no' stands twice"):
            make(["no", "no", "yes"])
    with pytest.raises(ConfigError, match="unlabelled: no split 'trian'; did you mean 'train'"):
        TextClassification(files=files, unlabelled=["trian"])
    problems: list[Problem] = []
    item = {"type": "text-classification", "files": {"train": "x"}, "measure": "makro-f1"}
    check("dataset", item, ("data",), registry(), str, problems)
    assert len(problems) == 1 and "macro-f1" in str(problems[0])


def test_labels_that_other_programs_write_and_files_they_are_not_read_from(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", *({"text": "x", "label": label} for label in (1.0, 1, True, 0, "no")))
    data = TextClassification(files={"train": path}).open(tmp_path / "cache")
    assert isinstance(data, LabelledData) and data.classes == ["0", "1", "no", "true"]
    assert data.splits["train"].labels.tolist() == [1, 1, 3, 0, 2]
    (tmp_path / "t.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"t\.csv: a CSV file; read are JSON lines, and tab-separated columns"):
        TextClassification(files={"train": tmp_path / "t.csv"}).fingerprint()


def test_a_damaged_image_is_named_without_the_stream_it_came_from(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "i" / "train" / "a").mkdir(parents=True)
    (tmp_path / "i" / "train" / "a" / "x.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"x\.png: not a readable image: \w+: cannot identify image file$"):
        Images(path=tmp_path / "i").open(tmp_path / "cache")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["val.en", "val.de", "valid.en", "valid.de"], r"val\.en and valid\.en stand for the same"),
        (["test.en", "test.de", "train.en"], r"train\.en: no such file for 'de' beside it"),
        (["test.en", "test.de", "train.de"], r"train\.de: no such file for 'en' beside it"),
    ],
)
def test_sides_of_a_translation_that_are_missing_or_ambiguous(tmp_path: Path, names: list[str], complaint: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=complaint):
        ParallelText(source="en", target="de", folder=tmp_path).splits()


def test_names_in_an_archive_cannot_lead_outside(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../outside.jpg", b"x")
        archive.writestr("train/../../outside.jpg", b"x")
    with pytest.raises(DataError):
        Images(path=tmp_path / "evil.zip").open(tmp_path / "cache")
    assert not list(tmp_path.parent.glob("outside*"))


# ---------------------------------------------------------------- other libraries


@pytest.mark.parametrize("task", ["ranking", "pairs", "classification", "translation"])
def test_hugging_face_folders(tmp_path: Path, task: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows: dict[str, dict[str, list[Any]]] = {
        "ranking": {"anchor": ["q", "r"], "positive": ["a", "b"], "wrong": [["b", "c"], ["a"]]},
        "pairs": {"one": ["a", "b"], "two": ["c", "d"], "score": [0.5, 1.0]},
        "classification": {"text": ["a", "b"], "label": [1, 0]},
        "translation": {"translation": [{"en": "a", "de": "A"}, {"en": "b", "de": "B"}]},
    }
    columns = {
        "ranking": {"query": "anchor", "pos": "positive", "neg": "wrong"},
        "pairs": {"left": "one", "right": "two", "gold": "score"},
        "classification": {},
        "translation": {"source": "translation.en", "target": "translation.de"},
    }
    table = datasets.Dataset.from_dict(rows[task])
    if task == "classification":
        table = table.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    datasets.DatasetDict({"validation": table}).save_to_disk(tmp_path / "set")
    dataset = HuggingFace(
        path=str(tmp_path / "set"), splits={"dev": "validation"}, task=task, columns=columns[task]  # type: ignore[arg-type]
    )  # fmt: skip
    assert dataset.task == task and dataset.splits() == ["dev"]
    data: Any = dataset.open(tmp_path / "cache")
    assert data.task == task
    if task == "ranking":
        assert data.qrels["dev"][content_id("r")] == {content_id("b"): 1}
        assert len(data.corpus) == 3 and len(data.rankings["given"].of(0)[0]) == 3
    elif task == "pairs":
        assert data.splits["dev"].gold.tolist() == [0.5, 1.0] and data.splits["dev"].right.text(1) == "d"
    elif task == "classification":
        assert data.classes == ["no", "yes"] and data.splits["dev"].labels.tolist() == [1, 0]
    else:
        assert data.splits["dev"].target.text(0) == "A" and data.target_language == "de"
    with pytest.raises(ConfigError, match="no column role 'querry'"):
        HuggingFace(path="x", splits={"dev": "validation"}, columns={"querry": "q"})
    wrong = {"pairs": {"left": "absent"}, "translation": {"source": "absent"}}.get(task)
    if wrong:
        with pytest.raises(DataError, match="has no column 'absent'"):
            HuggingFace(
                path=str(tmp_path / "set"), splits={"dev": "validation"}, task=task, columns=wrong  # type: ignore[arg-type]
            ).open(tmp_path / "cache")  # fmt: skip
    with pytest.raises(DataError, match="no such folder"):
        HuggingFace(path=str(tmp_path / "absent"), splits={"dev": "validation"}).fingerprint()


def hugging_face_pairs(folder: Path, rows: list[dict[str, Any]], **options: Any) -> HuggingFace:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return HuggingFace(path=str(folder), splits={"train": "train"}, task="pairs", **options)


def test_every_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [{"left": "a", "right": "b", "score": 1.0}]
    columns = {"gold": "scor"}
    with pytest.raises(DataError, match="has no column 'scor' for 'gold'; did you mean 'score'"):
        hugging_face_pairs(tmp_path / "p", rows, columns=columns).open(tmp_path / "cache")
    data = hugging_face_pairs(tmp_path / "p", rows).open(tmp_path / "cache")
    assert isinstance(data, PairData) and data.splits["train"].gold is None


def test_a_pair_without_a_score_among_others_is_a_bad_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    golds = [None, 0.5, None, 1.0]
    rows = [{"left": f"l{number}", "right": "r", "gold": gold} for number, gold in enumerate(golds)]
    with pytest.raises(DataError, match=":1: no score, where other rows have one"):
        hugging_face_pairs(tmp_path / "p", rows).open(tmp_path / "cache")
    dataset = hugging_face_pairs(tmp_path / "p", rows, on_error="skip")
    data = dataset.open(tmp_path / "cache")
    assert isinstance(data, PairData) and data.splits["train"].gold is not None
    assert data.splits["train"].gold.tolist() == [0.5, 1.0] and data.splits["train"].left.text(1) == "l3"
    assert [line for line, _ in dataset.skipped(tmp_path / "cache")[0].first] == [1, 3]


def test_translations_of_the_hub_are_carved(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "t").mkdir()
    rows = "".join(f'{{"en": "a{number}", "de": "b{number}"}}\n' for number in range(40))
    (tmp_path / "t" / "train.jsonl").write_text(rows, encoding="utf-8")
    dataset = HuggingFace(
        path=str(tmp_path / "t"), splits={"train": "train"}, task="translation", dev_share=0.3,
        columns={"source": "en", "target": "de"},
    )  # fmt: skip
    data = dataset.open(tmp_path / "cache")
    assert isinstance(data, ParallelData) and list(data.splits) == dataset.splits() == ["train", "dev"]
    train, dev = data.splits["train"], data.splits["dev"]
    assert len(train.source) + len(dev.source) == 40 and 4 < len(dev.source) < 20
    assert not {text for _, text in train.source.iterate()} & {text for _, text in dev.source.iterate()}
    assert dev.target.text(0) == dev.source.text(0).replace("a", "b")


def test_slices_of_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"left": ["a", "b", "c", "d"], "right": ["e"] * 4})
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "several")
    table.save_to_disk(tmp_path / "one")

    def texts(folder: str, **splits: str) -> dict[str, list[str]]:
        data = HuggingFace(path=str(tmp_path / folder), splits=splits, task="pairs").open(tmp_path / "cache")
        assert isinstance(data, PairData)
        return {split: [text for _, text in pairs.left.iterate()] for split, pairs in data.splits.items()}

    for folder in ("several", "one"):
        assert texts(folder, dev="train[:1]", train="train[25%:]") == {"dev": ["a"], "train": ["b", "c", "d"]}
        with pytest.raises(DataError, match="split 'test' cannot be loaded.*Unknown split \"test\""):
            texts(folder, train="train", test="test")
    assert texts("one", dev="validation") == {"dev": ["a", "b", "c", "d"]}


def test_ir_datasets_by_id_and_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace as Row

    module = pytest.importorskip("ir_datasets")
    fake = Row(
        docs_iter=lambda: iter([Row(doc_id="d1", title="T", text="one"), Row(doc_id="d2", title="", text="two")]),
        queries_iter=lambda: iter([Row(query_id="q1", text="first")]),
        qrels_iter=lambda: iter([Row(query_id="q1", doc_id="d2", relevance=2)]),
        has_qrels=lambda: True,
    )
    monkeypatch.setattr(module, "load", lambda id: fake)
    data = ranking(IrDatasets(ids={"test": "some/test"}), tmp_path)
    assert dict(data.corpus.iterate()) == {"d1": "T one", "d2": "two"} and data.qrels["test"] == {"q1": {"d2": 2}}

    def broken() -> Any:
        raise ConnectionError("no route to host")

    fake.docs_iter = broken
    with pytest.raises(DataError, match=r"ConnectionError.*type `msmarco`.*or `beir`"):
        IrDatasets(ids={"test": "other/test"}).open(tmp_path)

"""`kdfw mine`, `score`, `encode`, `search` on files: they do what the stages of a recipe do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import write_beir, write_bert

from kdfw.cli import main
from kdfw.data.ranking import Ranking
from kdfw.data.runs import read_qrels, read_run
from kdfw.data.score_files import read_scores


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `beir`, `bert` and, once a command has run, the cache all tests share."""
    folder = tmp_path_factory.mktemp("files")
    write_beir(folder / "beir")
    write_bert(folder / "bert")
    return folder


def model(place: Path, type: str) -> str:
    option = "max_pair_tokens: 48" if type == "cross-encoder" else "max_passage_tokens: 32"
    return f"{{type: {type}, base: {place / 'bert'}, {option}}}"


def kdfw(place: Path, *arguments: str | Path) -> int:
    return main([str(part) for part in (*arguments, "--data", f"beir:{place / 'beir'}", "--cache", place / "cache")])


def test_mine_writes_what_the_stage_of_a_recipe_writes(place: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "mined.trec"
    assert kdfw(place, "mine", "ranks=[2,6]", "--retriever", "bm25", "--depth", "10", "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert [path.name for path in out.parent.iterdir()] == ["mined.trec"]  # nothing else is left beside it
    mined, qrels = read_run(out), read_qrels(place / "beir/qrels/train.tsv")
    assert set(mined) <= set(qrels) and max(map(len, mined.values())) == 5
    assert not any(set(mined[query]) & set(qrels[query]) for query in mined)
    from kdfw.engine.api import run

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"kdfw: 1\nname: same\ndata: {{type: beir, folder: {place / 'beir'}}}\n"
        "stages:\n  - {name: lists, type: mine, retriever: bm25, depth: 10, ranks: [2, 6]}\n"
    )
    result = run(recipe, out=tmp_path / "run", cache=place / "cache")
    assert result is not None
    assert (result.stages["lists"] / "run.trec").read_text() == out.read_text()
    assert result.summaries["lists"]["queries"] == 12


def test_score_gives_the_scores_of_the_lists(place: Path, tmp_path: Path) -> None:
    lists, out = tmp_path / "lists.trec", tmp_path / "scores.tsv.gz"
    kept = {"q0": ["p1", "p2"], "q4": ["p3"]}
    lists.write_text("".join(f"{q} Q0 {p} {n} {-n} x\n" for q, ids in kept.items() for n, p in enumerate(ids, 1)))
    cross = model(place, "cross-encoder")
    assert kdfw(place, "score", "--model", cross, "--candidates", lists, "--out", out) == 0
    scores = read_scores(out).scores
    assert {query: sorted(found) for query, found in scores.items()} == kept  # labelled positives are not added
    assert len({score for found in scores.values() for score in found.values()}) == 3
    again = tmp_path / "again.tsv"
    assert kdfw(place, "score", "--model", cross, "--candidates", lists, "--out", again, "include_positives=true") == 0
    more, qrels = read_scores(again).scores, read_qrels(place / "beir/qrels/train.tsv")
    assert all(set(more[query]) == {*kept[query], *qrels[query]} for query in kept)
    assert all(more[query][passage] == scores[query][passage] for query in kept for passage in kept[query])


def test_lists_of_another_split_are_refused(place: Path, tmp_path: Path, capsys) -> None:
    lists, out = tmp_path / "lists.trec", tmp_path / "scores.tsv"
    lists.write_text("q0 Q0 p1 1 1 x\n")  # a query of train
    cross = model(place, "cross-encoder")
    assert kdfw(place, "score", "--model", cross, "--candidates", lists, "--split", "test", "--out", out) == 2
    assert "no query of split 'test'" in capsys.readouterr().err and not out.exists()


def test_search_is_the_inner_product_of_what_encode_writes(place: Path, tmp_path: Path) -> None:
    bi = model(place, "bi-encoder")
    assert kdfw(place, "encode", "--model", bi, "--out", tmp_path / "p.npy") == 0
    queries = ("--of", "queries", "--split", "test", "--out", tmp_path / "q.npy", "--ids", tmp_path / "q.txt")
    assert kdfw(place, "encode", "--model", bi, *queries) == 0
    assert kdfw(place, "search", "--model", bi, "--depth", "7", "--out", tmp_path / "run.trec") == 0
    passages, wanted = (np.load(tmp_path / name, allow_pickle=False) for name in ("p.npy", "q.npy"))
    ids, asked = ((tmp_path / name).read_text().splitlines() for name in ("ids.txt", "q.txt"))
    assert passages.shape == (60, 32) and passages.dtype == np.float32 and len(ids) == 60 and len(asked) == 6
    run = read_run(tmp_path / "run.trec")
    assert list(run) == asked
    scores = wanted.astype(np.float64) @ passages.T.astype(np.float64)
    for row, query in enumerate(asked):
        assert len(run[query]) == 7
        found = {ids.index(passage): score for passage, score in run[query].items()}
        assert scores[row, list(found)] == pytest.approx(list(found.values()), rel=1e-4)
        assert min(found.values()) >= np.sort(scores[row])[-8] - 1e-4


def test_a_model_that_cannot_search_reranks(place: Path, tmp_path: Path) -> None:
    cross, first = model(place, "cross-encoder"), tmp_path / "first.trec"
    assert kdfw(place, "search", "--retriever", "bm25", "--depth", "100", "--out", first) == 0
    assert kdfw(place, "search", "--model", cross, "--depth", "100", "--out", tmp_path / "run.trec") == 0
    bm25, run = read_run(first), read_run(tmp_path / "run.trec")
    assert {query: set(found) for query, found in run.items()} == {query: set(found) for query, found in bm25.items()}
    assert any(list(run[query]) != list(bm25[query]) for query in run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search",), "nothing to search with"),
        (("search", "--retriever", "bm52"), "no retriever type 'bm52'"),
        (("mine", "--split", "tset"), "no split 'tset'"),
        (("mine", "depht=3"), "depht"),
        (("mine", "--depth", "0"), "depth"),
        (("encode", "--model", "bi-encodr:x"), "no student type 'bi-encodr'"),
        (("encode", "--model", "{type: cross-encoder, base: BERT}"), "does not give each text one vector"),
        (("encode", "--model", "{type: "), "--model"),
    ],
)
def test_faults_are_said_clearly(place: Path, tmp_path: Path, capsys, arguments: tuple[str, ...], message: str) -> None:
    filled = [part.replace("BERT", str(place / "bert")) for part in arguments]
    assert kdfw(place, *filled, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["mine", "score", "encode", "search"])
def test_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    from kdfw.cli import build_parser

    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    example = capsys.readouterr().out.strip().splitlines()[-1].strip()
    assert example.startswith(f"kdfw {command} ")
    assert build_parser().parse_args(shlex.split(example)[1:]).command == command


def test_lists_are_the_same_as_an_array(place: Path, tmp_path: Path) -> None:
    """What the file says is what the stage stored: nine digits are enough for a float32."""
    assert kdfw(place, "search", "--retriever", "bm25", "--depth", "5", "--out", tmp_path / "a.trec") == 0
    stored = [Ranking.load(path.parent) for path in (place / "cache").rglob("ranking.queries.txt")]
    scores = [float(score) for found in read_run(tmp_path / "a.trec").values() for score in found.values()]
    assert any(np.array_equal(np.float32(scores), ranking.scores) for ranking in stored if len(ranking.scores))

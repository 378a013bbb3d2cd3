"""The short way through an encoder against its own layers: the same states, and only where it may be taken."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdfw.models import attention, fused
from kdfw.models.attention import use_plain_attention
from kdfw.models.bi_encoder import BiEncoder
from kdfw.models.forward import assemble, encode_texts, signals_of
from kdfw.models.precision import has_native_bf16, numerics
from kdfw.types import Batch, Text
from tests.tiny import write_bert

pytestmark = pytest.mark.skipif(not fused._operators(), reason="torch is built without oneDNN")
LENGTHS = (19, 19, 12, 3)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.dtype]]:
    """The type computed in, each time the short way is taken."""
    found: list[torch.dtype] = []
    own = fused._Encoder.run
    monkeypatch.setattr(fused._Encoder, "run", lambda self, *given: found.append(given[-1]) or own(self, *given))
    yield found


@pytest.fixture
def onednn() -> Iterator[None]:
    """As `numerics` sets the process up where oneDNN's products are right."""
    with numerics("fp32", "cpu") as chosen:
        if chosen["fp32_matmul"] != "onednn":
            pytest.skip("oneDNN's float32 products are not float32 on this processor")
        yield


def model_of(name: str, **options: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        **{
            "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 40, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
        } | options
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias, 0.0, 0.2)
    for linear in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        torch.nn.init.normal_(linear.bias, 0.0, 0.2)
    return model


def inputs(padded: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 60, (len(LENGTHS), max(LENGTHS)), generator=generator)
    if not padded:
        return {"input_ids": ids}
    return {"input_ids": ids, "attention_mask": (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()}


def states(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    found: Tensor = model(**given, **options).last_hidden_state
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Bert", {}),
        ("Bert", {"hidden_act": "gelu_new"}),
        ("Bert", {"hidden_act": "relu"}),
        ("Roberta", {}),
        ("XLMRoberta", {}),
        ("Camembert", {}),
        ("Electra", {"embedding_size": 16}),
    ],
)
@torch.no_grad()
def test_same_states(
    name: str, options: dict[str, Any], padded: bool, onednn: None, taken: list[torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model, given = model_of(name, **options), inputs(padded)
    expected = states(model, given)
    assert use_plain_attention(model) and fused.prepare(model)
    monkeypatch.setattr(attention, "MAX_SCORES", 3 * 19 * 19 * 2)  # rows of a micro-batch in two parts
    with fused.fused():
        found = states(model, given)
    assert taken == [torch.float32]
    for row, length in enumerate(LENGTHS):
        kept = length if padded else max(LENGTHS)
        torch.testing.assert_close(found[row, :kept], expected[row, :kept], rtol=1e-5, atol=1e-5)
    assert found.isfinite().all()


@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="this processor has no bf16 arithmetic")
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_bf16_is_as_near_as_autocast(padded: bool, taken: list[torch.dtype]) -> None:
    model, given = model_of("Bert"), inputs(padded)
    exact = states(model, given)
    use_plain_attention(model)
    fused.prepare(model)
    with torch.autocast("cpu", torch.bfloat16):
        usual = states(model, given)
        with fused.fused():
            found = states(model, given)
    assert taken == [torch.bfloat16]
    for row, length in enumerate(LENGTHS):
        kept = length if padded else max(LENGTHS)
        error = (found[row, :kept].float() - exact[row, :kept]).abs().mean()
        assert error < 2 * (usual[row, :kept].float() - exact[row, :kept]).abs().mean() + 1e-3


def test_elsewhere_its_own_layers_run(onednn: None, taken: list[torch.dtype]) -> None:
    model, given = model_of("Bert"), inputs(True)
    use_plain_attention(model)
    fused.prepare(model)
    with torch.no_grad():
        states(model, given)  # not asked for
    with fused.fused():
        states(model, given).sum().backward()  # a gradient is wanted
        assert model.encoder.layer[0].output.dense.weight.grad is not None
        with torch.no_grad():
            model.train()
            states(model, given)
            model.eval()
            hook = model.encoder.layer[1].register_forward_hook(lambda *_: None)
            states(model, given)
            hook.remove()
            matmul = torch.backends.mkldnn.matmul
            chosen, matmul.fp32_precision = matmul.fp32_precision, "none"  # as `fp32-strict` leaves it
            states(model, given)
            matmul.fp32_precision = chosen
            assert taken == []
            states(model, given)
            assert taken == [torch.float32]


def test_other_architectures_stay_as_they_are() -> None:
    from transformers import DistilBertConfig, DistilBertModel

    other = DistilBertModel(DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8))
    assert not fused.prepare(other)
    assert not fused.prepare(model_of("Bert", hidden_act="silu"))
    assert not fused.prepare(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("change", ["fused AdamW", "AdamW", "SGD", "load_state_dict", "copy_", "replaced", "cast"])
def test_new_weights_are_seen(change: str, onednn: None, taken: list[torch.dtype]) -> None:
    model, given = model_of("Bert"), inputs(True)
    use_plain_attention(model)
    fused.prepare(model)
    with torch.no_grad(), fused.fused():
        old = states(model, given)
    if "AdamW" in change or change == "SGD":
        kind = torch.optim.SGD if change == "SGD" else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=0.1, **({"fused": True} if "fused" in change else {}))
        (states(model, given) ** 2).sum().backward()
        optimizer.step()
    other = {name: value * 1.1 for name, value in model.state_dict().items()}
    with torch.no_grad():
        if change == "load_state_dict":
            model.load_state_dict(other)
        elif change == "copy_":
            for name, value in model.named_parameters():
                value.copy_(other[name])
        elif change == "replaced":
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight = torch.nn.Parameter(module.weight * 1.1)
        elif change == "cast":
            model.double().float()
            model.load_state_dict(other)
        expected = states(model, given)
        with fused.fused():
            found = states(model, given)
    assert taken == [torch.float32] * 2
    assert not torch.allclose(found, old, atol=1e-3)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)


def test_copies_compute_with_their_own_weights(onednn: None, taken: list[torch.dtype]) -> None:
    model, given = model_of("Bert"), inputs(True)
    use_plain_attention(model)
    fused.prepare(model)
    with torch.no_grad(), fused.fused():
        before = states(model, given)
        twin = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        for value in twin.parameters():
            value.mul_(1.2)
        assert torch.equal(states(model, given), before) and torch.equal(states(again, given), before)
        assert not torch.allclose(states(twin, given), before, atol=1e-3)
    assert len(taken) == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encoding_takes_it(
    precision: str, tmp_path: Path, taken: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BiEncoder(base=str(write_bert(tmp_path / "bert")), max_passage_tokens=32)
    model.load()
    texts = [Text(source=None, made="water stone river " * (1 + number % 5)) for number in range(9)]
    autocast = torch.bfloat16 if precision == "bf16" else None
    if precision == "bf16" and not has_native_bf16(torch.device("cpu")):
        pytest.skip("this processor has no bf16 arithmetic")
    with numerics(precision, "cpu") as chosen:
        if precision == "fp32" and chosen["fp32_matmul"] != "onednn":
            pytest.skip("oneDNN's float32 products are not float32 on this processor")
        found = encode_texts(model, texts, "passage", autocast=autocast)
        assert taken
        monkeypatch.setattr(fused._Encoder, "kind", lambda *_: None)
        expected = encode_texts(model, texts, "passage", autocast=autocast)
    assert abs(found - expected).max() < (1e-5 if precision == "fp32" else 3e-2)


def test_hidden_states_come_from_the_layers(tmp_path: Path, onednn: None, taken: list[torch.dtype]) -> None:
    model = BiEncoder(base=str(write_bert(tmp_path / "bert")), max_passage_tokens=32)
    model.load()
    batch = Batch(
        task="ranking", ids=("q",), num_items=1.0, candidates=torch.zeros(1, 1, dtype=torch.long),
        inputs={"query": [Text(source=None, made="water")], "passage": [Text(source=None, made="stone river")]},
    )  # fmt: skip
    found = signals_of(model, batch, frozenset({"logits", "query_hidden"}))
    assert found.extra["query_hidden"].shape == (1, 2, 32)
    assert len(taken) == 1, "the passages alone take the short way"


@pytest.mark.parametrize("training", [True, False])
def test_the_compiler_sees_one_graph(training: bool, tmp_path: Path, taken: list[torch.dtype]) -> None:
    model = BiEncoder(base=str(write_bert(tmp_path / "bert")), max_passage_tokens=32)
    model.load()
    model.train(training)
    texts = [Text(source=None, made=text) for text in ("water stone river", "water", "engine")]
    group = model.text_rows(texts, "passage")
    micro = assemble(group, np.arange(3), torch.device("cpu"))
    torch._dynamo.reset()
    with torch.set_grad_enabled(training):
        seen = torch._dynamo.explain(model.encode)(micro, frozenset({"embedding"}))
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons
    assert taken == []

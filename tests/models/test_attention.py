"""Plain attention against torch's own, and the precision settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdfw.errors import ConfigError
from kdfw.models import attention, precision


@pytest.mark.parametrize("together", [1 << 21, 100])
@pytest.mark.parametrize("masked", ["none", "padding", "square", "additive"])
def test_plain_attention_equals_the_fused_one(masked: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_SCORES", together)
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, 7, 4, requires_grad=True) for _ in range(3))
    mask = None
    if masked == "padding":
        mask = (torch.arange(7) < torch.tensor([[7], [3], [5]]))[:, None, None].expand(3, 1, 7, 7)
    elif masked != "none":
        mask = torch.rand(3, 1, 7, 7) > 0.3
        mask[..., 0] = True
        if masked == "additive":
            mask = torch.where(mask, 0.0, -1e9)
    module = torch.nn.Linear(1, 1)
    module.is_causal = False  # type: ignore[assignment]
    ours, _ = attention.plain_attention(module, query, key, value, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    assert torch.allclose(ours, expected, atol=1e-6)
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for left, right in zip(mine, theirs, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_what_it_cannot_do_goes_to_the_fused_kernel() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    module = torch.nn.Linear(1, 1)
    causal, _ = attention.plain_attention(module, query, key, value, None, is_causal=True)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    assert torch.allclose(causal, expected, atol=1e-6)
    full, _ = attention.plain_attention(module, query, key, value, None, is_causal=False)
    assert not torch.allclose(causal, full, atol=1e-3)


def test_dropout_falls_on_the_weights() -> None:
    query = torch.zeros(1, 1, 2, 4)
    value = torch.ones(1, 1, 2, 3)
    torch.manual_seed(0)
    found = torch.cat([attention.plain_attention(torch.nn.Identity(), query, query, value, None, dropout=0.5,
                                                 is_causal=False)[0].flatten() for _ in range(200)])  # fmt: skip
    # each of two weights of 1/2 is kept with probability 1/2 and doubled: 0, 1 or 2
    assert set(found.tolist()) == {0.0, 1.0, 2.0}
    assert found.mean().item() == pytest.approx(1.0, abs=0.15)


def test_a_transformer_uses_it_and_does_not_write_it_down() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config).eval()
    ids = torch.randint(1, 20, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    before = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert attention.use_plain_attention(model)
    calls = []
    original = attention._plain
    attention._plain = lambda *args: calls.append(args) or original(*args)  # type: ignore[func-returns-value]
    try:
        after = model(input_ids=ids, attention_mask=mask).last_hidden_state
    finally:
        attention._plain = original
    assert len(calls) == 1
    assert torch.allclose(before[0], after[0], atol=1e-6) and torch.allclose(before[1, :3], after[1, :3], atol=1e-6)
    assert attention.NAME not in model.config.to_json_string()


def test_a_model_without_the_registry_stays_as_it_is() -> None:
    assert not attention.use_plain_attention(torch.nn.Linear(1, 1))


# ---------------------------------------------------------------- precision


def test_precision_by_name() -> None:
    assert precision.resolve("fp32", "cpu") == "fp32"
    assert precision.resolve("auto", "cpu") == ("bf16" if precision.has_native_bf16(torch.device("cpu")) else "fp32")
    assert precision.autocast_dtype("bf16") is torch.bfloat16 and precision.autocast_dtype("fp32") is None
    with pytest.raises(ConfigError, match="fp16"):
        precision.resolve("fp16", "cpu")


def test_the_setting_is_undone_and_reported() -> None:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with precision.numerics("fp32", "cpu") as chosen:
        assert chosen["onednn_error"] >= 0
        assert (chosen["fp32_matmul"] == "onednn") == (chosen["onednn_error"] <= precision.MAX_ERROR)
    assert matmul.fp32_precision == before
    with precision.numerics("fp32-strict", "cpu") as strict:
        assert strict["fp32_matmul"] == "default" and matmul.fp32_precision == before


def test_a_route_with_too_large_an_error_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(precision, "onednn_error", lambda: 3e-3)
    with precision.numerics("fp32", "cpu") as chosen:
        assert chosen["fp32_matmul"] == "default"
        assert torch.backends.mkldnn.matmul.fp32_precision == before


def rows_one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, _: torch.Tensor, *limits: int,
    scale: float | None,
) -> torch.Tensor:  # fmt: skip
    """What a kernel for varying lengths computes, row by row: tensors are (tokens, heads, width)."""
    assert int(starts.diff().max()) <= limits[0]
    found = []
    for begin, end in zip(starts.tolist(), starts[1:].tolist(), strict=False):
        row = [part[begin:end].transpose(0, 1) for part in (query, key, value)]
        found.append(torch.nn.functional.scaled_dot_product_attention(*row, scale=scale).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["base", "classifier"])
def test_padded_rows_are_packed_where_a_kernel_takes_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's road with a kernel written in torch: same states at real tokens, same gradients."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    from kdfw.models.rows import MicroBatch
    from kdfw.models.text import run_transformer

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = (BertModel if kind == "base" else BertForSequenceClassification)(config).eval()
    assert attention.use_plain_attention(model)
    mask = torch.arange(6) < torch.tensor([[6], [1], [4]])
    micro = MicroBatch(group="text", ids=torch.randint(1, 20, (3, 6)), mask=mask)

    def outcome() -> tuple[torch.Tensor, list[torch.Tensor]]:
        output = run_transformer(model, micro)
        states = output.last_hidden_state[mask] if kind == "base" else output.logits
        names = [parameter for name, parameter in model.named_parameters() if "attention" in name or "word" in name]
        return states, list(torch.autograd.grad(states.square().sum(), names))

    expected, gradients = outcome()
    calls = []
    monkeypatch.setattr(attention, "_packs", lambda device: True)

    def kernel(*args: Any, **rest: Any) -> torch.Tensor:
        calls.append(1)
        return rows_one_by_one(*args, **rest)

    monkeypatch.setattr(attention, "_varlen", lambda: kernel)
    found, mine = outcome()
    assert len(calls) == config.num_hidden_layers
    assert torch.allclose(found, expected, atol=1e-6)
    for left, right in zip(mine, gradients, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_only_masks_of_padding_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that hides other tokens too (a sliding window) goes to the fused kernel, packing or not."""
    monkeypatch.setattr(attention, "_varlen", lambda: rows_one_by_one)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 6, 4) for _ in range(3))
    seen = torch.arange(6) < torch.tensor([[6], [4]])
    near = (torch.arange(6)[:, None] - torch.arange(6)).abs() <= 1
    mask = seen[:, None, None] & near
    module = torch.nn.Linear(1, 1)
    module.is_causal = False  # type: ignore[assignment]
    found, _ = attention.plain_attention(module, query, key, value, mask, packing=attention.packed(seen))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    assert torch.allclose(found[seen], expected[seen], atol=1e-6)
    assert attention.packing_of(module, seen) is None  # here, on a CPU

"""Our causal attention is torch's: in float64 terms, in a model, and where it must step aside."""

from __future__ import annotations

import math

import pytest
import torch
from model_fixtures import CORPUS, make_model_folder
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from gencls_core import attention
from gencls_core.attention import causal_attention, use_causal_attention
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm


def naive(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, scale: float) -> Tensor:
    """Every head and every pair of positions, written out."""
    repeats = q_BHTD.shape[1] // k_BGTD.shape[1]
    k_BHTD, v_BHTD = (x.repeat_interleave(repeats, dim=1) for x in (k_BGTD, v_BGTD))
    scores = scale * q_BHTD @ k_BHTD.mT
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(later, -math.inf).softmax(-1) @ v_BHTD).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("texts", "heads", "key_heads", "tokens"),
    [(3, 9, 3, 1), (2, 4, 4, 7), (2, 9, 3, 20), (1, 4, 1, 33), (2, 12, 12, 16), (1, 2, 1, 300)],
)
def test_matches_naive_float64_with_gradients(dtype, texts, heads, key_heads, tokens, monkeypatch):
    if tokens < 100:
        monkeypatch.setattr(attention, "QUERIES_PER_BLOCK", {dtype: 8})
    generator = torch.Generator().manual_seed(tokens)
    # [B, T, H, D] seen as [B, H, T, D], as models have it.
    values = [
        torch.randn(texts, tokens, n, 64, generator=generator).transpose(1, 2)
        for n in (heads, key_heads, key_heads)
    ]
    ours = [v.to(dtype, copy=True).requires_grad_() for v in values]
    reference = [v.to(dtype).double().requires_grad_() for v in values]
    weights = torch.randn(texts, tokens, heads, 64, generator=generator, dtype=torch.float64)
    out, expected = causal_attention(*ours, 0.11), naive(*reference, 0.11)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, reference, strict=True):
        scale = max(other.grad.abs().max().item(), 1.0)
        assert (mine.grad.double() - other.grad).abs().max().item() / scale < tolerance


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_loaded_model_attends_with_it(architecture, tmp_path, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments[0].dtype)
        return causal_attention(*arguments)

    monkeypatch.setattr(attention, "causal_attention", counted)
    folder = ResolvedModel.of_folder("m", make_model_folder(tmp_path / "m", architecture))
    for dtype in (torch.float32, torch.bfloat16):
        lm = load_causal_lm(folder, dtype)
        ids = torch.tensor(lm.encode([CORPUS[0]]))
        calls.clear()
        with torch.inference_mode():
            ours = lm.hidden(ids)
            lm.model.set_attn_implementation("sdpa")
            theirs = lm.hidden(ids)
        assert calls == [dtype] * 2
        atol, rtol = (1e-5, 1e-5) if dtype == torch.float32 else (0.1, 0.05)
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize("sliding", [False, True])
def test_sliding_windows_and_dropout_are_left_to_torch(sliding, monkeypatch):
    """A model whose tokens see 4 others at most, and one that drops attention in training."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    if sliding:
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, attention_dropout=0.5))
    model = model.bfloat16().train(not sliding)
    ids = torch.arange(40)[None] % 50
    torch.manual_seed(1)
    expected = model(ids).logits
    use_causal_attention(model)
    assert model.config._attn_implementation == attention.NAME
    monkeypatch.setattr(attention, "causal_attention", None)
    torch.manual_seed(1)
    torch.testing.assert_close(model(ids).logits, expected, atol=0, rtol=0)


def test_an_eager_model_stays_eager():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=4, attn_implementation="eager",
        )
    )  # fmt: skip
    use_causal_attention(model)
    assert model.config._attn_implementation == "eager"

"""Layers that are replaced compute what transformers' own do, and others are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from model_fixtures import make_model_folder
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM

from gencls_core import fused_layers
from gencls_core.fused_layers import fuse, pack
from gencls_core.layers import GatedMLP, RMSNorm
from gencls_core.model_loading import load_weights, read_config
from gencls_core.model_source import ResolvedModel
from gencls_core.models import attach_lora, load_causal_lm
from gencls_core.products import FastLinear, PackedLinear, has_onednn

IDS = torch.arange(20)[None]


def kinds(model):
    return {type(module).__name__ for module in model.modules()}


def folder_of(architecture, path):
    """A model folder; Gemma's norm adds 1 to its weight, and its MLP has another activation."""
    folder = make_model_folder(path / architecture, architecture.replace("gemma", "llama"))
    if architecture == "gemma":
        config = GemmaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=1, head_dim=8,
        )  # fmt: skip
        GemmaForCausalLM(config).save_pretrained(folder)
    return folder


def load(folder, dtype=torch.float32):
    resolved = ResolvedModel.of_folder("m", folder)
    return load_weights(
        AutoModelForCausalLM, resolved, read_config(resolved), dtype, expected="a model"
    )[0]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma"])
def test_fused_layers_compute_what_transformers_does(architecture, tmp_path):
    folder = folder_of(architecture, tmp_path)
    loaded, plain = load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(loaded(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    assert ("RMSNorm" in kinds(loaded)) == (architecture == "llama")
    assert "GemmaRMSNorm" in kinds(loaded) or architecture != "gemma"
    assert ("GELU" in kinds(loaded)) == (architecture == "gpt2")
    assert not kinds(loaded) & {"Linear", "Conv1D"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma"])
def test_a_packed_model_says_the_same(architecture, dtype, tmp_path):
    if not has_onednn(dtype):
        pytest.skip(f"no oneDNN for {dtype} here")
    model = load(folder_of(architecture, tmp_path), dtype)
    with torch.inference_mode():
        before = model(IDS).logits.float()
        pack(model)
        after = model(IDS).logits.float()
    tolerance = 1e-5 if dtype == torch.float32 else 0.05 * before.abs().max().item()
    torch.testing.assert_close(after, before, atol=tolerance, rtol=0)
    assert ("PackedGatedMLP" in kinds(model)) == (architecture == "llama")
    assert "PackedLinear" in kinds(model)
    # GPT-2's GELU is applied within a product.
    assert ("Identity" in kinds(model)) == (architecture == "gpt2")
    assert isinstance(model.get_output_embeddings(), FastLinear)


def test_adapters_over_a_packed_base_say_the_same(tmp_path):
    lm = load_causal_lm(ResolvedModel.of_folder("m", make_model_folder(tmp_path / "m", "llama")))
    lm = attach_lora(lm, 4, None)
    lm.model.eval()
    for name, weight in lm.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = lm.hidden(IDS)
        pack(lm.model)
        torch.testing.assert_close(lm.hidden(IDS), before, atol=1e-4, rtol=1e-4)
    assert any(isinstance(module, PackedLinear) for module in lm.model.modules())


def test_a_layer_that_computes_something_else_stays():
    """Names promise nothing: here the gate is added."""

    class OtherMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj = nn.Linear(8, 12, bias=False)
            self.up_proj = nn.Linear(8, 12, bias=False)
            self.down_proj, self.act_fn = nn.Linear(12, 8, bias=False), nn.SiLU()

        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))

    model = nn.Sequential(OtherMLP())
    fuse(model)
    assert type(model[0]) is OtherMLP
    assert type(model[0].up_proj) is FastLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
def test_gradients_are_those_of_the_formulas_in_float64(shape, dtype):
    torch.manual_seed(0)
    mlp = nn.Module()
    mlp.gate_proj, mlp.up_proj = FastLinear(12, 20, bias=False), FastLinear(12, 20, bias=False)
    mlp.down_proj, mlp.act_fn = FastLinear(20, 12, bias=False), nn.SiLU()
    norm = RMSNorm(nn.Parameter(torch.rand(12) + 0.5), 1e-3)
    ours = nn.Sequential(norm, GatedMLP(mlp)).to(dtype)
    reference = copy.deepcopy(ours).double()
    x = torch.randn(shape).to(dtype).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)

    def formula(x):
        w, (_, layers) = reference[0].weight, reference
        unit = x * w / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        gate, up, down = (layer.weight for layer in layers.layers)
        return (nn.functional.silu(unit @ gate.t()) * (unit @ up.t())) @ down.t()

    found, expected = ours(x), formula(x64)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    (found.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    pairs = [(x, x64), *zip(ours.parameters(), reference.parameters(), strict=True)]
    for mine, theirs in pairs:
        scale = max(theirs.grad.abs().max().item(), 1.0)
        assert mine.grad.dtype == dtype
        assert (mine.grad.double() - theirs.grad).abs().max().item() / scale < tolerance


def test_without_onednn_nothing_is_packed(tmp_path, monkeypatch):
    model = load(make_model_folder(tmp_path / "m", "llama"))
    monkeypatch.setattr(fused_layers, "has_onednn", lambda _dtype: False)
    pack(model)
    assert not kinds(model) & {"PackedLinear", "PackedGatedMLP"}

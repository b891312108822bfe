"""Products by oneDNN are those of float64; without it they are torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gencls_core import products
from gencls_core.products import FastConv1D, FastLinear, PackedLinear, has_onednn, linear

ROWS = [(1, 37), (5, 37), (2, 3, 37), (0, 37), (2, 0, 37)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def engine(request, monkeypatch):
    """oneDNN where this machine has it, and a machine that has none."""
    if not request.param:
        monkeypatch.setattr(products, "has_onednn", lambda _dtype: False)
    return request.param


def tensors(dtype, *shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", ROWS)
def test_linear_is_that_of_float64(rows, biased, dtype, engine):
    x, weight, bias = tensors(dtype, rows, (21, 37), (21,))
    bias = bias if biased else None
    expected = nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    for given in (weight, weight.t().contiguous().t()):
        found = linear(x, given, bias)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.double(), expected, atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("rows", [(5, 37), (2, 3, 37)])
@pytest.mark.parametrize("trained", ["all", "weight", "input"])
@pytest.mark.parametrize("kind", [FastLinear, FastConv1D])
def test_gradients_are_those_of_float64(kind, trained, rows, engine):
    (x,) = tensors(torch.float32, rows)
    torch.manual_seed(0)
    layer = FastLinear(37, 21) if kind is FastLinear else FastConv1D(21, 37)
    layer.weight.requires_grad_(trained != "input")
    layer.bias.requires_grad_(trained == "all")
    x.requires_grad_(trained != "weight")
    double = (nn.Linear(37, 21) if kind is FastLinear else Conv1D(21, 37)).double()
    double.load_state_dict(layer.state_dict())
    x64 = x.detach().double().requires_grad_()
    weights = torch.randn(*rows[:-1], 21, dtype=torch.float64)
    (layer(x).double() * weights).sum().backward()
    (double(x64) * weights).sum().backward()
    pairs = [(x, x64), (layer.weight, double.weight), (layer.bias, double.bias)]
    for ours, reference in pairs:
        assert (ours.grad is not None) == ours.requires_grad
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad.double(), reference.grad, atol=1e-4, rtol=1e-5)
            assert ours.grad.is_contiguous()


def test_a_head_alone_can_be_trained():
    """The kernel multiplies by `linear` itself: gradients of a weight are not lost on the way."""
    x, weight = tensors(torch.float32, (4, 37), (21, 37))
    linear(x, weight.requires_grad_()).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(21, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("of", ["linear", "conv1d"])
def test_packed_layers_are_the_layers(of, rows, dtype):
    if not has_onednn(dtype):
        pytest.skip(f"no oneDNN for {dtype} here")
    torch.manual_seed(0)
    layer = (nn.Linear(37, 21) if of == "linear" else Conv1D(21, 37)).to(dtype)
    packed = PackedLinear.of(layer)
    x, other = tensors(dtype, rows, (*rows[:-1], 21))
    with torch.inference_mode():
        tolerance = TOLERANCE[dtype]
        expected = layer(x)
        torch.testing.assert_close(packed(x), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(
            packed.times(x, other), expected * other, atol=2 * tolerance, rtol=2 * tolerance
        )
        packed.activation = "swish"
        silu = nn.functional.silu(expected)
        torch.testing.assert_close(packed(x), silu, atol=2 * tolerance, rtol=tolerance)
    assert packed.weight.shape == (21, 37)
    assert packed.weight.dtype == dtype


def test_what_cannot_be_multiplied_is_left_to_torch():
    assert not has_onednn(torch.float16)
    assert not has_onednn(torch.float64)
    x, weight = tensors(torch.float64, (2, 37), (21, 37))
    torch.testing.assert_close(linear(x, weight), x @ weight.t())

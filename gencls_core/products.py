"""Matrix products on a CPU by oneDNN, where torch by itself would take a slower way.

float32   torch multiplies by MKL, which on AMD's processors with AVX-512 gives less than half of
          what oneDNN gives: 205 and 485 GFLOP/s on two EPYC cores. On two older ones, without
          AVX-512, it is 65 and 71, and 65 and 49 where a weight lies transposed, as in
          gradients: those stay with MKL.
packed    a weight that no longer changes is laid out once as oneDNN reads it, not in each product:
          a tenth faster. An activation, or a product with what is there already, is applied to a
          result before it leaves the processor.

Where oneDNN is missing, or cannot multiply a precision, everything here is torch's own.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

__all__ = ["FastConv1D", "FastLinear", "PackedLinear", "has_avx512", "has_onednn", "linear"]

EXPECTED_ROWS = 1024
"""For the layout of packed weights; other numbers work."""


@functools.cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Say whether oneDNN multiplies matrices of a precision here, found by trying."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        weight_NK = torch.eye(32, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK, EXPECTED_ROWS)
        return all(
            torch.equal(_by_onednn(weight_NK, weight, None), weight_NK)
            for weight in (weight_NK, packed)
        )
    except (AttributeError, RuntimeError):  # NotImplementedError is one of the latter
        return False


def _by_onednn(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    activation: str = "none",
    algorithm: str = "",
) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(
        x_MK, weight_NK, bias_N, activation, [], algorithm
    )
    return result


def linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Give x Wᵀ + b; x may have any number of leading dimensions."""
    if not _is_slow(weight_NK) or not x_MK.numel():
        return nn.functional.linear(x_MK, weight_NK, bias_N)
    inputs = (x_MK, weight_NK, bias_N)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        result: Tensor = _Linear.apply(*inputs)  # type: ignore[no-untyped-call]
        return result
    return _by_onednn(*inputs)


def _is_slow(weight: Tensor) -> bool:
    """Say whether torch's own product is the slower one. In 16 bits it asks oneDNN itself."""
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and (weight.is_contiguous() or has_avx512())
        and has_onednn(torch.float32)
    )


@functools.cache
def has_avx512() -> bool:
    """Say whether torch uses AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class _Linear(torch.autograd.Function):
    """x Wᵀ + b and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_NK)
        return linear(x, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_NK = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        x_MK, dy_MN = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        dx = dweight_NK = dbias_N = None
        if wanted[0]:
            dx = linear(dy, weight_NK.t())
        if wanted[1] and weight_NK.is_contiguous():
            dweight_NK = linear(dy_MN.t(), x_MK.t())
        elif wanted[1]:
            # The weight is another one transposed: lay its gradient out as that one lies.
            dweight_NK = linear(x_MK.t(), dy_MN.t()).t()
        if wanted[2]:
            dbias_N = dy_MN.sum(dim=0)
        return dx, dweight_NK, dbias_N


class FastLinear(nn.Linear):
    """torch's linear layer; in float32 on a CPU by oneDNN, forward and backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Give x Wᵀ + b."""
        return linear(x, self.weight, self.bias)


class FastConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, whose weight lies as [K, N]; in float32 on a CPU by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """Give x W + b."""
        if _is_slow(self.weight):
            return linear(x, self.weight.t(), self.bias)
        result: Tensor = super().forward(x)
        return result


class PackedLinear(nn.Module):
    """A linear layer that no longer changes, its weight in oneDNN's own layout."""

    weight: Tensor
    """[N, K]; opaque, but its shape and precision can be asked for."""

    def __init__(
        self,
        weight_NK: Tensor,
        bias_N: Tensor | None,
        activation: str = "none",
        algorithm: str = "",
    ) -> None:
        super().__init__()
        weight_NK = weight_NK.detach().contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_NK, EXPECTED_ROWS)
        self.bias = None if bias_N is None else bias_N.detach()
        self.activation, self.algorithm = activation, algorithm

    @classmethod
    def of(
        cls, layer: nn.Linear | Conv1D, activation: str = "none", algorithm: str = ""
    ) -> PackedLinear:
        """Pack a linear layer's weight; the layer is no longer needed.

        `activation` is one of oneDNN's, where SiLU is `swish`; `algorithm` is a GELU's.
        """
        weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
        return cls(weight, layer.bias, activation, algorithm)

    def forward(self, x: Tensor) -> Tensor:
        """Give activation(x Wᵀ + b)."""
        return _by_onednn(x, self.weight, self.bias, self.activation, self.algorithm)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Give (x Wᵀ + b) · other, elementwise."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, "mul"
        )
        return result

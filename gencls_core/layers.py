"""Layers that models are made of, written so that a CPU does less, or rounds less: RMSNorm, the
gated MLP and the embedding.

transformers writes each as a chain of operations, and autograd keeps what lies between them: of a
model with 135 million parameters a megabyte a token. Here a layer keeps what cannot be had again
cheaply, in the model's precision, and makes the rest anew in the backward pass.

Shapes: M tokens, D hidden size, F size of the gated layer, V vocabulary, U words that occur.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gencls_core.products import FastLinear, PackedLinear, linear

__all__ = ["GatedMLP", "PackedGatedMLP", "RMSNorm", "SummingEmbedding"]


class SummingEmbedding(nn.Embedding):
    """torch's embedding; in 16 bits on a CPU, a word's gradients are added up in float32.

    torch adds them one by one in the weight's precision, where from some hundred on, each is too
    small to change the sum.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Give the ids' vectors, [..., D]."""
        plain = self.max_norm is None and not self.sparse and not self.scale_grad_by_freq
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        short = self.weight.device.type == "cpu" and self.weight.dtype.itemsize == 2
        if not (plain and trained and short):
            return super().forward(ids)
        result: Tensor = _Embedding.apply(  # type: ignore[no-untyped-call]
            ids, self.weight, self.padding_idx
        )
        return result


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VD: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.padding = len(weight_VD), padding
        return nn.functional.embedding(ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        dy_MD = dy.reshape(-1, dy.shape[-1])
        words_U, number_M = ids.reshape(-1).unique(return_inverse=True)
        sums_UD = dy.new_zeros(len(words_U), dy.shape[-1], dtype=torch.float32)
        sums_UD.index_add_(0, number_M, dy_MD.float())
        if ctx.padding is not None:
            sums_UD[words_U == ctx.padding] = 0
        dweight_VD = dy.new_zeros(ctx.rows, dy.shape[-1])
        dweight_VD[words_U] = sums_UD.to(dy.dtype)
        return None, dweight_VD, None


class RMSNorm(nn.Module):
    """x · w / √(mean(x²) + ε), float32 in between (Zhang and Sennrich 2019)."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale vectors [..., D]."""
        if hidden.device.type != "cpu":
            shape = (hidden.shape[-1],)
            return nn.functional.rms_norm(hidden, shape, self.weight, self.variance_epsilon)
        result: Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
            hidden, self.weight, self.variance_epsilon
        )
        return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        # In float32 that is a product into new memory, in 16 bits a conversion and two in place.
        unit = x * scale if x.dtype == wide else x.to(wide).mul_(scale)
        return unit.mul_(weight_D.to(wide)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight_D, scale = ctx.saved_tensors
        wide_weight_D = weight_D.to(scale.dtype)
        wanted = ctx.needs_input_grad
        # With x̂ = x · scale:  dx = scale · (dy · w − x̂ · mean(dy · w · x̂))
        unit = x.to(scale.dtype) * scale
        products = dy * unit
        dweight_D = None
        if wanted[1]:
            dweight_D = products.reshape(-1, x.shape[-1]).sum(dim=0).to(weight_D.dtype)
        means = (products @ wide_weight_D).div_(x.shape[-1])[..., None]
        dx = (dy * wide_weight_D).addcmul_(unit, means, value=-1).mul_(scale)
        return dx.to(x.dtype), dweight_D, None


class GatedMLP(nn.Module):
    """W_down(silu(W_gate x) · W_up x) (Shazeer 2020, "GLU Variants Improve Transformer").

    Its layers keep their names, so that weights are saved and adapters are attached as before.
    """

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = mlp.gate_proj, mlp.up_proj
        self.down_proj, self.act_fn = mlp.down_proj, mlp.act_fn

    @property
    def layers(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Gate, up and down."""
        return self.gate_proj, self.up_proj, self.down_proj

    @property
    def is_plain(self) -> bool:
        """Whether no adapter is wrapped around a layer."""
        return all(type(layer) is FastLinear for layer in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Give the layer's output; [..., D] in and out."""
        result: Tensor
        if x.device.type == "cpu" and self.is_plain:
            weights = [layer.weight for layer in self.layers]
            result = _GatedMLP.apply(x, *weights)  # type: ignore[no-untyped-call]
        else:
            result = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return result


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        gate, up = linear(x, gate_FD), linear(x, up_FD)
        ctx.save_for_backward(x, gate, up, gate_FD, up_FD, down_DF)
        return linear(nn.functional.silu(gate).mul_(up), down_DF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, gate_FD, up_FD, down_DF = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        x_MD, dy_MD = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        gate_MF, up_MF = gate.view(len(x_MD), -1), up.view(len(x_MD), -1)
        activated_MF = nn.functional.silu(gate_MF)
        dproduct_MF = linear(dy_MD, down_DF.t())
        ddown_DF = linear(dy_MD.t(), (activated_MF * up_MF).t()) if wanted[3] else None
        dup_MF = activated_MF.mul_(dproduct_MF)
        dgate_MF = torch.ops.aten.silu_backward(dproduct_MF.mul_(up_MF), gate_MF)
        dx = None
        if wanted[0]:
            dx = linear(dgate_MF, gate_FD.t()).add_(linear(dup_MF, up_FD.t())).view(x.shape)
        return (
            dx,
            linear(dgate_MF.t(), x_MD.t()) if wanted[1] else None,
            linear(dup_MF.t(), x_MD.t()) if wanted[2] else None,
            ddown_DF,
        )


class PackedGatedMLP(nn.Module):
    """A gated MLP that no longer changes, in three products and nothing else."""

    def __init__(self, mlp: GatedMLP) -> None:
        super().__init__()
        gate, up, down = mlp.layers
        self.gate = PackedLinear.of(gate, "swish")
        self.up, self.down = PackedLinear.of(up), PackedLinear.of(down)

    def forward(self, x: Tensor) -> Tensor:
        """Give the layer's output; [..., D] in and out."""
        down: Tensor = self.down(self.up.times(x, self.gate(x)))
        return down

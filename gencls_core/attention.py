"""Causal self-attention on a CPU, in blocks of queries that stay in the cache.

torch's own CPU kernel multiplies 16-bit queries and keys at the speed of float32. Here each block
of queries meets the keys up to its end in one batched product, by the processor's 16-bit units:

    keys     0 … a   a … b
    queries    ┌───────┬─────┐
    a … b      │ whole │ ◣   │     softmax(scale · Q Kᵀ) V, masked within the last square alone
               └───────┴─────┘

Against `scaled_dot_product_attention` it takes a third of the time in 16 bits, two thirds to four
fifths in float32; forward and backward a tenth to a quarter, and two thirds to all of it. Nothing
is kept for the backward pass but queries, keys and values. On a GPU torch's kernel stays in use, as
wherever a mask, dropout or a bias is asked for.

Shapes: B texts, T tokens, H query heads, G key heads (each serves R = H / G query heads), D size of
a head, N = B · G, M rows of a block (its queries, R times), K keys up to its end, L keys in all
with the padding after them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["causal_attention", "use_causal_attention"]

NAME = "gencls_causal"
QUERIES_PER_BLOCK = {torch.float32: 64, torch.bfloat16: 128, torch.float16: 128}
LANES = 32
"""16-bit numbers in a register of AVX-512: a softmax of other lengths takes up to 5 × as long."""


def use_causal_attention(model: nn.Module) -> None:
    """Let a transformers model attend with `causal_attention` wherever that is what it asks for."""
    config: Any = model.config
    if config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)  # type: ignore[operator]


def causal_attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, scale: float) -> Tensor:
    """Give softmax(scale · q kᵀ + causal mask) v as [B, T, H, D], in the inputs' precision."""
    result: Tensor = _CausalAttention.apply(  # type: ignore[no-untyped-call]
        q_BHTD, k_BGTD, v_BGTD, scale
    )
    return result


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q_BHTD, k_BGTD, v_BGTD)
        ctx.scale = scale
        b, h, t, d = q_BHTD.shape
        out_BTHD = q_BHTD.new_empty(b, t, h, d)
        out_BHTD = out_BTHD.transpose(1, 2)
        k_NLD, v_NLD = _padded(k_BGTD), _padded(v_BGTD)
        for block in _blocks(q_BHTD):
            p_NMK = _probabilities(_queries(q_BHTD, k_BGTD.shape[1], block), k_NLD, block, scale)
            o_NMD = p_NMK @ v_NLD[:, : block.keys]
            out_BHTD[:, :, block.start : block.stop] = o_NMD.view(b, h, -1, d)
        return out_BTHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_BTHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BHTD, k_BGTD, v_BGTD = ctx.saved_tensors
        do_BHTD = do_BTHD.transpose(1, 2)
        b, g, t, d = k_BGTD.shape
        k_NLD, v_NLD = _padded(k_BGTD), _padded(v_BGTD)
        dq_BHTD = torch.empty_like(q_BHTD)
        # Summed over blocks, so in float32.
        dk_NLD, dv_NLD = torch.zeros(2, *k_NLD.shape, dtype=torch.float32)
        for block in _blocks(q_BHTD):
            keys = block.keys
            q_NMD, do_NMD = _queries(q_BHTD, g, block), _queries(do_BHTD, g, block)
            p_NMK = _probabilities(q_NMD, k_NLD, block, ctx.scale)
            dv_NLD[:, :keys] += p_NMK.mT @ do_NMD
            dp_NMK = do_NMD @ v_NLD[:, :keys].mT
            ds_NMK = torch._softmax_backward_data(dp_NMK, p_NMK, -1, p_NMK.dtype)
            dk_NLD[:, :keys] += ds_NMK.mT @ q_NMD
            dq_NMD = ds_NMK @ k_NLD[:, :keys]
            dq_BHTD[:, :, block.start : block.stop] = dq_NMD.view(b, q_BHTD.shape[1], -1, d)
        dq_BHTD *= ctx.scale
        dk_NLD *= ctx.scale
        return (
            dq_BHTD,
            dk_NLD[:, :t].view(b, g, t, d).to(k_BGTD.dtype),
            dv_NLD[:, :t].view(b, g, t, d).to(v_BGTD.dtype),
            None,
        )


@dataclass(frozen=True)
class _Block:
    """Queries [start, stop), and how many keys they meet: up to their end, in whole registers."""

    start: int
    stop: int

    @property
    def keys(self) -> int:
        return _whole_registers(self.stop)


def _whole_registers(count: int) -> int:
    return math.ceil(count / LANES) * LANES


def _blocks(q_BHTD: Tensor) -> Iterator[_Block]:
    tokens, size = q_BHTD.shape[2], QUERIES_PER_BLOCK[q_BHTD.dtype]
    for start in range(0, tokens, size):
        yield _Block(start, min(tokens, start + size))


def _queries(x_BHTD: Tensor, groups: int, block: _Block) -> Tensor:
    """Lay the query heads of each key head one below the other: [B · G, R · (stop − start), D]."""
    b, _, _, d = x_BHTD.shape
    return x_BHTD[:, :, block.start : block.stop].reshape(b * groups, -1, d)


def _padded(x_BGTD: Tensor) -> Tensor:
    """Give keys or values as [B · G, L, D], zeros after the last: what comes later is masked."""
    b, g, t, d = x_BGTD.shape
    padded_BGLD = x_BGTD.new_zeros(b, g, _whole_registers(t), d)
    padded_BGLD[:, :, :t] = x_BGTD
    return padded_BGLD.view(b * g, -1, d)


def _probabilities(q_NMD: Tensor, k_NLD: Tensor, block: _Block, scale: float) -> Tensor:
    """Give what a block of queries attends to, [B · G, R · (stop − start), keys]."""
    k_NKD = k_NLD[:, : block.keys]
    # beta 0: the first argument gives a shape and no value.
    s_NMK = torch.baddbmm(q_NMD.new_empty(1, 1, 1), q_NMD, k_NKD.mT, beta=0, alpha=scale)
    size = block.stop - block.start
    # Adding −∞ takes a quarter of the time of filling it in.
    later_SK = _later(size, block.keys - block.start, s_NMK.dtype)
    s_NMK.view(len(s_NMK), -1, size, block.keys)[..., block.start :].add_(later_SK)
    return torch.softmax(s_NMK, dim=-1)


@functools.lru_cache(maxsize=256)
def _later(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """Give −∞ for those keys that come after each query, 0 for the others.

    Every layer asks anew.
    """
    with torch.inference_mode(False):
        return torch.full((queries, keys), -math.inf, dtype=dtype).triu(1)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks; by torch's kernel where more than causality is asked for."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = (
        causal
        and attention_mask is None
        and not dropout
        and query.shape[2] == key.shape[2]
        and query.shape[3] == value.shape[3]
        and all(options.get(name) is None for name in ("position_bias", "softcap", "s_aux"))
    )
    if plain and query.device.type == "cpu" and query.dtype in QUERIES_PER_BLOCK:
        scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[3])
        return causal_attention(query, key, value, scale), None
    output, _ = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **options,
    )
    return output, None


AttentionInterface.register(NAME, _attend)
# No mask is made where causality is all there is; windows and the like get one, and torch's kernel.
AttentionMaskInterface.register(NAME, sdpa_mask)

"""Causal self-attention in 16 bits on a CPU, in blocks of queries that stay in the cache.

torch's own CPU kernel multiplies 16-bit queries and keys at the speed of float32. Here each block
of queries meets the keys up to its end in one batched product, by the processor's 16-bit units:

    keys     0 … a   a … b
    queries    ┌───────┬─────┐
    a … b      │ whole │ ◣   │     softmax(scale · Q Kᵀ) V, masked within the last square alone
               └───────┴─────┘

About half the time of `scaled_dot_product_attention`, forward and backward; nothing is kept for the
backward pass but queries, keys and values. In float32 and on a GPU torch's kernel is as good or
better and stays in use, as wherever a mask, dropout or a bias is asked for.

Shapes: B texts, T tokens, H query heads, G key heads (each serves R = H / G query heads), D size of
a head, N = B · G, M rows of a block (its queries, R times), K keys up to its end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["causal_attention", "use_causal_attention"]

NAME = "gencls_causal"
QUERIES_PER_BLOCK = 128


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
        for start, stop in _blocks(t):
            p_NMK = _probabilities(q_BHTD, k_BGTD, start, stop, scale)
            o_NMD = p_NMK @ _keys(v_BGTD, stop)
            out_BHTD[:, :, start:stop] = o_NMD.view(b, h, stop - start, d)
        return out_BTHD

    @staticmethod
    def backward(ctx: Any, do_BTHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BHTD, k_BGTD, v_BGTD = ctx.saved_tensors
        do_BHTD = do_BTHD.transpose(1, 2)
        b, g, t, d = k_BGTD.shape
        dq_BHTD = torch.empty_like(q_BHTD)
        # Summed over blocks, so in float32.
        dk_NTD, dv_NTD = torch.zeros(2, b * g, t, d, dtype=torch.float32)
        for start, stop in _blocks(t):
            p_NMK = _probabilities(q_BHTD, k_BGTD, start, stop, ctx.scale)
            q_NMD = _queries(q_BHTD, g, start, stop)
            do_NMD = _queries(do_BHTD, g, start, stop)
            dv_NTD[:, :stop] += p_NMK.mT @ do_NMD
            dp_NMK = do_NMD @ _keys(v_BGTD, stop).mT
            ds_NMK = torch._softmax_backward_data(dp_NMK, p_NMK, -1, p_NMK.dtype)
            dk_NTD[:, :stop] += ds_NMK.mT @ q_NMD
            dq_NMD = ds_NMK @ _keys(k_BGTD, stop)
            dq_BHTD[:, :, start:stop] = dq_NMD.view(b, -1, stop - start, d)
        dq_BHTD *= ctx.scale
        dk_NTD *= ctx.scale
        return (
            dq_BHTD,
            dk_NTD.view(b, g, t, d).to(k_BGTD.dtype),
            dv_NTD.view(b, g, t, d).to(v_BGTD.dtype),
            None,
        )


def _blocks(tokens: int) -> Iterator[tuple[int, int]]:
    for start in range(0, tokens, QUERIES_PER_BLOCK):
        yield start, min(tokens, start + QUERIES_PER_BLOCK)


def _queries(x_BHTD: Tensor, groups: int, start: int, stop: int) -> Tensor:
    """Lay the query heads of each key head one below the other: [B · G, R · (stop − start), D]."""
    b, _, _, d = x_BHTD.shape
    return x_BHTD[:, :, start:stop].reshape(b * groups, -1, d)


def _keys(x_BGTD: Tensor, stop: int) -> Tensor:
    b, g, _, d = x_BGTD.shape
    return x_BGTD[:, :, :stop].reshape(b * g, stop, d)


def _probabilities(q_BHTD: Tensor, k_BGTD: Tensor, start: int, stop: int, scale: float) -> Tensor:
    """Give what queries [start, stop) attend to, [B · G, R · (stop − start), stop]."""
    groups = k_BGTD.shape[1]
    q_NMD = _queries(q_BHTD, groups, start, stop)
    k_NKD = _keys(k_BGTD, stop)
    # beta 0: the first argument gives a shape and no value.
    s_NMK = torch.baddbmm(q_NMD.new_empty(1, 1, 1), q_NMD, k_NKD.mT, beta=0, alpha=scale)
    size = stop - start
    s_NMK.view(len(s_NMK), -1, size, stop)[..., start:].masked_fill_(_later(size), -math.inf)
    return torch.softmax(s_NMK, dim=-1)


@functools.lru_cache(maxsize=QUERIES_PER_BLOCK)
def _later(size: int) -> Tensor:
    """Give which of `size` keys come after each of as many queries: every layer asks anew."""
    with torch.inference_mode(False):
        return torch.ones(size, size, dtype=torch.bool).triu(1)


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
    if plain and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
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

"""The loss of training: −Σ w log P(target), and its gradients made beside the logits.

The gradient of a logit is w (softmax − one-hot), known as soon as the logit is. So logits are
formed once, for as many positions as KEPT_LOGITS_BYTES hold, and neither kept nor formed again for
the backward pass. The formula is that of `gencls_core.likelihood`.

Shapes: N scored positions, D hidden size, V vocabulary; R rows and C columns of a part, K blocks of
columns.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gencls_core.likelihood import (
    BLOCK_COLUMNS,
    LOGITS_PER_CHUNK,
    Head,
    LinearHead,
    parts_of,
    targets_in,
    token_log_probs,
)
from gencls_core.products import linear

__all__ = ["negative_log_likelihood"]

KEPT_LOGITS_BYTES = 2**27
"""Logits held at once on a CPU."""
_SCALES = {torch.float16: 16.0}
"""Gradients of logits are multiplied by it before they are rounded: 1 / V is next to nothing in
float16."""


def negative_log_likelihood(
    hidden_ND: Tensor,
    head: Head,
    targets_N: Tensor,
    vocabulary: int,
    weights_N: Tensor | None = None,
) -> Tensor:
    """Give −Σ w log P(target) in nats, float32, with gradients for hidden states and head.

    Of a matrix the gradients are made beside the logits, which are formed once and kept for
    KEPT_LOGITS_BYTES of rows at a time; on a GPU by liger-kernel where it is installed. Any other
    head has its logits formed again in the backward pass.

    Args:
        hidden_ND: hidden states.
        head: hidden states → logits.
        targets_N: the token at each position.
        vocabulary: V.
        weights_N: w, float32, which may be negative and gets no gradient; None: 1 throughout.
    """
    if not isinstance(head, LinearHead):
        log_probs_N = token_log_probs(hidden_ND, head, targets_N, vocabulary)
        return -(log_probs_N if weights_N is None else log_probs_N * weights_N).sum()
    # liger-kernel's weights are those of vocabulary entries.
    if hidden_ND.device.type == "cuda" and weights_N is None:
        fused_loss = _liger_loss()
        if fused_loss is not None:
            return _by_liger(fused_loss, hidden_ND, head, targets_N)
    result: Tensor = _NegativeLogLikelihood.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head.weight_VD, head.bias_V, targets_N, weights_N
    )
    return result


@functools.cache
def _liger_loss() -> Any:
    """Give liger-kernel's fused linear cross-entropy, None where it is not installed."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    # It makes the weight's gradient in dozens of chunks: their sum in 16 bits would lose digits.
    return LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)


def _by_liger(fused_loss: Any, hidden_ND: Tensor, head: LinearHead, targets_N: Tensor) -> Tensor:
    hidden_ND, weight_VD, bias_V = _in_autocast(hidden_ND, head.weight_VD, head.bias_V)
    loss: Tensor = fused_loss(weight_VD, hidden_ND, targets_N, bias_V)
    return loss.float()


def _in_autocast(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give the precision that autocast asks for: of a function of our own it knows nothing."""
    device = hidden_ND.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return hidden_ND, weight_VD, bias_V
    dtype = torch.get_autocast_dtype(device)
    return hidden_ND.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)


class _NegativeLogLikelihood(torch.autograd.Function):
    """∂(−w log P)/∂logits = w (softmax − one-hot); the other gradients are its products."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor | None,
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        hidden_ND, weight_VD, bias_V = _in_autocast(hidden_ND, weight_VD, bias_V)
        head = LinearHead(weight_VD, bias_V)
        chunks = _chunks_of_kept_logits(hidden_ND, weight_VD)
        gradients = _Gradients(
            hidden_ND=torch.zeros_like(hidden_ND, dtype=torch.float32) if wanted[0] else None,
            weight_VD=torch.zeros_like(weight_VD, dtype=_dtype_of_sum(weight_VD, len(chunks)))
            if wanted[1]
            else None,
            bias_V=torch.zeros_like(bias_V, dtype=torch.float32)
            if bias_V is not None and wanted[2]
            else None,
        )
        total = hidden_ND.new_zeros((), dtype=torch.float64)
        for rows in chunks:
            weights_R = None if weights_N is None else weights_N[rows]
            total += _sum_of_chunk(hidden_ND, head, targets_N[rows], weights_R, rows, gradients)
        ctx.gradients = (gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        ctx.scale = _SCALES.get(hidden_ND.dtype, 1.0)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second tensor as large as the head takes as long to get as to fill.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss has been differentiated already")
        factor = upstream / ctx.scale
        return *(None if g is None else g.mul_(factor) for g in gradients), None, None


def _dtype_of_sum(weight_VD: Tensor, chunks: int) -> torch.dtype:
    """Say in what a weight's gradient is summed: of several chunks, and scaled ones, in float32."""
    if chunks > 1 or weight_VD.dtype in _SCALES:
        return torch.float32
    return weight_VD.dtype


@dataclass(frozen=True)
class _Gradients:
    """Sums over chunks, times the precision's scale; None where none is wanted."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    def add(
        self, head: LinearHead, rows: slice, part: slice, hidden_RD: Tensor, of_logits_RC: Tensor
    ) -> None:
        if hidden_RD.dtype in _SCALES:
            of_logits_RC = of_logits_RC * _SCALES[hidden_RD.dtype]
        if self.bias_V is not None:
            self.bias_V[part] += of_logits_RC.sum(dim=0)
        of_logits_RC = of_logits_RC.to(hidden_RD.dtype)
        if self.hidden_ND is not None:
            self.hidden_ND[rows] += linear(of_logits_RC, head.weight_VD[part].t())
        if self.weight_VD is not None:
            self.weight_VD[part] += linear(of_logits_RC.t(), hidden_RD.t())


def _chunks_of_kept_logits(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    """Cut rows as evenly as can be: a small rest makes slow products."""
    logits = KEPT_LOGITS_BYTES // weight_VD.element_size()
    if hidden_ND.device.type != "cpu":
        # There all columns go through float32 at once, not block by block.
        logits = LOGITS_PER_CHUNK
    most = max(1, logits // len(weight_VD))
    count = math.ceil(len(hidden_ND) / most)
    ends = [len(hidden_ND) * number // count for number in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _sum_of_chunk(
    hidden_ND: Tensor,
    head: LinearHead,
    targets_R: Tensor,
    weights_R: Tensor | None,
    rows: slice,
    gradients: _Gradients,
) -> Tensor:
    """Give −Σ w log P(target) of some rows, float64, and add their gradients."""
    hidden_RD = hidden_ND[rows]
    vocabulary = len(head.weight_VD)
    parts = list(
        parts_of(vocabulary, BLOCK_COLUMNS if hidden_RD.device.type == "cpu" else vocabulary)
    )
    logits_RV = hidden_RD.new_empty(len(hidden_RD), vocabulary)
    peaks_RK, sums_RK = torch.empty(
        2, len(hidden_RD), len(parts), dtype=torch.float32, device=hidden_RD.device
    )
    for block, part in enumerate(parts):
        logits_RC = head.columns(hidden_RD, part)
        logits_RV[:, part] = logits_RC
        peaks_RK[:, block] = logits_RC.amax(dim=1)
        sums_RK[:, block] = -torch.log_softmax(logits_RC, dim=1, dtype=torch.float32).amax(dim=1)
    # Of a block that is −∞ throughout nothing is added.
    sums_RK.masked_fill_(peaks_RK == -math.inf, 0.0)
    # logsumexp = peak + rest, kept apart: where a token is all but certain, softmax − 1 is smaller
    # than what rounding takes from a logsumexp.
    peak_R = peaks_RK.amax(dim=1)
    rest_R = (peaks_RK - peak_R[:, None] + sums_RK).logsumexp(dim=1)
    target_logits_R = logits_RV.gather(1, targets_R[:, None]).squeeze(1).float()
    for part in parts:
        of_logits_RC = (logits_RV[:, part].float() - peak_R[:, None]).sub_(rest_R[:, None]).exp_()
        of_logits_RC[targets_in(targets_R, part)] -= 1
        if weights_R is not None:
            of_logits_RC *= weights_R[:, None]
        gradients.add(head, rows, part, hidden_RD, of_logits_RC)
    nll_R: Tensor = peak_R - target_logits_R + rest_R
    if weights_R is not None:
        nll_R = nll_R * weights_R
    return nll_R.sum(dtype=torch.float64)

"""The kernel: hidden states, LM head and targets to per-token log-probabilities.

    log P(t_i | t_<i) = logits_i[t_i] − logsumexp(logits_i),    logits_i = head(hidden_i)

A vocabulary has 50,000 entries, so the logits of one batch outweigh everything else in memory. They
are therefore formed in parts and dropped. Where gradients are needed, `negative_log_likelihood`
forms them once: the gradient of a logit is softmax − one-hot, known as soon as the logit is.

On a CPU a part is a square of rows × columns of the vocabulary that stays in the cache between the
product and its logsumexp: reading logits back from memory costs more than making them.

    logsumexp_i = logsumexp over blocks of (logsumexp of the block's columns)

Training and scoring both call this.

Shapes: N scored positions, D hidden size, V vocabulary, B texts, T padded length; R rows and C
columns of a part, K blocks of columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gencls_core.products import linear

if TYPE_CHECKING:
    from gencls_core.models import CausalLM
    from gencls_core.tokenization import TokenizedText, Window

__all__ = [
    "LOGITS_PER_CHUNK",
    "Head",
    "LinearHead",
    "negative_log_likelihood",
    "pad_windows",
    "token_log_probs",
    "window_states",
]

Head = Callable[[Tensor], Tensor]
"""hidden [N, D] → logits [N, V]."""

LOGITS_PER_CHUNK = 2**24
"""Logits held at once where a head is not a matrix, or on a GPU: 64 MiB in float32."""
BLOCK_ROWS, BLOCK_COLUMNS = 1024, 512
"""A part on a CPU: 2 MiB in float32."""
KEPT_LOGITS_BYTES = 2**27
"""Logits held at once where gradients are needed."""


@dataclass(frozen=True)
class LinearHead:
    """A head that is a matrix, so that its columns can be taken apart."""

    weight_VD: Tensor
    bias_V: Tensor | None = None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Give logits [N, V]."""
        return torch.nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V)

    def columns(self, hidden_ND: Tensor, part: slice) -> Tensor:
        """Give the logits of a part of the vocabulary."""
        bias = None if self.bias_V is None else self.bias_V[part]
        return linear(hidden_ND, self.weight_VD[part], bias)


def token_log_probs(hidden_ND: Tensor, head: Head, targets_N: Tensor, vocabulary: int) -> Tensor:
    """Give log P(target) at each position, in nats, float32, shape [N].

    The softmax is over the whole vocabulary and in float32 whatever the model's precision. At most
    LOGITS_PER_CHUNK logits exist at once, so memory does not grow with N × V.
    """
    gradients = torch.is_grad_enabled() and hidden_ND.requires_grad
    if isinstance(head, LinearHead) and not gradients and hidden_ND.device.type == "cpu":
        log_probs = [
            _blocked(hidden_RD, head, targets_R)
            for hidden_RD, targets_R in _split(hidden_ND, targets_N, BLOCK_ROWS)
        ]
    else:
        rows = max(1, LOGITS_PER_CHUNK // vocabulary)
        log_probs = [
            checkpoint(_whole, hidden_RD, head, targets_R, use_reentrant=False)
            if gradients
            else _whole(hidden_RD, head, targets_R)
            for hidden_RD, targets_R in _split(hidden_ND, targets_N, rows)
        ]
    return torch.cat(log_probs) if log_probs else hidden_ND.new_zeros(0, dtype=torch.float32)


def _split(hidden_ND: Tensor, targets_N: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    if len(hidden_ND):
        yield from zip(torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True)


def _whole(hidden_RD: Tensor, head: Head, targets_R: Tensor) -> Tensor:
    logits_RV = head(hidden_RD).float()
    return logits_RV.gather(1, targets_R[:, None]).squeeze(1) - logits_RV.logsumexp(dim=1)


def _blocked(hidden_RD: Tensor, head: LinearHead, targets_R: Tensor) -> Tensor:
    parts = list(_parts(len(head.weight_VD), BLOCK_COLUMNS))
    # Made first: between the large blocks, small tensors that stay would keep freed memory apart.
    target_logits_R = hidden_RD.new_empty(len(hidden_RD), dtype=torch.float32)
    sums_RK = hidden_RD.new_empty(len(hidden_RD), len(parts), dtype=torch.float32)
    for block, part in enumerate(parts):
        logits_RC = head.columns(hidden_RD, part)
        rows, columns = _targets_in(targets_R, part)
        target_logits_R[rows] = logits_RC[rows, columns].float()
        sums_RK[:, block] = _logsumexp(logits_RC)
    return target_logits_R - sums_RK.logsumexp(dim=1)


def _logsumexp(logits_RC: Tensor) -> Tensor:
    """Give logsumexp of each row, float32, by the one kernel that makes all of log-softmax."""
    log_probs_RC = torch.log_softmax(logits_RC, dim=1, dtype=torch.float32)
    sums_R = logits_RC[:, 0].float() - log_probs_RC[:, 0]
    # A first logit of −∞ says nothing of the sum.
    return sums_R if sums_R.isfinite().all() else logits_RC.float().logsumexp(dim=1)


def _parts(vocabulary: int, columns: int) -> Iterator[slice]:
    for start in range(0, vocabulary, columns):
        yield slice(start, min(vocabulary, start + columns))


def _targets_in(targets_R: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Give the rows whose target is in a part of the vocabulary, and its column there."""
    rows = ((targets_R >= part.start) & (targets_R < part.stop)).nonzero().squeeze(1)
    return rows, targets_R[rows] - part.start


def negative_log_likelihood(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, vocabulary: int
) -> Tensor:
    """Give −Σ log P(target) in nats, float32, with gradients for hidden states and head.

    Of a matrix the gradients are made beside the logits, which are formed once and kept for
    KEPT_LOGITS_BYTES of rows at a time; any other head has its logits formed again in the backward
    pass.
    """
    if not isinstance(head, LinearHead):
        return -token_log_probs(hidden_ND, head, targets_N, vocabulary).sum()
    result: Tensor = _NegativeLogLikelihood.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head.weight_VD, head.bias_V, targets_N
    )
    return result


class _NegativeLogLikelihood(torch.autograd.Function):
    """∂(−log P)/∂logits = softmax − one-hot; the other gradients are its products."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        device = hidden_ND.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
            bias_V = None if bias_V is None else bias_V.to(dtype)
        head = LinearHead(weight_VD, bias_V)
        chunks = _chunks_of_kept_logits(hidden_ND, weight_VD)
        gradients = _Gradients(
            hidden_ND=torch.zeros_like(hidden_ND, dtype=torch.float32) if wanted[0] else None,
            # A sum of several chunks is made in float32.
            weight_VD=torch.zeros_like(
                weight_VD, dtype=weight_VD.dtype if len(chunks) == 1 else torch.float32
            )
            if wanted[1]
            else None,
            bias_V=torch.zeros_like(bias_V, dtype=torch.float32)
            if bias_V is not None and wanted[2]
            else None,
        )
        total = hidden_ND.new_zeros((), dtype=torch.float64)
        for rows in chunks:
            total += _sum_of_chunk(hidden_ND, head, targets_N[rows], rows, gradients)
        ctx.gradients = (gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        return total.float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second tensor as large as the head takes as long to get as to fill.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss has been differentiated already")
        return *(None if g is None else g.mul_(upstream) for g in gradients), None


@dataclass(frozen=True)
class _Gradients:
    """Sums over chunks; None where none is wanted."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    def add(
        self, head: LinearHead, rows: slice, part: slice, hidden_RD: Tensor, of_logits_RC: Tensor
    ) -> None:
        if self.bias_V is not None:
            self.bias_V[part] += of_logits_RC.sum(dim=0)
        of_logits_RC = of_logits_RC.to(hidden_RD.dtype)
        if self.hidden_ND is not None:
            self.hidden_ND[rows] += linear(of_logits_RC, head.weight_VD[part].t())
        if self.weight_VD is not None:
            self.weight_VD[part] += linear(of_logits_RC.t(), hidden_RD.t())


def _chunks_of_kept_logits(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    """Cut rows as evenly as can be: a small rest makes slow products."""
    most = max(1, KEPT_LOGITS_BYTES // (len(weight_VD) * weight_VD.element_size()))
    count = math.ceil(len(hidden_ND) / most)
    ends = [len(hidden_ND) * number // count for number in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _sum_of_chunk(
    hidden_ND: Tensor, head: LinearHead, targets_R: Tensor, rows: slice, gradients: _Gradients
) -> Tensor:
    """Give −Σ log P(target) of some rows, float64, and add their gradients."""
    hidden_RD = hidden_ND[rows]
    vocabulary = len(head.weight_VD)
    parts = list(
        _parts(vocabulary, BLOCK_COLUMNS if hidden_RD.device.type == "cpu" else vocabulary)
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
    # logsumexp = peak + rest, kept apart: where a token is all but certain, softmax − 1 is smaller
    # than what rounding takes from a logsumexp.
    peak_R = peaks_RK.amax(dim=1)
    rest_R = (peaks_RK - peak_R[:, None] + sums_RK).logsumexp(dim=1)
    target_logits_R = logits_RV.gather(1, targets_R[:, None]).squeeze(1).float()
    for part in parts:
        of_logits_RC = (logits_RV[:, part].float() - peak_R[:, None]).sub_(rest_R[:, None]).exp_()
        of_logits_RC[_targets_in(targets_R, part)] -= 1
        gradients.add(head, rows, part, hidden_RD, of_logits_RC)
    nll_R: Tensor = peak_R - target_logits_R + rest_R
    return nll_R.sum(dtype=torch.float64)


def pad_windows(rows: list[Tensor], padding: int) -> Tensor:
    """Stack token rows of different lengths into [B, T], padded on the right.

    No attention mask goes with it: in a causal model nothing attends to what follows it, so right
    padding reaches only positions that are dropped. Which positions count is told by length, never
    by token id: GPT-2's padding token is its end-of-text token.
    """
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def window_states(
    lm: CausalLM,
    texts: Sequence[TokenizedText],
    windows: Sequence[Window],
) -> tuple[Tensor, Tensor]:
    """Give the hidden states [N, D] and targets [N] of some windows, one window after the other.

    The windows go through the model together, in one padded batch; positions that are not scored
    are left out.
    """
    rows = [torch.from_numpy(texts[w.text].read_by(w)).long() for w in windows]
    targets_N = torch.from_numpy(
        np.concatenate([texts[w.text].targets[w.score_from : w.stop] for w in windows])
    ).long()
    hidden_BTD = lm.hidden(pad_windows(rows, lm.eos_id).to(lm.device))
    hidden_ND = torch.cat(
        [hidden_BTD[i, w.context + w.score_from - w.start : len(w)] for i, w in enumerate(windows)]
    )
    return hidden_ND, targets_N.to(lm.device)

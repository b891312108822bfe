"""The kernel: hidden states, LM head and targets to per-token log-probabilities.

    log P(t_i | t_<i) = logits_i[t_i] − logsumexp(logits_i),    logits_i = head(hidden_i)

A vocabulary has 50,000 entries, so the logits of one batch outweigh everything else in memory. They
are therefore formed in parts and dropped.

On a CPU a part is a square of rows × columns of the vocabulary that stays in the cache between the
product and its logsumexp: reading logits back from memory costs more than making them.

    logsumexp_i = logsumexp over blocks of (logsumexp of the block's columns)

Training has the same formula with gradients in `gencls_core.training_loss`.

Shapes: N scored positions, D hidden size, V vocabulary; R rows and C columns of a part, K blocks of
columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gencls_core.products import linear

__all__ = [
    "BLOCK_COLUMNS",
    "LOGITS_PER_CHUNK",
    "Head",
    "LinearHead",
    "parts_of",
    "targets_in",
    "token_log_probs",
]

Head = Callable[[Tensor], Tensor]
"""hidden [N, D] → logits [N, V]."""

LOGITS_PER_CHUNK = 2**24
"""Logits held at once where a head is not a matrix, or on a GPU: 64 MiB in float32."""
BLOCK_ROWS, BLOCK_COLUMNS = 1024, 512
"""A part on a CPU: 2 MiB in float32."""
FAR_FROM_ZERO = 256.0
"""A float32 number beyond it is rounded by more than 1e-5."""


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
    parts = list(parts_of(len(head.weight_VD), BLOCK_COLUMNS))
    # Made first: between the large blocks, small tensors that stay would keep freed memory apart.
    # A target that is in no block leaves a score that is no number.
    target_logits_R = hidden_RD.new_full((len(hidden_RD),), math.nan, dtype=torch.float32)
    sums_RK = hidden_RD.new_empty(len(hidden_RD), len(parts), dtype=torch.float32)
    for block, part in enumerate(parts):
        logits_RC = head.columns(hidden_RD, part)
        rows, columns = targets_in(targets_R, part)
        target_logits_R[rows] = logits_RC[rows, columns].float()
        sums_RK[:, block] = _logsumexp(logits_RC)
    return target_logits_R - sums_RK.logsumexp(dim=1)


def _logsumexp(logits_RC: Tensor) -> Tensor:
    """Give logsumexp of each row, float32, by the one kernel that makes all of log-softmax."""
    log_probs_RC = torch.log_softmax(logits_RC, dim=1, dtype=torch.float32)
    first_R = logits_RC[:, 0].float()
    if not (first_R.abs() < FAR_FROM_ZERO).all():
        # The difference would lose the sum's digits, or all of it where a logit is −∞.
        return logits_RC.float().logsumexp(dim=1)
    return first_R - log_probs_RC[:, 0]


def parts_of(vocabulary: int, columns: int) -> Iterator[slice]:
    """Cut a vocabulary into parts of so many columns."""
    for start in range(0, vocabulary, columns):
        yield slice(start, min(vocabulary, start + columns))


def targets_in(targets_R: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Give the rows whose target is in a part of the vocabulary, and its column there.

    Looking for them makes the processor wait for a GPU, whose one part is the whole vocabulary.
    """
    if targets_R.device.type != "cpu":
        return torch.arange(len(targets_R), device=targets_R.device), targets_R
    rows = ((targets_R >= part.start) & (targets_R < part.stop)).nonzero().squeeze(1)
    return rows, targets_R[rows] - part.start

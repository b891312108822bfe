"""The kernel: hidden states, LM head and targets to per-token log-probabilities.

    log P(t_i | t_<i) = logits_i[t_i] − logsumexp(logits_i),    logits_i = head(hidden_i)

A vocabulary has 50,000 entries, so the logits of one batch outweigh everything else in memory. They
are therefore formed for a few positions at a time and dropped; with gradients, each chunk's logits
are formed again in the backward pass. Training and scoring both call this.

Shapes: N scored positions, D hidden size, V vocabulary, B texts, T padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from gencls_core.models import CausalLM
    from gencls_core.tokenization import TokenizedText, Window

__all__ = ["LOGITS_PER_CHUNK", "Head", "pad_windows", "token_log_probs", "window_log_probs"]

Head = Callable[[Tensor], Tensor]
"""hidden [N, D] → logits [N, V]."""

LOGITS_PER_CHUNK = 2**24
"""Logits held at once: 64 MiB in float32."""


def token_log_probs(hidden_ND: Tensor, head: Head, targets_N: Tensor, vocabulary: int) -> Tensor:
    """Give log P(target) at each position, in nats, float32, shape [N].

    The softmax is over the whole vocabulary and in float32 whatever the model's precision. At most
    LOGITS_PER_CHUNK logits exist at once, so memory does not grow with N × V.
    """
    rows = max(1, LOGITS_PER_CHUNK // vocabulary)
    chunks = []
    for hidden_CD, targets_C in zip(
        torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True
    ):
        if torch.is_grad_enabled() and hidden_CD.requires_grad:
            chunk: Tensor = checkpoint(_chunk, hidden_CD, head, targets_C, use_reentrant=False)
        else:
            chunk = _chunk(hidden_CD, head, targets_C)
        chunks.append(chunk)
    return torch.cat(chunks) if chunks else hidden_ND.new_zeros(0, dtype=torch.float32)


def _chunk(hidden_CD: Tensor, head: Head, targets_C: Tensor) -> Tensor:
    logits_CV = head(hidden_CD).float()
    target_logits_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
    return target_logits_C - logits_CV.logsumexp(dim=1)


def pad_windows(rows: list[Tensor], padding: int) -> Tensor:
    """Stack token rows of different lengths into [B, T], padded on the right.

    No attention mask goes with it: in a causal model nothing attends to what follows it, so right
    padding reaches only positions that are dropped. Which positions count is told by length, never
    by token id: GPT-2's padding token is its end-of-text token.
    """
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def window_log_probs(
    lm: CausalLM,
    texts: Sequence[TokenizedText],
    windows: Sequence[Window],
    device: torch.device,
) -> Tensor:
    """Give log P(target) of the scored targets of some windows, one window after the other.

    The windows go through the model together, in one padded batch. Nats, float32, shape [N].
    """
    rows = [torch.from_numpy(texts[w.text].read_by(w)).long() for w in windows]
    targets_N = torch.from_numpy(
        np.concatenate([texts[w.text].targets[w.score_from : w.stop] for w in windows])
    ).long()
    hidden_BTD = lm.hidden(pad_windows(rows, lm.eos_id).to(device))
    hidden_ND = torch.cat(
        [hidden_BTD[i, w.context + w.score_from - w.start : len(w)] for i, w in enumerate(windows)]
    )
    return token_log_probs(hidden_ND, lm.head, targets_N.to(device), lm.vocabulary)

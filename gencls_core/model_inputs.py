"""Windows of texts through a model: padded tokens in, hidden states and targets of scored positions
out.

Shapes: N scored positions, D hidden size, B texts, T padded length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gencls_core.models import CausalLM
    from gencls_core.tokenization import TokenizedText, Window

__all__ = ["pad_windows", "window_states"]


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
    hidden_BTD = lm.hidden(_sent(pad_windows(rows, lm.eos_id), lm.device))
    hidden_ND = torch.cat(
        [hidden_BTD[i, w.context + w.score_from - w.start : len(w)] for i, w in enumerate(windows)]
    )
    return hidden_ND, _sent(targets_N, lm.device)


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy numbers to a device; a GPU fetches them from pinned memory without anybody waiting."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)

"""How a masked language model is trained for what it will be asked: masks and loss.

BERT's recipe masks a fixed 15 % and averages over masked tokens. Scoring asks for every number of
masked tokens, from one to all, and weighs them as `gencls_core.masked_likelihood` says. Training
draws the same way, so that the expected loss is exactly minus the bound that is estimated there:

    E_k E_M [ n/k · Σ_{i∈M} −log P(x_i | x_¬M) ],   k uniform on 1 … n, M a random set of k tokens

Every masked token becomes the mask token; none is left as it is or replaced by another one.

Shapes: B rows, N masked positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gencls_core.masked_batches import MaskedBatch
from gencls_core.masked_draws import draw_masks
from gencls_core.masked_models import MaskedLM

__all__ = ["mask_for_training", "masked_loss"]


def mask_for_training(
    ids: Sequence[int] | NDArray[np.int32], *, seed: int, epoch: int
) -> NDArray[np.bool_]:
    """Choose the tokens to mask in one window of a text: [n], at least one.

    Depends on seed, epoch and the tokens alone: not on batch or order, and a resumed training
    masks as one that was not interrupted. A text that occurs twice is masked alike within an epoch.

    Raises:
        ValueError: when there is no token.
    """
    tokens = np.asarray(ids, dtype="<i4")
    name = hashlib.sha256(tokens.tobytes()).hexdigest()
    masks_1n = draw_masks(len(tokens), 1, seed=seed, key=("train", epoch, name))
    mask: NDArray[np.bool_] = masks_1n[0]
    return mask


def masked_loss(lm: MaskedLM, batch: MaskedBatch) -> tuple[Tensor, int]:
    """Give a batch's loss in nats, summed over its rows, and its number of own tokens.

    A masked token weighs n/k in a row of n tokens with k masked, so that over the masks of
    `mask_for_training`, the expected loss is minus the bound of the rows. Losses and counts of
    several batches add up; their ratio is in nats per token. Sums, not means: a mean per batch
    would weigh rows by what they happen to share a batch with.
    """
    log_probs_N = lm.log_probs(batch)
    masked_B = batch.masked_BT.sum(dim=1)
    weights_N = (batch.lengths_B / masked_B).repeat_interleave(masked_B)
    loss = -(weights_N.to(log_probs_N) * log_probs_N).sum(dtype=torch.float32)
    return loss, int(batch.lengths_B.sum())

"""A padded batch of rows with some tokens masked: what a masked model reads, what it has to guess.

Shapes: B rows, T padded length, N masked positions in row order, n own tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MaskedBatch", "MaskedRow"]

MaskedRow = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Own token ids [n], and which of them are masked [n]."""


@dataclass(frozen=True)
class MaskedBatch:
    """Rows of tokens, special ones around them, padded on the right."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    """1 on tokens, 0 on padding; told by length, never by token id."""
    masked_BT: Tensor
    targets_N: Tensor
    """The tokens under the masks, row by row."""
    lengths_B: Tensor
    """Own tokens per row."""

    @classmethod
    def of(
        cls,
        rows: Sequence[MaskedRow],
        *,
        prefix: Sequence[int],
        suffix: Sequence[int],
        mask_id: int,
        padding_id: int,
    ) -> MaskedBatch:
        """Mask rows of own tokens, put special tokens around them and pad them.

        Raises:
            ValueError: when there is no row, or a row without a masked token.
        """
        if not rows or not all(mask.any() for _, mask in rows):
            raise ValueError("every row of a batch needs a masked token")
        first, special = len(prefix), len(prefix) + len(suffix)
        shape = (len(rows), max(len(ids) for ids, _ in rows) + special)
        input_ids = np.full(shape, padding_id, dtype=np.int64)
        attention = np.zeros(shape, dtype=np.int64)
        masked = np.zeros(shape, dtype=np.bool_)
        for row, (ids, mask) in enumerate(rows):
            end = first + len(ids)
            input_ids[row, :first] = prefix
            input_ids[row, first:end] = np.where(mask, mask_id, ids)
            input_ids[row, end : end + len(suffix)] = suffix
            attention[row, : len(ids) + special] = 1
            masked[row, first:end] = mask
        return cls(
            input_ids_BT=torch.from_numpy(input_ids),
            attention_mask_BT=torch.from_numpy(attention),
            masked_BT=torch.from_numpy(masked),
            targets_N=torch.from_numpy(np.concatenate([ids[mask] for ids, mask in rows])).long(),
            lengths_B=torch.tensor([len(ids) for ids, _ in rows]),
        )

    def to(self, device: torch.device) -> MaskedBatch:
        """Give the same batch on a device."""
        return MaskedBatch(*(tensor.to(device) for tensor in vars(self).values()))

    def rows(self, start: int, stop: int) -> MaskedBatch:
        """Give some of the rows, padded as they are here."""
        counts_B = self.masked_BT.sum(dim=1)
        before, within = int(counts_B[:start].sum()), int(counts_B[start:stop].sum())
        return MaskedBatch(
            self.input_ids_BT[start:stop],
            self.attention_mask_BT[start:stop],
            self.masked_BT[start:stop],
            self.targets_N[before : before + within],
            self.lengths_B[start:stop],
        )

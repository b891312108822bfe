"""Random masks for the likelihood of a text under a masked model, and the error they leave.

A draw is a number k of masked tokens, uniform on 1 … n, and a random set of k of the n tokens.

Strata. The unit interval is cut into strata, two draws in each (three in the last one where the
number of draws is odd), and a draw u gives k = ⌊n·u⌋ + 1. Each stratum is as wide as its share of
the draws, so the plain mean over the draws stays unbiased, and most of what comes from having few
or many tokens masked drops out of its variance. Two independent draws per stratum still give an
unbiased estimate of the variance that is left: `standard_error`.

Pairing. Masks depend on the seed, the text (its id, its length, the window), and the number of
draws: not on model, batch or order. Every class model is asked the same questions, so what is
common to their answers drops out of their differences: `standard_error(values_a - values_b)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["MASK_FORMAT", "draw_masks", "standard_error"]

MASK_FORMAT = 1
"""Goes into every seed; to be raised with any change to what is drawn."""

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def standard_error(values_XS: FloatArray) -> FloatArray:
    """Give the standard error of the mean over the draws of `draw_masks`, in the values' unit.

    With m_g draws in stratum g, SE² = 1/S² Σ_g m_g · s_g², where s_g² is the variance within the
    stratum (divisor m_g − 1): an unbiased estimate of the mean's variance. It holds for whatever is
    linear in the values, such as the difference of two models that were asked with the same masks.

    Args:
        values_XS: one value per draw on the last axis, in the order of the draws.

    Raises:
        ValueError: with fewer than two draws.
    """
    draws = values_XS.shape[-1]
    if draws < 2:
        raise ValueError("a standard error needs at least two draws")
    groups = [values_XS[..., group] for group in _strata(draws)]
    variance_X = sum(part.shape[-1] * part.var(axis=-1, ddof=1) for part in groups)
    error_X: FloatArray = np.sqrt(variance_X) / draws
    return error_X


def draw_masks(length: int, draws: int, *, seed: int, key: Sequence[object]) -> BoolArray:
    """Draw sets of masked tokens: [draws, length], at least one token in each.

    Over all draws together, sizes are uniform on 1 … length; given its size, every set is equally
    likely. Draws are stratified over sizes; see above.

    Args:
        length: own tokens, at least 1.
        draws: how many sets.
        seed: of the run.
        key: what else the masks depend on: strings and integers.

    Raises:
        ValueError: for no token or no draw.
    """
    if length < 1 or draws < 1:
        raise ValueError(f"cannot draw {draws} masks over {length} tokens")
    # Raw bits of a fixed generator: numpy may change how it makes choices of them, and machines
    # with different versions of it may score parts of one run.
    name = hashlib.sha256(json.dumps([MASK_FORMAT, seed, length, draws, *key]).encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(name[:16], "little"))
    unit_S = (bits.random_raw(draws) >> np.uint64(11)) * 2.0**-53
    for group in _strata(draws):
        unit_S[group] = (group.start + unit_S[group] * (group.stop - group.start)) / draws
    sizes_S = np.minimum((unit_S * length).astype(np.int64), length - 1) + 1
    order_SL = bits.random_raw(draws * length).reshape(draws, length).argsort(axis=1, kind="stable")
    masks_SL = np.zeros((draws, length), dtype=np.bool_)
    np.put_along_axis(masks_SL, order_SL, np.arange(length) < sizes_S[:, None], axis=1)
    return masks_SL


def _strata(draws: int) -> list[slice]:
    """Group draws by two; where their number is odd, the last three belong together."""
    starts = range(0, max(draws - 1, 1), 2)
    return [slice(start, stop) for start, stop in pairwise([*starts, draws])]

"""Seeded choices among rows, over arrays only: no text is needed to split a dataset."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Codes",
    "Hashes",
    "Mask",
    "choose",
    "class_counts",
    "group_numbers",
    "part_for_test",
    "part_for_validation",
    "proportional",
]

Codes = NDArray[np.int32]
"""Class number of each row."""
Hashes = NDArray[np.uint64]
"""128-bit hash of each row, shape [rows, 2]."""
Mask = NDArray[np.bool_]


def class_counts(codes: Codes, mask: Mask, classes: int) -> list[int]:
    """Count the masked rows of each class."""
    return [int(n) for n in np.bincount(codes[mask], minlength=classes)]


def choose(codes: Codes, mask: Mask, wanted: list[int], seed: int, purpose: int) -> Mask:
    """Choose `wanted[c]` of the masked rows of each class c, at random without replacement.

    Each class draws from its own generator, so that one class's rows do not move another's choice.
    """
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(codes[rows], kind="stable")]
    ends = np.cumsum(np.bincount(codes[rows], minlength=len(wanted)))
    chosen = np.zeros(len(codes), dtype=np.bool_)
    for number, (end, count) in enumerate(zip(ends, wanted, strict=True)):
        start = 0 if number == 0 else ends[number - 1]
        generator = np.random.default_rng([seed, purpose, number])
        chosen[generator.permutation(rows[start:end])[:count]] = True
    return chosen


def part_for_validation(count: int, fraction: float) -> int:
    """Give how many of a class's rows go to validation: at least one of three or more."""
    return _part(count, fraction, minimum=3)


def part_for_test(count: int, fraction: float) -> int:
    """Give how many of a class's rows go to test: at least one of two or more."""
    return _part(count, fraction, minimum=2)


def _part(count: int, fraction: float, *, minimum: int) -> int:
    if count < minimum or fraction == 0:
        return 0
    return min(count - 1, max(1, math.floor(count * fraction + 0.5)))


def proportional(counts: list[int], total: int) -> list[int]:
    """Share `total` rows out in proportion to `counts`, at least one per class that has any.

    Largest remainders (Hamilton's method); `total` must not be less than the classes present.
    """
    rows = sum(counts)
    if rows <= total:
        return list(counts)
    exact = [count * total / rows for count in counts]
    shares = [
        max(math.floor(share), min(1, count)) for share, count in zip(exact, counts, strict=True)
    ]
    order = sorted(range(len(counts)), key=lambda k: (shares[k] - exact[k], k))
    while sum(shares) < total:
        for k in order:
            if sum(shares) < total and shares[k] < counts[k]:
                shares[k] += 1
    while sum(shares) > total:  # the guaranteed single rows came on top: take from the largest
        shares[max(range(len(shares)), key=lambda k: (shares[k], -k))] -= 1
    return shares


def group_numbers(hashes: Hashes) -> NDArray[np.int64]:
    """Number rows so that equal hashes, and only they, have equal numbers (from 0)."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    new = np.any(ordered[1:] != ordered[:-1], axis=1)
    groups = np.zeros(len(hashes), dtype=np.int64)
    groups[order[1:]] = np.cumsum(new)
    return groups

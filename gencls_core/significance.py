"""Is one system better than another: differences with intervals, and tests, of every pair.

Both systems of a pair read the same texts, and every test here is paired: texts that both get right
or both get wrong say nothing about which is better.

- The *difference* of accuracies gets a bootstrap interval and p-value over texts, and over seeds
  where a system has several runs (`intervals.py` says how).
- *McNemar's test* is exact, and about one prediction per text. With several runs it is of the first
  run of each system, the one named first before any result was seen. Counting the texts of all runs
  together would take one text for several independent ones, and a majority vote of the runs is
  another system than the one that is compared. It is a test of these two trained models: where
  seeds matter, two systems that are equally good differ by it far more often than 5 times in 100.
- *Holm's correction* keeps the probability of any false "better" among all pairs below 5 %.

Shapes: S runs (seeds), N labelled texts, R resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gencls_core.intervals import (
    Source,
    quantiles95,
    resampled_means,
    sources_of,
    with_seeds,
)
from gencls_core.outcomes import BoolArray
from gencls_core.score_matrix import FloatArray

__all__ = [
    "MID_P_BELOW",
    "PAIR_RESAMPLES",
    "McNemar",
    "PairComparison",
    "PairedDifference",
    "compare_pairs",
    "format_p",
    "holm",
    "mcnemar",
    "paired_difference",
]

PAIR_RESAMPLES = 10_000

MID_P_BELOW = 25
"""Texts on which two systems differ, below which `McNemar.p` is the mid-p value. So few make the
exact test's p-value far too high on average (Fagerland, Lydersen & Laake 2013); with more its
guarantee costs little."""


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of a minus accuracy of b, each a mean over its runs."""

    difference: float
    low: float
    """With `high`: 95 % bootstrap percentile interval."""
    high: float
    p: float
    """Two-sided bootstrap p-value, never 0: 2 / (resamples + 1) at least."""
    num_texts: int
    num_seeds: tuple[int, int]
    """Runs of a and of b. A system with one run adds no variance of seeds."""
    sources: tuple[Source, ...]
    paired_seeds: bool
    """Whether the runs of a and b were drawn together, as pairs with the same seed."""
    resamples: int


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of one run of each system."""

    only_a: int
    """Texts that a gets right and b wrong."""
    only_b: int
    exact_p: float
    mid_p: float
    method: Literal["exact", "mid-p"]
    """Which of the two `p` is."""
    num_texts: int

    @property
    def p(self) -> float:
        """The p-value to report."""
        return self.exact_p if self.method == "exact" else self.mid_p


@dataclass(frozen=True)
class PairComparison:
    """All that is said about one pair of systems."""

    a: str
    b: str
    difference: PairedDifference
    mcnemar: McNemar
    holm_p: float
    """The p-value that `holm_of` names, corrected over all pairs."""
    holm_of: Literal["mcnemar", "bootstrap"]


def compare_pairs(
    correct: Mapping[str, BoolArray],
    *,
    paired_seeds: bool = False,
    resamples: int = PAIR_RESAMPLES,
    seed: int = 0,
) -> tuple[PairComparison, ...]:
    """Compare every two systems, in the order in which they are given.

    Holm's correction takes McNemar's p-values when every system has one run, and the bootstrap's
    when some system has more, because McNemar's test does not know about seeds: the rule looks at
    the design, never at the results.

    Args:
        correct: for each system which predictions are right, [S, N]; S may differ.
        paired_seeds: see `paired_difference`; here it pairs systems with equally many runs.
        resamples: bootstrap resamples per pair.
        seed: of the resampling.
    """
    several = any(len(correct_SN) > 1 for correct_SN in correct.values())
    found = []
    for (a, correct_a_SN), (b, correct_b_SN) in itertools.combinations(correct.items(), 2):
        together = paired_seeds and len(correct_a_SN) == len(correct_b_SN)
        difference = paired_difference(
            correct_a_SN, correct_b_SN, paired_seeds=together, resamples=resamples, seed=seed
        )
        found.append((a, b, difference, mcnemar(correct_a_SN[0], correct_b_SN[0])))
    corrected = holm([pair[2].p if several else pair[3].p for pair in found])
    return tuple(
        PairComparison(*pair, holm_p=p, holm_of="bootstrap" if several else "mcnemar")
        for pair, p in zip(found, corrected, strict=True)
    )


def paired_difference(
    correct_a_SN: BoolArray,
    correct_b_SN: BoolArray,
    *,
    paired_seeds: bool = False,
    resamples: int = PAIR_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Give the difference of accuracies, a minus b, with its 95 % interval and p-value.

    A resample draws the same texts for both systems. Two texts are added to those drawn from, one
    that only a gets right and one that only b gets right (Bonett & Price 2012,
    "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", do so in a formula): otherwise systems that agree on
    ten texts would differ by 0 ± 0, and four texts that only a gets right would be significant,
    since no resample could show the opposite.

    The p-value inverts the interval: it is below 0.05 where the interval leaves out 0, and 1 where
    the difference is 0.

    Args:
        correct_a_SN: which predictions of a are right, a row per run.
        correct_b_SN: those of b, with the same texts in the same order.
        paired_seeds: whether run s of a and run s of b share what the seed decides, for example the
            train texts that were sampled. Not said, runs are drawn apart, which is right if they
            share nothing and careful if they do.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: when the arrays are not [S, N] with the same N above 0, when seeds cannot be
            paired, or when `resamples` is below 1.
    """
    _check_same_texts(correct_a_SN, correct_b_SN)
    runs_a, runs_b = len(correct_a_SN), len(correct_b_SN)
    if resamples < 1:
        raise ValueError("an interval needs at least one resample")
    if paired_seeds and runs_a != runs_b:
        raise ValueError(f"{runs_a} and {runs_b} runs cannot be paired")
    num_texts = correct_a_SN.shape[1]
    # Whole numbers: accuracy of a minus accuracy of b on one text, times S_a · S_b.
    scale = runs_a * runs_b
    values_N = correct_a_SN.sum(axis=0) * runs_b - correct_b_SN.sum(axis=0) * runs_a
    values_K, texts_K = np.unique(np.append(values_N, (scale, -scale)), return_counts=True)
    generator = np.random.default_rng(seed)
    texts_R = resampled_means(values_K, texts_K, resamples, generator) / scale
    a_S, b_S = correct_a_SN.mean(axis=1), correct_b_SN.mean(axis=1)
    runs = [a_S - b_S] if paired_seeds else [a_S, -b_S]
    draws_R = with_seeds(texts_R, runs, num_texts, generator)
    low, high = quantiles95(draws_R)
    total = int(values_N.sum())
    return PairedDifference(
        difference=total / (scale * num_texts),
        low=max(low, -1.0),
        high=min(high, 1.0),
        p=_two_sided_p(draws_R) if total else 1.0,
        num_texts=num_texts,
        num_seeds=(runs_a, runs_b),
        sources=sources_of(runs_a, runs_b),
        paired_seeds=paired_seeds,
        resamples=resamples,
    )


def _check_same_texts(correct_a_SN: BoolArray, correct_b_SN: BoolArray) -> None:
    shapes = correct_a_SN.shape, correct_b_SN.shape
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"{shapes[0]} and {shapes[1]} are not runs over the same texts")


def _two_sided_p(draws_R: FloatArray) -> float:
    """Twice the rarer side of 0, where the observed sample counts as one more draw, which keeps the
    p-value above 0 (Davison & Hinkley 1997, section 4.2)."""
    rarer = min(int((draws_R <= 0).sum()), int((draws_R >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(draws_R) + 1))


def mcnemar(correct_a_N: BoolArray, correct_b_N: BoolArray) -> McNemar:
    """Test whether two sets of predictions of the same texts are right equally often.

    Of the n texts that only one of them gets right, each has it with probability ½ if neither is
    better. The exact p-value is that of the binomial test; the mid-p value counts what was observed
    by half, which mends that the exact test rejects too rarely and in thousands of cases tried
    never rejected too often (Fagerland, Lydersen & Laake 2013,
    https://doi.org/10.1186/1471-2288-13-91). Without such a text both are 1.

    Raises:
        ValueError: when the two are not about the same texts, or there is none.
    """
    _check_same_texts(correct_a_N[None], correct_b_N[None])
    only_a = int((correct_a_N & ~correct_b_N).sum())
    only_b = int((correct_b_N & ~correct_a_N).sum())
    exact_p, mid_p = _mcnemar_p(only_a, only_b)
    method: Literal["exact", "mid-p"] = "mid-p" if only_a + only_b < MID_P_BELOW else "exact"
    return McNemar(only_a, only_b, exact_p, mid_p, method, len(correct_a_N))


def _mcnemar_p(only_a: int, only_b: int) -> tuple[float, float]:
    """Give the exact and the mid-p value."""
    from scipy.stats import binom  # a second to import

    count, fewer = only_a + only_b, min(only_a, only_b)
    if not count:
        return 1.0, 1.0
    at_most, observed = float(binom.cdf(fewer, count, 0.5)), float(binom.pmf(fewer, count, 0.5))
    if only_a == only_b:
        return 1.0, 1.0 - observed / 2
    return min(1.0, 2 * at_most), 2 * at_most - observed


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), in the order given.

    Reject where the result is below α, and the probability of any false rejection is at most α,
    however the tests depend on each other.

    Raises:
        ValueError: when one is not between 0 and 1.
    """
    for p in p_values:
        _check_p(p)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def format_p(p: float) -> str:
    """Write a p-value with two digits: `p = 0.032`; never as 0: `p < 0.0001`.

    More digits where two would move it over the 0.05 that readers look for. Raises ValueError when
    it is not between 0 and 1.
    """
    _check_p(p)
    if p < 0.0001:
        return "p < 0.0001"
    if p > 0.99:
        return "p = 1" if p == 1 else "p > 0.99"
    digits = 1 - math.floor(math.log10(p))
    while (float(f"{p:.{digits}f}") < 0.05) != (p < 0.05):
        digits += 1
    return f"p = {p:.{digits}f}"


def _check_p(p: float) -> None:
    if not 0.0 <= p <= 1.0:  # NaN is not, either
        raise ValueError(f"{p} is not a p-value")

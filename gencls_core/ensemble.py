"""An ensemble: what a second system says of a text, beside its likelihoods.

    P(c | x) = α₁ P₁(c | x) + α₂ P₂(c | x) + α₃ P₃(c | x)

    P₁ ∝ exp(s₁ · log P(x | c) + b₁_c) · P(c)                                    the likelihoods
    P₂ ∝ exp(w₂ · log Q(c | x)/q_c + b₂_c) · P(c)                                the other system
    P₃ ∝ exp(s₃ · log P(x | c) + w₃ · log Q(c | x)/q_c + b₃_c) · P(c)            both

Q is the posterior of a discriminative system, a bag of words or a fine-tune of the same base, q the
class frequencies that it learned from; the quotient is how much the text speaks for a class by Q
alone, so that the prior P(c) comes in once.

P₃ is a logarithmic opinion pool (Genest & Zidek 1986, "Combining Probability Distributions",
Statistical Science 1(1)): two that see different things add up what they know. But where one of
them is wrong and very sure, so is P₃. The mean of the three, a linear pool, is never surer than its
surest member and never loses more than log 1/α to its best. Each member is calibrated by
`calibration.py` on held-out texts, from which neither system learned; the shares are stacked (Yao,
Vehtari, Simpson & Gelman 2018, "Using Stacking to Average Bayesian Predictive Distributions",
Bayesian Analysis 13(3)): those with the most probable held-out labels, each text calibrated without
itself, under a Dirichlet prior of (2, 2, 2), as if each member had been the right one for one text
more. Estimated shares of few texts are worse than equal ones (Smith & Wallis 2009, "A Simple
Explanation of the Forecast Combination Puzzle", Oxford Bulletin of Economics and Statistics 71(3)):
hence the prior.

Nothing of it touches a likelihood: what is stored stays exact, and the plain figures stand beside.

Shapes: N examples, C classes, K = 3 members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc
from scipy.special import logsumexp

from gencls_core.calibration import Pool, fit_beside_alone, fit_calibration
from gencls_core.errors import StoreError, counted
from gencls_core.posterior import cross_fitted, folds_of, pooled
from gencls_core.score_matrix import FloatArray, IntArray, LikelihoodMatrix
from gencls_core.systems.names import BASELINE, NBSVM

__all__ = ["FINE_TUNE", "PoolFit", "companions_of", "fit_pool", "with_beside"]

FINE_TUNE = "discriminative"
LIGHT = (BASELINE, NBSVM)
"""Bags of words that `auto` tries."""
MOST_OF_PAIRS = 20_000
"""Train texts up to which `auto` tries NBSVM."""
MIN_TEXTS = 16
"""With fewer held-out texts `auto` tries none: one is as good as another by chance."""


def companions_of(
    wanted: str | None, *, baseline: bool, fine_tune: bool, held_out: int, texts: int = 0
) -> tuple[str, ...]:
    """Give the systems that may stand beside the likelihoods, one of them in the end.

    Args:
        wanted: the setting `ensemble`.
        baseline: the setting; `auto` tries no bag of words where it is off.
        fine_tune: whether `auto` tries the fine-tune, too: where a budget has time for it.
        held_out: texts by which it could be weighted; `auto` does without where they are few.
        texts: that are learned from; with many `auto` does without NBSVM, whose pairs of words
            would fill the memory.
    """
    if not held_out or wanted in (None, "none"):
        return ()
    if wanted != "auto":
        return (str(wanted),)
    if held_out < MIN_TEXTS:
        return ()
    light = LIGHT if texts <= MOST_OF_PAIRS else (BASELINE,)
    return (*(light if baseline else ()), *((FINE_TUNE,) if fine_tune else ()))


def with_beside(
    matrix: LikelihoodMatrix,
    other: LikelihoodMatrix,
    train_counts: Mapping[str, int],
    start: int = 0,
) -> LikelihoodMatrix:
    """Lay another system's posteriors beside likelihoods of the same texts.

    Args:
        matrix: the likelihoods.
        other: log-posteriors of at least the same texts, in whatever order.
        train_counts: texts of each class that the other system learned from.
        start: row of `other` where the texts of `matrix` begin, if the order is the same.

    Raises:
        StoreError: when `other` lacks a text.
    """
    rows: slice | np.ndarray = slice(start, start + len(matrix))
    if not other.example_ids[rows].equals(matrix.example_ids):
        found = pc.index_in(matrix.example_ids, value_set=other.example_ids)
        if found.null_count:
            raise StoreError(f"the second system did not score {counted(found.null_count, 'text')}")
        rows = found.to_numpy()
    counts_C = np.array([train_counts.get(name, 0) for name in matrix.classes], dtype=np.float64)
    columns = [other.classes.index(name) for name in matrix.classes]
    beside_NC = other.scores[rows][:, columns] - np.log(counts_C / counts_C.sum())
    return replace(matrix, beside=beside_NC)


_EXTRA = 1.0
"""Texts that each member is given in the fit of the shares."""
_STEPS = 2000
_CLOSE = 1e-10


@dataclass(frozen=True)
class PoolFit:
    """A pool, and what held-out texts say of it.

    No text had a part in its own calibration, nor in the shares that judge it. (It had one in the
    calibrations of other texts, which those shares rest on.)
    """

    pool: Pool
    alone: FloatArray
    """[N] −log P(label) in nats of each labelled text, by the likelihoods alone, calibrated."""
    together: FloatArray
    """[N] the same by the pool."""

    @property
    def nll_alone(self) -> float:
        """Mean of `alone`, nats."""
        return float(self.alone.mean())

    @property
    def nll_together(self) -> float:
        """Mean of `together`, nats."""
        return float(self.together.mean())

    @property
    def standard_error(self) -> float:
        """Of the difference of the two, text by text, nats."""
        return float((self.together - self.alone).std(ddof=1) / math.sqrt(len(self.alone)))


def fit_pool(matrix: LikelihoodMatrix, prior: Mapping[str, float]) -> PoolFit:
    """Calibrate likelihoods, the system beside and both together, and fit their shares.

    Args:
        matrix: scores of held-out texts that can be calibrated on, with another system's beside.
        prior: class → how often the classes occur among them, as in `fit_calibration`.
    """
    by_likelihood = replace(matrix, beside=None)
    alone, both = fit_calibration(by_likelihood, prior), fit_calibration(matrix, prior)
    assert alone is not None, "the texts can be calibrated on"
    assert both is not None, "the texts can be calibrated on"
    log_posterior_KNC = np.stack(
        [
            cross_fitted(by_likelihood),
            cross_fitted(matrix, fit=fit_beside_alone),
            cross_fitted(matrix),
        ]
    )
    codes_N = matrix.label_codes[matrix.label_codes >= 0]
    own_KN = log_posterior_KNC[:, np.arange(len(codes_N)), codes_N]
    together_N = np.empty(len(codes_N))
    for judged_N in folds_of(codes_N):
        shares = _shares(own_KN[:, ~judged_N])
        mixed_NC = pooled(log_posterior_KNC[:, judged_N], shares)
        together_N[judged_N] = -_of_label(mixed_NC, codes_N[judged_N])
    pool = Pool(
        alone=alone,
        other=fit_beside_alone(matrix, prior),
        both=both,
        shares=_shares(own_KN),
    )
    return PoolFit(pool, alone=-own_KN[0], together=together_N)


def _shares(own_KN: FloatArray) -> tuple[float, float, float]:
    """Give the most probable shares by expectation and maximisation; the maximum is the only one.

    Args:
        own_KN: log-probability of each text's label by each member, nats.
    """
    shares_K = np.full(len(own_KN), 1 / len(own_KN))
    for _ in range(_STEPS):
        joint_KN = own_KN + np.log(shares_K)[:, None]
        found_K = np.exp(joint_KN - logsumexp(joint_KN, axis=0)).sum(axis=1) + _EXTRA
        found_K /= found_K.sum()
        moved, shares_K = float(np.abs(found_K - shares_K).max()), found_K
        if moved < _CLOSE:
            break
    alone, other, both = shares_K.tolist()
    return alone, other, both


def _of_label(log_posterior_NC: FloatArray, codes_N: IntArray) -> FloatArray:
    own_N: FloatArray = log_posterior_NC[np.arange(len(codes_N)), codes_N]
    return own_N

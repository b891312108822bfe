"""Selective classification: which answers to give, which to refuse, and what that promises.

A text is answered where a confidence, any number that is larger the surer, lies above a threshold.

    coverage(t) = P(confidence > t)              risk(t) = P(wrong | confidence > t)

The threshold is always the j-th largest confidence of M held-out texts, so two things are known of
it, whatever the distribution (of a continuous confidence, and of texts drawn like those held out):

    coverage   is distributed as Beta(j, M + 1 - j), its mean is j / (M + 1) (Vovk 2012,
               "Conditional validity of inductive conformal predictors")
    risk       given the threshold, mistakes among the n held-out texts above it are Binomial(n,
               risk), so that Clopper & Pearson's (1934) upper bound holds

Looking for the largest coverage whose bound is low enough is looking several times. As Geifman &
El-Yaniv (2017, "Selective classification for deep neural networks") do, ⌈log₂ M⌉ thresholds share
the probability of error; they are at ranks that are fixed before any label is seen, where that
paper's search goes by the labels: so the plain union bound holds.

Shapes: N texts, M held-out ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaincinv, logsumexp

from gencls_core.score_matrix import BoolArray, FloatArray

__all__ = [
    "DELTA",
    "RiskPoint",
    "Selective",
    "Threshold",
    "area_above",
    "log_odds",
    "selective",
    "threshold_for_coverage",
    "threshold_for_error_rate",
]

DELTA = 0.05
"""Probability with which a promised error rate may be exceeded."""
CURVE_POINTS = 101


@dataclass(frozen=True)
class RiskPoint:
    """What comes out where only a part of the texts is answered."""

    coverage: float
    risk: float


@dataclass(frozen=True)
class Selective:
    """How well a confidence tells right answers from wrong ones, at every threshold."""

    curve: tuple[RiskPoint, ...]
    """By coverage, at most CURVE_POINTS points; the last answers every text."""
    aurc: float
    """Area under the curve of all thresholds: the mean risk over the coverages 1/N … N/N."""
    aurc_best: float
    """What it is where every right answer comes before every wrong one."""
    auroc: float | None
    """P(a right answer is surer than a wrong one); None where all are right, or all wrong."""


@dataclass(frozen=True)
class Threshold:
    """Answer where the confidence is above `value`, as chosen on held-out texts."""

    value: float
    """-inf where every text is answered."""
    held_out: int
    """Texts that it was chosen on."""
    answered: int
    """Those of them above it."""
    mistakes: int
    """Wrong answers among these."""
    coverage_ci95: tuple[float, float]
    """95 % interval of the coverage of further texts."""
    promised: bool | None = None
    """Whether the wanted error rate holds with a probability of 1 - DELTA; None of a coverage."""
    bound: float | None = None
    """Upper bound of the risk, with that probability; None of a coverage."""
    needed: int | None = None
    """Held-out texts that would be needed for it at the least, all of them answered rightly."""


def log_odds(log_posterior_NC: FloatArray) -> FloatArray:
    """Give the log-odds of each text's likeliest class against all others together, [N] nats.

    In the order of the highest probability, which is the best order where the posterior is right
    (Chow 1970, "On optimum recognition error and reject tradeoff"); but it goes on telling texts
    apart where probabilities are rounded to 1.
    """
    others_NC = np.array(log_posterior_NC, dtype=np.float64)
    rows_N, best_N = np.arange(len(others_NC)), others_NC.argmax(axis=1)
    best = others_NC[rows_N, best_N]
    others_NC[rows_N, best_N] = -np.inf
    found_N: FloatArray = best - logsumexp(others_NC, axis=1)
    return found_N


def selective(confidence_N: FloatArray, correct_N: BoolArray) -> Selective:
    """Measure a confidence on labelled texts.

    Texts of equal confidence share their mistakes: none of them comes first.

    Raises:
        ValueError: when there is no text.
    """
    count = len(confidence_N)
    if not count:
        raise ValueError("no text to measure a confidence on")
    risk_N = _wrong_above(confidence_N, correct_N) / np.arange(1, count + 1)
    wrong = int((~correct_N).sum())
    best_N = np.maximum(np.arange(1, count + 1) - (count - wrong), 0) / np.arange(1, count + 1)
    shown = np.unique(np.linspace(1, count, min(count, CURVE_POINTS)).round().astype(int))
    return Selective(
        curve=tuple(RiskPoint(int(k) / count, float(risk_N[k - 1])) for k in shown),
        aurc=float(risk_N.mean()),
        aurc_best=float(best_N.mean()),
        auroc=area_above(confidence_N[correct_N], confidence_N[~correct_N]),
    )


def _wrong_above(confidence_N: FloatArray, correct_N: BoolArray) -> FloatArray:
    """Give the wrong answers among the surest 1 … N texts, [N]."""
    order_N = np.argsort(-confidence_N, kind="stable")
    wrong_N = (~correct_N[order_N]).astype(np.float64)
    _, group_N, sizes = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    group_N = group_N[order_N]
    share = np.bincount(group_N, weights=wrong_N) / sizes
    return np.cumsum(share[group_N])


def area_above(higher: FloatArray, lower: FloatArray) -> float | None:
    """Give P(one of `higher` > one of `lower`), ties half: the AUROC; None where one is empty.

    Mann & Whitney's (1947) sum of ranks; scikit-learn has it, at 2 s to import.
    """
    if not len(higher) or not len(lower):
        return None
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    up_to = np.searchsorted(ordered, higher, side="right")
    return float((below + up_to).sum() / (2 * len(higher) * len(lower)))


def threshold_for_coverage(
    confidence_M: FloatArray, correct_M: BoolArray, coverage: float
) -> Threshold:
    """Choose the threshold whose expected coverage of further texts is nearest to the wanted one.

    Args:
        confidence_M: of held-out texts, at least one.
        correct_M: whether their answers are right; no part of the choice.
        coverage: above 0, up to 1: there every text is answered.
    """
    count = len(confidence_M)
    rank = round(coverage * (count + 1))
    if coverage < 1.0:
        rank = min(max(rank, 1), count)
    return _at(confidence_M, correct_M, rank)


def threshold_for_error_rate(
    confidence_M: FloatArray, correct_M: BoolArray, error_rate: float
) -> Threshold | None:
    """Choose the largest coverage at which an error rate can be promised.

    Where none can, it is the largest one at which the held-out texts themselves do not exceed it:
    a guess, whose `promised` is False.

    Args:
        confidence_M: of held-out texts, at least one.
        correct_M: whether their answers are right.
        error_rate: of the texts that are answered; above 0, below 1.

    Returns:
        None where there is not even a guess: the surest held-out answer is wrong.
    """
    count = len(confidence_M)
    looks = max(1, math.ceil(math.log2(count)))
    # A mistake-free text more needs no more looks, until their number doubles.
    needed = math.ceil(math.log(DELTA / looks) / math.log1p(-error_rate))
    tried = (round(look / looks * (count + 1)) for look in range(looks, 0, -1))
    for rank in tried:
        found = _at(confidence_M, correct_M, rank, looks)
        if found.bound is not None and found.bound <= error_rate:
            return replace(found, promised=True, needed=needed)
    order_M = np.argsort(-confidence_M, kind="stable")
    # Texts of equal confidence are answered together or not at all.
    last_M = np.append(np.diff(confidence_M[order_M]) < 0, True)
    wrong_M = np.cumsum(~correct_M[order_M])
    fine = np.flatnonzero(last_M & (wrong_M <= error_rate * np.arange(1, count + 1)))
    if not len(fine):
        return None
    guess = _at(confidence_M, correct_M, int(fine[-1]) + 2, looks)
    return replace(guess, promised=False, needed=needed)


def _at(
    confidence_M: FloatArray, correct_M: BoolArray, rank: int, looks: int | None = None
) -> Threshold:
    """Put the threshold at the rank-th largest confidence; beyond the last it is -inf."""
    count = len(confidence_M)
    value = -math.inf if rank > count else float(np.sort(confidence_M)[count - rank])
    above_M = confidence_M > value
    answered, mistakes = int(above_M.sum()), int((above_M & ~correct_M).sum())
    bound = None
    if looks is not None:
        bound = _upper_bound(mistakes, answered, DELTA / looks)
    return Threshold(
        value=value,
        held_out=count,
        answered=answered,
        mistakes=mistakes,
        coverage_ci95=(1.0, 1.0) if rank > count else _coverage_interval(rank, count),
        bound=bound,
    )


def _coverage_interval(rank: int, count: int) -> tuple[float, float]:
    low, high = betaincinv(rank, count + 1 - rank, [0.025, 0.975])
    return float(low), float(high)


def _upper_bound(mistakes: int, answered: int, delta: float) -> float:
    """Give the largest risk under which so few mistakes have a probability of `delta`."""
    if mistakes == answered:
        return 1.0
    return float(betaincinv(mistakes + 1, answered - mistakes, 1 - delta))

"""How good predictions are: accuracy, F1, likelihood and calibration, with what each is made of.

Shapes: N examples, C classes. Rows without a label are left out of every figure and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, ndtri

from gencls_core.score_matrix import FloatArray, IntArray, LikelihoodMatrix, blocks_of

__all__ = [
    "RELIABILITY_BINS",
    "ClassMetrics",
    "Metrics",
    "Perplexity",
    "ReliabilityBin",
    "bin_numbers",
    "evaluate",
    "perplexities",
    "reliability_bins",
    "wilson_interval",
]

RELIABILITY_BINS = 15


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class (0 where undefined), and its number of texts."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Texts whose predicted class has a probability in (lower, upper]."""

    lower: float
    upper: float
    count: int
    confidence: float | None
    """Mean probability of the predicted class; None where the bin is empty."""
    accuracy: float | None
    """Part of them that is right; None where the bin is empty."""


@dataclass(frozen=True)
class Metrics:
    """Figures of one set of predictions."""

    num_labelled: int
    num_unlabelled: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    """95 % Wilson score interval."""
    macro_f1: float
    weighted_f1: float
    per_class: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, ...], ...]
    """[C, C] texts: rows are true classes, columns predicted ones."""
    nll: float
    """Mean −log P(true class | text), in nats per text."""
    brier: float
    """Mean squared distance of the probabilities from the truth, summed over classes: 0 to 2."""
    ece: float
    """Expected calibration error, 0 to 1."""
    ece_by_chance: float
    """What it is in the mean for so many texts where each probability is right."""
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Perplexity:
    """Perplexity per token of one class's own texts."""

    own: float
    """Under their own class model."""
    others: float | None
    """Mean over the other class models."""
    texts: int
    tokens: int


def evaluate(
    log_posterior_NC: FloatArray, label_codes_N: IntArray, classes: Sequence[str]
) -> Metrics:
    """Compare posteriors with labels.

    Args:
        log_posterior_NC: log P(class | text) in nats.
        label_codes_N: number of the true class, -1 for unlabelled rows.
        classes: names of the C columns.

    Raises:
        ValueError: when no row has a label.
    """
    rows = _row_by_row(log_posterior_NC, label_codes_N)
    count = len(rows.correct_N)
    if not count:
        raise ValueError("no labelled row to evaluate")
    correct = int(rows.correct_N.sum())
    confusion_CC = rows.confusion_CC
    hits_C = confusion_CC.diagonal()
    support_C, predicted_C = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    precision_C, recall_C = _share(hits_C, predicted_C), _share(hits_C, support_C)
    f1_C = _share(2 * hits_C, predicted_C + support_C)
    bins = reliability_bins(rows.confidence_N, rows.correct_N)
    return Metrics(
        num_labelled=count,
        num_unlabelled=len(label_codes_N) - count,
        accuracy=correct / count,
        accuracy_ci95=wilson_interval(correct, count),
        macro_f1=float(f1_C.mean()),
        weighted_f1=float((f1_C * support_C).sum() / count),
        per_class={
            name: ClassMetrics(
                float(precision_C[c]), float(recall_C[c]), float(f1_C[c]), int(support_C[c])
            )
            for c, name in enumerate(classes)
        },
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion_CC),
        nll=-float(rows.own_N.mean()),
        brier=float(rows.squared_N.mean()),
        ece=_expected_calibration_error(bins),
        ece_by_chance=_calibration_error_by_chance(bins),
        reliability=bins,
    )


@dataclass(frozen=True)
class _Rows:
    """What each labelled row adds to the figures."""

    confusion_CC: IntArray
    """Pairs of true and predicted class."""
    correct_N: npt.NDArray[np.bool_]
    own_N: FloatArray
    """log P(true class)."""
    confidence_N: FloatArray
    """P(predicted class)."""
    squared_N: FloatArray
    """Squared distance of the probabilities from the truth."""


def _row_by_row(log_posterior_NC: FloatArray, label_codes_N: IntArray) -> _Rows:
    labelled_N = label_codes_N >= 0
    count, classes = int(labelled_N.sum()), log_posterior_NC.shape[1]
    confusion_CC = np.zeros((classes, classes), dtype=np.int64)
    correct_N = np.empty(count, dtype=np.bool_)
    own_N, confidence_N, squared_N = (np.empty(count) for _ in range(3))
    reached = 0
    for block in blocks_of(len(labelled_N)):
        log_p_BC = log_posterior_NC[block][labelled_N[block]]
        truth_B = label_codes_N[block][labelled_N[block]]
        rows_B = np.arange(len(truth_B))
        part = slice(reached, reached + len(truth_B))
        best_B = log_p_BC.argmax(axis=1)
        confusion_CC += _confusion(truth_B, best_B, classes)
        correct_N[part] = best_B == truth_B
        own_N[part] = log_p_BC[rows_B, truth_B]
        distance_BC = np.exp(log_p_BC)
        confidence_N[part] = np.minimum(distance_BC[rows_B, best_B], 1.0)
        distance_BC[rows_B, truth_B] -= 1.0
        squared_N[part] = (distance_BC**2).sum(axis=1)
        reached = part.stop
    return _Rows(confusion_CC, correct_N, own_N, confidence_N, squared_N)


def _confusion(truth_N: IntArray, predicted_N: IntArray, classes: int) -> IntArray:
    """Count pairs: [C, C], rows are true classes. scikit-learn has it, at 2 s to import."""
    cells: IntArray = np.bincount(truth_N * classes + predicted_N, minlength=classes * classes)
    return cells.reshape(classes, classes)


def _share(parts_C: IntArray, wholes_C: IntArray) -> FloatArray:
    """Divide; 0 where there is nothing to divide by."""
    return np.where(wholes_C > 0, parts_C / np.maximum(wholes_C, 1), 0.0)


def _expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    gaps = [
        abs(found.confidence - found.accuracy) * found.count
        for found in bins
        if found.confidence is not None and found.accuracy is not None
    ]
    return math.fsum(gaps) / sum(found.count for found in bins)


def _calibration_error_by_chance(bins: Sequence[ReliabilityBin]) -> float:
    """Give the mean error of labels drawn from the probabilities themselves.

    Of few texts it is well above 0 (Vaicenavicius et al. 2019, Evaluating model calibration in
    classification, draw them). Here each text of a bin has the bin's mean probability p, which
    makes |right answers − n p| that of a binomial variable: 2 ν (1 − p) P(X = ν) in the mean, with
    ν = ⌊n p⌋ + 1 (de Moivre 1730).
    """
    distances = []
    for found in bins:
        n, p = found.count, found.confidence
        if p is None or p >= 1.0:
            continue
        above = min(math.floor(n * p) + 1, n)
        log_choices = -math.log(n + 1) - float(betaln(n - above + 1, above + 1))
        log_mass = log_choices + above * math.log(p) + (n - above) * math.log1p(-p)
        distances.append(2 * above * (1 - p) * math.exp(log_mass))
    return math.fsum(distances) / sum(found.count for found in bins)


def wilson_interval(correct: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Give the Wilson score interval of a proportion (Wilson 1927); inside [0, 1] by construction.

    Unlike the normal interval it is not empty at 0 or 100 % correct. Raises ValueError for count 0.
    """
    if count < 1:
        raise ValueError("an interval needs at least one observation")
    z = float(ndtri(0.5 + level / 2))
    share = correct / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and at `count` the bound is exactly 0 or 1; rounding must not leave it a hair inside.
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == count else min(1.0, middle + half)
    return low, high


def bin_numbers(confidence: FloatArray, bins: int = RELIABILITY_BINS) -> IntArray:
    """Give the number of each confidence's bin, an array of any shape; upper edges are included."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.searchsorted(edges[1:-1], confidence, side="left")


def reliability_bins(
    confidence_N: FloatArray, correct_N: npt.NDArray[np.bool_], bins: int = RELIABILITY_BINS
) -> tuple[ReliabilityBin, ...]:
    """Sort predictions into equal-width bins ((i)/bins, (i+1)/bins] of their probability.

    The expected calibration error is the mean of |confidence − accuracy| over the bins, weighted by
    their counts (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    index_N = bin_numbers(confidence_N, bins)
    counts = np.bincount(index_N, minlength=bins)
    confidences = np.bincount(index_N, weights=confidence_N, minlength=bins)
    rights = np.bincount(index_N[correct_N], minlength=bins)
    return tuple(
        ReliabilityBin(
            lower=float(edges[i]),
            upper=float(edges[i + 1]),
            count=int(counts[i]),
            confidence=float(confidences[i] / counts[i]) if counts[i] else None,
            accuracy=float(rights[i] / counts[i]) if counts[i] else None,
        )
        for i in range(bins)
    )


def perplexities(matrix: LikelihoodMatrix) -> dict[str, Perplexity | None]:
    """Give each class's perplexity, exp(−Σ scores / Σ tokens), over the texts labelled with it.

    None for a class without texts or tokens, and for scores that are no likelihoods.
    """
    found: dict[str, Perplexity | None] = dict.fromkeys(matrix.classes)
    if not matrix.is_likelihood:
        return found
    for c, name in enumerate(matrix.classes):
        rows_N = matrix.label_codes == c
        tokens = int(matrix.num_tokens[rows_N].sum())
        if not tokens:
            continue
        # Beyond e^700 a float overflows: such a model is broken, but JSON has no infinity.
        nll_C = np.minimum(-matrix.scores[rows_N].sum(axis=0) / tokens, 700.0)
        perplexity_C = np.exp(nll_C)
        others = np.delete(perplexity_C, c)
        found[name] = Perplexity(
            own=float(perplexity_C[c]),
            others=float(others.mean()) if len(others) else None,
            texts=int(rows_N.sum()),
            tokens=tokens,
        )
    return found

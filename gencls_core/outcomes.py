"""What the runs of a system said about the labelled texts, and the sums that figures are made of.

Macro-F1, NLL and ECE are functions of sums over texts. What a text adds to each sum is laid out
once, sparse; a product with weights then gives the sums of the texts as they are (weights 1) or of
any number of resamples (how often each text was drawn).

Shapes: S runs (seeds), N labelled texts, C classes, B bins, R resamples, K sums, P sums of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gencls_core.metrics import RELIABILITY_BINS, bin_numbers
from gencls_core.score_matrix import FloatArray, IntArray, blocks_of

__all__ = ["BoolArray", "Outcomes", "Sums", "ece_if_calibrated", "sums_of_texts"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """What the runs of one system said about the labelled texts: all that figures need."""

    truth_N: IntArray
    predicted_SN: IntArray
    own_SN: FloatArray
    """log P(true class | text) in nats."""
    confidence_SN: FloatArray
    """P(predicted class | text)."""
    num_classes: int

    @classmethod
    def of(cls, log_posteriors: Sequence[FloatArray], label_codes_N: IntArray) -> Outcomes:
        """Take it from the posteriors of every run, in the order of the seeds.

        Args:
            log_posteriors: for each run log P(class | text) in nats, [N, C].
            label_codes_N: number of the true class; rows with -1 are left out.

        Raises:
            ValueError: when there is no run or no labelled row, when runs differ in shape, or when
                a log-probability of a labelled text is NaN or that of its class infinite.
        """
        if not log_posteriors:
            raise ValueError("no run to take outcomes from")
        shape = log_posteriors[0].shape
        if any(run.shape != shape for run in log_posteriors) or len(label_codes_N) != shape[0]:
            shapes = [run.shape for run in log_posteriors]
            raise ValueError(f"runs of {shapes} and {len(label_codes_N)} labels do not match")
        rows_N = np.flatnonzero(label_codes_N >= 0)
        if not len(rows_N):
            raise ValueError("no labelled row to take outcomes from")
        truth_N = label_codes_N[rows_N].astype(np.int64)
        size = (len(log_posteriors), len(rows_N))
        predicted_SN = np.empty(size, dtype=np.int64)
        own_SN, confidence_SN = np.empty(size), np.empty(size)
        for s, log_posterior_NC in enumerate(log_posteriors):
            for block in blocks_of(len(rows_N)):
                log_p_BC = log_posterior_NC[rows_N[block]]
                predicted_SN[s, block] = log_p_BC.argmax(axis=1)
                own_SN[s, block] = log_p_BC[np.arange(len(log_p_BC)), truth_N[block]]
                confidence_SN[s, block] = np.minimum(np.exp(log_p_BC.max(axis=1)), 1.0)
        if not (np.isfinite(own_SN).all() and np.isfinite(confidence_SN).all()):
            raise ValueError("a log-probability of a labelled text is not finite")
        return cls(truth_N, predicted_SN, own_SN, confidence_SN, shape[1])

    @property
    def correct_SN(self) -> BoolArray:
        """Which predictions are right."""
        right: BoolArray = self.predicted_SN == self.truth_N
        return right


def sums_of_texts(outcomes: Outcomes) -> Any:
    """Lay out what a text adds to the sums of which the figures are made: sparse [K, N].

    Per run C rows of hits, C of predictions, one per bin of confidence − correctness, one of
    −log P(true class); below them C rows of texts per true class.
    """
    from scipy.sparse import csr_array

    num_seeds, num_texts = outcomes.predicted_SN.shape
    classes, correct_SN = outcomes.num_classes, outcomes.correct_SN
    bins_SN = bin_numbers(outcomes.confidence_SN)
    per_run = 2 * classes + RELIABILITY_BINS + 1
    starts_S1 = np.arange(num_seeds)[:, None] * per_run
    cells = [
        (starts_S1 + outcomes.truth_N, correct_SN),
        (starts_S1 + classes + outcomes.predicted_SN, np.ones_like(correct_SN)),
        (starts_S1 + 2 * classes + bins_SN, outcomes.confidence_SN - correct_SN),
        (starts_S1 + np.full_like(bins_SN, per_run - 1), -outcomes.own_SN),
        (num_seeds * per_run + outcomes.truth_N[None], np.ones((1, num_texts))),
    ]
    rows = np.concatenate([row.ravel() for row, _ in cells])
    values = np.concatenate([value.ravel() for _, value in cells], dtype=np.float64)
    columns = np.tile(np.arange(num_texts), len(rows) // num_texts)
    return csr_array((values, (rows, columns)), shape=(num_seeds * per_run + classes, num_texts))


@dataclass(frozen=True)
class Sums:
    """Sums over the texts of each of R resamples."""

    hits_SCR: FloatArray
    texts_SCR: FloatArray
    """Texts of the class plus predictions of it."""
    gaps_SBR: FloatArray
    """Confidence − correctness in each bin."""
    nll_SR: FloatArray
    num_texts: int

    @classmethod
    def of(cls, sums_KR: FloatArray, outcomes: Outcomes) -> Sums:
        classes, runs = outcomes.num_classes, len(outcomes.predicted_SN)
        support_CR = sums_KR[-classes:]
        sums_SPR = sums_KR[:-classes].reshape(runs, -1, sums_KR.shape[1])
        return cls(
            hits_SCR=sums_SPR[:, :classes],
            texts_SCR=sums_SPR[:, classes : 2 * classes] + support_CR,
            gaps_SBR=sums_SPR[:, 2 * classes : -1],
            nll_SR=sums_SPR[:, -1],
            num_texts=len(outcomes.truth_N),
        )

    def figures(self, absent_S: IntArray) -> FloatArray:
        """Give macro-F1, NLL and ECE: [3, S, R].

        `absent_S` classes without any text or prediction count with an F1 of 0, as in
        metrics.evaluate; others that a resample misses are left out of its mean.
        """
        defined_SCR = self.texts_SCR > 0
        f1_SCR = 2 * self.hits_SCR / np.maximum(self.texts_SCR, 1)
        f1_SR = f1_SCR.sum(axis=1) / (defined_SCR.sum(axis=1) + absent_S[:, None])
        ece_SR = np.abs(self.gaps_SBR).sum(axis=1) / self.num_texts
        figures: FloatArray = np.stack([f1_SR, self.nll_SR / self.num_texts, ece_SR])
        return figures


def ece_if_calibrated(
    outcomes: Outcomes, resamples: int, generator: np.random.Generator
) -> FloatArray:
    """Draw the ECE that noise alone would give if every confidence were true: [R].

    A prediction of confidence p is then right with probability p, so the gap of a bin is normal
    with variance Σ p · (1 − p) (consistency resampling, Bröcker & Smith 2007,
    https://doi.org/10.1175/WAF993.1). All runs get the same noise: they read the same texts.
    """
    variance_SN = outcomes.confidence_SN * (1 - outcomes.confidence_SN)
    bins_SN = bin_numbers(outcomes.confidence_SN)
    deviation_SB = np.sqrt(
        [
            np.bincount(bins_N, weights=variance_N, minlength=RELIABILITY_BINS)
            for bins_N, variance_N in zip(bins_SN, variance_SN, strict=True)
        ]
    )
    noise_RB = np.abs(generator.standard_normal((resamples, RELIABILITY_BINS)))
    ece_R: FloatArray = noise_RB @ deviation_SB.mean(axis=0) / len(outcomes.truth_N)
    return ece_R

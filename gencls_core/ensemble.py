"""An ensemble: what a second system says of a text, beside its likelihoods.

    P(c | x) ∝ exp(s · log P(x | c) + w · (log Q(c | x) − log q_c) + b_c) · P(c)

Q is the posterior of a discriminative system, a bag of words or a fine-tune of the same base, q the
class frequencies that it learned from; the quotient is how much the text speaks for a class by Q
alone, so that the prior P(c) comes in once. It is a logarithmic opinion pool (Genest & Zidek 1986,
"Combining Probability Distributions", Statistical Science 1(1)) with learned weights: the two see
different things (word order and knowledge of the language; rare words wherever they stand), or make
different mistakes, and where one knows nothing its term is nearly the same for all classes.

s, w and b are fitted by `calibration.py` on held-out texts, from which neither system learned.
Neither touches a likelihood: what is stored stays exact, and the plain figures stand beside.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from gencls_core.config_training import MIN_HELD_OUT
from gencls_core.errors import StoreError, counted
from gencls_core.posterior import cross_fitted
from gencls_core.score_matrix import FloatArray, LikelihoodMatrix
from gencls_core.selection import judge
from gencls_core.systems.names import BASELINE

__all__ = ["FINE_TUNE", "EnsembleTrial", "companions_of", "judge_ensemble", "with_beside"]

FINE_TUNE = "discriminative"


def companions_of(
    wanted: str | None, *, baseline: bool, fine_tune: bool, held_out: int
) -> tuple[str, ...]:
    """Give the systems that may stand beside the likelihoods, one of them in the end.

    Args:
        wanted: the setting `ensemble`.
        baseline: the setting; `auto` tries the baseline, and does without where it is off.
        fine_tune: whether `auto` tries the fine-tune, too: where a budget has time for it.
        held_out: texts by which it could be weighted; `auto` does without where they are few.
    """
    if not held_out or wanted in (None, "none"):
        return ()
    if wanted != "auto":
        return (str(wanted),)
    if held_out < MIN_HELD_OUT:
        return ()
    return (*([BASELINE] if baseline else []), *([FINE_TUNE] if fine_tune else []))


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
            raise StoreError(f"it did not score {counted(found.null_count, 'text')}")
        rows = found.to_numpy()
    counts_C = np.array([train_counts.get(name, 0) for name in matrix.classes], dtype=np.float64)
    columns = [other.classes.index(name) for name in matrix.classes]
    beside_NC = other.scores[rows][:, columns] - np.log(counts_C / counts_C.sum())
    return replace(matrix, beside=beside_NC)


_NOTHING = 1e-4
"""Nats per text. Two fits of the same weight, 0, end some 1e-9 apart."""


@dataclass(frozen=True)
class EnsembleTrial:
    """Whether a second system helps, by held-out texts that had no part in their own posterior."""

    held_out: int
    """Labelled texts."""
    nll_alone: float
    """Mean −log P(label) in nats, calibrated without the text itself."""
    nll_together: float
    standard_error: float
    """Of the difference, text by text."""

    @property
    def helps(self) -> bool:
        """Whether held-out texts are better predicted with it, by more than fits are exact."""
        return self.nll_alone - self.nll_together > _NOTHING


def judge_ensemble(matrix: LikelihoodMatrix) -> EnsembleTrial:
    """Compare calibrated posteriors with and without the system beside.

    Args:
        matrix: scores of held-out texts, at least two of them labelled, with another system's
            beside.
    """
    codes_N = matrix.label_codes[matrix.label_codes >= 0]
    alone_N, together_N = (
        _nll(cross_fitted(found), codes_N) for found in (replace(matrix, beside=None), matrix)
    )
    verdict = judge([alone_N, together_N])
    nll_alone, nll_together = verdict.means
    # The better one's error is that of no difference, 0.
    return EnsembleTrial(len(codes_N), nll_alone, nll_together, max(verdict.errors))


def _nll(log_posterior_NC: FloatArray, codes_N: np.ndarray) -> FloatArray:
    nll_N: FloatArray = -log_posterior_NC[np.arange(len(codes_N)), codes_N]
    return nll_N

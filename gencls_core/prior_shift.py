"""The class prior of unlabelled texts, from their likelihoods alone.

Texts to be labelled may hold the classes in other proportions than the train texts. Their
likelihoods say in which: the prior π that makes the texts most probable,

    maximise Σ_n log Σ_c π_c exp l_c(x_n)  +  Σ_c log π_c

by EM (Saerens, Latinne & Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori
probabilities"). l is the log-likelihood, calibrated where there is a calibration: one that is too
sure of itself would count its own decisions. The second sum adds one text to each class, as the
prior of the train texts has it, so that none becomes impossible. An ensemble averages posteriors;
the mean of its members' log-likelihoods is maximised then, with its shares.

No label is looked at. It assumes that texts of a class are as before, only more or less frequent.

Shapes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gencls_core.calibration import Calibration, Pool
from gencls_core.errors import UsageError
from gencls_core.posterior import UNLABELLED, evidence
from gencls_core.score_matrix import FloatArray, LikelihoodMatrix

__all__ = ["PriorEstimate", "estimate_prior"]

_TOLERANCE = 1e-9
_MOST_ROUNDS = 5000


@dataclass(frozen=True)
class PriorEstimate:
    """A prior that was estimated."""

    prior: dict[str, float]
    standard_error: dict[str, float]
    """By the sandwich formula or the curvature, whichever is larger; that the calibration was
    fitted, too, is not in it."""
    num_texts: int
    converged: bool = True
    """Whether EM came to rest within _MOST_ROUNDS rounds."""


def estimate_prior(
    matrix: LikelihoodMatrix, calibration: Calibration | Pool | None = None
) -> PriorEstimate:
    """Estimate in which proportions the classes occur among texts.

    Args:
        matrix: their scores; labels are not read.
        calibration: as for `log_posterior`.

    Raises:
        UsageError: when there is no text, or the scores have a prior in them.
    """
    if not matrix.is_likelihood or not len(matrix):
        raise UsageError.of(
            "a prior can be estimated from likelihoods of texts alone",
            place=f"--prior {UNLABELLED}",
            found="no text" if matrix.is_likelihood else f"{matrix.quantity} scores",
            remedy="--prior train, uniform, or World=0.4,Sports=0.6",
        )
    members = list(_relative_likelihoods(matrix, calibration))
    prior_C, converged = _maximised(members)
    error_C = _standard_error(members, prior_C)
    names = matrix.classes
    return PriorEstimate(
        prior=dict(zip(names, prior_C.tolist(), strict=True)),
        standard_error=dict(zip(names, error_C.tolist(), strict=True)),
        num_texts=len(matrix),
        converged=converged,
    )


Member = tuple[float, FloatArray]
"""Its share, and likelihoods of each text relative to its most likely class, [N, C]."""


def _relative_likelihoods(
    matrix: LikelihoodMatrix, calibration: Calibration | Pool | None
) -> Iterator[Member]:
    parts: Sequence[tuple[float, Calibration | None]] = [(1.0, None)]
    if isinstance(calibration, Pool):
        parts = list(zip(calibration.shares, calibration.members, strict=True))
    elif calibration is not None:
        parts = [(1.0, calibration)]
    for share, member in parts:
        found_NC = evidence(matrix, member)
        yield share, np.exp(found_NC - found_NC.max(axis=1, keepdims=True))


def _maximised(members: Sequence[Member]) -> tuple[FloatArray, bool]:
    """Give the prior that EM comes to, [C], and whether it came to rest there; the objective is
    concave, so it is the one maximum."""
    texts, classes = members[0][1].shape
    prior_C = np.full(classes, 1.0 / classes)
    for _ in range(_MOST_ROUNDS):
        counts_C = np.ones(classes)
        for share, likelihood_NC in members:
            counts_C += share * prior_C * (likelihood_NC.T @ (1.0 / (likelihood_NC @ prior_C)))
        new_C = counts_C / (texts + classes)
        moved = float(np.abs(new_C - prior_C).max())
        prior_C = new_C
        if moved < _TOLERANCE:
            return prior_C, True
    return prior_C, False


def _standard_error(members: Sequence[Member], prior_C: FloatArray) -> FloatArray:
    """Give that of each class's probability, [C]."""
    texts, classes = members[0][1].shape
    slopes_NC = np.zeros((texts, classes))
    bend_CC = np.diag(prior_C**-2.0)
    for share, likelihood_NC in members:
        slope_NC = likelihood_NC / (likelihood_NC @ prior_C)[:, None]
        slopes_NC += share * slope_NC
        bend_CC += share * slope_NC.T @ slope_NC
    # Probabilities sum to 1: they move within the plane of the other directions.
    _, _, directions = np.linalg.svd(np.ones((1, classes)))
    plane_CD = directions[1:].T
    bread = np.linalg.pinv(plane_CD.T @ bend_CC @ plane_CD)
    spread = plane_CD.T @ (slopes_NC.T @ slopes_NC) @ plane_CD
    # The sandwich heeds that likelihoods are not quite right; of a class that does not occur it
    # sees no text at all, where the curvature still knows what one more would change.
    of_texts_C = np.diag(plane_CD @ bread @ spread @ bread @ plane_CD.T)
    of_curve_C = np.diag(plane_CD @ bread @ plane_CD.T)
    error_C: FloatArray = np.sqrt(np.maximum(of_texts_C, of_curve_C).clip(0.0))
    return error_C

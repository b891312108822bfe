"""Calibration: how far log-likelihoods can be trusted, learned from held-out texts.

Summed log-likelihoods of whole texts count every token as independent evidence, so their
posteriors saturate at 0 and 1; and class models trained on different amounts of text differ by an
offset that has nothing to do with the text. One scale s and one bias b_c per class mend both:

    P(c | x) ∝ exp(s · score(x, c) + w · beside(x, c) + b_c) · P(c)

where `beside` is what another system says, if there is one (ensemble.py). Without it this is
Platt scaling (1999) for several classes, that is temperature and vector scaling of Guo et al.
(2017, https://arxiv.org/abs/1706.04599) with one shared scale.

Held-out texts are often few, so all have a prior, and the fit is the most probable s, w and b:

    log(s / s₀), w, b_1, …, b_C  ~  normal with mean 0 and standard deviation 1, w ≥ 0

where s₀ = 1 / √T̄ for likelihoods of T̄ tokens in the mean, since the noise of a sum of T̄ tokens
grows with √T̄, and 1 for what is a posterior already. With many texts the prior is nothing; with a
dozen it keeps biases from following single texts.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from gencls_core.score_matrix import FloatArray, LikelihoodMatrix

__all__ = [
    "Calibration",
    "Pool",
    "expected_calibration",
    "fit_beside_alone",
    "fit_calibration",
    "why_not_calibrated",
]

_LOG_SCALE_BOUNDS = (math.log(1e-6), math.log(1e3))


@dataclass(frozen=True)
class Calibration:
    """Scale and biases of a calibrated posterior."""

    scale: float
    """Multiplies every score, no unit. Below 1 means the raw posterior is too sure; 0 where only
    the system beside is asked."""
    biases: dict[str, float]
    """Added per class after scaling, in nats; they sum to 0."""
    weight: float = 0.0
    """Of the system beside it, 0 or more, no unit; 0 where there is none."""


@dataclass(frozen=True)
class Pool:
    """Calibrated posteriors of the same texts, averaged with the shares of an ensemble."""

    alone: Calibration
    """Of the likelihoods without the second system."""
    other: Calibration
    """Of the second system without the likelihoods."""
    both: Calibration
    """Of the two in one exponent."""
    shares: tuple[float, float, float]
    """Of alone, other and both; they sum to 1."""

    @property
    def members(self) -> tuple[Calibration, Calibration, Calibration]:
        """What is averaged, in the order of `shares`."""
        return (self.alone, self.other, self.both)


def expected_calibration(matrix: LikelihoodMatrix) -> Calibration:
    """Give the most probable calibration before any label is seen: s₀, no biases."""
    return Calibration(math.exp(_expected_log_scale(matrix)), dict.fromkeys(matrix.classes, 0.0))


def _expected_log_scale(matrix: LikelihoodMatrix) -> float:
    if not matrix.is_likelihood or not len(matrix):
        return 0.0
    return -0.5 * math.log(max(1.0, float(matrix.num_tokens.mean())))


def why_not_calibrated(matrix: LikelihoodMatrix) -> str | None:
    """Say in a sentence why `matrix` cannot be calibrated on, or give None when it can."""
    codes_N = matrix.label_codes
    labelled = int((codes_N >= 0).sum())
    if not labelled:
        return "no held-out text has a label"
    if len(np.unique(codes_N[codes_N >= 0])) < 2:
        return "the held-out texts are all of one class"
    return None


def fit_calibration(matrix: LikelihoodMatrix, prior: Mapping[str, float]) -> Calibration | None:
    """Fit scale and biases on the labelled rows of `matrix` (held-out texts, never the test ones).

    Minimises the summed negative log-likelihood of softmax(s · score + w · beside + b + log prior)
    plus ½ (log² (s / s₀) + w² + Σ b_c²), which is the prior on them, by L-BFGS over log s, w and b
    with the analytic gradient. Deterministic.

    Args:
        matrix: scores of held-out texts; w is fitted where another system's stand beside them.
        prior: class → probability with which the classes occur among *these* texts; it keeps class
            frequencies out of the biases, so that another prior can be put in later.

    Returns:
        None where there is too little to learn from; `why_not_calibrated` says why.
    """
    if why_not_calibrated(matrix) is not None:
        return None
    labelled_N = matrix.label_codes >= 0
    targets_N = matrix.label_codes[labelled_N]
    rows_N = np.arange(len(targets_N))
    scores_NC = matrix.scores[labelled_N]
    # A constant per row cancels in the softmax; taking it out keeps exp() in range.
    scores_NC = scores_NC - scores_NC.max(axis=1, keepdims=True)
    # [W, N, C], W = 0 or 1: without a system beside there is no weight to fit.
    beside_WNC = np.empty((0, *scores_NC.shape))
    if matrix.beside is not None:
        beside_WNC = matrix.beside[labelled_N][None]
    first_bias = 1 + len(beside_WNC)
    log_prior_C = np.zeros(len(matrix.classes))
    if matrix.is_likelihood:
        log_prior_C = np.log([prior[name] for name in matrix.classes])
    expected = _expected_log_scale(matrix.take(np.flatnonzero(labelled_N)))
    weight = 1.0 / len(rows_N)

    def objective(parameters: FloatArray) -> tuple[float, FloatArray]:
        log_scale, weights_W = float(parameters[0]), parameters[1:first_bias]
        biases_C = parameters[first_bias:] - parameters[first_bias:].mean()
        scale = math.exp(log_scale)
        logits_NC = scale * scores_NC + biases_C + log_prior_C
        logits_NC = logits_NC + np.tensordot(weights_W, beside_WNC, axes=1)
        log_posterior_NC = logits_NC - logsumexp(logits_NC, axis=1, keepdims=True)
        loss = -float(log_posterior_NC[rows_N, targets_N].mean())
        distance = float(biases_C @ biases_C) + float(weights_W @ weights_W)
        loss += 0.5 * weight * (distance + (log_scale - expected) ** 2)
        residual_NC = np.exp(log_posterior_NC)
        residual_NC[rows_N, targets_N] -= 1.0
        residual_NC /= len(rows_N)
        slope_scale = scale * float((residual_NC * scores_NC).sum())
        slope_scale += weight * (log_scale - expected)
        slope_W = np.tensordot(beside_WNC, residual_NC, axes=2) + weight * weights_W
        slope_C = residual_NC.sum(axis=0) + weight * biases_C
        return loss, np.concatenate([[slope_scale], slope_W, slope_C - slope_C.mean()])

    # Also where a typical gap between classes is worth one nat: a raw gap of hundreds of nats
    # would start on a plateau where the gradient says nothing.
    gap = float(-scores_NC.sum() / max(1, (scores_NC < 0).sum()))
    starts = np.zeros((2, first_bias + len(matrix.classes)))
    starts[:, 0] = np.clip([expected, -math.log(gap) if gap > 0 else 0.0], *_LOG_SCALE_BOUNDS)
    bounds = [
        _LOG_SCALE_BOUNDS,
        *[(0.0, None)] * len(beside_WNC),
        *[(None, None)] * len(matrix.classes),
    ]
    best = min(
        (_minimise(objective, start, bounds) for start in starts),
        key=lambda found: found[0],
    )[1]
    biases = best[first_bias:] - best[first_bias:].mean()
    return Calibration(
        scale=math.exp(float(best[0])),
        biases={name: float(bias) for name, bias in zip(matrix.classes, biases, strict=True)},
        weight=float(best[1:first_bias].sum()),
    )


def fit_beside_alone(matrix: LikelihoodMatrix, prior: Mapping[str, float]) -> Calibration:
    """Fit scale and biases of the system beside, as if there were no likelihoods.

    Args:
        matrix: scores of held-out texts with another system's beside.
        prior: see `fit_calibration`.

    Returns:
        A calibration with a scale of 0; where there is too little to learn from, the system as it
        is.
    """
    assert matrix.beside is not None
    # One token: what it says is a posterior already, expected to be about right as it is.
    one_N = np.ones_like(matrix.num_tokens)
    found = fit_calibration(
        replace(matrix, scores=matrix.beside, beside=None, num_tokens=one_N), prior
    )
    if found is None:
        return Calibration(0.0, dict.fromkeys(matrix.classes, 0.0), weight=1.0)
    return Calibration(0.0, found.biases, weight=found.scale)


def _minimise(
    objective: object, start: FloatArray, bounds: Sequence[tuple[float | None, float | None]]
) -> tuple[float, FloatArray]:
    from scipy.optimize import minimize

    found = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9},
    )
    return float(found.fun), found.x

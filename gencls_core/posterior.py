"""Bayes' rule: from log P(text | class) and a prior to log P(class | text).

    a_c(x)       = s · log P(x | c) + w · beside_c(x) + b_c + log P(c)
    log P(c | x) = a_c(x) − log Σ_k exp a_k(x)

with s = 1, w = 0 and b = 0 where there is no calibration; an ensemble averages several of these
(ensemble.py). Neither a prior nor a calibration touches a score, so both can be changed without
scoring a text again.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from gencls_core.calibration import (
    Calibration,
    Pool,
    expected_calibration,
    fit_calibration,
    why_not_calibrated,
)
from gencls_core.cost_file import check_cost_pairs
from gencls_core.errors import UsageError
from gencls_core.score_matrix import (
    BoolArray,
    FloatArray,
    IntArray,
    LikelihoodMatrix,
    blocks_of,
    read_likelihoods,
)
from gencls_core.scores import Quantity

if TYPE_CHECKING:
    from gencls_core.config import PosteriorConfig

__all__ = [
    "UNLABELLED",
    "Calibration",
    "LikelihoodMatrix",
    "Pool",
    "check_posterior",
    "cross_fitted",
    "evidence",
    "fit_calibration",
    "folds_of",
    "label_prior",
    "log_posterior",
    "pooled",
    "posterior_of",
    "read_likelihoods",
    "resolve_prior",
    "why_not_calibrated",
]

UNLABELLED = "unlabelled"
"""The setting `prior` for one that is estimated from the texts themselves (prior_shift.py)."""

FOLDS = 5
"""Parts that held-out texts are cut into, to judge each by a calibration that did not see it."""


def resolve_prior(
    prior: str, classes: Sequence[str], prior_counts: Mapping[str, int]
) -> dict[str, float]:
    """Give each class's prior probability, in the order of `classes`.

    Args:
        prior: `train` (counts in the train split, one added to each so that no class is
            impossible), `uniform`, or `World=0.4,Sports=0.6` naming every class.
        classes: the classes; their names may hold spaces, commas, `/` and `=`.
        prior_counts: texts per class in the train split.

    Raises:
        UsageError: when a class is missing, unknown or named twice, or when the numbers are not
            positive or do not sum to 1 within 1e-6.
    """
    prior = prior.strip()
    if prior == "uniform":
        return {name: 1.0 / len(classes) for name in classes}
    if prior == "train":
        counts = {name: prior_counts.get(name, 0) + 1 for name in classes}
        return {name: count / sum(counts.values()) for name, count in counts.items()}
    values = _parse_prior(prior, classes)
    missing = [name for name in classes if name not in values]
    if missing:
        raise _prior_error("the prior leaves classes out", prior, f"no {', '.join(missing)}")
    total = math.fsum(values.values())
    if abs(total - 1.0) > 1e-6:
        raise _prior_error("the prior does not sum to 1", prior, f"a sum of {total:.6g}")
    return {name: values[name] / total for name in classes}


def check_posterior(
    config: PosteriorConfig, classes: Sequence[str], prior_counts: Mapping[str, int]
) -> None:
    """Refuse a prior or costs that do not fit the classes, before anything is trained or scored.

    Raises:
        UsageError: as `resolve_prior`, and `gencls_core.cost_file.check_cost_pairs`.
    """
    if config.prior != UNLABELLED:
        resolve_prior(config.prior, classes, prior_counts)
    if config.costs is not None:
        check_cost_pairs(config.costs, classes)


def label_prior(matrix: LikelihoodMatrix) -> dict[str, float]:
    """Give how often each class occurs among the labels of `matrix`, one added to each count."""
    codes_N = matrix.label_codes
    counts_C = np.bincount(codes_N[codes_N >= 0], minlength=len(matrix.classes)) + 1
    return dict(zip(matrix.classes, (counts_C / counts_C.sum()).tolist(), strict=True))


def log_posterior(
    scores: FloatArray,
    prior: Mapping[str, float],
    calibration: Calibration | Pool | None = None,
    *,
    quantity: Quantity = "log_likelihood",
    beside: FloatArray | None = None,
) -> FloatArray:
    """Give log P(class | text) in nats, [N, C].

    Args:
        scores: [N, C] in nats, columns in the order of `prior`.
        prior: class → probability. A `log_posterior` was learned together with the class
            frequencies of its train texts: there the prior is already in it and is not added.
        calibration: scale and biases, or several of them and their shares, or None for the plain
            rule.
        quantity: what `scores` are.
        beside: [N, C], what another system says; needed where the calibration gives it a weight.
    """
    scores_NC = np.asarray(scores, dtype=np.float64)
    log_prior_C = np.zeros(len(prior))
    if quantity != "log_posterior":
        log_prior_C = np.log(list(prior.values()))
    found_NC = np.empty_like(scores_NC)
    for block in blocks_of(len(scores_NC)):
        these_NC = scores_NC[block]
        beside_NC = None if beside is None else beside[block]
        if isinstance(calibration, Pool):
            members = [
                _normalised(_logits(these_NC, beside_NC, member, prior) + log_prior_C)
                for member in calibration.members
            ]
            found_NC[block] = pooled(np.stack(members), calibration.shares)
        else:
            logits_NC = _logits(these_NC, beside_NC, calibration, prior) + log_prior_C
            found_NC[block] = _normalised(logits_NC)
    return found_NC


def _logits(
    scores_NC: FloatArray,
    beside_NC: FloatArray | None,
    calibration: Calibration | None,
    classes: Iterable[str],
) -> FloatArray:
    """Give what speaks for each class apart from the prior, [N, C] nats."""
    if calibration is None:
        return scores_NC
    logits_NC: FloatArray = calibration.scale * scores_NC + np.array(
        [calibration.biases[name] for name in classes]
    )
    if calibration.weight:
        assert beside_NC is not None, "the calibration was fitted beside another system"
        logits_NC = logits_NC + calibration.weight * beside_NC
    return logits_NC


def evidence(matrix: LikelihoodMatrix, calibration: Calibration | None = None) -> FloatArray:
    """Give what speaks for each class of each text apart from the prior, [N, C] nats."""
    return _logits(matrix.scores, matrix.beside, calibration, matrix.classes)


def _normalised(logits_NC: FloatArray) -> FloatArray:
    normalised_NC: FloatArray = logits_NC - logsumexp(logits_NC, axis=1, keepdims=True)
    return normalised_NC


def pooled(log_posterior_KNC: FloatArray, shares: Sequence[float]) -> FloatArray:
    """Average K posteriors (a linear opinion pool); log-probabilities in nats in and out, [N, C].

    Args:
        log_posterior_KNC: of each member, over the last axis.
        shares: of each member, above 0; they sum to 1.
    """
    log_shares_K = np.log(shares)[:, None, None]
    mean_NC: FloatArray = logsumexp(log_posterior_KNC + log_shares_K, axis=0)
    return mean_NC


def posterior_of(
    matrix: LikelihoodMatrix,
    prior: Mapping[str, float],
    calibration: Calibration | Pool | None = None,
) -> FloatArray:
    """Apply `log_posterior` to a matrix, whatever the order of the classes in `prior`."""
    ordered = {name: prior[name] for name in matrix.classes}
    return log_posterior(
        matrix.scores, ordered, calibration, quantity=matrix.quantity, beside=matrix.beside
    )


def folds_of(codes_N: IntArray, seed: int = 0) -> Iterator[BoolArray]:
    """Cut texts into `FOLDS` parts with all classes alike; give each that is not empty, [N].

    Args:
        codes_N: numbers of the texts' classes.
        seed: of the parts.
    """
    shuffled = np.random.default_rng(seed).permutation(len(codes_N))
    by_class = shuffled[np.argsort(codes_N[shuffled], kind="stable")]
    fold_N = np.empty(len(codes_N), dtype=np.int64)
    fold_N[by_class] = np.arange(len(codes_N)) % FOLDS
    for fold in range(FOLDS):
        if (judged_N := fold_N == fold).any():
            yield judged_N


Fit = Callable[[LikelihoodMatrix, Mapping[str, float]], Calibration | Pool | None]
"""A way to fit a calibration, such as `fit_calibration`."""


def cross_fitted(
    matrix: LikelihoodMatrix,
    seed: int = 0,
    *,
    fit: Fit = fit_calibration,
    prior: Mapping[str, float] | None = None,
) -> FloatArray:
    """Give log P(class | text) of each labelled text in nats, [N, C], calibrated without it.

    Args:
        matrix: scores of held-out texts.
        seed: of the parts that the texts are cut into.
        fit: how a calibration is fitted.
        prior: the prior of the posteriors; default: how often the classes occur among the texts
            that the calibration is fitted on.
    """
    rows_N = np.flatnonzero(matrix.label_codes >= 0)
    log_posterior_NC = np.empty((len(rows_N), len(matrix.classes)))
    for judged_N in folds_of(matrix.label_codes[rows_N], seed):
        others, these = matrix.take(rows_N[~judged_N]), matrix.take(rows_N[judged_N])
        among = label_prior(others)
        # Without a label of a second class among the others, what is expected before any is seen.
        fitted = fit(others, among) or expected_calibration(others)
        log_posterior_NC[judged_N] = posterior_of(these, prior or among, fitted)
    return log_posterior_NC


def _parse_prior(prior: str, classes: Sequence[str]) -> dict[str, float]:
    """Read `name=number,…`, matching known names first: a name may itself hold `,` or `=`."""
    values: dict[str, float] = {}
    rest = prior
    longest_first = sorted(classes, key=len, reverse=True)
    while rest:
        rest = rest.lstrip()
        name = next((known for known in longest_first if rest.startswith(f"{known}=")), None)
        if name is None:
            found = rest.split(",", 1)[0].rsplit("=", 1)[0].strip()
            choices = [*classes, *(("train", "uniform") if "=" not in prior else ())]
            close = difflib.get_close_matches(found, choices, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise _prior_error(
                "the prior names no class", prior, repr(found), hint, f"classes: {classes}"
            )
        number, _, rest = rest[len(name) + 1 :].partition(",")
        if name in values:
            raise _prior_error("the prior names a class twice", prior, repr(name))
        try:
            values[name] = float(number)
        except ValueError:
            raise _prior_error("not a number in the prior", prior, f"{name}={number}") from None
        if not (0.0 < values[name] < math.inf):
            raise _prior_error("a prior must be above 0", prior, f"{name}={number}")
    return values


def _prior_error(
    problem: str, prior: str, found: str, hint: str = "", known: str | None = None
) -> UsageError:
    return UsageError.of(
        problem,
        place=f"--prior {prior!r}",
        found=found,
        expected="`train`, `uniform`, `unlabelled`, or every class with a number, such as "
        "`World=0.4,Sports=0.6`" + (f" ({known})" if known else ""),
        remedy=f"{hint}name every class once, with positive numbers that sum to 1",
    )

"""The prior of unlabelled texts: against the naive objective, and against what was planted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from cluster_fixtures import gencls, succeed
from report_fixtures import make_run
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import norm

from gencls_core.calibration import Calibration, Pool
from gencls_core.errors import UsageError
from gencls_core.posterior import posterior_of
from gencls_core.prior_shift import estimate_prior
from gencls_core.report.build import build_report
from gencls_core.report.inference import UNSETTLED, infer, infer_by_range
from gencls_core.score_matrix import LikelihoodMatrix

CLASSES = ("a", "b", "c")
MEANS = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 2.0]])


def texts_of(prior, rows: int, seed: int) -> LikelihoodMatrix:
    """Give exact log-densities of points drawn from three normal classes in these proportions."""
    rng = np.random.default_rng(seed)
    codes_N = rng.choice(len(CLASSES), rows, p=prior)
    points_N2 = MEANS[codes_N] + rng.normal(size=(rows, 2))
    scores_NC = np.stack([norm.logpdf(points_N2 - mean).sum(axis=1) for mean in MEANS], axis=1)
    return LikelihoodMatrix(
        example_ids=pa.chunked_array([[str(row) for row in range(rows)]], pa.string()),
        label_codes=codes_N,
        classes=CLASSES,
        scores=scores_NC,
        num_tokens=np.full(rows, 10),
        truncated=np.zeros(rows, dtype=bool),
        num_windows=np.ones(rows, dtype=np.int64),
        loss_scores=None,
        quantity="log_likelihood",
    )


def biased(scale: float, *biases: float, weight: float = 0.0) -> Calibration:
    return Calibration(scale, dict(zip(CLASSES, biases, strict=True)), weight)


POOL = Pool(
    alone=biased(0.7, 0.1, -0.2, 0.1),
    other=biased(0.0, 0.0, 0.3, -0.3, weight=1.1),
    both=biased(0.5, 0.0, 0.0, 0.0, weight=0.6),
    shares=(0.5, 0.2, 0.3),
)


@pytest.mark.parametrize("calibration", [None, biased(0.6, 0.5, -0.2, -0.3), POOL])
def test_it_is_the_maximum_of_the_naive_objective(calibration):
    matrix = texts_of((0.6, 0.3, 0.1), 300, seed=1)
    rng = np.random.default_rng(2)
    matrix = replace(matrix, beside=rng.normal(size=matrix.scores.shape))
    members, shares = [calibration or biased(1.0, 0.0, 0.0, 0.0)], [1.0]
    if isinstance(calibration, Pool):
        members, shares = calibration.members, calibration.shares

    def naive(free: np.ndarray) -> float:
        logits_C = np.append(free, 0.0)
        log_prior_C = logits_C - logsumexp(logits_C)
        total = log_prior_C.sum()
        for member, share in zip(members, shares, strict=True):
            logits_NC = member.scale * matrix.scores + member.weight * matrix.beside
            logits_NC = logits_NC + [member.biases[name] for name in CLASSES] + log_prior_C
            total += share * logsumexp(logits_NC, axis=1).sum()
        return -total

    found = minimize(naive, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9})
    logits_C = np.append(found.x, 0.0)
    expected = np.exp(logits_C - logsumexp(logits_C))
    estimate = estimate_prior(matrix, calibration)
    np.testing.assert_allclose(list(estimate.prior.values()), expected, atol=1e-5)
    # At the maximum the mean posterior is the prior again, but for the text added to each class.
    mean_C = np.exp(posterior_of(matrix, estimate.prior, calibration)).mean(axis=0)
    again_C = (len(matrix) * mean_C + 1) / (len(matrix) + len(CLASSES))
    np.testing.assert_allclose(again_C, expected, atol=1e-5)


def test_what_was_planted_is_found_within_its_error():
    prior = (0.75, 0.2, 0.05)
    found = [estimate_prior(texts_of(prior, 400, seed)) for seed in range(60)]
    estimates = np.array([list(one.prior.values()) for one in found])
    errors = np.array([list(one.standard_error.values()) for one in found])
    spread_C = estimates.std(axis=0, ddof=1)
    ratio_C = errors.mean(axis=0) / spread_C
    assert (ratio_C > 0.8).all()
    assert (ratio_C < 1.35).all()  # the larger of two; so of a small class rather too large
    # The text that is added to each class draws towards equal shares, by far less than one error.
    assert (abs(estimates.mean(axis=0) - prior) < 0.35 * spread_C).all()


@pytest.mark.parametrize("rows", [100, 10_000])
def test_a_class_that_does_not_occur_is_not_taken_for_certain(rows):
    """None in so many texts leaves room for one in about as many."""
    matrix = texts_of((0.5, 0.5, 0.0), rows, seed=5)
    apart = replace(matrix, scores=50.0 * np.eye(3)[matrix.label_codes])
    found = estimate_prior(apart)
    assert found.prior["c"] == pytest.approx(1 / rows, rel=0.1)
    assert 0.5 / rows < found.standard_error["c"] < 2 / rows
    assert found.standard_error["a"] == pytest.approx(0.5 / np.sqrt(rows), rel=0.1)


def test_it_labels_texts_of_other_proportions_better():
    prior = (0.9, 0.07, 0.03)
    matrix = texts_of(prior, 2000, seed=3)
    right = {
        name: np.mean(posterior_of(matrix, used).argmax(axis=1) == matrix.label_codes)
        for name, used in {
            "equal": dict.fromkeys(CLASSES, 1 / 3),
            "estimated": estimate_prior(matrix).prior,
            "true": dict(zip(CLASSES, prior, strict=True)),
        }.items()
    }
    assert right["equal"] + 0.05 < right["estimated"]
    assert right["estimated"] == pytest.approx(right["true"], abs=0.005)


def test_an_estimate_that_does_not_come_to_rest_says_so(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    assert UNSETTLED not in infer(run, prior="unlabelled").notes
    monkeypatch.setattr("gencls_core.prior_shift._MOST_ROUNDS", 2)
    assert UNSETTLED in build_report(run, prior="unlabelled").notes


def test_labels_are_not_read():
    matrix = texts_of((0.6, 0.3, 0.1), 200, seed=4)
    unlabelled = replace(matrix, label_codes=np.full(len(matrix), -1))
    assert estimate_prior(matrix) == estimate_prior(unlabelled)


def test_what_has_a_prior_in_it_is_refused():
    matrix = replace(texts_of((0.6, 0.3, 0.1), 20, seed=4), quantity="log_posterior")
    with pytest.raises(UsageError, match="log_posterior scores"):
        estimate_prior(matrix)
    with pytest.raises(UsageError, match="no text"):
        estimate_prior(texts_of((0.6, 0.3, 0.1), 5, seed=4).take(np.array([], dtype=np.int64)))


def test_a_report_by_it(tmp_path):
    run = make_run(tmp_path / "run")
    said = succeed("report", str(run.path), "--prior-from", "unlabelled")
    report = json.loads((run.report_path / "report.json").read_text())
    fit = infer(run).fit
    expected = estimate_prior(infer(run).matrix, fit.calibration)
    assert report["prior"] == {
        "name": "unlabelled",
        "per_class": expected.prior,
        "standard_error": expected.standard_error,
    }
    assert " ± " in (run.report_path / "report.md").read_text()
    assert "%" in said
    # Range by range it is the same prior: that of all texts.
    ranges = list(infer_by_range(run, prior="unlabelled"))
    assert len(ranges) > 1
    assert all(one.prior == expected.prior for one in ranges)
    # A classifier's posteriors have the train prior in them.
    assert infer(run, system="tfidf", prior="unlabelled").estimate is None
    assert build_report(run, prior="train").prior.standard_error is None


def test_two_priors_are_one_too_many(tmp_path):
    run = make_run(tmp_path / "run")
    code, said = gencls("report", str(run.path), "--prior", "uniform", "--prior-from", "unlabelled")
    assert code == 2
    assert "not both" in said

"""Metrics against figures worked out by hand or by another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from test_posterior import matrix_of

from gencls_core.metrics import evaluate, perplexities, reliability_bins, wilson_interval

CLASSES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 10), (10, 10), (1, 1), (813, 1000), (3, 7), (0, 1)]
)
def test_wilson_against_scipy(correct: int, count: int) -> None:
    expected = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high))


def test_wilson_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


def test_figures_by_hand() -> None:
    probability = np.array(
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]]
    )
    found = evaluate(np.log(probability), np.array([0, 1, 1, 1, -1]), CLASSES)
    assert (found.num_labelled, found.num_unlabelled) == (4, 1)
    assert found.accuracy == 0.75
    assert found.confusion == ((1, 0, 0), (1, 2, 0), (0, 0, 0))
    a, b, c = found.per_class.values()
    assert (a.precision, a.recall, a.support) == (0.5, 1.0, 1)
    assert (b.precision, b.recall, b.support) == (1.0, pytest.approx(2 / 3), 3)
    assert (c.precision, c.recall, c.f1, c.support) == (0, 0, 0, 0)
    assert found.macro_f1 == pytest.approx((2 / 3 + 0.8 + 0) / 3)
    assert found.weighted_f1 == pytest.approx((2 / 3 + 3 * 0.8) / 4)
    assert found.nll == pytest.approx(-math.log(0.8 * 0.3 * 0.7 * 0.5) / 4)
    brier = (0.06 + (0.36 + 0.49 + 0.01) + (0.04 + 0.09 + 0.01) + (0.01 + 0.25 + 0.16)) / 4
    assert found.brier == pytest.approx(brier)
    # Four confidences in four bins of width 1/15.
    assert found.ece == pytest.approx((0.2 + 0.6 + 0.3 + 0.5) / 4)
    # Each alone in its bin: |right − p| is 2 p (1 − p) in the mean.
    chance = sum(2 * p * (1 - p) for p in (0.8, 0.6, 0.7, 0.5)) / 4
    assert found.ece_by_chance == pytest.approx(chance)


@pytest.mark.parametrize("texts", [7, 60, 2000])
def test_a_calibration_error_by_chance_is_that_of_labels_drawn_from_the_probabilities(texts):
    generator = np.random.default_rng(texts)
    log_p_NC = np.log(generator.dirichlet([0.3] * 3, size=texts))
    drawn = []
    for _ in range(400):
        labels_N = (generator.random((texts, 1)) > np.exp(log_p_NC).cumsum(axis=1)).sum(axis=1)
        drawn.append(evaluate(log_p_NC, labels_N.clip(max=2), CLASSES).ece)
    found = evaluate(log_p_NC, labels_N, CLASSES).ece_by_chance
    assert found == pytest.approx(np.mean(drawn), rel=0.06)


def test_nothing_is_off_by_chance_where_all_is_certain():
    log_p_NC = np.log(np.array([[1.0, 0.0, 0.0]] * 3) + 1e-300)
    assert evaluate(log_p_NC, np.array([0, 0, 0]), CLASSES).ece_by_chance == 0


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (3, 5), (200, 2), (500, 7), (40, 30)])
def test_confusion_and_f1_against_scikit_learn(count: int, classes: int) -> None:
    generator = np.random.default_rng(count)
    names = [f"c{c}" for c in range(classes)]
    truth = generator.integers(0, classes, count)
    log_posterior = np.log(generator.dirichlet(np.ones(classes), count))
    found = evaluate(log_posterior, truth, names)
    predicted, labels = log_posterior.argmax(axis=1), np.arange(classes)
    assert np.array_equal(found.confusion, confusion_matrix(truth, predicted, labels=labels))
    expected = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    rows = [(m.precision, m.recall, m.f1, m.support) for m in found.per_class.values()]
    np.testing.assert_allclose(np.array(rows), np.array(expected).T, rtol=1e-15)


def test_bins_include_their_upper_edge() -> None:
    bins = reliability_bins(
        np.array([0.5, 0.51, 1.0, 0.5]), np.array([True, False, True, False]), bins=2
    )
    assert [found.count for found in bins] == [2, 2]
    assert bins[0].accuracy == 0.5
    assert bins[1].confidence == pytest.approx(0.755)
    assert reliability_bins(np.array([0.9]), np.array([True]), bins=2)[0].confidence is None


def test_no_labels() -> None:
    with pytest.raises(ValueError, match="no labelled row"):
        evaluate(np.zeros((2, 3)), np.array([-1, -1]), CLASSES)


def test_perplexities() -> None:
    scores = np.array([[-20.0, -30.0, -1e5], [-10.0, -40.0, -1e5], [-7.0, -5.0, -1.0]])
    matrix = matrix_of(scores, ["a", "a", "b"], CLASSES)
    found = perplexities(matrix)
    assert found["a"] is not None
    assert found["a"].own == pytest.approx(math.exp(30 / 20))
    assert found["a"].others == pytest.approx((math.exp(70 / 20) + math.exp(700)) / 2)
    assert found["a"].tokens == 20
    assert found["b"] is not None
    assert found["b"].others == pytest.approx((math.exp(0.7) + math.exp(0.1)) / 2)
    assert found["c"] is None
    posterior = matrix_of(scores, ["a", "a", "b"], CLASSES, "log_posterior")
    assert set(perplexities(posterior).values()) == {None}

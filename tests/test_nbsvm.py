"""NBSVM against its formula: log-count ratios, machines, interpolation, scale."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bag_of_words_fixtures import FOUR, TWO, FloatArray, make_dataset, scores_of, topic_rows
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from sklearn.feature_extraction.text import CountVectorizer

from gencls_core.systems import nbsvm
from gencls_core.systems.bag_of_words import WORD, folds_of
from gencls_core.systems.nbsvm import NbsvmSystem, fit_machines, fit_scale


@pytest.mark.parametrize(("classes", "interpolation"), [(2, 0.25), (2, 1.0), (3, 0.25), (3, 0.0)])
def test_nbsvm_is_the_formula(classes: int, interpolation: float) -> None:
    generator = np.random.default_rng(classes)
    targets_N = np.arange(40) % classes
    chances_CF = generator.uniform(0.1, 0.9, (classes, 12))
    features_NF = (generator.random((40, 12)) < chances_CF[targets_N]).astype(np.float64)
    strength = 0.7
    found = fit_machines(csr_matrix(features_NF), targets_N, strength, interpolation)
    decisions_NC = found.decide(csr_matrix(features_NF))
    assert decisions_NC.shape == (40, classes)
    for positive in range(classes):
        signs_N = np.where(targets_N == positive, 1.0, -1.0)
        p_F = 1 + features_NF[signs_N > 0].sum(axis=0)
        q_F = 1 + features_NF[signs_N < 0].sum(axis=0)
        ratios_F = np.log((p_F / np.abs(p_F).sum()) / (q_F / np.abs(q_F).sum()))
        scaled_NG = np.hstack([features_NF * ratios_F, np.ones((40, 1))])

        def objective(
            weights_G: FloatArray, inputs: FloatArray = scaled_NG, signs: FloatArray = signs_N
        ) -> tuple[float, FloatArray]:
            slack_N = np.maximum(0.0, 1 - signs * (inputs @ weights_G))
            gradient_G = weights_G - 2 * strength * inputs.T @ (signs * slack_N)
            return 0.5 * weights_G @ weights_G + strength * (slack_N**2).sum(), gradient_G

        weights_G = minimize(objective, np.zeros(13), jac=True, tol=1e-12).x
        mixed_F = (1 - interpolation) * np.abs(weights_G[:-1]).mean()
        mixed_F = mixed_F + interpolation * weights_G[:-1]
        by_hand_N = scaled_NG[:, :-1] @ mixed_F + weights_G[-1]
        np.testing.assert_allclose(decisions_NC[:, positive], by_hand_N, atol=1e-3)


def test_rows_are_the_machines_decisions_scaled(tmp_path: Path) -> None:
    """C and the scale come from folds that know only their own words; no decision changes."""
    seed = 5
    wrong = [(text, FOUR[0]) for text, _ in topic_rows(2, 3, FOUR)]
    train, test = [*topic_rows(0, 12, FOUR), *wrong], topic_rows(1, 30, FOUR)
    texts, targets_N = [text for text, _ in train], np.array([FOUR.index(n) for _, n in train])

    def decide(strength: float, rows: Sequence[int], others: Sequence[str]) -> FloatArray:
        vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=WORD)
        features_NF = vectorizer.fit_transform(texts[n] for n in rows).astype(float)
        machines = fit_machines(
            features_NF, targets_N[rows], strength, interpolation=0.25, seed=seed
        )
        return machines.decide(vectorizer.transform(others).astype(float))

    losses = {}
    for strength in nbsvm._STRENGTHS:
        decisions_NC = np.empty((len(train), 4))
        for fit, held in folds_of(targets_N, seed):
            decisions_NC[held] = decide(strength, fit, [texts[n] for n in held])
        scale, loss = fit_scale(decisions_NC, targets_N)
        losses[loss] = strength, scale
    strength, scale = losses[min(losses)]
    decisions_NC = decide(strength, range(len(train)), [text for text, _ in test])
    scores_NC = scores_of(
        NbsvmSystem(seed), make_dataset(tmp_path / "d", FOUR, train=train, test=test)
    )
    np.testing.assert_allclose(scores_NC, log_softmax(scale * decisions_NC, axis=1), atol=1e-9)
    np.testing.assert_array_equal(scores_NC.argmax(axis=1), decisions_NC.argmax(axis=1))


def test_scale_is_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    targets_N = generator.integers(0, 3, 3000)
    logits_NC = generator.normal(size=(3000, 3)) * 2
    uniforms_N = generator.random((3000, 1))
    shares_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    targets_N = (uniforms_N > shares_NC.cumsum(axis=1)).sum(axis=1)
    # Decisions are the true logits in another unit: the scale must undo it.
    scale, loss = fit_scale(logits_NC / 7, targets_N)
    assert scale == pytest.approx(7, rel=0.08)
    plain = -np.log(shares_NC[np.arange(3000), targets_N]).mean()
    assert loss == pytest.approx(plain, abs=0.02)
    # All separated: the plain log-loss has its minimum at infinity, Platt's targets have not.
    perfect_NC = np.where(np.eye(3)[targets_N] == 1, 1.0, -1.0)
    assert fit_scale(perfect_NC, targets_N)[0] < 10
    # Worse than chance: nearly uniform, and the order stays the machines'.
    scale, loss = fit_scale(-perfect_NC, targets_N)
    assert 0 < scale < 0.01
    assert loss == pytest.approx(np.log(3), abs=0.01)
    assert fit_scale(np.zeros((4, 2)), np.array([0, 1, 0, 1])) == (1.0, pytest.approx(np.log(2)))


def test_nbsvm_probabilities_are_calibrated_where_labels_are_noisy(tmp_path: Path) -> None:
    draw = random.Random(3)

    def noisy(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(t, n if draw.random() < 0.8 else TWO[n == TWO[0]]) for t, n in rows]

    test = noisy(topic_rows(1, 300, TWO))
    dataset = make_dataset(tmp_path / "d", train=noisy(topic_rows(0, 300, TWO)), test=test)
    scores_NC = scores_of(NbsvmSystem(), dataset)
    own_N = scores_NC[np.arange(len(test)), [TWO.index(name) for _, name in test]]
    # The best possible is the entropy of the noise, 0.500 nats; sure of itself would cost more.
    assert -own_N.mean() < 0.58
    assert np.exp(scores_NC.max(axis=1)).mean() == pytest.approx(0.8, abs=0.07)

"""NBSVM: a linear support vector machine over naive Bayes log-count ratios.

Wang & Manning 2012, "Baselines and Bigrams: Simple, Good Sentiment and Topic Classification"
(https://aclanthology.org/P12-2018), section 2.3. A text is the set of words and word pairs that it
holds, x ∈ {0, 1}^F. With the number of positive texts that hold each feature, smoothed, p = α + Σ x
over the positive texts, and q the same over the others:

    r  = log( (p / ‖p‖₁) / (q / ‖q‖₁) )                    log-count ratios, α = 1
    w  = argmin ½‖w‖² + C · Σ max(0, 1 − y · (wᵀ(r∘x) + b))²    y = ±1
    w′ = (1 − β) · w̄ + β · w,   w̄ = ‖w‖₁ / F               β = 0.25
    f  = w′ᵀ(r∘x) + b

The interpolation trusts naive Bayes (w′ = w̄, all features at the same weight) unless the machine is
very sure. As in LIBLINEAR, which scikit-learn's LinearSVC calls, b is penalised like a weight. The
paper has two classes. For more, one machine per class tells it from the rest and the largest f_c
wins; for two, f = (−f₁, f₁), which is what two machines would give.

f is no probability. It becomes one by a single scale,

    log P(c | text) = log softmax(s · f)_c,    s > 0,

which leaves every decision as the machines took it. s is fitted by minimising the log-loss of
out-of-fold f of the train texts, with the targets of Platt 1999 ("Probabilistic Outputs for Support
Vector Machines", extended to C classes: (n_c + 1)/(n_c + C) for the own class c of n_c texts, and
1/(n_c + C) for each other), which keep s finite where all is separated. The same out-of-fold values
choose the machine's C. Nothing but the train split is used.

Shapes: N train texts, F words and word pairs, B texts of a batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.score_matrix import BoolArray, FloatArray, IntArray
from gencls_core.scores import Quantity
from gencls_core.storage import digest_of
from gencls_core.systems import BatchScores, Scorer
from gencls_core.systems.bag_of_words import (
    WORD,
    Learner,
    digest_parts,
    fit_words,
    folds_of,
    train_targets,
    words_between_spaces,
)
from gencls_core.systems.names import NBSVM

__all__ = ["Machines", "NbsvmSystem", "fit_machines", "fit_scale", "log_count_ratios"]

NBSVM_FORMAT = 1

_LEARNER = Learner("NBSVM", f"leave {NBSVM} out of --systems and --ensemble")
_RATIO_SMOOTHING = 1.0
_STRENGTHS = (0.01, 0.1, 1.0)
_DEFAULT_STRENGTH = 1.0
"""The paper's C."""
_TOLERANCE = 1e-3
_DEFAULT_SCALE = 1.0


@dataclass(frozen=True)
class NbsvmSystem:
    """NBSVM over words and word pairs, trained on the dataset's train split when it scores."""

    seed: int = 0
    """Of the folds that C and the scale are fitted by, and of the solver's order of texts."""
    interpolation: float = 0.25
    """β of the paper, 0 (naive Bayes) to 1 (the machine alone)."""

    def __post_init__(self) -> None:
        if not 0 <= self.interpolation <= 1:
            raise ValueError(f"interpolation must lie in [0, 1], not {self.interpolation}")

    @property
    def name(self) -> str:
        """`nbsvm`."""
        return NBSVM

    @property
    def quantity(self) -> Quantity:
        """Log-probability of the class given the text."""
        return "log_posterior"

    def why_not(self) -> None:
        """Give None: all that it needs is installed with gencls."""

    def digest(self, dataset: Dataset, scored: SplitInfo) -> str:
        """Name everything the rows depend on: 64 hex digits."""
        settings = {
            "system": NBSVM,
            "format": NBSVM_FORMAT,
            "interpolation": self.interpolation,
            "ratio_smoothing": _RATIO_SMOOTHING,
            "strengths": _STRENGTHS,
            "tolerance": _TOLERANCE,
            "scipy": version("scipy"),
        }
        return digest_of(digest_parts(dataset, scored, self.seed) | settings)

    def fit(self, dataset: Dataset) -> Scorer:
        """Learn from the train split.

        Returns:
            What gives log P(class | text) in nats, whose exponentials add up to 1 over the
            classes; `num_tokens` counts words between spaces.

        Raises:
            DataError: when a class has no train text, or no train text holds a word.
        """
        from scipy.special import log_softmax
        from sklearn.feature_extraction.text import CountVectorizer

        targets_N = train_targets(dataset, _LEARNER)
        vectorizer = CountVectorizer(
            ngram_range=(1, 2), binary=True, token_pattern=WORD, dtype=np.float64
        )
        features_NF = fit_words(vectorizer, dataset, _LEARNER)
        strength, scale = self._choose(features_NF, targets_N)
        machines = fit_machines(features_NF, targets_N, strength, self.interpolation, self.seed)

        def score(texts: list[str]) -> BatchScores:
            decisions_BC = machines.decide(vectorizer.transform(texts))
            log_p_BC = log_softmax(scale * decisions_BC, axis=1)
            return BatchScores(log_p_BC, words_between_spaces(texts))

        return score

    def _choose(self, features_NF: Any, targets_N: IntArray) -> tuple[float, float]:
        """Give the machine's C and the scale s of the smallest out-of-fold log-loss."""
        folds = folds_of(targets_N, self.seed)
        if not folds:
            return _DEFAULT_STRENGTH, _DEFAULT_SCALE
        found = []
        for strength in _STRENGTHS:
            decisions_NC = np.empty((len(targets_N), int(targets_N.max()) + 1))
            for fit_M, held_K in folds:
                decisions_NC[held_K] = self._held_out(
                    features_NF, targets_N, fit_M, held_K, strength
                )
            scale, loss = fit_scale(decisions_NC, targets_N)
            found.append((loss, strength, scale))
        _, strength, scale = min(found)
        return strength, scale

    def _held_out(
        self,
        features_NF: Any,
        targets_N: IntArray,
        fit_M: IntArray,
        held_K: IntArray,
        strength: float,
    ) -> FloatArray:
        """Give f of the held-out rows, [K, C], from machines that learned from the others."""
        fit_MF = features_NF[fit_M]
        # As in use: a feature is unknown when no text that was learned from holds it.
        known_G = np.flatnonzero(np.asarray(fit_MF.sum(axis=0)).ravel())
        if not len(known_G):
            return np.zeros((len(held_K), int(targets_N.max()) + 1))
        machines = fit_machines(
            fit_MF[:, known_G], targets_N[fit_M], strength, self.interpolation, self.seed
        )
        return machines.decide(features_NF[held_K][:, known_G])


@dataclass(frozen=True, eq=False)
class Machines:
    """One linear decision per class; one in all where there are two classes."""

    weights_FM: FloatArray
    """w′∘r, [F, M]: M is C, or 1 for two classes."""
    biases_M: FloatArray

    def decide(self, features_BF: Any) -> FloatArray:
        """Give f, [B, C]."""
        decisions_BM = np.asarray(features_BF @ self.weights_FM) + self.biases_M
        if decisions_BM.shape[1] > 1:
            return decisions_BM
        return np.concatenate([-decisions_BM, decisions_BM], axis=1)


def fit_machines(
    features_NF: Any, targets_N: IntArray, strength: float, interpolation: float, seed: int = 0
) -> Machines:
    """Train one machine against the rest for every class, or one in all for two classes.

    Args:
        features_NF: sparse, 1 where a text holds a feature; every column occurs in some text.
        targets_N: class numbers; each of 0 … C − 1 occurs.
        strength: C, the weight of the losses against ½‖w‖².
        interpolation: β.
        seed: of the order in which the solver visits the texts.
    """
    from sklearn.svm import LinearSVC

    classes = int(targets_N.max()) + 1
    weights, biases = [], []
    for positive in range(classes) if classes > 2 else [1]:
        is_positive_N = targets_N == positive
        ratios_F = log_count_ratios(features_NF, is_positive_N)
        scaled_NF = features_NF.copy()
        scaled_NF.data = ratios_F[features_NF.indices]
        # The dual solver: with many more features than texts the primal one takes many times as
        # long and, at the same tolerance, stops further from the minimum.
        solver = LinearSVC(
            C=strength, dual=True, tol=_TOLERANCE, max_iter=10_000, random_state=seed
        )
        machine = solver.fit(scaled_NF, is_positive_N)
        weights_F = machine.coef_[0]
        mean_weight = np.abs(weights_F).mean()
        weights.append(((1 - interpolation) * mean_weight + interpolation * weights_F) * ratios_F)
        biases.append(machine.intercept_[0])
    return Machines(np.stack(weights, axis=1), np.array(biases))


def log_count_ratios(features_NF: Any, is_positive_N: BoolArray) -> FloatArray:
    """Give r, [F]: how much more often the positive texts hold each feature, in nats."""
    p_F = _RATIO_SMOOTHING + np.asarray(features_NF[is_positive_N].sum(axis=0)).ravel()
    q_F = _RATIO_SMOOTHING + np.asarray(features_NF[~is_positive_N].sum(axis=0)).ravel()
    ratios_F: FloatArray = np.log(p_F / p_F.sum()) - np.log(q_F / q_F.sum())
    return ratios_F


def fit_scale(decisions_NC: FloatArray, targets_N: IntArray) -> tuple[float, float]:
    """Give s > 0 that minimises the log-loss of softmax(s · f), and that loss in nats per text.

    Args:
        decisions_NC: f, of machines that did not learn from these texts.
        targets_N: class numbers; the loss is against Platt's targets, see the module.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    classes = decisions_NC.shape[1]
    sizes_N = np.bincount(targets_N, minlength=classes)[targets_N]
    wanted_NC = np.repeat(1.0 / (sizes_N + classes)[:, None], classes, axis=1)
    wanted_NC[np.arange(len(targets_N)), targets_N] *= sizes_N + 1

    def loss(log_scale: float) -> float:
        return -float((wanted_NC * log_softmax(unit_NC * np.exp(log_scale), axis=1)).sum(1).mean())

    typical = float(np.abs(decisions_NC).mean())
    if not typical:
        return _DEFAULT_SCALE, float(np.log(classes))
    # The loss is convex in s, so it has one minimum in log s too. f that decide no better than
    # chance are best at s = 0; the lower bound keeps their order.
    unit_NC = decisions_NC / typical
    found = minimize_scalar(loss, bounds=np.log([1e-3, 1e3]), method="bounded")
    return float(np.exp(found.x)) / typical, float(found.fun)

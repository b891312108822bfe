"""Multinomial naive Bayes: the generative classifier without a language model.

A class is a distribution over words, a text is as many independent draws from it as it has words:

    log P(text | c) = Σ_w n_w · log P(w | c),    P(w | c) = (n_cw + α) / (n_c + α·F)

with n_w how often the text holds word w, n_cw how often the train texts of class c do, n_c = Σ_w
n_cw, and F words in all train texts (McCallum & Nigam 1998, "A Comparison of Event Models for
Naive Bayes Text Classification"; the probability is that of the words in their order, so the
multinomial coefficient, the same for every class, is not in it). The smoothing α is chosen on the
train split alone, by stratified cross-validation, as the one under which held-out texts are most
likely in their own class: what a class language model is chosen by, too. The log-loss would not do:
naive Bayes counts dependent words as independent evidence and is far too sure, so that the log-loss
prefers whatever makes it less sure, the strongest smoothing on offer.

A word that no train text holds has no n_cw of any class: it is left out of the sum, a factor of 1
in every class, and is not counted in `num_tokens`. A text without a known word scores 0 in every
class.

Scores hold no prior: gencls applies Bayes' rule to likelihoods itself.

Shapes: N train texts, F words, B texts of a batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.score_matrix import IntArray
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
)

__all__ = ["NAIVE_BAYES", "NaiveBayesSystem", "choose_smoothing"]

NAIVE_BAYES = "naive-bayes"
NAIVE_BAYES_FORMAT = 1

_LEARNER = Learner("naive Bayes", f"leave {NAIVE_BAYES} out of the systems")
_SMOOTHINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_DEFAULT_SMOOTHING = 1.0
"""Laplace's, where there is nothing to choose by."""


@dataclass(frozen=True)
class NaiveBayesSystem:
    """Multinomial naive Bayes over words, trained on the dataset's train split when it scores."""

    seed: int = 0
    """Of the folds that the smoothing is chosen by."""
    smoothing: float | None = None
    """α, added to each word's count; None chooses it by cross-validation."""

    def __post_init__(self) -> None:
        if self.smoothing is not None and not self.smoothing > 0:
            raise ValueError(f"smoothing must be above 0, not {self.smoothing}")

    @property
    def name(self) -> str:
        """`naive-bayes`."""
        return NAIVE_BAYES

    @property
    def quantity(self) -> Quantity:
        """Log-probability of the text's words given the class."""
        return "log_likelihood"

    def why_not(self) -> None:
        """Give None: all that it needs is installed with gencls."""

    def digest(self, dataset: Dataset, scored: SplitInfo) -> str:
        """Name everything the rows depend on: 64 hex digits."""
        settings = {
            "system": NAIVE_BAYES,
            "format": NAIVE_BAYES_FORMAT,
            "smoothings": _SMOOTHINGS if self.smoothing is None else [self.smoothing],
        }
        return digest_of(digest_parts(dataset, scored, self.seed) | settings)

    def fit(self, dataset: Dataset) -> Scorer:
        """Learn from the train split.

        Returns:
            What gives log P(text | class) in nats without a prior; `num_tokens` counts the words
            that are in it.

        Raises:
            DataError: when a class has no train text, or no train text holds a word.
        """
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.naive_bayes import MultinomialNB

        targets_N = train_targets(dataset, _LEARNER)
        vectorizer = CountVectorizer(token_pattern=WORD, dtype=np.float64)
        counts_NF = fit_words(vectorizer, dataset, _LEARNER)
        smoothing = self.smoothing or choose_smoothing(counts_NF, targets_N, self.seed)
        model = MultinomialNB(alpha=smoothing).fit(counts_NF, targets_N)
        log_p_FC = model.feature_log_prob_.T

        def score(texts: list[str]) -> BatchScores:
            counts_BF = vectorizer.transform(texts)
            words_B = np.asarray(counts_BF.sum(axis=1), dtype=np.int64).ravel()
            return BatchScores(np.asarray(counts_BF @ log_p_FC), words_B.tolist())

        return score


def choose_smoothing(counts_NF: Any, targets_N: IntArray, seed: int) -> float:
    """Give the α under which held-out train texts are most likely in their own class.

    Args:
        counts_NF: sparse word counts of the train texts.
        targets_N: their class numbers.
        seed: of the folds.
    """
    from sklearn.naive_bayes import MultinomialNB

    log_likelihood = dict.fromkeys(_SMOOTHINGS, 0.0)
    for fit_M, held_K in folds_of(targets_N, seed):
        # As in use: a word is unknown when no text that was learned from holds it.
        known_G = np.flatnonzero(np.asarray(counts_NF[fit_M].sum(axis=0)).ravel())
        if not len(known_G):
            continue
        fit_MG, held_KG = counts_NF[fit_M][:, known_G], counts_NF[held_K][:, known_G]
        own = (np.arange(len(held_K)), targets_N[held_K])
        for smoothing in _SMOOTHINGS:
            model = MultinomialNB(alpha=smoothing).fit(fit_MG, targets_N[fit_M])
            scores_KC = held_KG @ model.feature_log_prob_.T
            log_likelihood[smoothing] += float(scores_KC[own].sum())
    if not any(log_likelihood.values()):
        return _DEFAULT_SMOOTHING  # no folds, or none of them shares a word with the others
    return max(log_likelihood, key=log_likelihood.__getitem__)

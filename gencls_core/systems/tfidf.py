"""TF-IDF with logistic regression: the baseline that a class language model has to beat.

Words and word pairs, weighted by (1 + log tf) · idf and scaled to unit length, go into a
multinomial logistic regression. Its inverse penalty C is chosen on the train split alone, by
stratified cross-validation on the log-loss. Scores are log P(class | text).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.scores import Quantity
from gencls_core.storage import digest_of
from gencls_core.systems import BatchScores, Scorer
from gencls_core.systems.bag_of_words import (
    WORD,
    Learner,
    digest_parts,
    fit_words,
    folds_of,
    log_posteriors,
    train_targets,
    words_between_spaces,
)

__all__ = ["TFIDF", "TfidfSystem"]

TFIDF = "tfidf"
TFIDF_FORMAT = 1

_LEARNER = Learner("TF-IDF", "leave it out: --no-baseline, --ensemble none")
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)
_DEFAULT_STRENGTH = 10.0
_RARE_FROM_TEXTS = 200
"""From this many train texts on, a word or pair that only one of them holds is left out."""


@dataclass(frozen=True)
class TfidfSystem:
    """TF-IDF with logistic regression, trained on the dataset's train split when it scores."""

    seed: int = 0

    @property
    def name(self) -> str:
        """`tfidf`."""
        return TFIDF

    @property
    def quantity(self) -> Quantity:
        """Log-probability of the class given the text."""
        return "log_posterior"

    def why_not(self) -> None:
        """Give None: all that it needs is installed with gencls."""

    def digest(self, dataset: Dataset, scored: SplitInfo) -> str:
        """Name everything the rows depend on: 64 hex digits."""
        settings = {"format": TFIDF_FORMAT, "strengths": _STRENGTHS}
        return digest_of(digest_parts(dataset, scored, self.seed) | settings)

    def fit(self, dataset: Dataset) -> Scorer:
        """Learn from the train split.

        Returns:
            What gives log P(class | text) in nats, whose exponentials add up to 1 over the
            classes; `num_tokens` counts words between spaces.

        Raises:
            DataError: when a class has no train text, or no train text holds a word.
        """
        vectorizer, classifier = _train(dataset, self.seed)

        def score(texts: list[str]) -> BatchScores:
            log_p_BC = log_posteriors(classifier, vectorizer.transform(texts))
            return BatchScores(log_p_BC, words_between_spaces(texts))

        return score


def _train(dataset: Dataset, seed: int) -> tuple[Any, Any]:
    """Fit the vectoriser and the classifier, whose columns are the dataset's classes in order."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    targets_N = train_targets(dataset, _LEARNER)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if len(targets_N) >= _RARE_FROM_TEXTS else 1,
        token_pattern=WORD,
        dtype=np.float64,
    )
    features_NF = fit_words(vectorizer, dataset, _LEARNER)
    classifier = LogisticRegression(C=_DEFAULT_STRENGTH, max_iter=1000)
    folds = folds_of(targets_N, seed)
    if not folds:
        return vectorizer, classifier.fit(features_NF, targets_N)
    search = GridSearchCV(classifier, {"C": list(_STRENGTHS)}, scoring="neg_log_loss", cv=folds)
    return vectorizer, search.fit(features_NF, targets_N).best_estimator_

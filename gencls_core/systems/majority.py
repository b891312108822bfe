"""The largest class, whatever the text says: what every other system has to beat.

Scores are log P(class) from the train split, the same for every text:

    P(c) = (n_c + 1) / (N + C)

with n_c of the N labelled train texts in class c, of C classes. One is added to each count, as in
the `train` prior of Bayes' rule (gencls_core.posterior). Of equally large classes the first one
is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.scores import Quantity
from gencls_core.storage import digest_of
from gencls_core.systems import BatchScores, Scorer
from gencls_core.systems.bag_of_words import (
    Learner,
    refuse_absent_classes,
    words_between_spaces,
)

__all__ = ["MAJORITY", "MajoritySystem"]

MAJORITY = "majority"
MAJORITY_FORMAT = 1

_LEARNER = Learner("the majority class", f"leave {MAJORITY} out of the systems")


@dataclass(frozen=True)
class MajoritySystem:
    """The class frequencies of the train split; it reads no train text and draws nothing."""

    @property
    def name(self) -> str:
        """`majority`."""
        return MAJORITY

    @property
    def quantity(self) -> Quantity:
        """Log-probability of the class; that of no text changes it."""
        return "log_posterior"

    def why_not(self) -> None:
        """Give None: all that it needs is installed with gencls."""

    def digest(self, dataset: Dataset, scored: SplitInfo) -> str:
        """Name everything the rows depend on: 64 hex digits. Train texts are not among it."""
        return digest_of(
            {
                "system": MAJORITY,
                "format": MAJORITY_FORMAT,
                "classes": dataset.classes,
                "train": dataset.split("train").class_counts,
                "scored": scored.fingerprint,
            }
        )

    def fit(self, dataset: Dataset) -> Scorer:
        """Give what gives every text the same log P(class), in nats.

        `num_tokens` counts words between spaces.

        Raises:
            DataError: when there are fewer than two classes, or a class has no train text.
        """
        counts = dataset.split("train").class_counts
        counts_C = np.array([counts.get(name, 0) for name in dataset.classes], dtype=np.int64)
        refuse_absent_classes(dataset, counts_C, _LEARNER)
        log_p_C = np.log((counts_C + 1) / (counts_C + 1).sum())

        def score(texts: list[str]) -> BatchScores:
            return BatchScores(np.tile(log_p_C, (len(texts), 1)), words_between_spaces(texts))

        return score

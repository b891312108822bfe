"""What the systems share that see a text as a bag of words: reading, folds, refusals.

Each learns from the labelled train texts alone and then scores a split batch by batch, so that
only the train split's word counts are in memory, never a split's texts.

Shapes: N train texts, F words or word pairs, B texts of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from gencls_core.datasets.dataset import Dataset, SplitInfo
from gencls_core.errors import DataError
from gencls_core.score_matrix import FloatArray, IntArray

__all__ = [
    "WORD",
    "Learner",
    "digest_parts",
    "fit_words",
    "folds_of",
    "labelled_texts",
    "log_posteriors",
    "refuse_absent_classes",
    "train_targets",
    "words_between_spaces",
]

WORD = r"(?u)\b\w+\b"
"""Unlike scikit-learn's default, one-letter words count: "I" and digits are evidence."""

_FOLDS = 3


@dataclass(frozen=True)
class Learner:
    """How messages speak of a system: its name, and how a user does without it."""

    title: str
    way_out: str


def digest_parts(dataset: Dataset, scored: SplitInfo, seed: int) -> dict[str, Any]:
    """Give what the rows of each of these systems depend on, beside its own settings."""
    return {
        "seed": seed,
        "classes": dataset.classes,
        "train": dataset.split("train").fingerprint,
        "scored": scored.fingerprint,
        "scikit-learn": version("scikit-learn"),
    }


def labelled_texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Go through the labelled train texts with their classes, in order, a batch in memory."""
    known = set(dataset.classes)
    for batch in dataset.iter_batches("train", ["text", "label"]):
        texts, labels = batch.column("text").to_pylist(), batch.column("label").to_pylist()
        for text, label in zip(texts, labels, strict=True):
            if label in known:
                yield text, label


def train_targets(dataset: Dataset, learner: Learner) -> IntArray:
    """Give the class numbers of the labelled train texts, [N], in the order of `labelled_texts`.

    Raises:
        DataError: when there are fewer than two classes, or a class has no train text.
    """
    numbers = {name: number for number, name in enumerate(dataset.classes)}
    found = [
        numbers[label]
        for batch in dataset.iter_batches("train", ["label"])
        for label in batch.column("label").to_pylist()
        if label in numbers
    ]
    targets_N = np.array(found, dtype=np.int64)
    refuse_absent_classes(dataset, np.bincount(targets_N, minlength=len(numbers)), learner)
    return targets_N


def refuse_absent_classes(dataset: Dataset, counts_C: IntArray, learner: Learner) -> None:
    """Raise a DataError when there are fewer than two classes, or one has no train text."""
    absent = [name for name, count in zip(dataset.classes, counts_C, strict=True) if not count]
    if absent or len(dataset.classes) < 2:
        raise DataError.of(
            f"{learner.title} needs train texts of at least two classes, and of every class",
            place=dataset.split_path("train"),
            found=f"no text of {', '.join(absent)}" if absent else "one class",
            remedy=f"add texts, or {learner.way_out}",
        )


def fit_words(vectorizer: Any, dataset: Dataset, learner: Learner) -> Any:
    """Fit a scikit-learn vectoriser to the labelled train texts; give their sparse [N, F].

    Raises:
        DataError: when no word is left.
    """
    try:
        return vectorizer.fit_transform(text for text, _ in labelled_texts(dataset))
    except ValueError as error:
        raise DataError.of(
            f"{learner.title} finds no word in the train texts",
            place=dataset.split_path("train"),
            found=str(error),
            expected="texts with letters or digits"
            + (", some of them in two texts or more" if vectorizer.min_df > 1 else ""),
            remedy=learner.way_out,
        ) from None


def folds_of(targets_N: IntArray, seed: int) -> list[tuple[IntArray, IntArray]]:
    """Cut the train texts into stratified folds: (rows to learn from, rows held out) of each.

    Every fold learns from every class. None where a class has one text only: then there is nothing
    to choose a setting by.
    """
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, int(np.bincount(targets_N).min()))
    if folds < 2:
        return []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(targets_N)), targets_N))


def log_posteriors(classifier: Any, features: Any) -> FloatArray:
    """Give log P(class | text) of a logistic regression, [B, C], columns in the order of classes.

    Args:
        classifier: a fitted LogisticRegression of scikit-learn.
        features: [B, F], sparse or dense.
    """
    from scipy.special import log_softmax

    logits = classifier.decision_function(features)
    if logits.ndim == 1:  # two classes: scikit-learn gives log P(1|x) − log P(0|x) only
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    scores_BC: FloatArray = log_softmax(logits, axis=1)
    return scores_BC


def words_between_spaces(texts: Sequence[str]) -> list[int]:
    """Count the words of each text that spaces part: a measure of length, known or unknown."""
    return [len(text.split()) for text in texts]

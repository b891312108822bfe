"""TF-IDF with logistic regression: the baseline that a class language model has to beat.

Words and word pairs, weighted by (1 + log tf) · idf and scaled to unit length, go into a
multinomial logistic regression. Its inverse penalty C is chosen on the train split alone, by
stratified cross-validation on the log-loss. Scores are log P(class | text).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.errors import DataError
from gencls_core.scores import SCORE_SCHEMA, Quantity
from gencls_core.storage import digest_of

__all__ = ["TFIDF", "TfidfSystem", "score_with_tfidf"]

TFIDF = "tfidf"
TFIDF_FORMAT = 1

_STRENGTHS = (0.1, 1.0, 10.0, 100.0)
_DEFAULT_STRENGTH = 10.0
_FOLDS = 3
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

    def digest(self, dataset: Dataset, split: SplitName) -> str:
        """Name everything the rows depend on: 64 hex digits."""
        return digest_of(
            {
                "format": TFIDF_FORMAT,
                "seed": self.seed,
                "classes": dataset.classes,
                "train": dataset.split("train").fingerprint,
                "scored": dataset.split(split).fingerprint,
                "strengths": _STRENGTHS,
                "scikit-learn": version("scikit-learn"),
            }
        )

    def score_rows(self, dataset: Dataset, split: SplitName) -> dict[str, pa.Table]:
        """Train on the train split, score `split`; see `score_with_tfidf`."""
        return score_with_tfidf(dataset, split, self.seed)


def score_with_tfidf(dataset: Dataset, split: SplitName, seed: int = 0) -> dict[str, pa.Table]:
    """Train on the train split and score every example of `split` under every class.

    Args:
        dataset: needs a train split with labelled texts of every class.
        split: the split to score; it is never trained on.
        seed: of the folds.

    Returns:
        One table in SCORE_SCHEMA per class: `score` is log P(class | text) in nats and its
        exponentials add up to 1 over the classes; `num_tokens` counts words between spaces.

    Raises:
        DataError: when a class has no train text, or no train text holds a word.
    """
    vectorizer, classifier = _train(dataset, seed)
    ids: list[str] = []
    labels: list[str | None] = []
    words: list[int] = []
    blocks: list[npt.NDArray[np.float64]] = []
    for batch in dataset.iter_batches(split, ["example_id", "text", "label"]):
        texts = batch.column("text").to_pylist()
        ids.extend(batch.column("example_id").to_pylist())
        labels.extend(batch.column("label").to_pylist())
        words.extend(len(text.split()) for text in texts)
        blocks.append(_log_posteriors(classifier, vectorizer.transform(texts)))
    scores_NC = np.concatenate(blocks) if blocks else np.zeros((0, len(dataset.classes)))
    return {
        name: _rows(ids, labels, words, scores_NC[:, column])
        for column, name in enumerate(dataset.classes)
    }


def _log_posteriors(classifier: Any, features_NF: Any) -> npt.NDArray[np.float64]:
    from scipy.special import log_softmax

    logits = classifier.decision_function(features_NF)
    if logits.ndim == 1:  # two classes: scikit-learn gives log P(1|x) − log P(0|x) only
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    scores: npt.NDArray[np.float64] = log_softmax(logits, axis=1)
    return scores


def _rows(
    ids: list[str], labels: list[str | None], words: list[int], scores: npt.NDArray[np.float64]
) -> pa.Table:
    count = len(ids)
    columns: dict[str, Any] = {
        "example_id": ids,
        "label": labels,
        "score": scores,
        "quantity": ["log_posterior"] * count,
        "num_tokens": words,
        "truncated": [False] * count,
        "num_windows": [1] * count,
        "loss_score": [None] * count,
        "token_ids": [None] * count,
        "token_scores": [None] * count,
    }
    return pa.table(columns, schema=SCORE_SCHEMA)


def _train(dataset: Dataset, seed: int) -> tuple[Any, Any]:
    """Fit the vectoriser and the classifier, whose columns are the dataset's classes in order."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    numbers = {name: number for number, name in enumerate(dataset.classes)}
    targets = [numbers[label] for _, label in _labelled(dataset)]
    counts = Counter(targets)
    absent = [name for name, number in numbers.items() if not counts[number]]
    if absent or len(numbers) < 2:
        raise DataError.of(
            "TF-IDF needs train texts of at least two classes, and of every class",
            place=dataset.split_path("train"),
            found=f"no text of {', '.join(absent)}" if absent else "one class",
            remedy="add texts, or leave the baseline out with --no-baseline",
        )
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if len(targets) >= _RARE_FROM_TEXTS else 1,
        # Unlike scikit-learn's default, one-letter words count: "I" and digits are evidence.
        token_pattern=r"(?u)\b\w+\b",
        dtype=np.float64,
    )
    try:
        features_NF = vectorizer.fit_transform(text for text, _ in _labelled(dataset))
    except ValueError as error:
        raise DataError.of(
            "TF-IDF finds no word in the train texts",
            place=dataset.split_path("train"),
            found=str(error),
            expected="texts with letters or digits, some of them in two texts or more",
            remedy="leave the baseline out with --no-baseline",
        ) from None
    classifier = LogisticRegression(C=_DEFAULT_STRENGTH, max_iter=1000)
    folds = min(_FOLDS, *counts.values())
    if folds < 2:
        return vectorizer, classifier.fit(features_NF, targets)
    search = GridSearchCV(
        classifier,
        {"C": list(_STRENGTHS)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
    )
    return vectorizer, search.fit(features_NF, targets).best_estimator_


def _labelled(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Go through the labelled train texts, in order, a batch in memory at a time."""
    known = set(dataset.classes)
    for batch in dataset.iter_batches("train", ["text", "label"]):
        texts, labels = batch.column("text").to_pylist(), batch.column("label").to_pylist()
        for text, label in zip(texts, labels, strict=True):
            if label in known:
                yield text, label

"""One classifier of all classes: the discriminative fine-tune of the base that class models have.

Scores are log P(class | text), learned together with the class frequencies of the train texts:
Bayes' rule is not applied to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gencls_core.config import ObjectiveName, ScoringConfig, SequenceConfig
from gencls_core.score_matrix import FloatArray
from gencls_core.scores import SCORE_SCHEMA, Quantity
from gencls_core.scoring_job import BaseKind, Models, ScoringJob

if TYPE_CHECKING:
    from gencls_core.classifiers import Classifier, ReadText

__all__ = ["DISCRIMINATIVE", "ClassifierScores", "Discriminative"]

DISCRIMINATIVE = "discriminative"


@dataclass(frozen=True)
class Discriminative:
    """One causal language model with a classification head, trained on all classes' texts."""

    name: str = DISCRIMINATIVE
    quantity: Quantity = "log_posterior"
    base: BaseKind = "causal"
    objective: ObjectiveName | None = "classification"
    model_per_class: bool = False

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """A class's probability depends on which other classes there are."""
        return {"classes": job.classes}

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the classifier, which serves all classes, whichever are asked for.

        Raises:
            ModelError: when it cannot be loaded, or is one of other classes.
        """
        from gencls_core.classifier_loading import load_trained
        from gencls_core.precision import scoring_dtype

        [trained] = job.models
        return ClassifierScores(
            load_trained(
                trained,
                job.base,
                job.classes,
                dtype=scoring_dtype(job.precision),
                device=job.device,
                compiled=job.compiled,
            )
        )


@dataclass(frozen=True)
class _Judged:
    """What the classifier said of the texts that were encoded last."""

    encoded: list[list[int]]
    sequence: SequenceConfig
    texts: list[ReadText]
    log_posteriors_NC: FloatArray


class ClassifierScores:
    """A loaded classifier as score rows of one class after the other.

    One pass over a text gives all classes, so what was said last is kept for the next class.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._last: _Judged | None = None

    def encode(self, examples: pa.Table) -> list[list[int]]:
        """Tokenise the examples' texts once for all classes."""
        return self._classifier.encode(examples.column("text").to_pylist())

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: list[list[int]] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Give log P(class | text) of one class; rows in SCORE_SCHEMA, in order.

        Args:
            examples: the texts.
            class_name: one of the classifier's classes.
            sequence: how much of a text is read.
            scoring: `tokens_per_batch` alone matters: no token has a score of its own.
            encoded: what `encode` gave for these examples; the same list for the next class saves
                the pass.
            on_batch: called with the number of tokens read so far.
        """
        ids = self.encode(examples) if encoded is None else encoded
        judged = self._last
        if judged is None or judged.encoded is not ids or judged.sequence != sequence:
            self._last = None
            texts = self._classifier.read(ids, sequence)
            device = next(self._classifier.model.parameters()).device.type
            scores_NC = self._classifier.log_posteriors(
                texts, tokens_per_batch=scoring.batch_tokens(device), on_batch=on_batch
            )
            judged = self._last = _Judged(ids, sequence, texts, scores_NC)
        elif on_batch is not None:
            on_batch(sum(map(len, judged.texts)))
        column = self._classifier.classes.index(class_name)
        return _rows(examples, judged.texts, judged.log_posteriors_NC[:, column])


def _rows(examples: pa.Table, texts: list[ReadText], scores_N: FloatArray) -> pa.Table:
    count = len(texts)
    columns = {
        "example_id": examples.column("example_id"),
        "label": examples.column("label"),
        "score": scores_N,
        "standard_error": [None] * count,
        "quantity": ["log_posterior"] * count,
        "num_tokens": [len(text) for text in texts],
        "truncated": [text.truncated for text in texts],
        "num_windows": [1] * count,
        "loss_score": [None] * count,
        "token_ids": [None] * count,
        "token_scores": [None] * count,
    }
    return pa.table(columns, schema=SCORE_SCHEMA)

"""The second system of an ensemble, ready to read any text: a bag of words learns anew from the
run's train texts, which takes seconds; a fine-tune is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from gencls_core.config import RunConfig
from gencls_core.report.fitting import Companion
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import LikelihoodMatrix
from gencls_core.systems.registry import MODEL_SYSTEMS, light_system
from gencls_core.trained_run import LocalModels

__all__ = ["SecondSystem"]


@dataclass(frozen=True)
class SecondSystem:
    """A system that stands beside the likelihoods of a run."""

    name: str
    train_counts: dict[str, int]
    """Texts of each class that it learned from."""
    score: Callable[[Sequence[str]], LikelihoodMatrix]
    """Texts, numbered from 0 → log P(class | text) in nats."""

    @classmethod
    def open(cls, run: RunDirectory, name: str, *, scored: RunDirectory) -> Self:
        """Make it ready.

        Args:
            run: a run whose ensemble it is in.
            name: of the system.
            scored: the run or evaluation whose precision and settings are taken.

        Raises:
            StoreError: when its model is missing.
            DataError: when the run's train texts are.
            ModelError: when its model cannot be loaded.
        """
        dataset = run.dataset()
        counts = dataset.split("train").class_counts
        if name in MODEL_SYSTEMS:
            loaded = LocalModels.open(run, scored=scored, system=MODEL_SYSTEMS[name])
            return cls(name, counts, loaded.matrix)
        config = RunConfig.model_validate(run.manifest()["config"])
        system = light_system(name, config.data.seed_of_sample, config.systems)
        learned = system.fit(dataset)

        def score(texts: Sequence[str]) -> LikelihoodMatrix:
            scores_NC = np.zeros((0, len(dataset.classes)))
            words: Sequence[int] = ()
            if texts:
                found = learned(list(texts))
                scores_NC, words = found.scores, found.num_tokens
            ids = pa.array(map(str, range(len(texts))), pa.string())
            return LikelihoodMatrix(
                example_ids=pa.chunked_array([ids], pa.string()),
                label_codes=np.full(len(texts), -1),
                classes=dataset.classes,
                scores=scores_NC,
                num_tokens=np.array(words, dtype=np.int64),
                truncated=np.zeros(len(texts), dtype=np.bool_),
                num_windows=np.ones(len(texts), dtype=np.int64),
                loss_scores=None,
                quantity=system.quantity,
            )

        return cls(name, counts, score)

    def companion(self, texts: Sequence[str]) -> Companion:
        """Say what it thinks of texts."""
        return Companion(self.train_counts, self.score(texts))

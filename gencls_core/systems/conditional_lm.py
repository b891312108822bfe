"""One causal language model for all classes, which reads a prefix of the class before a text.

    conditional-lm    trained as a language model
    joint-lm          tuned, too, to tell the classes apart (`gencls_core.objectives.joint`)

Scores are exact log P(text | BOS, prefix of the class), in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gencls_core.config import ObjectiveName
from gencls_core.config_training import RECIPES
from gencls_core.prefixes import read_prefixes
from gencls_core.scores import Quantity
from gencls_core.scoring_job import BaseKind, Models, ScoringJob

__all__ = ["ConditionalLm", "JointLm"]


@dataclass(frozen=True)
class ConditionalLm:
    """One model of all classes, trained on the likelihood of each text after its class's prefix."""

    name: str = RECIPES["conditional"]
    quantity: Quantity = "log_likelihood"
    base: BaseKind = "causal"
    objective: ObjectiveName | None = "conditional"
    model_per_class: bool = False

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """Nothing more: the prefixes are among the files of the model."""
        return {}

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the model, which serves all classes, whichever are asked for.

        Raises:
            ModelError: when it cannot be loaded.
            StoreError: when it lacks the prefix of a class.
        """
        from gencls_core.precision import scoring_dtype
        from gencls_core.prompted import PromptedModel
        from gencls_core.scoring import ClassModelSet

        [trained] = job.models
        prefixes = read_prefixes(trained.local(), job.classes)
        loaded = ClassModelSet(
            job.models,
            job.base,
            dtype=scoring_dtype(job.precision),
            device=job.device,
            compiled=job.compiled,
        )
        lm = loaded.model(trained.class_name)
        return PromptedModel(lm, {name: [prefix] for name, prefix in prefixes.items()})


@dataclass(frozen=True)
class JointLm(ConditionalLm):
    """The same, tuned to tell the classes apart."""

    name: str = RECIPES["joint"]
    objective: ObjectiveName | None = "joint"

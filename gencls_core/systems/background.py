"""The base model as it is, which knows no class: what `--reject background` compares texts with.

It classifies nothing, so it is in no list of systems. Its rows, log P(text | BOS) in nats over the
tokens that the class models score, lie in the score store under one class that is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gencls_core.config import ObjectiveName
from gencls_core.scores import Quantity
from gencls_core.scoring_job import BACKGROUND, BaseKind, Models, ScoringJob

__all__ = ["Background"]


@dataclass(frozen=True)
class Background:
    """One untrained causal language model, which reads texts alone."""

    name: str = BACKGROUND
    quantity: Quantity = "log_likelihood"
    base: BaseKind = "causal"
    objective: ObjectiveName | None = None
    model_per_class: bool = False

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """Rows depend on nothing but weights, texts, sequence and precision."""
        return {}

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the base model.

        Raises:
            ModelError: when it cannot be loaded.
        """
        from gencls_core.loaded_models import ready_to_score
        from gencls_core.models import load_causal_lm
        from gencls_core.precision import scoring_dtype
        from gencls_core.scoring import PlainModel

        lm = load_causal_lm(job.base, scoring_dtype(job.precision))
        ready_to_score(lm.model, job.device, compiled=job.compiled)
        return PlainModel(lm)

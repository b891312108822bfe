"""A causal language model per class: the main job. Scores are exact log P(text | class)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gencls_core.config import ObjectiveName
from gencls_core.run import CLASS_LM
from gencls_core.scores import Quantity
from gencls_core.scoring_job import BaseKind, Models, ScoringJob

__all__ = ["ClassLm"]


@dataclass(frozen=True)
class ClassLm:
    """One fine-tuned causal language model per class."""

    name: str = CLASS_LM
    quantity: Quantity = "log_likelihood"
    base: BaseKind = "causal"
    objective: ObjectiveName | None = "causal"
    model_per_class: bool = True

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """Rows may carry the original experiment's loss beside the likelihood."""
        return {"likelihood": job.scoring.likelihood}

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the committed class models; LoRA adapters share one base."""
        from gencls_core.precision import scoring_dtype
        from gencls_core.scoring import ClassModelSet

        return ClassModelSet(
            [model for model in job.models if model.class_name in classes],
            job.base,
            dtype=scoring_dtype(job.precision),
            device=job.device,
            compiled=job.compiled,
        )

"""The base model as it is, asked with prompts that name the class: what training has to beat.

Scores are log P(text | BOS, prompt of the class), in nats; see `gencls_core.prompts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gencls_core.config import ObjectiveName
from gencls_core.prompts import check_prompts, prompt_parts, prompts_for
from gencls_core.scores import Quantity
from gencls_core.scoring_job import BaseKind, Models, ScoringJob

__all__ = ["ZERO_SHOT", "ZeroShot"]

ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class ZeroShot:
    """One untrained causal language model, which reads a prompt of the class before each text."""

    name: str = ZERO_SHOT
    quantity: Quantity = "log_likelihood"
    base: BaseKind = "causal"
    objective: ObjectiveName | None = None
    model_per_class: bool = False

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """Rows depend on the class's prompts, and through the windows on those of all classes."""
        return prompt_parts(job.systems, job.classes, class_name)

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the base model, which serves all classes, whichever are asked for.

        Raises:
            UsageError: when a class has no prompts of its own.
            ModelError: when the base cannot be loaded, or its tokenizer takes the prompts of two
                classes for the same.
        """
        check_prompts(job.systems, job.classes)

        from gencls_core.loaded_models import ready_to_score
        from gencls_core.models import load_causal_lm
        from gencls_core.precision import scoring_dtype
        from gencls_core.prompted import PromptedModel

        lm = load_causal_lm(job.base, scoring_dtype(job.precision))
        ready_to_score(lm.model, job.device, compiled=job.compiled)
        return PromptedModel(lm, {name: prompts_for(job.systems, name) for name in job.classes})

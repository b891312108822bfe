"""Masked language models: one per class, and the untrained one with prompts to compare with.

Their scores are pseudo-log-likelihoods, or estimates of a bound on log-likelihoods
(`gencls_core.masked_likelihood`): neither is the exact log-likelihood of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gencls_core.config import ObjectiveName
from gencls_core.masked_draws import MASK_FORMAT
from gencls_core.prompts import check_prompts, prompt_parts
from gencls_core.scores import Quantity
from gencls_core.scoring_job import BaseKind, Models, ScoringJob

__all__ = ["MASKED_LM", "MASKED_LM_UNTRAINED", "MaskedLm", "UntrainedMaskedLm"]

MASKED_LM = "masked-lm"
MASKED_LM_UNTRAINED = "masked-lm-untrained"


@dataclass(frozen=True)
class MaskedLm:
    """One fine-tuned masked language model per class."""

    name: str = MASKED_LM
    quantity: Quantity = "pseudo_log_likelihood"
    base: BaseKind = "masked"
    objective: ObjectiveName | None = "masked"
    model_per_class: bool = True

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """Rows depend on which likelihood it is, and where masks are drawn, on what draws them."""
        return _of_likelihood(job)

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the committed class models; LoRA adapters share one base."""
        from gencls_core.masked_scoring import MaskedClassModels

        return MaskedClassModels(job, classes)


@dataclass(frozen=True)
class UntrainedMaskedLm:
    """The masked base as it is, which reads a prompt of the class before each text."""

    name: str = MASKED_LM_UNTRAINED
    quantity: Quantity = "pseudo_log_likelihood"
    base: BaseKind = "masked"
    objective: ObjectiveName | None = None
    model_per_class: bool = False

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """Rows also depend on the class's prompts, and through the window on those of all."""
        return {**_of_likelihood(job), **prompt_parts(job.systems, job.classes, class_name)}

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the base model, which serves all classes, whichever are asked for.

        Raises:
            UsageError: when a class has no prompts of its own.
        """
        check_prompts(job.systems, job.classes)

        from gencls_core.masked_scoring import PromptedMaskedModel

        return PromptedMaskedModel(job)


def _of_likelihood(job: ScoringJob) -> dict[str, Any]:
    systems = job.systems
    parts: dict[str, Any] = {"masked_likelihood": systems.masked_likelihood}
    if systems.masked_likelihood == "sampled":
        parts |= {"mask_samples": systems.mask_samples, "seed": job.seed, "masks": MASK_FORMAT}
    return parts

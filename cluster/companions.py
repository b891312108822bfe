"""The second system of an ensemble, where it is made of a language model: trained in the same run.

Light ones learn in the driver (`stages.baseline_stage`).
"""

from __future__ import annotations

from cluster.preparation import Preparation, prepare_run
from cluster.turn import has_work
from gencls_core.ensemble import companions_of
from gencls_core.errors import ResourceError
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = ["companions", "model_beside", "works"]


def companions(preparation: Preparation) -> tuple[str, ...]:
    """Give the systems that may stand beside a run's likelihoods."""
    config, selection = preparation.config, preparation.selection
    return companions_of(
        config.posterior.ensemble,
        baseline=config.baseline,
        fine_tune=selection is not None and selection.fine_tune,
        held_out=preparation.dataset.held_out,
    )


def model_beside(preparation: Preparation) -> Preparation | None:
    """Prepare the one that is made of a language model; None where there is none.

    It has the training settings that were asked for, not those that were chosen for the recipe.

    Raises:
        ResourceError: when it was asked for by name and does not fit.
    """
    asked = preparation.asked or preparation.config
    config = preparation.config.model_copy(update={"training": asked.training})
    for name in companions(preparation):
        if name not in MODEL_SYSTEMS:
            continue
        try:
            return prepare_run(
                config,
                preparation.dataset,
                preparation.run,
                system=MODEL_SYSTEMS[name],
                budget=preparation.budget,
            )
        except ResourceError:
            if config.posterior.ensemble != "auto":
                raise
    return None


def works(preparation: Preparation, *, score: bool) -> bool:
    """Say whether a run has anything to do that takes CPUs or GPUs."""
    if has_work(preparation, score=score):
        return True
    beside = model_beside(preparation) if score else None
    return beside is not None and has_work(beside, score=True)

"""The second system of an ensemble, where it is made of a language model: trained in the same run.

Light ones learn in the driver (`stages.baseline_stage`).
"""

from __future__ import annotations

from dataclasses import replace

from cluster.background import background_missing
from cluster.failures import LASTING, reason_of
from cluster.preparation import Preparation, prepare_run
from cluster.turn import has_work
from gencls_core.ensemble import companions_of
from gencls_core.errors import GenclsError, ResourceError
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = ["companions", "model_beside", "with_fine_tune", "without_fine_tune", "works"]


def companions(preparation: Preparation) -> tuple[str, ...]:
    """Give the systems that may stand beside a run's likelihoods."""
    config, selection = preparation.config, preparation.selection
    return companions_of(
        config.posterior.ensemble,
        baseline=config.baseline,
        fine_tune=selection is not None and selection.fine_tune,
        held_out=preparation.dataset.held_out
        if selection is None or not selection.parts
        else selection.held_out_texts,
        texts=preparation.dataset.split("train").rows,
    )


def model_beside(preparation: Preparation) -> tuple[Preparation | None, GenclsError | None]:
    """Prepare the one that is made of a language model, or give why it cannot be had.

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
            found = prepare_run(
                config,
                preparation.dataset,
                preparation.run,
                system=MODEL_SYSTEMS[name],
                budget=preparation.budget,
            )
        except ResourceError as error:
            if config.posterior.ensemble != "auto":
                raise
            return None, error
        return found, None
    return None, None


def with_fine_tune(preparation: Preparation) -> Preparation:
    """Forget why an earlier invocation did without a fine-tune that is to be tried again."""
    selection = preparation.selection
    if selection is None or not selection.fine_tune:
        return preparation
    return replace(preparation, selection=selection.model_copy(update={"fine_tune_note": None}))


def without_fine_tune(preparation: Preparation, error: GenclsError) -> Preparation:
    """Let a run do without the fine-tune that it had time for, and say why; for good where the
    failure would come again."""
    selection = preparation.selection
    assert selection is not None, "it was thought of when the recipe was chosen"
    lasting = isinstance(error, LASTING)
    changes = {"fine_tune": not lasting, "fine_tune_note": reason_of(error)}
    return replace(preparation, selection=selection.model_copy(update=changes))


def works(preparation: Preparation, *, score: bool) -> bool:
    """Say whether a run has anything to do that takes CPUs or GPUs."""
    if has_work(preparation, score=score):
        return True
    score = score and preparation.reports
    wants_background = score and preparation.config.scoring.background
    if wants_background and background_missing(preparation, preparation.run):
        return True
    beside, _ = model_beside(preparation) if score else (None, None)
    return beside is not None and has_work(beside, score=True)

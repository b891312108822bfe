"""Which second system stands beside the likelihoods of a run, if any, by its held-out texts.

Nothing is scored here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gencls_core.ensemble import FINE_TUNE, LIGHT, companions_of
from gencls_core.errors import DataError, StoreError
from gencls_core.report.fitting import CalibrationFit, Companion, EnsembleFit, Fitter
from gencls_core.run import RunDirectory, system_of
from gencls_core.selection import judge

__all__ = ["decided", "ensemble_of", "with_ensemble"]


def with_ensemble(
    fitter: Fitter,
    alone: CalibrationFit | None,
    manifest: dict[str, Any],
    ensemble: str | None,
    companion_of: Callable[[str], Companion] | None = None,
) -> tuple[CalibrationFit | None, Companion | None, tuple[str, ...]]:
    """Give the fit with a second system beside, what that says, and why it is not there.

    Args:
        fitter: of the run.
        alone: the fit without one.
        manifest: of the run.
        ensemble: the setting; default: the manifest's.
        companion_of: gives what a system says of the texts; default: its committed test scores.
    """
    if alone is None:
        by_name = _wanted(manifest, ensemble) not in (None, "none", "auto")
        return None, None, ("There is no ensemble without calibration.",) if by_name else ()
    fits, problems = _fits(fitter, alone, manifest, ensemble)
    companion = None
    found = decided(fits, always=_wanted(manifest, ensemble) != "auto")
    while found is not None and found.taken:
        try:
            if companion_of is not None:
                companion = companion_of(found.system)
            else:
                companion = fitter.companion(found.system, alone.system)
            break
        except (DataError, StoreError) as error:
            problems.append(error)
            fits = [fit for fit in fits if fit.system != found.system]
            found = decided(fits, always=False)
    # A help, not the result: the figures stand without it.
    what = "There is no ensemble" if found is None else "A second system was left out"
    notes = tuple(f"{what}: {str(problem).splitlines()[0]}." for problem in problems)
    if found is None or not found.taken:
        return replace(alone, ensemble=found), None, notes
    with_it = replace(alone, calibration=found.fitted.pool, texts=found.texts, ensemble=found)
    return with_it, companion, notes


def ensemble_of(
    origin: RunDirectory,
    ensemble: str | None = None,
    *,
    run: RunDirectory | None = None,
    by_loss: bool = False,
) -> str | None:
    """Give the second system that stands beside the likelihoods of a run, by its held-out texts.

    One that is asked for and has not scored them yet is given, too.

    Args:
        origin: a run whose held-out texts were scored.
        ensemble: the setting; default: the run's own.
        run: the evaluation in question, whose own scores of held-out texts come first.
        by_loss: whether labels are decided by the original experiment's scores.
    """
    manifest = origin.manifest()
    fitter = Fitter(run or origin, origin, tuple(manifest["classes"]), by_loss)
    alone, _ = fitter.fit(system_of(manifest))
    if alone is None:
        return None
    fits, _ = _fits(fitter, alone, manifest, ensemble)
    found = decided(fits, always=_wanted(manifest, ensemble) != "auto")
    if found is None:
        return next(iter(_systems(fitter, alone, manifest, ensemble)), None)
    return found.system if found.taken else None


def _wanted(manifest: dict[str, Any], ensemble: str | None) -> str | None:
    """Give the setting `ensemble`; a run of before there was one says nothing of it."""
    setting: str | None = ensemble or manifest["config"]["posterior"].get("ensemble")
    return setting


def _systems(
    fitter: Fitter, alone: CalibrationFit, manifest: dict[str, Any], ensemble: str | None
) -> tuple[str, ...]:
    """Give the second systems that are to be tried."""
    wanted, chosen = _wanted(manifest, ensemble), fitter.selection
    judged = chosen is not None and chosen.parts > 0
    systems = companions_of(
        wanted,
        baseline=manifest["config"].get("baseline", True),
        fine_tune=fitter.tries_fine_tune,
        held_out=chosen.held_out_texts if chosen is not None and judged else len(alone.texts),
    )
    # `auto` asks those that the run has: it tries fewer where train texts are many.
    return tuple(
        name for name in systems if wanted != "auto" or name not in LIGHT or fitter.has_scored(name)
    )


def _fits(
    fitter: Fitter, alone: CalibrationFit, manifest: dict[str, Any], ensemble: str | None
) -> tuple[list[EnsembleFit], list[Exception]]:
    """Fit each second system; and say why others could not be tried."""
    fits: list[EnsembleFit] = []
    problems: list[Exception] = []
    for system in _systems(fitter, alone, manifest, ensemble):
        try:
            fits.append(fitter.together(alone, system))
        except (DataError, StoreError) as error:
            problems.append(error)
    return fits, problems


def decided(fits: list[EnsembleFit], *, always: bool) -> EnsembleFit | None:
    """Give the second system that is taken, or the best of those that were tried.

    A fine-tune comes first: it knows as much as the likelihoods and errs elsewhere, so it is taken
    unless held-out texts speak against it by more than one standard error. The likelihoods alone
    come next, so that a bag of words must help by that much.

    Args:
        fits: of each that was tried.
        always: whether it was asked for by name.
    """
    if not fits:
        return None
    if always:
        return replace(fits[0], taken=True, reason="it was asked for")
    order: list[EnsembleFit | None] = [
        *(fit for fit in fits if fit.system == FINE_TUNE),
        None,
        *(fit for fit in fits if fit.system != FINE_TUNE),
    ]
    alone_N = fits[0].fitted.alone
    verdict = judge([alone_N if fit is None else fit.fitted.together for fit in order])
    taken = order[verdict.chosen]
    if taken is not None:
        better = taken.fitted.nll_together < taken.fitted.nll_alone
        reason = "are better predicted with it" if better else "do not speak against it"
        return replace(taken, taken=True, reason=f"held-out texts {reason}")
    nearest = min(fits, key=lambda fit: fit.fitted.nll_together)
    without = "are better predicted without it"
    reason = without if nearest.system == FINE_TUNE else "do not show that it helps"
    return replace(nearest, reason=f"held-out texts {reason}")

"""What is fitted on held-out texts: scale, biases, and the weight of a second system.

Everything comes from committed score shards and the manifest; nothing is scored here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gencls_core.calibration import Calibration, fit_calibration, why_not_calibrated
from gencls_core.ensemble import EnsembleTrial, companion_of, judge_ensemble, with_beside
from gencls_core.errors import DataError, StoreError
from gencls_core.posterior import label_prior
from gencls_core.run import RunDirectory, system_of
from gencls_core.score_matrix import LikelihoodMatrix, read_likelihoods

__all__ = [
    "CalibrationFit",
    "Companion",
    "EnsembleFit",
    "Fitter",
    "decided_by_loss",
    "ensemble_taken",
    "with_ensemble",
]


@dataclass(frozen=True)
class CalibrationFit:
    """A calibration, and what it did to the texts that it was fitted on."""

    system: str
    calibration: Calibration
    texts: LikelihoodMatrix
    """Scores of the validation texts."""
    text_prior: dict[str, float]
    """How often the classes occur among them: the prior that the biases were fitted beside."""
    ensemble: EnsembleFit | None
    """None where none was asked for, or it could not be fitted."""


@dataclass(frozen=True)
class EnsembleFit:
    """Whether a second system stands beside the likelihoods, and why."""

    system: str
    trial: EnsembleTrial
    taken: bool
    reason: str


@dataclass(frozen=True)
class Companion:
    """The second system of an ensemble, and what it says of the run's test texts."""

    train_counts: dict[str, int]
    """Texts of each class that it learned from."""
    tested: LikelihoodMatrix

    def beside(self, matrix: LikelihoodMatrix, start: int) -> LikelihoodMatrix:
        return with_beside(matrix, self.tested, self.train_counts, start)


@dataclass(frozen=True)
class Fitter:
    """Fits scale, biases and the weight of a second system to held-out texts."""

    run: RunDirectory
    origin: RunDirectory
    classes: tuple[str, ...]
    by_loss: bool

    def _held_out(self, system: str) -> LikelihoodMatrix | None:
        """Give what a system says of the held-out texts; None where it scored none."""
        for directory in (self.run, self.origin):
            store = directory.validation_scores
            if records := store.records(system):
                return read_likelihoods(store, system, self.classes, records)
        return None

    def fit(self, system: str) -> tuple[CalibrationFit | None, tuple[str, ...]]:
        """Calibrate a system by itself, or say why that cannot be done."""
        unavailable = "Calibrated figures are not available: "
        try:
            texts = self._held_out(system)
        except StoreError as error:
            # Validation scores are a help, not the result: the test figures stand without them.
            return None, (f"{unavailable}the validation scores are not whole ({error}).",)
        if texts is None:
            return None, (f"{unavailable}no validation text was scored by {system}.",)
        if self.by_loss:
            texts = decided_by_loss(texts)
        text_prior = label_prior(texts)
        calibration = fit_calibration(texts, text_prior)
        if calibration is None:
            return None, (f"{unavailable}{why_not_calibrated(texts)}.",)
        return CalibrationFit(system, calibration, texts, text_prior, None), ()

    def _train_counts(self) -> dict[str, int]:
        return self.origin.dataset().split("train").class_counts

    def companion(self, system: str, beside: str) -> Companion:
        """Read what the second system says of the test texts that `beside` scored.

        Raises:
            StoreError: when it has not scored them all.
        """
        store = self.run.scores
        records = store.records(system)
        found = sum(record.rows for record in records)
        if found != sum(record.rows for record in store.records(beside)):
            raise StoreError(f"{system} has not scored the test texts")
        tested = read_likelihoods(store, system, self.classes, records)
        return Companion(self._train_counts(), tested)

    def together(self, alone: CalibrationFit, setting: _EnsembleSetting) -> CalibrationFit:
        """Fit both systems, and take the second where it helps, or was asked for.

        Raises:
            StoreError: when it has not scored the held-out texts.
        """
        system = setting.system
        other = self._held_out(system)
        if other is None:
            raise StoreError(f"{system} has not scored the held-out texts")
        texts = with_beside(alone.texts, other, self._train_counts())
        trial = judge_ensemble(texts)
        calibration = fit_calibration(texts, alone.text_prior)
        assert calibration is not None, "it could be fitted without the second system"
        helps = trial.helps and calibration.weight > 0
        reason = f"held-out texts are {'better' if helps else 'no better'} predicted with it"
        if setting.always:
            reason = "it was asked for"
        ensemble = EnsembleFit(system, trial, setting.always or helps, reason)
        if not ensemble.taken:
            return replace(alone, ensemble=ensemble)
        return replace(alone, calibration=calibration, texts=texts, ensemble=ensemble)


def _wanted(manifest: dict[str, Any], ensemble: str | None) -> str | None:
    """Give the setting `ensemble`; a run of before there was one says nothing of it."""
    setting: str | None = ensemble or manifest["config"]["posterior"].get("ensemble")
    return setting


def _ensemble_setting(
    manifest: dict[str, Any], ensemble: str | None, held_out: int
) -> _EnsembleSetting | None:
    wanted = _wanted(manifest, ensemble)
    baseline = manifest["config"].get("baseline", True)
    system = companion_of(wanted, baseline=baseline, held_out=held_out)
    return None if system is None else _EnsembleSetting(system, always=wanted != "auto")


@dataclass(frozen=True)
class _EnsembleSetting:
    system: str
    always: bool
    """Whether it was asked for by name."""


def with_ensemble(
    fitter: Fitter, alone: CalibrationFit | None, manifest: dict[str, Any], ensemble: str | None
) -> tuple[CalibrationFit | None, Companion | None, tuple[str, ...]]:
    """Give the fit with a second system beside, what that says, and why it is not there.

    Args:
        fitter: of the run.
        alone: the fit without one.
        manifest: of the run.
        ensemble: the setting; default: the manifest's.
    """
    if alone is None:
        by_name = _wanted(manifest, ensemble) not in (None, "none", "auto")
        return None, None, ("There is no ensemble without calibration.",) if by_name else ()
    setting = _ensemble_setting(manifest, ensemble, len(alone.texts))
    if setting is None:
        return alone, None, ()
    try:
        fit = fitter.together(alone, setting)
        assert fit.ensemble is not None
        if not fit.ensemble.taken:
            return fit, None, ()
        return fit, fitter.companion(setting.system, alone.system), ()
    except (DataError, StoreError) as error:
        # A help, not the result: the figures stand without it.
        return alone, None, (f"There is no ensemble: {str(error).splitlines()[0]}.",)


def ensemble_taken(
    origin: RunDirectory,
    ensemble: str | None = None,
    *,
    run: RunDirectory | None = None,
    by_loss: bool = False,
) -> bool | None:
    """Say whether a second system stands beside the likelihoods of a run, by its held-out texts.

    Args:
        origin: a run whose held-out texts were scored.
        ensemble: the setting; default: the run's own.
        run: the evaluation in question, whose own scores of held-out texts come first.
        by_loss: whether labels are decided by the original experiment's scores.

    Returns:
        None where the held-out texts do not say: the second system has not scored them.
    """
    manifest = origin.manifest()
    fitter = Fitter(run or origin, origin, tuple(manifest["classes"]), by_loss)
    alone, _ = fitter.fit(system_of(manifest))
    if alone is None:
        return False
    setting = _ensemble_setting(manifest, ensemble, len(alone.texts))
    if setting is None:
        return False
    try:
        found = fitter.together(alone, setting).ensemble
    except (DataError, StoreError):
        return None
    return found is not None and found.taken


def decided_by_loss(matrix: LikelihoodMatrix) -> LikelihoodMatrix:
    """Put the loss-based scores in the place of the exact ones, for decisions only."""
    if matrix.loss_scores is None:
        return matrix
    return replace(matrix, scores=matrix.loss_scores)

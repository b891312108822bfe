"""From a run directory to posteriors: which scores, which prior, which calibration.

Nothing is scored here. Everything comes from the committed Parquet files, so that another prior,
or a lost report, costs seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gencls_core.calibration import Calibration, fit_calibration, why_not_calibrated
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import StoreError
from gencls_core.posterior import label_prior, posterior_of, resolve_prior
from gencls_core.run import RunDirectory, system_of
from gencls_core.score_matrix import (
    FloatArray,
    LikelihoodMatrix,
    iter_likelihoods,
    read_likelihoods,
)
from gencls_core.scores import ShardRecord
from gencls_core.storage import resolve_below

__all__ = ["CalibrationFit", "Inference", "infer", "infer_by_range"]


BY_LOSS = (
    "Labels were decided by the original experiment's loss-based scores (--likelihood loss); "
    "perplexities and stored scores are exact."
)


@dataclass(frozen=True)
class CalibrationFit:
    """A calibration, and what it did to the texts that it was fitted on."""

    calibration: Calibration
    texts: LikelihoodMatrix
    """Scores of the validation texts."""
    text_prior: dict[str, float]
    """How often the classes occur among them: the prior that the biases were fitted beside."""


@dataclass(frozen=True)
class Inference:
    """Posteriors of a run's test texts, with everything they depend on."""

    matrix: LikelihoodMatrix
    records: tuple[ShardRecord, ...]
    """Commit records of all the system's test shards."""
    prior_name: str
    prior: dict[str, float]
    fit: CalibrationFit | None
    notes: tuple[str, ...]
    """Why there is no calibration, where there is none."""
    log_posterior: FloatArray
    """[N, C] nats, uncalibrated."""
    calibrated: FloatArray | None
    """[N, C] nats, calibrated."""

    @property
    def calibration(self) -> Calibration | None:
        """The calibration, where there is one."""
        return None if self.fit is None else self.fit.calibration


def infer(
    run: RunDirectory,
    *,
    prior: str | None = None,
    system: str | None = None,
    models_of: RunDirectory | None = None,
) -> Inference:
    """Apply Bayes' rule to the test scores of `run`.

    Args:
        run: a run or evaluation directory.
        prior: see `gencls_core.posterior.resolve_prior`; default: the run's own setting.
        system: the system whose scores are read; default: that of the run's recipe.
        models_of: the run whose models scored the texts, where `run` is an evaluation: the train
            counts and the validation scores are its. Default: `calibration_run` of run.json, or
            the run itself.

    Raises:
        StoreError: when scores are missing or contradict each other.
        UsageError: when the prior cannot be obeyed.
    """
    rule = _rule(run, prior, system, models_of)
    return rule.applied(read_likelihoods(run.scores, rule.system, rule.classes, rule.records))


def infer_by_range(
    run: RunDirectory,
    *,
    prior: str | None = None,
    system: str | None = None,
    models_of: RunDirectory | None = None,
) -> Iterator[Inference]:
    """Do as `infer`, one range of test texts at a time: memory does not grow with the texts.

    Raises:
        StoreError: as `infer`, at the range in question.
        UsageError: when the prior cannot be obeyed.
    """
    rule = _rule(run, prior, system, models_of)
    for matrix in iter_likelihoods(run.scores, rule.system, rule.classes, rule.records):
        yield rule.applied(matrix)


@dataclass(frozen=True)
class _Rule:
    """How the scores of a run become posteriors."""

    system: str
    classes: tuple[str, ...]
    records: tuple[ShardRecord, ...]
    prior_name: str
    prior: dict[str, float]
    fit: CalibrationFit | None
    notes: tuple[str, ...]
    by_loss: bool

    def applied(self, matrix: LikelihoodMatrix) -> Inference:
        """Give the posteriors of some of the run's test texts."""
        decided, notes = matrix, self.notes
        if self.by_loss and matrix.loss_scores is not None:
            decided = _decided_by_loss(matrix)
            notes = (*notes, BY_LOSS)
        calibrated = None
        if self.fit is not None:
            calibrated = posterior_of(decided, self.prior, self.fit.calibration)
        return Inference(
            matrix=matrix,
            records=self.records,
            prior_name=self.prior_name,
            prior=self.prior,
            fit=self.fit,
            notes=notes,
            log_posterior=posterior_of(decided, self.prior),
            calibrated=calibrated,
        )


def _rule(
    run: RunDirectory, prior: str | None, system: str | None, models_of: RunDirectory | None
) -> _Rule:
    manifest = run.manifest()
    system = system or system_of(manifest)
    classes = tuple(manifest["classes"])
    origin = models_of or origin_of(run, manifest)
    prior_name = prior if prior is not None else manifest["config"]["posterior"]["prior"]
    prior_of_class = resolve_prior(prior_name, classes, prior_counts(run, origin))
    by_loss = manifest["config"]["scoring"]["likelihood"] == "loss"
    fit, notes = _fit(run, origin, system, classes, by_loss)
    records = tuple(run.scores.records(system))
    return _Rule(system, classes, records, prior_name, prior_of_class, fit, notes, by_loss)


def origin_of(run: RunDirectory, manifest: dict[str, Any]) -> RunDirectory:
    """Give the run that trained the models and scored the validation texts."""
    named = manifest.get("calibration_run")
    return RunDirectory(resolve_below(run.path, named)) if named else run


def prior_counts(run: RunDirectory, origin: RunDirectory) -> dict[str, int]:
    """Give the train counts of the run whose models are used, else those of the run itself."""
    if (origin.dataset_path / "dataset.json").exists():
        return Dataset.open(origin.dataset_path).prior_counts
    return run.dataset().prior_counts


def _decided_by_loss(matrix: LikelihoodMatrix) -> LikelihoodMatrix:
    """Put the loss-based scores in the place of the exact ones, for decisions only."""
    if matrix.loss_scores is None:
        return matrix
    return replace(matrix, scores=matrix.loss_scores)


def _fit(
    run: RunDirectory, origin: RunDirectory, system: str, classes: tuple[str, ...], by_loss: bool
) -> tuple[CalibrationFit | None, tuple[str, ...]]:
    unavailable = "Calibrated figures are not available: "
    store = run.validation_scores
    records = store.records(system)
    if not records and origin is not run:
        store = origin.validation_scores
        records = store.records(system)
    if not records:
        return None, (f"{unavailable}no validation text was scored by {system}.",)
    try:
        texts = read_likelihoods(store, system, classes, records)
    except StoreError as error:
        # Validation scores are a help, not the result: the test figures stand without them.
        return None, (f"{unavailable}the validation scores are not whole ({error}).",)
    if by_loss:
        texts = _decided_by_loss(texts)
    reason = why_not_calibrated(texts)
    text_prior = label_prior(texts)
    calibration = fit_calibration(texts, text_prior)
    if calibration is None:
        return None, (f"{unavailable}{reason}.",)
    return CalibrationFit(calibration, texts, text_prior), ()

"""From a run directory to posteriors: which scores, which prior, which calibration.

Nothing is scored here. Everything comes from the committed Parquet files, so that another prior,
or a lost report, costs seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gencls_core.calibration import Calibration, Pool
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import StoreError
from gencls_core.posterior import UNLABELLED, posterior_of, resolve_prior
from gencls_core.prior_shift import PriorEstimate, estimate_prior
from gencls_core.report.ensembles import with_ensemble
from gencls_core.report.fitting import CalibrationFit, Companion, Fitter, decided_by_loss
from gencls_core.run import RunDirectory, system_of
from gencls_core.score_matrix import (
    FloatArray,
    LikelihoodMatrix,
    iter_likelihoods,
    read_likelihoods,
)
from gencls_core.scores import ShardRecord
from gencls_core.storage import resolve_below

__all__ = [
    "Inference",
    "Rule",
    "infer",
    "infer_by_range",
    "origin_of",
    "prior_counts",
    "require_same_classes",
    "rule_of",
]


BY_LOSS = (
    "Labels were decided by the original experiment's loss-based scores (--likelihood loss); "
    "perplexities and stored scores are exact."
)

UNSETTLED = (
    "The prior of the unlabelled texts had not come to rest when its estimation was given up: the "
    "likelihoods hardly tell the classes apart. Take `--prior train`, or one that is known."
)


@dataclass(frozen=True)
class Inference:
    """Posteriors of a run's test texts, with everything they depend on."""

    matrix: LikelihoodMatrix
    records: tuple[ShardRecord, ...]
    """Commit records of all the system's test shards."""
    prior_name: str
    prior: dict[str, float]
    estimate: PriorEstimate | None
    """How the prior was estimated, where it was."""
    fit: CalibrationFit | None
    notes: tuple[str, ...]
    """Why there is no calibration, where there is none."""
    log_posterior: FloatArray
    """[N, C] nats, uncalibrated."""
    calibrated: FloatArray | None
    """[N, C] nats, calibrated."""
    stands_by_calibrated: bool
    """Whether the calibrated posterior is the run's answer."""
    by_loss: bool = False
    """Whether labels were decided by mean losses."""

    @property
    def answer(self) -> FloatArray:
        """[N, C] nats, the posterior that the run stands by."""
        if self.stands_by_calibrated and self.calibrated is not None:
            return self.calibrated
        return self.log_posterior

    @property
    def calibration(self) -> Calibration | Pool | None:
        """The calibration, where there is one."""
        return None if self.fit is None else self.fit.calibration

    @property
    def decided_by(self) -> Calibration | Pool | None:
        """The calibration that the answer is made with; None where it stands by the scores."""
        return self.calibration if self.stands_by_calibrated else None


def infer(
    run: RunDirectory,
    *,
    prior: str | None = None,
    ensemble: str | None = None,
    system: str | None = None,
    models_of: RunDirectory | None = None,
) -> Inference:
    """Apply Bayes' rule to the test scores of `run`.

    Args:
        run: a run or evaluation directory.
        prior: see `gencls_core.posterior.resolve_prior`, or `unlabelled`: estimated from the texts
            themselves; default: the run's own setting.
        ensemble: the setting of that name; default: the run's own. Only of the run's own system.
        system: the system whose scores are read; default: that of the run's recipe.
        models_of: the run whose models scored the texts, where `run` is an evaluation: the train
            counts and the validation scores are its. Default: `calibration_run` of run.json, or
            the run itself.

    Raises:
        StoreError: when scores are missing or contradict each other.
        UsageError: when the prior cannot be obeyed.
    """
    rule = rule_of(run, prior=prior, ensemble=ensemble, system=system, models_of=models_of)
    return rule.applied(read_likelihoods(run.scores, rule.system, rule.classes, rule.records))


def infer_by_range(
    run: RunDirectory,
    *,
    prior: str | None = None,
    ensemble: str | None = None,
    system: str | None = None,
    models_of: RunDirectory | None = None,
) -> Iterator[Inference]:
    """Do as `infer`, one range of test texts at a time: memory does not grow with the texts.

    An ensemble's second system is read as a whole: a number for each text and class.

    Raises:
        StoreError: as `infer`, at the range in question.
        UsageError: when the prior cannot be obeyed.
    """
    rule = rule_of(run, prior=prior, ensemble=ensemble, system=system, models_of=models_of)
    start = 0
    for matrix in iter_likelihoods(run.scores, rule.system, rule.classes, rule.records):
        yield rule.applied(matrix, start)
        start += len(matrix)


@dataclass(frozen=True)
class Rule:
    """How the scores of a run become posteriors; no test score is in it."""

    system: str
    classes: tuple[str, ...]
    records: tuple[ShardRecord, ...]
    prior_name: str
    prior: dict[str, float]
    estimate: PriorEstimate | None
    fit: CalibrationFit | None
    notes: tuple[str, ...]
    by_loss: bool
    companion: Companion | None
    """Of an ensemble."""
    chosen: bool
    """Whether the recipe was chosen by calibrated held-out texts."""

    def under(
        self, prior: str, counts: Mapping[str, int], scores: Callable[[], LikelihoodMatrix]
    ) -> Rule:
        """Give the same rule under a prior.

        Args:
            prior: see `gencls_core.posterior.resolve_prior`, or `unlabelled`.
            counts: texts of each class that were learned from.
            scores: gives those of the texts that the rule is for; asked only where the prior is
                estimated from them.

        Raises:
            UsageError: when the prior cannot be obeyed.
        """
        rule = replace(self, prior_name=prior, estimate=None)
        if prior != UNLABELLED:
            return replace(rule, prior=resolve_prior(prior, self.classes, counts))
        decided = self.decided(self.completed(scores()))
        if not decided.is_likelihood:
            # What a classifier says has the prior of its train texts in it.
            return replace(rule, prior=resolve_prior("train", self.classes, counts))
        estimate = estimate_prior(decided, None if self.fit is None else self.fit.calibration)
        notes = rule.notes if estimate.converged else (*rule.notes, UNSETTLED)
        return replace(rule, prior=estimate.prior, estimate=estimate, notes=notes)

    @property
    def answer(self) -> Calibration | Pool | None:
        """The calibration that the run's answer is made with; None where it stands by the scores
        as they are."""
        if self.fit is None or not (self.chosen or self.companion is not None):
            return None
        return self.fit.calibration

    def completed(self, matrix: LikelihoodMatrix, start: int = 0) -> LikelihoodMatrix:
        """Lay what a second system says beside the run's test texts from row `start` on."""
        return matrix if self.companion is None else self.companion.beside(matrix, start)

    def decided(self, matrix: LikelihoodMatrix) -> LikelihoodMatrix:
        """Give what labels are decided by."""
        return decided_by_loss(matrix) if self.by_loss else matrix

    def applied(self, matrix: LikelihoodMatrix, start: int = 0) -> Inference:
        """Give the posteriors of the run's test texts from row `start` on."""
        matrix = self.completed(matrix, start)
        decided = self.decided(matrix)
        by_loss = self.by_loss and matrix.loss_scores is not None
        calibrated = None
        if self.fit is not None:
            calibrated = posterior_of(decided, self.prior, self.fit.calibration)
        return Inference(
            matrix=matrix,
            records=self.records,
            prior_name=self.prior_name,
            prior=self.prior,
            estimate=self.estimate,
            fit=self.fit,
            notes=(*self.notes, BY_LOSS) if by_loss else self.notes,
            log_posterior=posterior_of(decided, self.prior),
            calibrated=calibrated,
            stands_by_calibrated=self.answer is not None,
            by_loss=by_loss,
        )


def rule_of(
    run: RunDirectory,
    *,
    prior: str | None = None,
    ensemble: str | None = None,
    system: str | None = None,
    models_of: RunDirectory | None = None,
    companion_of: Callable[[str], Companion] | None = None,
) -> Rule:
    """Give how a run's test scores become posteriors; arguments and errors are those of `infer`.

    Only a prior that is estimated from the texts reads their scores. With `companion_of` the rule
    is for other texts: it gives what a second system says of them, by the system's name.
    """
    manifest = run.manifest()
    main = system_of(manifest)
    system = system or main
    classes = tuple(manifest["classes"])
    origin = models_of or origin_of(run, manifest)
    require_same_classes(run, origin)
    config = manifest["config"]
    prior_name = prior if prior is not None else config["posterior"]["prior"]
    by_loss = config["scoring"]["likelihood"] == "loss"
    fitter = Fitter(run, origin, classes, by_loss)
    fit, notes = fitter.fit(system)
    companion = None
    if system == main:
        fit, companion, more = with_ensemble(fitter, fit, manifest, ensemble, companion_of)
        notes = (*notes, *more)
    rule = Rule(
        system=system,
        classes=classes,
        records=tuple(run.scores.records(system)),
        prior_name=prior_name,
        prior={},
        estimate=None,
        fit=fit,
        notes=notes,
        by_loss=by_loss,
        companion=companion,
        chosen=system == main and _was_chosen(origin),
    )
    return rule.under(
        prior_name,
        prior_counts(run, origin),
        lambda: read_likelihoods(run.scores, system, classes, rule.records),
    )


def _was_chosen(origin: RunDirectory) -> bool:
    try:
        made = origin.manifest().get("selection") or {}
    except StoreError:  # an evaluation that was moved away from its run
        return False
    return any(trial.get("nll") is not None for trial in made.get("trials", []))


def origin_of(run: RunDirectory, manifest: dict[str, Any]) -> RunDirectory:
    """Give the run that trained the models and scored the validation texts."""
    named = manifest.get("calibration_run")
    return RunDirectory(resolve_below(run.path, named)) if named else run


def require_same_classes(run: RunDirectory, origin: RunDirectory) -> None:
    """Refuse an evaluation whose run has gained or lost a class since: calibration and prior are
    of other classes now, and so are the models.

    Raises:
        StoreError: saying which class it is.
    """
    try:
        mine, its = (tuple(of.manifest()["classes"]) for of in (run, origin))
    except StoreError:  # an evaluation that was moved away from its run
        return
    if set(mine) == set(its):
        return
    changes = [f"with {name}" for name in its if name not in mine]
    changes += [f"without {name}" for name in mine if name not in its]
    raise StoreError.of(
        "the run has other classes than when it scored these texts",
        place=run.path,
        found=f"a run {' and '.join(changes)}",
        expected=f"the classes {', '.join(mine)}",
        remedy="give the texts to `gencls evaluate` or `gencls classify` again: they are scored "
        "under the classes that there are now; `gencls query` still reads these scores",
    )


def prior_counts(run: RunDirectory, origin: RunDirectory) -> dict[str, int]:
    """Give the train counts of the run whose models are used, else those of the run itself."""
    if (origin.dataset_path / "dataset.json").exists():
        return Dataset.open(origin.dataset_path).prior_counts
    return run.dataset().prior_counts

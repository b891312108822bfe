"""What is fitted on held-out texts: scale, biases, and the shares of a second system.

Everything comes from committed score shards and the manifest; nothing is scored here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from gencls_core.calibration import Calibration, Pool, fit_calibration, why_not_calibrated
from gencls_core.ensemble import FINE_TUNE, PoolFit, fit_pool, with_beside
from gencls_core.errors import DataError, StoreError
from gencls_core.posterior import label_prior
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory, system_of
from gencls_core.score_matrix import LikelihoodMatrix, read_likelihoods
from gencls_core.scores import ScoreStore
from gencls_core.selection import RECORD, part_name
from gencls_core.selection_report import SelectionReport
from gencls_core.storage import read_json

__all__ = [
    "CalibrationFit",
    "Companion",
    "EnsembleFit",
    "Fitter",
    "decided_by_loss",
]


@dataclass(frozen=True)
class CalibrationFit:
    """A calibration, and what it did to the texts that it was fitted on."""

    system: str
    calibration: Calibration | Pool
    """A pool where an ensemble is taken."""
    texts: LikelihoodMatrix
    """Scores of the validation texts, and of the parts of a cross-validation."""
    text_prior: dict[str, float]
    """How often the classes occur among them: the prior that the biases were fitted beside."""
    ensemble: EnsembleFit | None
    """None where none was asked for, or it could not be fitted."""
    sizes: tuple[int, ...]
    """Of the groups that `texts` are made of: the validation texts, each part."""

    @property
    def alone(self) -> Calibration:
        """The calibration of the likelihoods alone."""
        made = self.calibration
        return made.alone if isinstance(made, Pool) else made


@dataclass(frozen=True)
class EnsembleFit:
    """A second system beside the likelihoods, whether it is taken, and why."""

    system: str
    texts: LikelihoodMatrix
    """Those of the calibration, with what the second system says of them."""
    fitted: PoolFit
    taken: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Companion:
    """The second system of an ensemble, and what it says of the run's test texts."""

    train_counts: dict[str, int]
    """Texts of each class that it learned from."""
    tested: LikelihoodMatrix

    def beside(self, matrix: LikelihoodMatrix, start: int) -> LikelihoodMatrix:
        return with_beside(matrix, self.tested, self.train_counts, start)


@dataclass(frozen=True)
class _HeldOut:
    """Texts that were scored by models that did not learn from them."""

    stores: dict[str, ScoreStore]
    """System → where its scores of them are; another's are in `other`."""
    other: ScoreStore
    learned_from: RunDirectory
    """Whose train texts the models know."""
    models: dict[str, tuple[Location, dict[str, str] | None]]
    """System → the folder of its training, and the models that the calibration is to rest on; None
    where the choice had none of it."""

    def read(self, system: str, classes: tuple[str, ...]) -> LikelihoodMatrix | None:
        """Give what a system says of them; None where it scored none."""
        if system in self.models:
            folder, models = self.models[system]
            if models is None:
                return None
            try:
                there = read_json(folder / RECORD).get("models")
            except (FileNotFoundError, ValueError):
                raise StoreError(f"what {folder.name} came to is lost") from None
            if there != models:
                raise StoreError(
                    f"{folder.name} was made anew by a choice of a recipe that has not come to its "
                    "end; run the same command again"
                )
        store = self.stores.get(system, self.other)
        records = store.records(system)
        return read_likelihoods(store, system, classes, records) if records else None


@dataclass(frozen=True)
class Fitter:
    """Fits scale, biases and the weight of a second system to held-out texts."""

    run: RunDirectory
    origin: RunDirectory
    classes: tuple[str, ...]
    by_loss: bool

    @functools.cached_property
    def selection(self) -> SelectionReport | None:
        """How the run's recipe was chosen, if it was."""
        try:
            made = self.origin.manifest().get("selection")
        except StoreError:  # an evaluation that was moved away from its run
            return None
        return None if made is None else SelectionReport.model_validate(made)

    @property
    def tries_fine_tune(self) -> bool:
        """Whether the run chose its recipe, and had time for a fine-tune beside."""
        return self.selection is not None and self.selection.fine_tune

    def has_scored(self, system: str) -> bool:
        """Say whether a system has scored any held-out text."""
        stores = [run.validation_scores for run in (self.run, self.origin)]
        stores += [part.stores.get(system, part.other) for part in self._parts]
        return any(store.records(system) for store in stores)

    def _validation(self, system: str) -> LikelihoodMatrix | None:
        """Give what a system says of the validation texts; None where it scored none."""
        for directory in (self.run, self.origin):
            store = directory.validation_scores
            if records := store.records(system):
                return read_likelihoods(store, system, self.classes, records)
        return None

    @functools.cached_property
    def _parts(self) -> list[_HeldOut]:
        """The parts of the train texts, where the run's recipe was cross-validated."""
        chosen = self.selection
        if chosen is None or not chosen.parts:
            return []
        main = system_of(self.origin.manifest())
        found = []
        for number in range(chosen.parts):
            part = RunDirectory(self.origin.candidate_path(part_name(number)))
            stores, models = {}, {}
            for system, name in ((main, chosen.chosen), (FINE_TUNE, FINE_TUNE)):
                folder = part_name(number, name)
                trained = RunDirectory(self.origin.candidate_path(folder))
                stores[system] = trained.validation_scores
                models[system] = (trained.path, chosen.part_models.get(folder))
            found.append(_HeldOut(stores, part.validation_scores, part, models))
        return found

    def _held_out(self, system: str) -> list[tuple[LikelihoodMatrix, RunDirectory]]:
        """Give what a system says of texts that it did not learn from, and whose train texts it
        knows: of the validation texts, and of each part of a cross-validation.

        Raises:
            StoreError: when some of the parts lack scores.
        """
        found = []
        if (validation := self._validation(system)) is not None:
            found.append((validation, self.origin))
        parts = [part.read(system, self.classes) for part in self._parts]
        scored = [matrix for matrix in parts if matrix is not None]
        if scored and self.selection is not None:
            texts = sum(map(len, scored))
            if texts != self.selection.held_out_texts:
                raise StoreError(
                    f"{system} has scored {texts} of {self.selection.held_out_texts} texts of the "
                    "cross-validation"
                )
            for matrix, part in zip(scored, self._parts, strict=True):
                found.append((matrix, part.learned_from))
        return found

    def fit(self, system: str) -> tuple[CalibrationFit | None, tuple[str, ...]]:
        """Calibrate a system by itself, or say why that cannot be done."""
        unavailable = "Calibrated figures are not available: "
        try:
            found = [matrix for matrix, _ in self._held_out(system)]
        except (DataError, StoreError) as error:
            # Validation scores are a help, not the result: the test figures stand without them.
            return None, (f"{unavailable}the validation scores are not whole ({error}).",)
        if not found:
            return None, (f"{unavailable}no validation text was scored by {system}.",)
        texts = LikelihoodMatrix.concatenated(found)
        if self.by_loss:
            texts = decided_by_loss(texts)
        text_prior = label_prior(texts)
        calibration = fit_calibration(texts, text_prior)
        if calibration is None:
            return None, (f"{unavailable}{why_not_calibrated(texts)}.",)
        sizes = tuple(map(len, found))
        return CalibrationFit(system, calibration, texts, text_prior, None, sizes), ()

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
        return Companion(_train_counts(self.origin), tested)

    def together(self, alone: CalibrationFit, system: str) -> EnsembleFit:
        """Fit the likelihoods and a second system.

        Raises:
            StoreError: when it has not scored the held-out texts.
        """
        texts, first = [], 0
        pairs = zip(alone.sizes, self._held_out(system), strict=False)
        for size, (other, knows) in pairs:
            rows = np.arange(first, first + size)
            texts.append(with_beside(alone.texts.take(rows), other, _train_counts(knows)))
            first += size
        if first != len(alone.texts):
            raise StoreError(f"{system} has not scored the held-out texts")
        matrix = LikelihoodMatrix.concatenated(texts)
        return EnsembleFit(system, matrix, fit_pool(matrix, alone.text_prior))


def _train_counts(run: RunDirectory) -> dict[str, int]:
    return run.dataset().split("train").class_counts


def decided_by_loss(matrix: LikelihoodMatrix) -> LikelihoodMatrix:
    """Put the loss-based scores in the place of the exact ones, for decisions only."""
    if matrix.loss_scores is None:
        return matrix
    return replace(matrix, scores=matrix.loss_scores)

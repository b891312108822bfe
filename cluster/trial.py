"""One candidate of a run that chooses its recipe: trained, judged, and made the run's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cluster.connection import Workplace
from cluster.manifest import trained_models
from cluster.preparation import Preparation, prepare_run
from cluster.scorer import Scorer
from cluster.stages import train_stage
from gencls_core.class_models import COMMIT_NAME, ClassModel
from gencls_core.config import RunConfig
from gencls_core.errors import StoreError
from gencls_core.events import Event
from gencls_core.ownership import Lease
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray, IntArray, read_likelihoods
from gencls_core.selection import Candidate, cross_fitted
from gencls_core.storage import publish_directory, publish_file, read_json, write_json

__all__ = ["Trial"]

_RECORD = "candidate.json"


@dataclass(frozen=True)
class Trial:
    """A candidate in a folder of its own, and what came out."""

    candidate: Candidate
    preparation: Preparation
    seconds: float = 0.0
    """Training and scoring, as it would take alone."""
    train_seconds: float = 0.0
    epochs: float = 0.0
    """Passes over the train texts that were made."""
    log_posterior: FloatArray | None = None
    """[N, C] of the labelled held-out texts, calibrated without the text itself."""
    labels: IntArray | None = None
    """[N] class numbers."""

    @classmethod
    def of(cls, candidate: Candidate, config: RunConfig, first: Preparation) -> Trial:
        """Prepare a candidate; where it was tried before, with what came out."""
        run = RunDirectory(
            first.run.path / "candidates" / candidate.name, bases=first.run.base_path
        )
        preparation = prepare_run(
            candidate.applied(config), first.dataset, run, budget=first.budget
        )
        trial = cls(candidate, preparation)
        try:
            record = read_json(run.path / _RECORD)
            if record["models"] == trial._digests:
                return trial._judged(record)
        except (FileNotFoundError, ValueError, KeyError, StoreError):
            pass
        return trial

    @property
    def is_done(self) -> bool:
        """Whether it was tried."""
        return self.log_posterior is not None

    @property
    def nll(self) -> FloatArray:
        """[N] −log P(label) of the held-out texts, in nats."""
        assert self.log_posterior is not None, "it was tried"
        assert self.labels is not None, "it was tried"
        nll_N: FloatArray = -self.log_posterior[np.arange(len(self.labels)), self.labels]
        return nll_N

    @property
    def accuracy(self) -> float:
        """Part of the held-out texts that it labels correctly."""
        assert self.log_posterior is not None, "it was tried"
        return float((self.log_posterior.argmax(axis=1) == self.labels).mean())

    @property
    def passes(self) -> float:
        """What an epoch costs, in forward passes over the train texts."""
        config, classes = self.preparation.config, len(self.preparation.dataset.classes)
        return self.candidate.passes(config.recipe.compared(classes))

    @property
    def _digests(self) -> list[str]:
        return [self.preparation.digest_of(name) for _, name in self.preparation.wanted_models()]

    def run(self, place: Workplace, lease: Lease) -> Generator[Event, None, Trial]:
        """Train it, score the held-out texts, and write down what it cost."""
        if self.is_done:
            return self
        preparation = self.preparation
        run = preparation.run
        yield from train_stage(preparation, place, lease)
        models = trained_models(preparation)
        with ExitStack() as actors:
            scorer = Scorer(actors, preparation, place, models)
            yield from scorer.score(run, lease, preparation.dataset, "validation")
        records = run.validation_scores.records(preparation.system.name)
        train_seconds = sum(model.training.seconds for model in models)
        record = {
            "models": self._digests,
            "train_seconds": train_seconds,
            "seconds": train_seconds + sum(record.seconds for record in records),
            "epochs": max(model.training.epochs for model in models),
        }
        lease.check()
        write_json(run.path / _RECORD, record)
        return self._judged(record)

    def _judged(self, record: dict[str, Any]) -> Trial:
        preparation = self.preparation
        matrix = read_likelihoods(
            preparation.run.validation_scores,
            preparation.system.name,
            preparation.dataset.classes,
        )
        labelled = matrix.label_codes >= 0
        return replace(
            self,
            seconds=record["seconds"],
            train_seconds=record["train_seconds"],
            epochs=record["epochs"],
            log_posterior=cross_fitted(matrix),
            labels=matrix.label_codes[labelled],
        )

    def adopt(self, run: RunDirectory) -> None:
        """Make the models and the held-out scores those of the run, where they still are here.

        Models that went after an earlier choice are trained again, by the run itself.
        """
        preparation, system = self.preparation, self.preparation.system.name
        for _, name in preparation.wanted_models():
            wanted, destination = preparation.digest_of(name), run.model_path(name, system)
            model, there = preparation.committed(name), ClassModel.find(destination)
            if model is None or (there is not None and there.digest == wanted):
                continue
            run.drop_report()
            for class_name in (name,) if name else preparation.dataset.classes:
                for store in (run.scores, run.validation_scores):
                    store.drop(system, class_name)
            _copy_model(model, destination)
        source, target = preparation.run.validation_scores, run.validation_scores
        for record in source.records(system):
            if target.record(record.key) is None:
                with publish_file(target.shard_path(record.key)) as temporary:
                    temporary.write_bytes(source.shard_path(record.key).read_bytes())
                write_json(target.record_path(record.key), asdict(record))


def _copy_model(model: ClassModel, destination: Location) -> None:
    local = model.local()
    with publish_directory(destination, COMMIT_NAME) as folder:
        for name in model.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(local / name, target)
            except OSError:  # another disk, or one without links
                shutil.copy2(local / name, target)
        write_json(folder / COMMIT_NAME, model.to_json())

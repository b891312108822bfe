"""One training of a run that chooses its recipe: trained, judged, and made the run's own."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cluster.connection import Workplace
from cluster.failures import LASTING, reason_of
from cluster.preparation import Preparation, prepare_run
from cluster.scorer import Scorer
from cluster.stages import base_stage, train_stage
from gencls_core.class_models import COMMIT_NAME, ClassModel
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset
from gencls_core.events import Event
from gencls_core.ownership import Lease
from gencls_core.posterior import cross_fitted
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray, IntArray, LikelihoodMatrix, read_likelihoods
from gencls_core.scoring_job import ModelSystem
from gencls_core.selection import RECORD
from gencls_core.storage import (
    publish_directory,
    publish_file,
    read_json,
    remove_tree,
    write_json,
)

__all__ = ["Outcome", "Trial", "drop_models"]


@dataclass(frozen=True)
class Outcome:
    """What a training came to, or those of all parts of a cross-validation."""

    train_seconds: float
    seconds: float
    """Training, and scoring the held-out texts, as they would take alone."""
    epochs: float
    """Passes over the train texts that were made."""
    held_out: LikelihoodMatrix | None
    """Scores of the texts that it is judged by; None where none are held out."""

    @classmethod
    def together(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """Judge the parts of a cross-validation as one."""
        return cls(
            train_seconds=sum(found.train_seconds for found in outcomes),
            seconds=sum(found.seconds for found in outcomes),
            epochs=max(found.epochs for found in outcomes),
            held_out=LikelihoodMatrix.concatenated([found._matrix for found in outcomes]),
        )

    @property
    def _matrix(self) -> LikelihoodMatrix:
        assert self.held_out is not None, "it is judged by some texts"
        return self.held_out

    @functools.cached_property
    def log_posterior(self) -> FloatArray:
        """[N, C] of the labelled held-out texts, calibrated without the text itself."""
        return cross_fitted(self._matrix)

    @property
    def labels(self) -> IntArray:
        """[N] class numbers."""
        codes_N = self._matrix.label_codes
        return codes_N[codes_N >= 0]

    @property
    def num_tokens(self) -> IntArray:
        """[N] tokens of each text."""
        return self._matrix.num_tokens[self._matrix.label_codes >= 0]

    @property
    def nll(self) -> FloatArray:
        """[N] −log P(label) of the held-out texts, in nats."""
        nll_N: FloatArray = -self.log_posterior[np.arange(len(self.labels)), self.labels]
        return nll_N

    @property
    def accuracy(self) -> float:
        """Part of the held-out texts that it labels correctly."""
        return float((self.log_posterior.argmax(axis=1) == self.labels).mean())


@dataclass(frozen=True)
class Trial:
    """A training in a folder of its own."""

    name: str
    preparation: Preparation
    main: RunDirectory
    """The run that chooses."""

    @classmethod
    def of(
        cls,
        name: str,
        config: RunConfig,
        first: Preparation,
        *,
        dataset: Dataset | None = None,
        system: ModelSystem | None = None,
    ) -> Trial:
        """Prepare a training.

        Args:
            name: of its folder.
            config: its settings.
            first: the run that chooses.
            dataset: what it learns from and is judged by; default: the run's.
            system: what is trained; default: what the recipe makes.

        Raises:
            ResourceError: when it does not fit.
        """
        run = RunDirectory(first.run.candidate_path(name), bases=first.run.base_path)
        preparation = prepare_run(
            config, dataset or first.dataset, run, system=system, budget=first.budget
        )
        # A part of a cross-validation is what the model is judged by, and nothing else.
        return cls(name, replace(preparation, judged=dataset is not None), first.run)

    @property
    def digests(self) -> dict[str, str]:
        """Name its models: class (or nothing, for a model of all classes) → digest."""
        names = [name for _, name in self.preparation.wanted_models()]
        return {name: self.preparation.digest_of(name) for name in names}

    @property
    def _named(self) -> dict[str, Any]:
        """Say in a record what was trained, and how."""
        return {"models": self.digests, "judged": self.preparation.judged}

    def before(self) -> Outcome | str | None:
        """Give what came out earlier, or why it failed; None where it was not tried, or not to
        its end."""
        try:
            record = read_json(self.preparation.run.path / RECORD)
        except (FileNotFoundError, ValueError):
            return None
        wanted = (self.digests, self.preparation.judged)
        if (record.get("models"), record.get("judged", False)) != wanted:
            return None
        return record["failed"] if "failed" in record else self._outcome(record)

    def run(self, place: Workplace, lease: Lease) -> Generator[Event, None, Outcome]:
        """Train it, score the held-out texts, and write down what it cost.

        Raises:
            GenclsError: one that would come again is written down, too.
        """
        place_of_record = self.preparation.run.path / RECORD
        lease.check()
        # What is about to be replaced is not what a choice before this one rests on.
        place_of_record.unlink(missing_ok=True)
        try:
            record = yield from self._tried(place, lease)
        except LASTING as error:
            lease.check()
            failed = {"failed": reason_of(error)}
            write_json(place_of_record, {**self._named, **failed})
            raise
        lease.check()
        write_json(place_of_record, record)
        outcome = self._outcome(record)
        assert outcome is not None, "its scores were committed a moment ago"
        return outcome

    def _tried(self, place: Workplace, lease: Lease) -> Generator[Event, None, dict[str, Any]]:
        # Parts have other train texts, and so another base where it is made from them.
        preparation = yield from base_stage(self.preparation, place)
        run, system = preparation.run, preparation.system.name
        for name, digest in self.digests.items():
            # The run may have trained it already, when it was asked for this recipe.
            model = ClassModel.find(self.main.model_path(name, system))
            if model is not None and model.digest == digest and not preparation.committed(name):
                _copy_model(model, run.model_path(name, system), lease)
        yield from train_stage(preparation, place, lease)
        models = preparation.trained_models()
        with ExitStack() as actors:
            if preparation.dataset.held_out:
                scorer = Scorer(actors, preparation, place, models)
                yield from scorer.score(run, lease, preparation.dataset, "validation")
        train_seconds = sum(map(_seconds_of, models))
        scoring = sum(record.seconds for record in run.validation_scores.records(system))
        return {
            **self._named,
            "train_seconds": round(train_seconds, 3),
            "seconds": round(train_seconds + scoring, 3),
            "epochs": max(model.training.epochs for model in models),
        }

    def _outcome(self, record: dict[str, Any]) -> Outcome | None:
        """Judge it by its committed scores; None where they are not whole."""
        preparation = self.preparation
        store, system = preparation.run.validation_scores, preparation.system.name
        classes = preparation.dataset.classes
        records = store.records(system)
        if sum(shard.rows for shard in records) != preparation.dataset.held_out * len(classes):
            return None
        if preparation.config.compute.check_scores and store.torn(records):
            return None
        return Outcome(
            train_seconds=record["train_seconds"],
            seconds=record["seconds"],
            epochs=record["epochs"],
            held_out=read_likelihoods(store, system, classes, records) if records else None,
        )

    def drop_models(self, lease: Lease) -> None:
        """Remove what it trained: its scores are what it is for."""
        lease.check()
        drop_models(self.preparation.run.path)

    def adopt(self, lease: Lease) -> None:
        """Make the models and the held-out scores those of the run, where they still are here.

        Models that went after an earlier choice are trained again, by the run itself.
        """
        preparation, system, run = self.preparation, self.preparation.system.name, self.main
        for name, digest in self.digests.items():
            destination = run.model_path(name, system)
            model, there = preparation.committed(name), ClassModel.find(destination)
            if model is None or (there is not None and there.digest == digest):
                continue
            lease.check()
            run.drop_report()
            for class_name in (name,) if name else preparation.dataset.classes:
                for store in (run.scores, run.validation_scores):
                    store.drop(system, class_name)
            _copy_model(model, destination, lease)
        source, target = preparation.run.validation_scores, run.validation_scores
        for record in source.records(system):
            if target.record(record.key) is None:
                lease.check()
                with publish_file(target.shard_path(record.key)) as temporary:
                    temporary.write_bytes(source.shard_path(record.key).read_bytes())
                write_json(target.record_path(record.key), asdict(record))


def drop_models(folder: Location) -> None:
    """Remove the models of a training."""
    remove_tree(folder / "models")
    remove_tree(folder / "systems")


def _seconds_of(model: ClassModel) -> float:
    """Give what a training took, all its attempts together: a record knows the last one's time."""
    training = model.training
    if not training.tokens_per_second:
        return training.seconds
    return max(training.seconds, training.tokens / training.tokens_per_second)


def _copy_model(model: ClassModel, destination: Location, lease: Lease) -> None:
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
        lease.check()

"""Class models of one run applied to other texts: labelled to evaluate, unlabelled to classify."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from cluster.background import background_missing, background_stage
from cluster.connection import Workplace
from cluster.failures import FAILURES, reason_of
from cluster.other_texts import OtherTexts, evaluated_settings, other_texts
from cluster.preparation import Preparation
from cluster.resources import ModelSize, device_of, make_plan, precision_of
from cluster.scorer import Scorer
from cluster.stages import baseline_stage, report_stage, score_here
from cluster.turn import in_turn, is_missing
from cluster.workload import workload_of
from gencls_core.class_models import ClassModel
from gencls_core.config import DataConfig, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.errors import StoreError, UsageError
from gencls_core.events import Event, EventLog, Note, ShardCommitted, StageFinished
from gencls_core.ownership import Lease
from gencls_core.posterior import check_posterior
from gencls_core.remote_path import Location, uri_of
from gencls_core.run import RunDirectory
from gencls_core.run_folder import owned
from gencls_core.run_manifest import manifest_of, previous_manifest
from gencls_core.scoring_job import ModelSystem
from gencls_core.systems.names import system_title
from gencls_core.systems.registry import MODEL_SYSTEMS
from gencls_core.trained_run import base_of, main_system, models_of_run

__all__ = ["classify_texts", "evaluate_models"]


def evaluate_models(
    model_dir: Location, data: DataConfig | None, changes: dict[str, Any]
) -> Iterator[Event]:
    """Score labelled texts under a run's class models and report.

    Texts other than the run's own test split are scored in a folder below the run's `evaluations`.
    The last event is the report's StageFinished, whose message is the report's folder.

    Args:
        model_dir: a run directory.
        data: the texts; None takes the run's own test split.
        changes: settings that differ from the run's, as a run file has them.
    """
    with ExitStack() as stack:
        job, _ = yield from in_turn(
            stack,
            [],
            lambda holding: _Evaluation.open(
                stack, holding, model_dir, data, changes, labelled=True
            ),
            _Evaluation.has_work,
        )
        yield from job.logged(job.evaluate())


def classify_texts(
    model_dir: Location, data: DataConfig, changes: dict[str, Any]
) -> Iterator[Event]:
    """Score texts without labels; the last event's message is the folder that holds the scores."""
    began = time.perf_counter()
    with ExitStack() as stack:
        job, _ = yield from in_turn(
            stack,
            [],
            lambda holding: _Evaluation.open(
                stack, holding, model_dir, data, changes, labelled=False
            ),
            _Evaluation.has_work,
        )
        yield from job.logged(job.score())
    folder = uri_of(job.preparation.run.path)
    yield StageFinished("classify", folder, time.perf_counter() - began)


@dataclass(frozen=True)
class _Evaluation:
    """A run's models, and the texts that they are applied to."""

    stack: ExitStack
    source: RunDirectory
    models: tuple[ClassModel, ...]
    preparation: Preparation
    place: Workplace
    lease: Lease

    @classmethod
    def open(
        cls,
        stack: ExitStack,
        holding: ExitStack,
        model_dir: Location,
        data: DataConfig | None,
        changes: dict[str, Any],
        *,
        labelled: bool,
    ) -> _Evaluation:
        """Bring back a run's settings, with other texts and changed settings.

        Where the scores go is owned until `holding` ends.
        """
        source = RunDirectory(model_dir.absolute())
        manifest = source.manifest()
        models = models_of_run(source, manifest)
        config, data = evaluated_settings(source, manifest, data, changes)
        known = source.dataset()
        check_posterior(config.posterior, known.classes, known.prior_counts)
        place = Workplace(stack, config.compute)
        texts = OtherTexts(source, source, known, config, ())
        if data is not None:
            texts = other_texts(source, config, data, labelled=labelled)
        if "test" not in texts.dataset.splits:
            raise UsageError.of(
                "no test texts",
                place=texts.dataset.path,
                remedy="name some with --data-dir or --data",
            )
        lease = holding.enter_context(owned(texts.run, "evaluate" if labelled else "classify"))
        return cls(
            stack=stack,
            source=source,
            models=models,
            preparation=_prepare_with_models(texts, models, place),
            place=place,
            lease=lease,
        )

    def logged(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass events on and keep them in the event log."""
        with EventLog(self.preparation.run.events_path) as log:
            for event in events:
                log.append(event)
                yield event

    @property
    def own(self) -> bool:
        """Whether the texts are the run's own test split."""
        return self.preparation.run.path == self.source.path

    def has_work(self) -> bool:
        """Say whether anything is to be scored by models: the texts, by the run's system and by the
        second one of an ensemble, or validation texts to calibrate on."""
        if self._is_missing_own() or self._is_missing_beside():
            return True
        wanted = self.preparation.config.scoring.background
        return wanted and background_missing(self.preparation, self.source)

    def _is_missing_own(self) -> bool:
        preparation, source = self.preparation, self.source
        run, own = preparation.run, source.dataset()
        if is_missing(preparation, self.models, run, preparation.dataset, "test"):
            return True
        if "validation" not in own.splits:
            return False
        missing = is_missing(preparation, self.models, source, own, "validation")
        if missing and not self.own and source.validation_scores.records(preparation.system.name):
            # Scored otherwise than the run's own: they lie with the evaluation.
            return is_missing(preparation, self.models, run, own, "validation")
        return missing

    def _is_missing_beside(self) -> bool:
        if self.own or (beside := self._system_beside()) not in MODEL_SYSTEMS:
            return False
        try:
            found, models = self._prepared_beside(MODEL_SYSTEMS[str(beside)])
        except (*FAILURES, StoreError):
            return False  # it is left out, or raised where it would be scored
        return is_missing(found, models, found.run, found.dataset, "test")

    def evaluate(self) -> Iterator[Event]:
        """Score and report."""
        yield from self.score()
        preparation = self.preparation
        if self.own and "train" in preparation.dataset.splits:
            yield from baseline_stage(preparation, self.lease)
        models_of = None if self.own else self.source
        yield from report_stage(preparation.config, preparation.run, models_of)

    def score(self) -> Iterator[Event]:
        """Score the run's validation texts for calibration, then the texts."""
        started = time.perf_counter()
        preparation = self.preparation
        for note in preparation.notes:
            yield Note(note)
        run, own = preparation.run, self.source.dataset()
        previous = previous_manifest(run)
        worked = False
        with ExitStack() as actors:
            scorer = Scorer(actors, preparation, self.place, self.models)
            if "validation" in own.splits:
                yield from self._calibrate(scorer, own)
            for event in scorer.score(run, self.lease, preparation.dataset, "test"):
                worked = worked or isinstance(event, ShardCommitted)
                yield event
        if not self.own:
            yield from self._ensemble()
        if preparation.config.scoring.background:
            yield from background_stage(
                preparation, self.source, self.place, self.lease, lambda: self._lease_of_source
            )
        manifest = manifest_of(preparation, previous) | {"status": "finished"}
        if self.own:
            # The run goes on telling how it was trained, on which data, and how it is scored.
            scoring = preparation.config.scoring.model_dump(mode="json")
            manifest = {**previous, "config": {**previous["config"], "scoring": scoring}}
            manifest["status"] = "finished"
        else:
            # Relative, so that a run that is moved keeps its calibration.
            manifest["calibration_run"] = "../.."
            manifest["training"] = self.source.manifest().get("training", {})
        if worked:
            elapsed = round(time.perf_counter() - started, 2)
            manifest["seconds"] = elapsed + (previous.get("seconds") or 0.0)
        run.write_manifest(manifest)

    @functools.cached_property
    def _lease_of_source(self) -> Lease:
        """Own the run, whose held-out texts are to be scored."""
        if self.own:
            return self.lease
        return self.stack.enter_context(owned(self.source, "calibration of an evaluation"))

    def _system_beside(self) -> str | None:
        """Give the second system of an ensemble, where the run has one."""
        from gencls_core.report.ensembles import ensemble_of

        config, run = self.preparation.config, self.preparation.run
        by_loss = config.scoring.likelihood == "loss"
        return ensemble_of(self.source, config.posterior.ensemble, run=run, by_loss=by_loss)

    def _ensemble(self) -> Iterator[Event]:
        """Score the texts with the second system of an ensemble, where the run has one."""
        beside = self._system_beside()
        if beside is None:
            return
        if beside not in MODEL_SYSTEMS:
            yield from self._light_beside(beside)
            return
        try:
            yield from self._model_beside(MODEL_SYSTEMS[beside])
        except FAILURES as error:
            if self.preparation.config.posterior.ensemble != "auto":
                raise
            yield Note(f"{system_title(beside)} is left out: {reason_of(error)}")

    def _prepared_beside(self, system: ModelSystem) -> tuple[Preparation, tuple[ClassModel, ...]]:
        """Prepare scoring the texts with a second system that the run has trained."""
        preparation = self.preparation
        models = models_of_run(self.source, self.source.manifest(), system)
        texts = OtherTexts(
            self.source, preparation.run, preparation.dataset, preparation.config, ()
        )
        return _prepare_with_models(texts, models, self.place, system), models

    def _model_beside(self, system: ModelSystem) -> Iterator[Event]:
        """Score the texts with a second system that the run has trained."""
        try:
            found, models = self._prepared_beside(system)
        except StoreError as error:
            yield Note(f"there is no ensemble: {str(error).splitlines()[0]}")
            return
        with ExitStack() as actors:
            scorer = Scorer(actors, found, self.place, models)
            yield from scorer.score(found.run, self.lease, found.dataset, "test")

    def _light_beside(self, beside: str) -> Iterator[Event]:
        """Let a second system learn from the run's train texts again, and score the texts."""
        from gencls_core.systems.commit import Target, missing_targets, targets_of
        from gencls_core.systems.registry import light_system

        preparation, source = self.preparation, self.source
        run, own = preparation.run, source.dataset()
        if "train" not in own.splits:
            return
        asked = RunConfig.model_validate(source.manifest()["config"])
        system = light_system(beside, asked.data.seed_of_sample, asked.systems)
        targets = [Target(preparation.dataset, "test", run.scores)]
        # A run whose calibration is cross-validated may have held out none.
        _, *held_out = targets_of(source, own, held_out=True)
        if missing := missing_targets(system, own, held_out):
            # The run did without; what it rests on is not touched.
            targets += [replace(target, store=run.validation_scores) for target in missing]
        else:
            run.validation_scores.retire(beside, ())
        yield from score_here(system, own, targets, self.lease)

    def _calibrate(self, scorer: Scorer, texts: Dataset) -> Iterator[Event]:
        """Score the validation texts: with the models, unless the settings differ from theirs.

        Other settings of an evaluation must not overwrite what the run's own report rests on.
        """
        run, lease = self.preparation.run, self.lease
        if self.own:
            yield from scorer.score(run, lease, texts, "validation")
            return
        source = self.source
        shards = scorer.compare(source, texts, "validation")
        if shards.work and source.validation_scores.records(self.preparation.system.name):
            yield from scorer.score(run, lease, texts, "validation")
            return
        if shards.work:
            lease = self._lease_of_source
        yield from scorer.score(source, lease, texts, "validation", shards)


def _prepare_with_models(
    texts: OtherTexts,
    models: tuple[ClassModel, ...],
    place: Workplace,
    system: ModelSystem | None = None,
) -> Preparation:
    """Plan scoring from the committed class models: the base model itself may be out of reach."""
    config, budget = texts.config, place.budget
    base = base_of(texts.source, models)
    size = ModelSize.of(base.config, base.parameters)
    device = device_of(budget, config.compute)
    precision, note = precision_of(budget, config.compute, device)
    system = system or main_system(config)
    work = workload_of(
        config,
        texts.dataset,
        system,
        precision,
        device,
        models=len(models),
        trainings=0,
        scores=True,
    )
    return Preparation(
        config=config,
        run=texts.run,
        dataset=texts.dataset,
        system=system,
        base=base,
        size=size,
        budget=budget,
        plan=make_plan(budget, size, work, config.compute),
        precision=precision,
        notes=tuple(n for n in (note, *texts.dataset.warnings, *texts.notes) if n),
    )

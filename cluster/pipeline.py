"""The main job as a stream of events: prepare, train, score, report.

Each function is a generator: the caller draws the events it yields. Ray starts at the first stage
that has work to do, so a run whose work is all committed starts nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.background import background_stage
from cluster.companions import (
    companions,
    model_beside,
    with_fine_tune,
    without_fine_tune,
    works,
)
from cluster.connection import Workplace
from cluster.failures import FAILURES, reason_of
from cluster.job_context import refuse_temporary
from cluster.preparation import Preparation, check_base, prepare_run
from cluster.resources import Budget
from cluster.scorer import score_stage
from cluster.selection import choose_recipe, first_candidate, prepare_open
from cluster.shared_path import require_shared
from cluster.stages import (
    base_stage,
    baseline_stage,
    report_stage,
    train_stage,
)
from cluster.turn import has_work, in_turn
from gencls_core.config import RecipeConfig, RunConfig, TrainingConfig
from gencls_core.datasets import Dataset, ingest, open_source
from gencls_core.ensemble import FINE_TUNE, LIGHT
from gencls_core.errors import GenclsError, IncompleteError, StoreError
from gencls_core.events import ClassReused, Event, EventLog, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease, OwnershipError
from gencls_core.run import RunDirectory, recorded_training, system_of
from gencls_core.run_folder import incoming_folder, owned
from gencls_core.run_manifest import manifest_of, previous_manifest
from gencls_core.systems.names import system_title
from gencls_core.trained_run import training_of

__all__ = ["logged", "prepare", "run_all", "train_models", "work_off"]


def prepare(
    config: RunConfig,
    scratch: Path | None = None,
    *,
    budget: Budget | None = None,
    scores: bool = True,
) -> Preparation:
    """Ingest the data, resolve the model and plan; starts nothing.

    The data enters the run directory only when all that can be checked has been: a run that is
    refused leaves what was there as it was.

    Args:
        config: what is to be run.
        scratch: a folder for the data, where the run directory is to stay untouched.
        budget: the nodes to plan for; None measures this machine.
        scores: whether texts are scored, too.
    """
    open_source(config.data)
    check_base(first_candidate(config))
    run = RunDirectory(config.output_dir)

    def prepared(dataset: Dataset) -> Preparation:
        if config.recipe.recipe == "auto":
            return prepare_open(config, dataset, run, budget=budget, scores=scores)
        return prepare_run(config, dataset, run, budget=budget, scores=scores)

    if scratch is not None:
        dataset = ingest(config.data, scratch / "dataset", reuse=run.dataset_path)
        return prepared(dataset)
    with incoming_folder(run) as incoming:
        dataset = ingest(config.data, incoming, reuse=run.dataset_path)
        preparation = prepared(dataset)
        if dataset.path == run.dataset_path:
            return preparation
        run.adopt_dataset(incoming)
        return replace(preparation, dataset=replace(dataset, path=run.dataset_path))


def run_all(config: RunConfig) -> Iterator[Event]:
    """Train every class, score validation and test texts, and write the report."""
    yield from logged(RunDirectory(config.output_dir), lambda: _run(config, score=True))


def train_models(config: RunConfig) -> Iterator[Event]:
    """Train the class models (or the one of `--class-id`), and stop there."""
    yield from logged(RunDirectory(config.output_dir), lambda: _run(config, score=False))


def logged(run: RunDirectory, stages: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    """Pass a pipeline's events on and keep them in the run's event log.

    The log begins when the data has been read: bad data leaves no run directory behind.
    """
    waiting: list[Event] = []
    with ExitStack() as stack:
        log: EventLog | None = None
        for event in stages():
            waiting.append(event)
            if log is None and isinstance(event, StageFinished):
                log = stack.enter_context(EventLog(run.events_path))
            if log is not None:
                for past in waiting:
                    log.append(past)
                waiting.clear()
            yield event


def _run(config: RunConfig, *, score: bool) -> Iterator[Event]:
    started = time.perf_counter()
    yield StageStarted("prepare", "reading the data")
    run = RunDirectory(config.output_dir)
    # What is plainly wrong is said before anything is waited for or joined.
    open_source(config.data)
    check_base(first_candidate(config))
    refuse_temporary(run.path)
    with ExitStack() as stack:
        (lease, place, preparation), waited = yield from in_turn(
            stack,
            [run.path],
            lambda holding: _enter(stack, holding, config, score=score),
            lambda entered: works(entered[2], score=score),
        )
        started += waited
        dataset = preparation.dataset
        counts = ", ".join(f"{info.rows:,} {name}" for name, info in dataset.splits.items())
        yield StageFinished(
            "prepare",
            f"{dataset.name}: {len(dataset.classes)} classes; {counts} texts",
            time.perf_counter() - started,
        )
        for note in preparation.notes:
            yield Note(note)
        yield from work_off(preparation, place, lease, started, score=score)


def _enter(
    stack: ExitStack, holding: ExitStack, config: RunConfig, *, score: bool
) -> tuple[Lease, Workplace, Preparation]:
    """Own the run until `holding` ends, and plan for the nodes that are there now."""
    run = RunDirectory(config.output_dir)
    lease = holding.enter_context(owned(run, "run" if score else "train"))
    place = Workplace(stack, config.compute)
    if isinstance(run.path, Path):
        require_shared(run.path, place.budget.nodes)
    return lease, place, prepare(config, budget=place.budget, scores=score)


def work_off(
    preparation: Preparation, place: Workplace, lease: Lease, started: float, *, score: bool
) -> Iterator[Event]:
    """Do what is missing, and keep `run.json` true whatever happens."""
    run, preparation = preparation.run, with_fine_tune(preparation)
    previous = previous_manifest(run)
    beside, lacking = model_beside(preparation) if score else (None, None)
    manifest = _begin(preparation, previous, beside)
    # Time spent on the same settings before, for example by an invocation that was stopped.
    before = previous.get("seconds") or 0.0 if _is_as_before(preparation, previous) else 0.0
    worked, status = False, "stopped"
    try:
        if preparation.must_choose:
            worked = True
            preparation = yield from choose_recipe(preparation, place, lease, scores=score)
            beside, lacking = model_beside(preparation) if score else (None, None)
            manifest = _begin(preparation, previous, beside)
        failed: list[GenclsError] = [lacking] if lacking else []
        for event in _stages(preparation, beside, place, lease, failed, score=score):
            worked = worked or not isinstance(event, ClassReused | StageStarted)
            yield event
        for error in failed:
            yield Note(f"{system_title(FINE_TUNE)} is left out: {reason_of(error)}")
            preparation = without_fine_tune(preparation, error)
            manifest = manifest_of(preparation, previous)
        status = "finished"
    except IncompleteError:
        status = "incomplete"
        raise
    except OwnershipError:
        # The manifest is the new owner's.
        status = ""
        raise
    except Exception:
        status = "failed"
        raise
    finally:
        seconds = before + (time.perf_counter() - started if worked else 0.0)
        if status:
            # A full disk must not hide what filled it.
            with contextlib.suppress(StoreError):
                run.write_manifest({**manifest, "status": status, "seconds": round(seconds, 2)})
    if score and preparation.reports:
        lease.check()
        try:
            yield from report_stage(preparation.config, run, None)
        except Exception:
            with contextlib.suppress(StoreError):
                run.write_manifest({**run.manifest(), "status": "failed"})
            raise


def _begin(
    preparation: Preparation, previous: dict[str, Any], beside: Preparation | None
) -> dict[str, Any]:
    """Say in `run.json` that the run is under way; gives what else stands there.

    While a recipe is being chosen it goes on saying what the run was, if that is of the same data.
    """
    run = preparation.run
    manifest = manifest_of(preparation, previous, beside)
    if preparation.must_choose and previous.get("dataset") == manifest["dataset"]:
        run.write_manifest({**previous, "status": "running"})
        return previous
    if previous and system_of(previous) != preparation.system.name:
        run.drop_report()  # it is of another system
    run.write_manifest({**manifest, "status": "running"})
    return manifest


def _beside(beside: Preparation, place: Workplace, lease: Lease) -> Iterator[Event]:
    """Train and score the second system of an ensemble."""
    for note in beside.notes:
        yield Note(note)
    if has_work(beside, score=True):
        beside.run.drop_report()  # it rests on what is about to be replaced
    beside = yield from base_stage(beside, place)
    yield from train_stage(beside, place, lease)
    yield from score_stage(beside, place, lease)


def _is_as_before(preparation: Preparation, previous: dict[str, Any]) -> bool:
    """Say whether an earlier invocation did the same work, whatever it was told of it."""
    before, system = _settings_of(previous), preparation.system
    if before is None or before.recipe.recipe != preparation.config.recipe.recipe:
        return False
    taken = recorded_training(previous, system.name)
    if taken is None:
        taken = training_of(before, preparation.dataset, system)
    same = _but_training(before) == _but_training(preparation.config)
    return same and taken == preparation.training


def _but_training(config: RunConfig) -> RunConfig:
    """Leave out training, and the budget of a choice, which makes no result another."""
    recipe = config.recipe.model_copy(update={"budget": RecipeConfig().budget})
    return config.model_copy(update={"training": TrainingConfig(), "recipe": recipe})


def _settings_of(manifest: dict[str, Any]) -> RunConfig | None:
    """Give the settings of an earlier invocation; what it did not know has its default."""
    try:
        return RunConfig.model_validate(manifest["config"])
    except (KeyError, ValidationError):
        return None


def _stages(
    preparation: Preparation,
    beside: Preparation | None,
    place: Workplace,
    lease: Lease,
    failed: list[GenclsError],
    *,
    score: bool,
) -> Iterator[Event]:
    """Do what is missing; why a second system failed that was not asked for goes to `failed`."""
    preparation = yield from base_stage(preparation, place)
    yield from train_stage(preparation, place, lease)
    if not score:
        return
    yield from score_stage(preparation, place, lease)
    lease.check()
    if not preparation.reports:
        return
    if not preparation.config.baseline:
        for name in set(LIGHT) - set(companions(preparation)):
            preparation.run.scores.retire(name, ())
    yield from baseline_stage(preparation, lease)
    if preparation.config.scoring.background:
        run = preparation.run
        yield from background_stage(preparation, run, place, lease, lambda: lease)
    if beside is None:
        return
    try:
        yield from _beside(beside, place, lease)
    except FAILURES as error:
        if beside.config.posterior.ensemble != "auto":
            raise
        failed.append(error)

"""The main job as a stream of events: prepare, train, score, report.

Each function is a generator: the caller draws the events it yields. Ray starts at the first stage
that has work to do, so a run whose work is all committed starts nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cluster.manifest import committed_models, manifest_of, previous_manifest
from cluster.preparation import SYSTEM, Preparation, check_base, prepare_run
from cluster.stages import (
    LazyRay,
    baseline_stage,
    build_base_stage,
    report_stage,
    score_stage,
    train_stage,
)
from gencls_core.config import RunConfig
from gencls_core.datasets import ingest, open_source
from gencls_core.events import ClassReused, Event, EventLog, Note, StageFinished, StageStarted
from gencls_core.run import RunDirectory
from gencls_core.systems.tfidf import TFIDF

__all__ = ["prepare", "run_all", "train_models"]


def prepare(config: RunConfig, scratch: Path | None = None) -> Preparation:
    """Ingest the data, resolve the model and plan; starts nothing.

    The data enters the run directory only when all that can be checked has been: a run that is
    refused leaves what was there as it was.

    Args:
        config: what is to be run.
        scratch: a folder for the data, where the run directory is to stay untouched.
    """
    open_source(config.data)
    check_base(config)
    run = RunDirectory(config.output_dir)
    incoming = (scratch or run.path) / ".incoming-dataset"
    existed = run.path.exists()
    try:
        dataset = ingest(config.data, incoming, reuse=run.dataset_path)
        preparation = prepare_run(config, dataset, run)
        if scratch is not None or dataset.path == run.dataset_path:
            return preparation
        run.adopt_dataset(incoming)
        return replace(preparation, dataset=replace(dataset, path=run.dataset_path))
    finally:
        if scratch is None:
            shutil.rmtree(incoming, ignore_errors=True)
            if not existed and run.path.exists() and not any(run.path.iterdir()):
                run.path.rmdir()


def run_all(config: RunConfig) -> Iterator[Event]:
    """Train every class, score validation and test texts, and write the report."""
    yield from _logged(config, lambda: _run(config, score=True))


def train_models(config: RunConfig) -> Iterator[Event]:
    """Train the class models (or the one of `--class-id`), and stop there."""
    yield from _logged(config, lambda: _run(config, score=False))


def _logged(config: RunConfig, stages: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    """Pass a pipeline's events on and keep them in the run's event log.

    The log begins when the data has been read: bad data leaves no run directory behind.
    """
    waiting: list[Event] = []
    with ExitStack() as stack:
        log: EventLog | None = None
        for event in stages():
            waiting.append(event)
            if log is None and isinstance(event, StageFinished):
                log = stack.enter_context(EventLog(RunDirectory(config.output_dir).events_path))
            if log is not None:
                for past in waiting:
                    log.append(past)
                waiting.clear()
            yield event


def _run(config: RunConfig, *, score: bool) -> Iterator[Event]:
    started = time.perf_counter()
    yield StageStarted("prepare", "reading the data")
    preparation = prepare(config)
    dataset, run = preparation.dataset, preparation.run
    counts = ", ".join(f"{info.rows:,} {name}" for name, info in dataset.splits.items())
    yield StageFinished(
        "prepare",
        f"{dataset.name}: {len(dataset.classes)} classes; {counts} texts",
        time.perf_counter() - started,
    )
    for note in preparation.notes:
        yield Note(note)
    previous = previous_manifest(run)
    manifest = manifest_of(preparation, previous)
    run.write_manifest({**manifest, "status": "running"})
    # Time spent on the same settings before, for example by an invocation that was stopped.
    before = previous.get("seconds") or 0.0 if previous.get("config") == manifest["config"] else 0.0
    worked, status = False, "stopped"
    try:
        with ExitStack() as stack:
            for event in _stages(preparation, LazyRay(stack, preparation), score=score):
                worked = worked or not isinstance(event, ClassReused | StageStarted)
                yield event
        status = "finished"
    except Exception:
        status = "failed"
        raise
    finally:
        seconds = before + (time.perf_counter() - started if worked else 0.0)
        run.write_manifest({**manifest, "status": status, "seconds": round(seconds, 2)})
    if score:
        yield from report_stage(preparation.config, run, None)


def _stages(preparation: Preparation, ray: LazyRay, *, score: bool) -> Iterator[Event]:
    yield from build_base_stage(preparation, ray)
    yield from train_stage(preparation, ray)
    if not score:
        return
    config = preparation.config
    models = committed_models(
        preparation.run,
        preparation.dataset.classes,
        {name: preparation.digest_of_class(name) for name in preparation.dataset.classes},
    )
    for split in ("validation", "test"):
        if split in preparation.dataset.splits:
            yield from score_stage(
                preparation, ray, models, preparation.base.path, preparation.dataset, split
            )
        else:
            preparation.run.scores_of(split).retire(SYSTEM, {})
    if config.baseline:
        yield from baseline_stage(preparation)
    else:
        preparation.run.scores.retire(TFIDF, {})

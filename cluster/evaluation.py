"""Class models of one run applied to other texts: labelled to evaluate, unlabelled to classify."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.manifest import committed_models, manifest_of, previous_manifest
from cluster.preparation import SYSTEM, Preparation, shard_work, workload_of
from cluster.resources import ModelSize, local_budget, make_plan
from cluster.stages import LazyRay, baseline_stage, report_stage, score_stage
from gencls_core.class_models import ClassModel
from gencls_core.config import DataConfig, RunConfig, parse_run_config
from gencls_core.datasets import Dataset, SplitName, ingest
from gencls_core.digests import training_digest
from gencls_core.errors import ModelError, UsageError
from gencls_core.events import Event, EventLog, Note, ShardCommitted, StageFinished
from gencls_core.model_source import ResolvedModel, is_scratch, resolve_model
from gencls_core.precision import resolve_precision
from gencls_core.run import RunDirectory
from gencls_core.storage import digest_of

__all__ = ["classify_texts", "evaluate_models"]


def evaluate_models(
    model_dir: Path, data: DataConfig | None, changes: dict[str, Any]
) -> Iterator[Event]:
    """Score labelled texts under a run's class models and report.

    Texts other than the run's own test split are scored in a folder below the run's `evaluations`.
    The last event is the report's StageFinished, whose message is the report's folder.

    Args:
        model_dir: a run directory.
        data: the texts; None takes the run's own test split.
        changes: settings that differ from the run's, as a run file has them.
    """
    source = RunDirectory(model_dir.absolute())
    preparation = _reopen(source, data, changes, labelled=True)
    with EventLog(preparation.run.events_path) as log:
        for event in _evaluate(source, preparation):
            log.append(event)
            yield event


def classify_texts(model_dir: Path, data: DataConfig, changes: dict[str, Any]) -> Iterator[Event]:
    """Score texts without labels; the last event's message is the folder that holds the scores."""
    source = RunDirectory(model_dir.absolute())
    preparation = _reopen(source, data, changes, labelled=False)
    began = time.perf_counter()
    with EventLog(preparation.run.events_path) as log:
        for event in _score_elsewhere(source, preparation):
            log.append(event)
            yield event
    yield StageFinished("classify", str(preparation.run.path), time.perf_counter() - began)


def _evaluate(source: RunDirectory, preparation: Preparation) -> Iterator[Event]:
    yield from _score_elsewhere(source, preparation)
    own = preparation.run.path == source.path
    if own and preparation.config.baseline and "train" in preparation.dataset.splits:
        yield from baseline_stage(preparation)
    yield from report_stage(preparation.config, preparation.run, None if own else source)


def _score_elsewhere(source: RunDirectory, preparation: Preparation) -> Iterator[Event]:
    """Score with the models of `source`: its validation texts for calibration, then the texts."""
    started = time.perf_counter()
    for note in preparation.notes:
        yield Note(note)
    run, own = preparation.run, source.dataset()
    models = _models_of(source)
    base = preparation.base.path
    previous = previous_manifest(run)
    worked = False
    with ExitStack() as stack:
        ray = LazyRay(stack, preparation)
        if "validation" in own.splits:
            calibrating = replace(preparation, run=_calibration_place(preparation, source, models))
            yield from score_stage(calibrating, ray, models, base, own, "validation")
        for event in score_stage(preparation, ray, models, base, preparation.dataset, "test"):
            worked = worked or isinstance(event, ShardCommitted)
            yield event
    manifest = manifest_of(preparation, previous) | {"status": "finished"}
    if run.path == source.path:
        # The run goes on telling how it was trained, on which data, and how it is scored.
        scoring = preparation.config.scoring.model_dump(mode="json")
        manifest = {**previous, "config": {**previous["config"], "scoring": scoring}}
        manifest["status"] = "finished"
    else:
        # Relative, so that a run that is moved keeps its calibration.
        manifest["calibration_run"] = os.path.relpath(source.path, run.path)
    if worked:
        elapsed = round(time.perf_counter() - started, 2)
        manifest["seconds"] = elapsed + (previous.get("seconds") or 0.0)
    run.write_manifest(manifest)


def _reopen(
    source: RunDirectory, data: DataConfig | None, changes: dict[str, Any], *, labelled: bool
) -> Preparation:
    """Bring back a run's settings, with other texts and changed settings."""
    manifest = source.manifest()
    models = _models_of(source)
    settings = dict(manifest["config"])
    for section, values in changes.items():
        settings[section] = {**settings[section], **values}
    settings["output_dir"] = str(source.path)
    config = parse_run_config(settings)
    own = source.dataset()
    dataset, run = own, source
    notes: list[str] = []
    before = RunConfig.model_validate(manifest["config"])
    apart = bool(source.scores.records(SYSTEM)) and _scored_as(config) != _scored_as(before)
    if data is None and apart and "test" in own.splits:
        data = DataConfig(data_dir=source.dataset_path)
    if data is not None:
        data = data.model_copy(update={"classes": tuple(manifest["classes"])})
        scored_as = _scored_as(config) if apart else None
        name = digest_of([data.model_dump(mode="json"), labelled, scored_as])
        run = source.evaluation(name)
        dataset = ingest(data, run.dataset_path, splits=("test",), labelled=labelled)
        config = config.model_copy(update={"data": data})
        tested = own.splits.get("test")
        same = tested and tested.fingerprint == dataset.split("test").fingerprint
        if labelled and same and not apart:
            shutil.rmtree(run.path)
            dataset, run = own, source
        elif labelled:
            notes = _leaks(own, dataset)
    if "test" not in dataset.splits:
        raise UsageError.of(
            "no test texts", place=dataset.path, remedy="name some with --data-dir or --data"
        )
    return _prepare_with_models(config, dataset, run, source, models, notes)


def _scored_as(config: RunConfig) -> list[Any]:
    """Give the settings that change score rows; with others, a run's own scores stay."""
    scoring = config.scoring
    return [scoring.likelihood, scoring.per_token, scoring.shard_size, config.compute.precision]


def _models_of(source: RunDirectory) -> tuple[ClassModel, ...]:
    """Give the class models of a run, all trained as its manifest says.

    Raises:
        StoreError: when one is missing, or was trained with other settings than the others.
    """
    manifest = source.manifest()
    config, dataset = RunConfig.model_validate(manifest["config"]), source.dataset()
    digests = {
        name: training_digest(
            class_name=name,
            dataset=dataset,
            base_digest=manifest["model"]["digest"],
            model=config.model,
            sequence=config.sequence,
            training=config.training,
            precision=manifest["precision"],
        )
        for name in manifest["classes"]
    }
    return committed_models(source, manifest["classes"], digests)


def _calibration_place(
    preparation: Preparation, source: RunDirectory, models: tuple[ClassModel, ...]
) -> RunDirectory:
    """Say where validation scores lie: with the models, unless the settings differ from theirs.

    Other settings of an evaluation must not overwrite what the run's own report rests on.
    """
    work, _, _ = shard_work(
        config=preparation.config,
        precision=preparation.precision,
        models=models,
        dataset=source.dataset(),
        split="validation",
        run=source,
    )
    differs = bool(work) and bool(source.validation_scores.records(SYSTEM))
    return preparation.run if differs else source


def _leaks(own: Dataset, dataset: Dataset) -> list[str]:
    """Say how many of the texts were trained on: their figures would flatter."""

    def hashes(texts: Dataset, split: SplitName) -> Iterator[int]:
        for batch in texts.iter_batches(split, ["text"]):
            yield from (hash(" ".join(text.split())) for text in batch.column("text").to_pylist())

    if "train" not in own.splits:
        return []
    tested = set(hashes(dataset, "test"))
    trained = {value for value in hashes(own, "train") if value in tested}
    leaked = sum(value in trained for value in hashes(dataset, "test"))
    if not leaked:
        return []
    return [f"{leaked:,} of the texts also stand in the train texts of these class models"]


def _prepare_with_models(
    config: RunConfig,
    dataset: Dataset,
    run: RunDirectory,
    source: RunDirectory,
    models: tuple[ClassModel, ...],
    notes: list[str],
) -> Preparation:
    """Plan scoring from the committed class models: the base model itself may be out of reach."""
    found = ResolvedModel.of_folder(models[0].base, _base_folder(source, models))
    base = replace(found, digest=models[0].base_digest)
    size = ModelSize.of(base.config, base.parameters)
    budget = local_budget(config.compute)
    precision, note = resolve_precision(config.compute.precision, budget.device)
    work = workload_of(config, dataset, precision, trains=False)
    return Preparation(
        config=config,
        run=run,
        dataset=dataset,
        base=base,
        size=size,
        budget=budget,
        plan=make_plan(budget, size, work, config.compute),
        precision=precision,
        notes=tuple(n for n in (note, *dataset.warnings, *notes) if n),
    )


def _base_folder(source: RunDirectory, models: tuple[ClassModel, ...]) -> Path:
    """Find the folder of the base that LoRA adapters sit on; any folder where there are none."""
    if all(model.kind == "full" for model in models):
        return models[0].path
    config = RunConfig.model_validate(source.manifest()["config"])
    wanted = models[0].base_digest
    if is_scratch(config.model.model):
        return source.base_path / wanted[:16]
    base = resolve_model(config.model)
    if base.digest != wanted:
        raise ModelError.of(
            "the base model is not the one that the LoRA adapters were trained on",
            place=base.path,
            found=base.digest[:12],
            expected=wanted[:12],
            remedy="bring that model back, or train the adapters again",
        )
    return base.path

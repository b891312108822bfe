"""One more class for a run: its texts join the dataset, its model is trained, its scores are made.

What is missing is told by digests, as ever: the models of the other classes depend on their own
texts, and their shards on the part of a split that they score. So once the dataset has grown, an
ordinary run has nothing left to do but the new class.

    check ─► new files beside the old ones ─► run.json keeps the old figures ─► dataset.json ─► run

Writing `dataset.json` is the change. Killed before it, the run is as it was; after it, the same
command, or the one that made the run, goes on.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.companions import companions, works
from cluster.connection import Workplace
from cluster.pipeline import logged, work_off
from cluster.preparation import Preparation, prepare_run
from cluster.shared_path import require_shared
from cluster.turn import in_turn
from gencls_core.config import RunConfig
from gencls_core.config_parsing import parse_run_config
from gencls_core.datasets import Dataset
from gencls_core.datasets.dataset import SplitName
from gencls_core.datasets.growth import (
    ChangedDataset,
    NewClass,
    added_digest,
    grown,
    new_class_name,
)
from gencls_core.dropping import tidy_dataset
from gencls_core.ensemble import FINE_TUNE
from gencls_core.errors import StoreError, UsageError, counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.remote_path import Location
from gencls_core.report.class_change import figures_before
from gencls_core.run import RunDirectory, recorded_training, system_of
from gencls_core.run_folder import owned
from gencls_core.scoring_job import BACKGROUND
from gencls_core.selection_report import SelectionReport
from gencls_core.storage import publish_file, remove_tree, write_json
from gencls_core.systems.names import BASELINE, system_title
from gencls_core.trained_run import main_system, training_of

__all__ = ["add_class", "changed_settings", "publish_files", "require_class_models"]


@dataclass(frozen=True)
class _Entered:
    """A run that a class is being added to, owned."""

    lease: Lease
    place: Workplace
    preparation: Preparation
    name: str
    """Of the class, as it is kept."""


def add_class(model_dir: Location, asked: NewClass, changes: dict[str, Any]) -> Iterator[Event]:
    """Add a class to a finished run; the last event's message is the report's folder.

    What the run has not scored stays without scores: one that was only trained has no report then.

    Args:
        model_dir: the run.
        asked: name and texts of the class.
        changes: settings that differ from the run's, as a run file has them: `compute` and
            `posterior`.

    Raises:
        UsageError: when the class is there, or the run is none of class models.
        StoreError: when the run is not finished.
        DataError: when the texts cannot be used; nothing is changed.
    """
    run = RunDirectory(model_dir.absolute())
    yield from logged(run, lambda: _stages(run, asked, changes))


def _stages(run: RunDirectory, asked: NewClass, changes: dict[str, Any]) -> Iterator[Event]:
    started = time.perf_counter()
    yield StageStarted("prepare", f"reading the texts of {asked.name}")
    run.manifest()
    with ExitStack() as stack:
        entered, waited = yield from in_turn(
            stack,
            [run.path],
            lambda holding: _enter(stack, holding, run, asked, changes),
            lambda entered: works(entered.preparation, score=bool(entered.preparation.splits)),
        )
        started += waited
        dataset, name = entered.preparation.dataset, entered.name
        counts = ", ".join(
            f"{info.class_counts.get(name, 0):,} {split}" for split, info in dataset.splits.items()
        )
        message = f"{dataset.name}: {len(dataset.classes)} classes; {counts} texts of {name}"
        yield StageFinished("prepare", message, time.perf_counter() - started)
        for note in entered.preparation.notes:
            yield Note(note)
        scores = bool(entered.preparation.splits)
        yield from work_off(
            entered.preparation, entered.place, entered.lease, started, score=scores
        )


def _enter(
    stack: ExitStack,
    holding: ExitStack,
    run: RunDirectory,
    asked: NewClass,
    changes: dict[str, Any],
) -> _Entered:
    """Own the run until `holding` ends, check everything, then let the dataset grow."""
    lease = holding.enter_context(owned(run, "add-class"))
    manifest, dataset = run.manifest(), run.dataset()
    require_class_models(run, manifest, "added")
    entry = _entry(dataset, asked)
    if entry is None:
        asked = replace(asked, name=new_class_name(asked.name, dataset.classes))
        _require_finished(run, manifest, dataset)
    else:
        asked = replace(asked, name=entry["name"])
    config = changed_settings(run, manifest, changes)
    place = Workplace(stack, config.compute)
    if isinstance(run.path, Path):
        require_shared(run.path, place.budget.nodes)
    with tempfile.TemporaryDirectory(prefix="gencls-") as folder:
        change = ChangedDataset(dataset, {})
        if entry is None:
            change = grown(dataset, config.data, asked, Path(folder))
        preparation = _prepared(run, manifest, config, change.dataset, place, asked.name)
        if entry is None:
            if preparation.reports:
                figures = figures_before(run, asked.name, config.posterior.prior)
                added = {**manifest.get("added", {}), asked.name: figures}
                manifest = {**manifest, "added": added}
            lease.check()
            run.write_manifest(manifest)
            publish_files(run, change)
            write_json(run.dataset_path / "dataset.json", change.dataset.to_json())
    tidy_dataset(run)
    notes = (*preparation.notes, *_left_out(preparation, manifest))
    return _Entered(lease, place, replace(preparation, notes=notes), asked.name)


def _entry(dataset: Dataset, asked: NewClass) -> dict[str, Any] | None:
    """Give what the dataset says of this very class, where the same command came so far before."""
    for entry in dataset.source.get("added", ()):
        if entry["name"] == " ".join(asked.name.split()):
            named = replace(asked, name=entry["name"])
            return entry if entry["digest"] == added_digest(named) else None
    return None


def require_class_models(run: RunDirectory, manifest: dict[str, Any], verb: str) -> None:
    """Refuse a run in which a class is not a model of its own.

    Raises:
        UsageError: with what can be done instead.
    """
    if "calibration_run" in manifest:
        raise UsageError.of(
            f"a class is {verb} where the models are, not in an evaluation",
            place=run.path,
            remedy="give the run that trained them",
        )
    recipe = manifest["config"].get("recipe", {}).get("recipe", "independent")
    if recipe != "independent":
        raise UsageError.of(
            f"no class can be {verb}: one model has learned all classes together",
            place=run.path,
            found=f"recipe {recipe}",
            expected="recipe independent, a model for each class",
            remedy="`gencls run --recipe independent` makes such a run; or run anew with the texts "
            "of the classes that you want",
        )


def _require_finished(run: RunDirectory, manifest: dict[str, Any], dataset: Dataset) -> None:
    found = f"status {manifest.get('status')}"
    if manifest.get("status") == "finished":
        half = [name for name in dataset.classes if name not in manifest["classes"]]
        if not half:
            return
        found = f"{half[0]!r}, whose adding was stopped"
    raise StoreError.of(
        "the run is not finished",
        place=run.manifest_path,
        found=found,
        expected="status finished",
        remedy="run the command that it was stopped in again, then add the class",
    )


def changed_settings(
    run: RunDirectory, manifest: dict[str, Any], changes: dict[str, Any]
) -> RunConfig:
    """Give a run's settings for work on its classes: as it was made, with the changes."""
    values = {**manifest["config"], "class_id": None}
    for section, changed in changes.items():
        values[section] = {**values[section], **changed}
    posterior = values["posterior"]
    if posterior.get("ensemble") == FINE_TUNE:
        # It is one model of all classes.
        values["posterior"] = {**posterior, "ensemble": "auto"}
    config = parse_run_config(values)
    system = main_system(config)
    taken = recorded_training(manifest, system.name)
    # A later version may have other defaults than those that the models were trained with.
    if taken is not None and taken != training_of(config, run.dataset(), system):
        config = config.model_copy(update={"training": taken})
    return config


def _prepared(
    run: RunDirectory,
    manifest: dict[str, Any],
    config: RunConfig,
    dataset: Dataset,
    place: Workplace,
    name: str,
) -> Preparation:
    """Plan the work; refuse it where it would be more than the new class.

    Raises:
        StoreError: when other class models are missing, or would be trained anew.
    """
    unscored = _unscored(run, manifest)
    scores = any(name not in unscored for name in dataset.splits if name != "train")
    preparation = prepare_run(config, dataset, run, budget=place.budget, scores=scores)
    if preparation.precision != manifest["precision"]:
        # As the other classes, whatever this machine would take.
        compute = config.compute.model_copy(update={"precision": manifest["precision"]})
        config = config.model_copy(update={"compute": compute})
        preparation = prepare_run(config, dataset, run, budget=place.budget, scores=scores)
    preparation = replace(preparation, unscored=unscored)
    others = [task.class_name for task in preparation.training_tasks() if task.class_name != name]
    if others or preparation.must_build_base:
        what = "the base model" if preparation.must_build_base else "a model"
        missing = "" if preparation.must_build_base else f" of {', '.join(others[:10])}"
        raise StoreError.of(
            f"{what} that the run was made with is not there",
            place=run.path,
            found=f"none{missing} with the run's settings and base",
            expected="all but that of the new class committed",
            remedy="run the command that made the run again, then add the class; `gencls verify` "
            "says what is missing",
        )
    if (made := manifest.get("selection")) is None:
        return preparation
    # Its parts know the old classes alone; a fine-tune would learn all of them anew.
    known = {"parts": 0, "cut_into": 0, "part_models": {}, "fine_tune": False}
    selection = SelectionReport.model_validate({**made, **known})
    return replace(preparation, selection=selection)


def _unscored(run: RunDirectory, manifest: dict[str, Any]) -> frozenset[SplitName]:
    """Give the splits that stay without scores: where no test text has any, those of which none
    has."""
    splits: frozenset[SplitName] = frozenset(("validation", "test"))
    scored = run.scored(system_of(manifest))
    return frozenset() if "test" in scored else splits.difference(scored)


def publish_files(run: RunDirectory, change: ChangedDataset) -> None:
    """Put a changed dataset's new files beside those that are there."""
    for name, file in change.files.items():
        with publish_file(run.dataset_path / name) as temporary:
            shutil.copyfile(file, temporary)


def _left_out(preparation: Preparation, manifest: dict[str, Any]) -> Iterator[str]:
    """Remove scores of systems that do not know the new class and do not learn it here."""
    run, main = preparation.run, preparation.system.name
    learns = {main, BACKGROUND}  # which knows no class at all
    if preparation.reports:
        learns.update([BASELINE] if preparation.config.baseline else [], companions(preparation))
    gone = dict.fromkeys(
        name
        for store in (run.scores, run.validation_scores)
        for name in store.systems()
        if name not in learns and store.retire(name, ())
    )
    for name in gone:
        yield f"{system_title(name)} does not know the new class: its scores are left out"
    if (made := manifest.get("selection")) and made.get("parts"):
        parts = counted(made["parts"], "part")
        yield f"the calibration rests on held-out texts alone: {parts} know the old classes only"
    remove_tree(run.path / "candidates")

"""One class less for a run: nothing is trained or scored, and no Ray is started."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.add_class import changed_settings, publish_files, require_class_models
from cluster.pipeline import logged
from cluster.stages import light_stage, report_stage
from gencls_core.config import RunConfig
from gencls_core.cost_file import costs_among
from gencls_core.datasets.shrinking import shrunk
from gencls_core.dropping import CHANGE, Drop, finish_change, tidy_dataset
from gencls_core.ensemble import LIGHT, companions_of
from gencls_core.errors import GenclsError, StoreError
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.posterior import check_posterior
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory, system_of
from gencls_core.run_folder import owned
from gencls_core.scoring_job import BACKGROUND
from gencls_core.storage import remove_tree
from gencls_core.systems.names import system_title

__all__ = ["drop_class"]


def drop_class(
    model_dir: Location, name: str, changes: dict[str, Any], *, baseline: bool = True
) -> Iterator[Event]:
    """Take a class out of a run; the last event's message is the report's folder.

    A run that was only trained has no test scores: it goes on without a report.

    Args:
        model_dir: the run.
        name: the class.
        changes: settings that differ from the run's: `posterior`.
        baseline: whether bags of words learn the classes that are left, which takes the most time.

    Raises:
        UsageError: when the class is not there, or too little would be left.
        StoreError: when the run is not finished.
    """
    run = RunDirectory(model_dir.absolute())
    yield from logged(run, lambda: _stages(run, name, changes, baseline))


def _stages(
    run: RunDirectory, name: str, changes: dict[str, Any], baseline: bool
) -> Iterator[Event]:
    began = time.perf_counter()
    yield StageStarted("drop", f"taking {name} out")
    run.manifest()
    with owned(run, "drop-class") as lease:
        manifest = run.manifest()
        # Where an earlier call was killed after its decision, all but the report is done by now.
        if manifest.get("dropping") != name:
            for note in _decide(run, manifest, name, changes):
                yield Note(note)
            lease.check()
            finish_change(run)
        yield StageFinished("drop", f"{name} is out", time.perf_counter() - began)
        if "test" in run.scored(system_of(manifest)):
            yield from _report(run, lease, baseline)
        lease.check()
        values = {key: value for key, value in run.manifest().items() if key != "dropping"}
        run.write_manifest({**values, "status": "finished"})


def _decide(
    run: RunDirectory, manifest: dict[str, Any], name: str, changes: dict[str, Any]
) -> list[str]:
    """Decide on the change; give what goes for good, in words."""
    require_class_models(run, manifest, "taken out")
    before = run.dataset()
    added = [entry["name"] for entry in before.source.get("added", ())]
    # One whose adding was killed may go: that takes it back.
    if manifest.get("status") != "finished" and name not in added[-1:]:
        raise StoreError.of(
            "the run is not finished",
            place=run.manifest_path,
            found=f"status {manifest.get('status')}",
            expected="status finished",
            remedy="run the command that it was stopped in again, then take the class out",
        )
    config = changed_settings(run, manifest, changes)
    with tempfile.TemporaryDirectory(prefix="gencls-") as folder:
        change = shrunk(before, name, Path(folder))
        after = change.dataset
        posterior = config.posterior
        if posterior.costs is not None:
            kept = costs_among(posterior.costs, after.classes)
            posterior = posterior.model_copy(update={"costs": kept})
        check_posterior(posterior, after.classes, after.prior_counts)
        publish_files(run, change)
    gone = set(before.warnings) - set(after.warnings)
    settings = {**manifest["config"], "posterior": posterior.model_dump(mode="json")}
    changed = {
        **manifest,
        "config": settings,
        "classes": list(after.classes),
        "systems": [system_of(manifest)],
        "dataset": {"name": after.name, "fingerprint": after.fingerprint},
        "notes": [note for note in manifest.get("notes", []) if note not in gone],
        "status": "running",
        "dropping": name,
    }
    figures = {known: kept for known, kept in manifest.get("added", {}).items() if known != name}
    changed.pop("added", None)
    if figures:
        changed["added"] = figures
    if made := changed.get("selection"):
        known = {"parts": 0, "cut_into": 0, "part_models": {}, "fine_tune": False}
        changed["selection"] = {**made, **known}
    try:
        Drop(run, name, before, after, changed).decide()
    except GenclsError:
        remove_tree(run.path / CHANGE)
        tidy_dataset(run)
        raise
    main = system_of(manifest)
    there = {system for store in (run.scores, run.validation_scores) for system in store.systems()}
    notes = [
        f"{system_title(system)} knows {name}: its scores are left out"
        for system in sorted(there - {main, BACKGROUND, *LIGHT})
    ]
    if config.posterior.costs is not None and posterior.costs is None:
        notes.append(f"the costs of decisions go with {name}: none above 0 is left of them")
    if BACKGROUND in there and name not in added[-1:]:
        notes.append(f"what the untrained base said beside texts of {name} is left out")
    return notes


def _report(run: RunDirectory, lease: Lease, baseline: bool) -> Iterator[Event]:
    """With `baseline`, let bags of words learn the classes that are left, and report."""
    manifest, dataset = run.manifest(), run.dataset()
    config = RunConfig.model_validate(manifest["config"])
    selection = manifest.get("selection") or {}
    beside = companions_of(
        config.posterior.ensemble,
        baseline=config.baseline,
        fine_tune=bool(selection.get("fine_tune")),
        held_out=dataset.held_out,
        texts=dataset.split("train").rows,
    )
    if baseline:
        yield from light_stage(config, dataset, run, beside, lease)
    else:
        yield Note("bags of words are left out: the command that made the run learns them anew")
    lease.check()
    yield from report_stage(config, run, None)

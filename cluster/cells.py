"""The runs of a comparison: a run directory for each number of train texts and each seed.

A cell is a plain run: `gencls report`, `query` and `verify` read it. What it has committed stays,
so that the same comparison again, or one with more systems, sizes or seeds, makes what is missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.connection import Workplace
from cluster.job_context import refuse_temporary
from cluster.light_systems import LightWork
from cluster.preparation import Preparation, check_base, prepare_run
from cluster.scorer import score_stage
from cluster.shared_path import require_shared
from cluster.stages import base_stage, train_stage
from cluster.turn import has_work
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset, ingest, open_source
from gencls_core.errors import IncompleteError, StoreError
from gencls_core.events import Event, EventLog, StageStarted
from gencls_core.ownership import Lease, OwnershipError
from gencls_core.prompts import check_prompts
from gencls_core.run import RunDirectory, RunStatus
from gencls_core.run_folder import incoming_folder, owned
from gencls_core.run_manifest import cell_manifest, previous_manifest
from gencls_core.systems import System
from gencls_core.systems.commit import missing_targets, targets_of
from gencls_core.systems.registry import MODEL_SYSTEMS, UNTRAINED, light_system

__all__ = ["Cell", "OpenCell", "cells_of", "check_systems"]


@dataclass(frozen=True)
class Cell:
    """A run directory, its settings, and the systems that it is to have."""

    name: str
    config: RunConfig
    systems: tuple[str, ...]
    found: bool = False
    """Whether it is a run that was there before the comparison: its data is not read anew."""
    prompted: bool = False
    """Whether a system of the comparison, here or in another cell, asks with prompts."""

    @property
    def run(self) -> RunDirectory:
        """Its directory."""
        return RunDirectory(self.config.output_dir)

    def open(self, stack: ExitStack, place: Workplace) -> OpenCell:
        """Prepare data and models, and find out what is missing.

        The run directory is owned until `stack` ends, but for a found one that lacks nothing. New
        data enters it only when all that can be checked has been.

        Raises:
            OwnershipError: when somebody else works there.
            DataError: when the data cannot be used.
        """
        run = self.run
        refuse_temporary(run.path)
        if isinstance(run.path, Path):
            require_shared(run.path, place.budget.nodes)
        if self.found:
            opened = self._prepared(run.dataset(), place, self._unscored())
            if not opened.lacking:
                return opened
            return replace(opened, lease=stack.enter_context(owned(run, "compare")))
        lease = stack.enter_context(owned(run, "compare"))
        with incoming_folder(run) as incoming:
            dataset = ingest(self.config.data, incoming, reuse=run.dataset_path)
            if dataset.path == run.dataset_path:
                return replace(self._prepared(dataset, place, self.systems), lease=lease)
            self._prepared(dataset, place, self.systems)
            run.adopt_dataset(incoming)
        dataset = replace(dataset, path=run.dataset_path)
        return replace(self._prepared(dataset, place, self.systems), lease=lease)

    def _unscored(self) -> list[str]:
        """Give the systems that a found run is to get.

        What it has scored with models it was made for, by its own settings, wherever that was.
        """
        run = self.run
        rows = run.dataset().split("test").rows * len(run.manifest()["classes"])
        return [
            name
            for name in self.systems
            if name not in MODEL_SYSTEMS
            or sum(record.rows for record in run.scores.records(name)) != rows
        ]

    def _prepared(self, dataset: Dataset, place: Workplace, systems: Sequence[str]) -> OpenCell:
        config, run = self.config, self.run
        models = [MODEL_SYSTEMS[name] for name in systems if name in MODEL_SYSTEMS]
        if self.prompted:
            check_prompts(config.systems, dataset.classes)
        preparations = tuple(
            prepare_run(config, dataset, run, system=system, budget=place.budget)
            for system in models
        )
        light = (
            light_system(name, config.data.seed_of_sample, config.systems)
            for name in systems
            if name not in MODEL_SYSTEMS
        )
        targets = targets_of(run, dataset)
        return OpenCell(
            cell=self,
            dataset=dataset,
            lease=None,
            preparations=preparations,
            missing=tuple(found for found in preparations if has_work(found, score=True)),
            light=tuple(s for s in light if missing_targets(s, dataset, targets)),
        )


@dataclass(frozen=True)
class OpenCell:
    """A cell, and what it lacks."""

    cell: Cell
    dataset: Dataset
    lease: Lease | None
    """None where nothing is to be written."""
    preparations: tuple[Preparation, ...]
    """One for each system that is made of language models."""
    missing: tuple[Preparation, ...]
    """Those that have something to train or to score."""
    light: tuple[System, ...]
    """Light systems that are not committed."""

    @property
    def lacking(self) -> int:
        """How many systems are to be trained or scored."""
        return len(self.missing) + len(self.light)

    @property
    def owned(self) -> Lease:
        """The right to write."""
        assert self.lease is not None, "a cell that lacks something is owned"
        return self.lease

    def light_work(self) -> list[LightWork]:
        """Give the light systems that are not committed, as work."""
        return [
            LightWork(self.cell.run, system, self.owned, f"{self.cell.name}: {system.name}")
            for system in self.light
        ]

    def write_manifest(self, status: RunStatus, seconds: float = 0.0) -> None:
        """Say in `run.json` what the cell is and how it stands; of a found run, which says so
        already, how the systems that were added to it were made.

        Each system keeps the settings that its scores were made with: an earlier command may have
        made some of them, with others.
        """
        run = self.cell.run
        previous = previous_manifest(run)
        manifest = cell_manifest(
            self.cell.config, self.dataset, self.preparations, self.cell.systems, previous
        )
        lacking = {found.system.name for found in self.missing} | {s.name for s in self.light}
        made = [n for n in self.cell.systems if status == "finished" or n not in lacking]
        if self.cell.found:
            made = [name for name in made if name in lacking]
        as_made = {
            "settings": dict.fromkeys(made, manifest["config"]),
            "training": {n: how for n, how in manifest["training"].items() if n in made},
        }
        kept = {key: {**previous.get(key, {}), **values} for key, values in as_made.items()}
        if self.cell.found:
            if made:
                run.write_manifest({**previous, **kept})
            return
        manifest |= kept
        spent = (previous.get("seconds") or 0.0) + seconds
        run.write_manifest({**manifest, "status": status, "seconds": round(spent, 2)})

    def complete(self, place: Workplace, count: str) -> Iterator[Event]:
        """Train and score what is missing of the systems that are made of language models.

        Args:
            place: where.
            count: which of how many runs this is, for whoever watches.
        """
        began = time.perf_counter()
        status: RunStatus | None = "stopped"
        self.write_manifest("running")
        try:
            with EventLog(self.cell.run.events_path) as log:
                for preparation in self.missing:
                    what = f"{self.cell.name}: {preparation.system.name}"
                    yield StageStarted("system", f"{what} ({count})")
                    for event in self._system(preparation, place):
                        log.append(event)
                        yield event
            status = "finished"
        except IncompleteError:
            status = "incomplete"
            raise
        except OwnershipError:
            status = None  # the manifest is the new owner's
            raise
        except Exception:
            status = "failed"
            raise
        finally:
            if status is not None:
                # A full disk must not hide what filled it.
                with contextlib.suppress(StoreError):
                    self.write_manifest(status, time.perf_counter() - began)

    def _system(self, preparation: Preparation, place: Workplace) -> Iterator[Event]:
        preparation = yield from base_stage(preparation, place)
        yield from train_stage(preparation, place, self.owned)
        yield from score_stage(preparation, place, self.owned)


def cells_of(
    config: RunConfig,
    systems: Sequence[str],
    sizes: Sequence[int | None],
    seeds: Sequence[int],
) -> list[Cell]:
    """Lay out the runs of a comparison below the output folder of `config`.

    What learns nothing from the train texts is in the run with the most of them and the first seed
    alone: elsewhere it would say the same.

    Args:
        config: settings of every run.
        systems: names of the systems.
        sizes: numbers of train texts per class; None for all.
        seeds: of the sample of train texts, of the held-out part of it, and of the training.
    """
    ordered = sorted(sizes, key=lambda size: (size is None, size or 0))
    cells = []
    for size in ordered:
        for seed in seeds:
            alone = size == ordered[-1] and seed == seeds[0]
            texts = "all" if size is None else str(size)
            values = {
                "output_dir": config.output_dir / "cells" / f"{texts}-texts" / f"seed-{seed}",
                "baseline": False,
                "data": config.data.model_copy(update={"max_samples": size, "sample_seed": seed}),
                "training": config.training.model_copy(update={"seed": seed}),
            }
            cells.append(
                Cell(
                    name=f"{texts} texts per class, seed {seed}",
                    config=config.model_copy(update=values),
                    systems=tuple(name for name in systems if alone or name not in UNTRAINED),
                    prompted=not UNTRAINED.isdisjoint(systems),
                )
            )
    return cells


def check_systems(config: RunConfig, systems: Sequence[str]) -> None:
    """Refuse data or base models that cannot be had, before anything is begun.

    Raises:
        DataError: when the data is not there.
        ModelError: when a base model is not to be had, or is none for its system.
        UsageError: when a system needs a package that is not installed.
    """
    open_source(config.data)
    for name in systems:
        if name in MODEL_SYSTEMS:
            check_base(config, MODEL_SYSTEMS[name])
        elif (refusal := light_system(name, settings=config.systems).why_not()) is not None:
            raise refusal

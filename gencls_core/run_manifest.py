"""What a run says of itself in `run.json`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from gencls_core.config import ResolvedTraining, RunConfig
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import StoreError
from gencls_core.model_source import ResolvedModel
from gencls_core.precision import Precision
from gencls_core.run import CLASS_LM, RunDirectory, environment
from gencls_core.scoring_job import ModelSystem
from gencls_core.selection_report import SelectionReport

__all__ = [
    "Prepared",
    "cell_manifest",
    "manifest_of",
    "previous_manifest",
]


class Prepared(Protocol):
    """A system of models of a run, ready to start."""

    @property
    def config(self) -> RunConfig:
        """What is asked for."""

    @property
    def dataset(self) -> Dataset:
        """The texts."""

    @property
    def system(self) -> ModelSystem:
        """What is trained and scores."""

    @property
    def base(self) -> ResolvedModel:
        """What it starts from."""

    @property
    def precision(self) -> Precision:
        """In which it computes."""

    @property
    def training(self) -> ResolvedTraining:
        """How it is trained, with nothing left open."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""

    @property
    def selection(self) -> SelectionReport | None:
        """How the recipe was chosen, if it was."""


def previous_manifest(run: RunDirectory) -> dict[str, Any]:
    """Give the manifest of an earlier invocation, or nothing."""
    try:
        return run.manifest()
    except StoreError:
        return {}


def manifest_of(
    preparation: Prepared, previous: dict[str, Any], beside: Prepared | None = None
) -> dict[str, Any]:
    """Give the content of `run.json` but for status and time.

    Args:
        preparation: the run.
        previous: what an earlier invocation said.
        beside: a second system that the run trains for an ensemble.
    """
    config, dataset = preparation.config, preparation.dataset
    systems = (preparation,) if beside is None else (preparation, beside)
    names = [found.system.name for found in systems]
    manifest = cell_manifest(config, dataset, systems, names, previous)
    # What other recipes have left in the run was made with settings of its own.
    settings = dict.fromkeys(previous.get("systems", ()), previous.get("config"))
    settings |= previous.get("settings", {})
    own = {found.system.name: found.config.model_dump(mode="json") for found in systems}
    manifest["settings"] = {**settings, **own}
    if added := {n: of for n, of in previous.get("added", {}).items() if n in dataset.classes}:
        manifest["added"] = added
    if preparation.selection is not None:
        manifest["selection"] = preparation.selection.model_dump(mode="json")
    return manifest


def cell_manifest(
    config: RunConfig,
    dataset: Dataset,
    preparations: Sequence[Prepared],
    systems: Sequence[str],
    previous: dict[str, Any],
) -> dict[str, Any]:
    """Give the content of `run.json` but for status and time, for any number of systems.

    `model` is the base of the class models where there are any, else of another system; a run of
    light systems alone has none. `training` says how each system was trained, with nothing left
    open: a later version may have other defaults.

    Args:
        config: settings of the run.
        dataset: its texts.
        preparations: one for each system that is made of language models.
        systems: names of all systems that it is to have.
        previous: what an earlier invocation said.
    """
    manifest = {
        "config": config.model_dump(mode="json"),
        "classes": list(dataset.classes),
        "systems": list(systems),
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "environment": environment(),
        "started": previous.get("started") or datetime.now(UTC).isoformat(),
        "seconds": previous.get("seconds"),
        "notes": list(dataset.warnings),
        "training": previous.get("training", {})
        | {
            found.system.name: found.training.model_dump(mode="json")
            for found in preparations
            if found.system.objective is not None
        },
    }
    if preparations:
        first = min(preparations, key=lambda p: (p.system.name != CLASS_LM, p.system.base))
        notes = dict.fromkeys(note for found in preparations for note in found.notes)
        manifest |= {
            "model": {
                "name": first.base.name,
                "architecture": first.base.config.get("model_type", "gpt2"),
                "parameters": first.base.parameters,
                "digest": first.base.digest,
                "kind": "full" if config.model.lora_rank is None else "lora",
            },
            "precision": first.precision,
            "notes": list(notes),
        }
    return manifest

"""The run directory: where everything of one run lies.

<run>/run.json              what was asked, on which data and machine, and how it stands
<run>/events.jsonl          what happened, one line each, with times
<run>/dataset/              the prepared dataset
<run>/base/                 tokenizer and start weights of a model made from scratch
<run>/models/<class>/       Hugging Face format (or LoRA adapter) + committed.json
<run>/systems/<system>/     the models of other systems, likewise
<run>/scores/               test scores      (see gencls_core.scores)
<run>/validation-scores/    validation scores, for calibration
<run>/candidates/           recipes that were tried, and their validation scores; in a
                            cross-validation those of each part, and part-<k>/, the part itself
<run>/report/               report.json, report.md, report.html, predictions.parquet
<run>/evaluations/<id>/     the same layout without models: other texts scored by this run's models
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gencls_core.config_training import RECIPES, ResolvedTraining
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.errors import DataError, StoreError
from gencls_core.remote_path import Location
from gencls_core.scores import ScoreStore
from gencls_core.storage import (
    class_directory_name,
    publish_directory,
    read_json,
    remove_tree,
    write_json,
)

__all__ = [
    "ALL_CLASSES",
    "CLASS_LM",
    "RUN_FORMAT",
    "RunDirectory",
    "RunStatus",
    "environment",
    "recorded_training",
    "system_of",
]

RUN_FORMAT = 1
CLASS_LM = RECIPES["independent"]
ALL_CLASSES = "all+classes"
"""No class has this folder: a `+` in its name would be encoded."""

RunStatus = Literal["running", "finished", "incomplete", "failed", "stopped"]
"""`incomplete`: everything was tried, and some texts could not be scored."""


def system_of(manifest: Mapping[str, Any]) -> str:
    """Give the system that a run's recipe makes, by its manifest."""
    # A run of before there were recipes says nothing of them.
    recipe = manifest.get("config", {}).get("recipe", {})
    return RECIPES[recipe.get("recipe", "independent")]


def recorded_training(manifest: Mapping[str, Any], system: str) -> ResolvedTraining | None:
    """Give how a system was trained, by a run's manifest; None where it says nothing of it."""
    found = manifest.get("training", {}).get(system)
    return None if found is None else ResolvedTraining(**found)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run, and its manifest `run.json`."""

    path: Location
    bases: Location | None = None
    """Where models made from scratch lie, if that is in another run: one whose recipe is chosen."""

    @property
    def manifest_path(self) -> Location:
        """The run's manifest."""
        return self.path / "run.json"

    @property
    def events_path(self) -> Location:
        """The run's event log."""
        return self.path / "events.jsonl"

    @property
    def dataset_path(self) -> Location:
        """The prepared dataset."""
        return self.path / "dataset"

    @property
    def base_path(self) -> Location:
        """Tokenizer and start weights of a model made from scratch."""
        return self.bases or self.path / "base"

    @property
    def models_path(self) -> Location:
        """The class models."""
        return self.path / "models"

    @property
    def report_path(self) -> Location:
        """The report's folder."""
        return self.path / "report"

    @property
    def predictions_path(self) -> Location:
        """One row per test example, written with the report."""
        return self.report_path / "predictions.parquet"

    @property
    def scores(self) -> ScoreStore:
        """Scores of the test split."""
        return ScoreStore(self.path / "scores")

    @property
    def validation_scores(self) -> ScoreStore:
        """Scores of the validation split."""
        return ScoreStore(self.path / "validation-scores")

    def candidate_path(self, name: str) -> Location:
        """Folder of a training that is tried, or of a part of the train texts."""
        return self.path / "candidates" / name

    def scores_of(self, split: SplitName) -> ScoreStore:
        """Scores of the test or the validation split."""
        return self.scores if split == "test" else self.validation_scores

    def models_of(self, system: str) -> Location:
        """The folder of a system's models; the class models lie in `models/`."""
        return self.models_path if system == CLASS_LM else self.path / "systems" / system

    def model_path(self, class_name: str, system: str = CLASS_LM) -> Location:
        """The folder of the model of one class; without a name, of the one for all classes."""
        name = class_directory_name(class_name) if class_name else ALL_CLASSES
        return self.models_of(system) / name

    def scored(self, system: str) -> tuple[SplitName, ...]:
        """Give the splits of which a system has scored texts, be it in part."""
        splits: tuple[SplitName, ...] = ("validation", "test")
        return tuple(split for split in splits if self.scores_of(split).records(system))

    def adopt_dataset(self, incoming: Path) -> None:
        """Put a newly prepared dataset in the place of the run's own.

        What was made from the old one goes first: scores and texts must never be mixed.
        """
        if self.dataset_path.exists():
            self.drop_report()
            for name in ("scores", "validation-scores", "evaluations"):
                remove_tree(self.path / name)
            if not self._learns_from_the_same(incoming):
                remove_tree(self.path / "candidates")
            remove_tree(self.dataset_path)
        with publish_directory(self.dataset_path, "dataset.json") as folder:
            for file in incoming.iterdir():
                shutil.move(file, folder / file.name)

    def _learns_from_the_same(self, incoming: Path) -> bool:
        """Say whether another dataset has the same train and validation texts."""
        try:
            found = [Dataset.open(path).splits for path in (self.dataset_path, incoming)]
        except (DataError, ValueError, KeyError, TypeError):
            return False
        mine, theirs = (
            {name: info.fingerprint for name, info in splits.items() if name != "test"}
            for splits in found
        )
        return mine == theirs

    def drop_report(self) -> None:
        """Remove report and predictions: what they rest on is about to change."""
        remove_tree(self.report_path)

    def dataset(self) -> Dataset:
        """Open the run's dataset; raises DataError where it has none."""
        return Dataset.open(self.dataset_path)

    def evaluation(self, fingerprint: str) -> RunDirectory:
        """The directory in which other texts are scored by this run's models."""
        return RunDirectory(self.path / "evaluations" / fingerprint[:16])

    @property
    def system(self) -> str:
        """Name of the system that the run's recipe makes, and its report is of.

        Raises:
            StoreError: where there is no manifest.
        """
        return system_of(self.manifest())

    def manifest(self) -> dict[str, Any]:
        """Read `run.json`.

        Raises:
            StoreError: when the folder is not a run directory of this format.
        """
        try:
            values: dict[str, Any] = read_json(self.manifest_path)
        except FileNotFoundError:
            raise StoreError.of(
                "not a run directory",
                place=self.path,
                found="no run.json",
                remedy="give the --output-dir of a `gencls run` or `gencls train`",
            ) from None
        except ValueError as error:
            raise StoreError.of(
                "broken run manifest",
                place=self.manifest_path,
                found=str(error),
                remedy="run the same command again: it is written anew",
            ) from None
        if values.get("format") != RUN_FORMAT:
            raise StoreError.of(
                "run directory of another format",
                place=self.manifest_path,
                found=repr(values.get("format")),
                expected=str(RUN_FORMAT),
            )
        return values

    def write_manifest(self, values: dict[str, Any]) -> None:
        """Publish `run.json`; `format` and `updated` are added."""
        write_json(
            self.manifest_path,
            {"format": RUN_FORMAT, **values, "updated": datetime.now(UTC).isoformat()},
        )


def environment() -> dict[str, Any]:
    """Say on what the run was made: versions, machine, git commit of the working folder."""
    names = ("gencls", "torch", "transformers", "ray", "pyarrow", "peft", "tokenizers")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "host": platform.node(),
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()

"""Turn any source into a prepared dataset, in two streaming passes.

    open_source ─► survey (pass 1: checks, hashes) ─► plan ─► write (pass 2) ─► publish

Only numbers are kept of a text: 20 bytes a row for its class and hash, 16 more for a user's id.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gencls_core.config import DataConfig
from gencls_core.datasets.dataset import DATASET_FORMAT, Dataset, SplitName
from gencls_core.datasets.open_source import open_source
from gencls_core.datasets.plan import FINAL_SPLITS, make_plan
from gencls_core.datasets.source import Source
from gencls_core.datasets.writing import write_splits
from gencls_core.errors import DataError, UsageError
from gencls_core.remote_path import Location
from gencls_core.storage import digest_of, publish_directory, write_json

__all__ = ["ingest"]

_PLAN_OPTIONS = {
    "classes",
    "validation_fraction",
    "test_fraction",
    "split_seed",
    "sample_seed",
    "max_samples",
    "max_test_samples",
    "drop_leaks",
}


def ingest(
    config: DataConfig,
    destination: Path,
    *,
    splits: tuple[SplitName, ...] | None = None,
    labelled: bool = True,
    reuse: Location | None = None,
    source: Source | None = None,
) -> Dataset:
    """Prepare the data that `config` names in the folder `destination`.

    A dataset already prepared there from the same bytes and options is returned as it is.

    Args:
        config: the source, its columns, and how it is split.
        destination: a folder that is new, empty, or a prepared dataset.
        splits: write only these; `("test",)` reads no train texts. Default: all.
        reuse: a folder that is returned instead, untouched, if it holds this very dataset.
        labelled: False prepares texts to classify: no labels, all texts in the test split.
        source: one that is open already; `config` then only says how it is split.

    Raises:
        UsageError: when options contradict each other or the destination holds something else.
        DataError: when the data cannot be read or used; the destination is then untouched.
    """
    wanted = splits or FINAL_SPLITS
    if source is None:
        source = open_source(config, labelled=labelled)
    digest = digest_of(
        {
            "format": DATASET_FORMAT,
            "source": source.digest(),
            "name": source.name,
            "options": config.model_dump(mode="json", include=_PLAN_OPTIONS),
            "splits": sorted(wanted),
            "labelled": labelled,
        }
    )
    ready = _already_prepared(reuse or destination, digest)
    if ready is not None:
        return ready
    plan = make_plan(source, config, test_only=set(wanted) == {"test"}, labelled=labelled)
    with publish_directory(destination, "dataset.json") as folder:
        infos = write_splits(source, plan, folder, wanted, labelled=labelled)
        dataset = Dataset(
            path=folder,
            name=source.name,
            classes=plan.classes,
            splits=infos,
            source={"description": source.description, "digest": digest},
            prior_counts=plan.prior_counts,
            warnings=(*source.warnings, *plan.warnings),
        )
        write_json(folder / "dataset.json", dataset.to_json())
    return replace(dataset, path=destination)


def _already_prepared(destination: Location, digest: str) -> Dataset | None:
    """Open the destination if it holds this very dataset, whole."""
    if not destination.exists():
        return None
    if not destination.is_dir() or (
        any(destination.iterdir()) and not (destination / "dataset.json").is_file()
    ):
        raise UsageError.of(
            "the destination holds something that is not a prepared dataset",
            place=destination,
            expected="a new or empty folder",
            remedy="choose another folder: this one would be replaced",
        )
    try:
        dataset = Dataset.open(destination)
    except (DataError, ValueError, KeyError, TypeError):
        return None  # empty, of another format or damaged: it is prepared again
    return dataset if dataset.is_whole and dataset.source.get("digest") == digest else None

"""A class that goes: its rows leave the dataset; files without any of them stay as they are."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from gencls_core.datasets.dataset import Dataset, Part, SplitInfo, SplitName
from gencls_core.datasets.growth import ChangedDataset
from gencls_core.datasets.writing import SplitWriter, row_frame
from gencls_core.errors import UsageError

__all__ = ["shrunk"]

_COLUMNS = ["example_id", "text", "label"]


def shrunk(dataset: Dataset, name: str, folder: Path) -> ChangedDataset:
    """Give the dataset without a class. One that had come later leaves no trace in it.

    Args:
        dataset: the texts that are there; nothing of it is changed.
        name: the class.
        folder: an empty folder for files that must be written anew.

    Raises:
        UsageError: when there is no such class, or one class or no test text would be left.
    """
    if name not in dataset.classes:
        raise UsageError.of(
            "the run has no such class",
            place=dataset.path,
            found=repr(name),
            expected=", ".join(map(repr, dataset.classes[:20])),
        )
    if len(dataset.classes) <= 2:
        raise UsageError.of(
            "a run needs two classes",
            place=dataset.path,
            found=f"{len(dataset.classes)}, {name!r} among them",
            expected="at least three, of which one may go",
            remedy="add a class first with `gencls add-class`",
        )
    classes = tuple(known for known in dataset.classes if known != name)
    splits: dict[str, SplitInfo] = {}
    files: dict[str, Path] = {}
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    for split in order:
        if split in dataset.splits:
            info = _without(dataset, split, name, classes, folder, files)
            if info.rows:
                splits[split] = info
    if "test" in dataset.splits and "test" not in splits:
        raise UsageError.of(
            "no test text would be left",
            place=dataset.path,
            found=f"test texts of {name!r} alone",
            remedy="keep the class, or run anew with test texts of the others",
        )
    source, gone = _source(dataset, name, splits)
    return ChangedDataset(
        replace(
            dataset,
            classes=classes,
            splits=splits,
            source=source,
            prior_counts={k: n for k, n in dataset.prior_counts.items() if k != name},
            warnings=tuple(warning for warning in dataset.warnings if warning not in gone),
        ),
        files,
    )


def _without(
    dataset: Dataset,
    split: SplitName,
    name: str,
    classes: tuple[str, ...],
    folder: Path,
    files: dict[str, Path],
) -> SplitInfo:
    """Describe a split without a class; files that are written for it are put into `files`."""
    info, digest, longest = dataset.split(split), hashlib.sha256(), 0
    parts: list[Part] = []
    first = 0
    for number, part in enumerate(dataset.parts(split)):
        writer = SplitWriter(folder / f"{split}-{number}.parquet", classes)
        with writer:
            for start in range(first, first + part.rows, _ROWS):
                stop = min(start + _ROWS, first + part.rows)
                table = dataset.read(split, start, stop)
                columns = (table.column(column).to_pylist() for column in _COLUMNS)
                for example_id, text, label in zip(*columns, strict=True):
                    if label != name:
                        writer.add(example_id, text, label)
                        digest.update(row_frame(example_id, text, label))
        left = writer.info()
        first += part.rows
        longest = max(longest, left.longest_text_bytes)
        if left.rows == part.rows:
            parts.append(part)
        elif left.rows:
            # Named by its content: a file that is in use is never written over.
            file = f"{split}-{left.fingerprint[:16]}.parquet"
            files[file] = folder / f"{split}-{number}.parquet"
            parts.append(Part(file, left.rows, left.fingerprint))
    as_made = [part.file for part in parts] == [f"{split}.parquet"]
    return SplitInfo(
        rows=sum(part.rows for part in parts),
        fingerprint=digest.hexdigest(),
        class_counts={k: n for k, n in info.class_counts.items() if k != name},
        class_fingerprints={k: f for k, f in info.class_fingerprints.items() if k != name},
        longest_text_bytes=longest,
        parts=() if as_made else tuple(parts),
    )


_ROWS = 8192
"""Read at once."""


def _source(
    dataset: Dataset, name: str, splits: dict[str, SplitInfo]
) -> tuple[dict[str, Any], list[str]]:
    """Say where the texts came from, and which warnings were of the class alone."""
    source = dict(dataset.source)
    base_texts = source.pop("base_texts", None) or dataset.split("train").fingerprint
    added = source.pop("added", [])
    gone = [entry for entry in added if entry["name"] == name]
    if left := [entry for entry in added if entry["name"] != name]:
        source["added"] = left
    if not gone:
        source["dropped"] = [*source.get("dropped", ()), name]
    if splits["train"].fingerprint != base_texts:
        source["base_texts"] = base_texts
    return source, [warning for entry in gone for warning in entry["warnings"]]

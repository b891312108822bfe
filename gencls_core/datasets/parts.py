"""Parts of a train split for cross-validation: one is held out, the others are learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gencls_core.datasets.dataset import Dataset
from gencls_core.datasets.writing import SplitWriter
from gencls_core.errors import DataError
from gencls_core.remote_path import Location
from gencls_core.storage import digest_of, publish_directory, write_json

__all__ = ["find_part", "part_of_each", "write_part"]

_COLUMNS = ["example_id", "text", "label"]


def part_of_each(labels: list[str | None], parts: int, seed: int) -> NDArray[np.int64]:
    """Give the part of each text, from 0 on; texts of each class are spread evenly.

    Parts differ by one text at most, over all and within a class. Unlabelled texts are in none: -1.
    """
    part_N = np.full(len(labels), -1, dtype=np.int64)
    random = np.random.default_rng(seed)
    begin = 0
    for name in sorted({label for label in labels if label is not None}):
        rows = np.flatnonzero([label == name for label in labels])
        part_N[random.permutation(rows)] = (begin + np.arange(len(rows))) % parts
        begin += len(rows)
    return part_N


def find_part(
    dataset: Dataset, part: int, parts: int, seed: int, folder: Location
) -> Dataset | None:
    """Open what `write_part` has written, if it is there, of the same texts."""
    try:
        there = Dataset.open(folder)
        whole = there.is_whole
    except (DataError, ValueError, KeyError, TypeError):
        return None  # absent, or damaged
    wanted = _digest(dataset, part, parts, seed)
    return there if whole and there.source.get("digest") == wanted else None


def write_part(dataset: Dataset, part: int, parts: int, seed: int, folder: Location) -> Dataset:
    """Write the dataset in which one part of the train texts is the validation split.

    One that is there already, of the same texts, is given as it is. The dataset's own validation
    and test texts are in none.
    """
    if (there := find_part(dataset, part, parts, seed, folder)) is not None:
        return there
    rows = dataset.read("train").to_pylist()
    part_N = part_of_each([row["label"] for row in rows], parts, seed)
    with publish_directory(folder, "dataset.json") as temporary:
        infos = {}
        for split, inside in (("train", part_N != part), ("validation", part_N == part)):
            writer = SplitWriter(temporary / f"{split}.parquet", dataset.classes)
            with writer:
                for row, taken in zip(rows, inside, strict=True):
                    if taken:
                        writer.add(*(row[name] for name in _COLUMNS))
            infos[split] = writer.info()
        found = replace(
            dataset,
            path=temporary,
            splits=infos,
            source={
                "description": f"part {part + 1} of {parts} of {dataset.path.name} held out",
                "digest": _digest(dataset, part, parts, seed),
            },
            warnings=(),
        )
        write_json(temporary / "dataset.json", found.to_json())
    return replace(found, path=folder)


def _digest(dataset: Dataset, part: int, parts: int, seed: int) -> str:
    return digest_of([dataset.split("train").fingerprint, dataset.classes, part, parts, seed])

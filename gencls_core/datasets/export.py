"""Write a prepared dataset in the original experiment's per-class JSON layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.errors import DataError, UsageError
from gencls_core.storage import publish_directory

__all__ = ["export_per_class_json"]

_SPLIT_FILES: tuple[SplitName, ...] = ("validation", "test")


def export_per_class_json(dataset: Dataset, destination: Path) -> None:
    """Write metadata.json, train_class_N.json, test.json and, where there is one, validation.json.

    Texts are streamed, one a line. Ids are not part of the layout, and train texts are grouped by
    class: reading it back gives the same texts, labels and splits in that order.

    Raises:
        UsageError: when the destination holds something else.
        DataError: when the dataset has no labels.
    """
    if destination.exists() and (
        not destination.is_dir()
        or (any(destination.iterdir()) and not (destination / "metadata.json").is_file())
    ):
        raise UsageError.of(
            "the destination holds something that is not an exported dataset",
            place=destination,
            expected="a new or empty folder",
        )
    for name, info in dataset.splits.items():
        if sum(info.class_counts.values()) != info.rows:
            raise DataError.of(
                f"the {name} split has no labels",
                place=dataset.path,
                expected="a label for each text",
            )
    with publish_directory(destination, "metadata.json") as folder:
        splits: dict[str, Any] = {}
        if "train" in dataset.splits:
            counts = dataset.splits["train"].class_counts
            splits["train"] = {name: counts[name] for name in dataset.classes}
            for number, name in enumerate(dataset.classes):
                head = {"class_id": number, "class_name": name, "num_examples": counts[name]}
                texts = (text for text, label in _rows(dataset, "train") if label == name)
                with _open(folder / f"train_class_{number}.json") as stream:
                    _write(stream, head, {"texts": texts})
        for split in _SPLIT_FILES:
            if split in dataset.splits:
                splits[split] = dataset.splits[split].rows
                numbers = {name: number for number, name in enumerate(dataset.classes)}
                with _open(folder / f"{split}.json") as stream:
                    _write(
                        stream,
                        {"num_examples": dataset.splits[split].rows},
                        {
                            "texts": (text for text, _ in _rows(dataset, split)),
                            "labels": (numbers[label] for _, label in _rows(dataset, split)),
                        },
                    )
        metadata = {
            "dataset": dataset.name,
            "num_classes": len(dataset.classes),
            "class_names": list(dataset.classes),
            "splits": splits,
        }
        with _open(folder / "metadata.json") as stream:
            json.dump(metadata, stream, indent=2, ensure_ascii=False)


def _open(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")


def _rows(dataset: Dataset, split: SplitName) -> Iterator[tuple[str, str]]:
    for batch in dataset.iter_batches(split, ["text", "label"]):
        for cells in batch.to_pylist():
            yield cells["text"], cells["label"]


def _write(stream: TextIO, head: dict[str, Any], lists: dict[str, Iterable[object]]) -> None:
    """Write one JSON object, each item of its lists on a line of its own."""
    stream.write("{")
    separator = "\n"
    for key, value in head.items():
        stream.write(f"{separator}{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
        separator = ",\n"
    for key, items in lists.items():
        stream.write(f"{separator}{json.dumps(key)}: [")
        inner = "\n"
        for item in items:
            stream.write(inner + json.dumps(item, ensure_ascii=False))
            inner = ",\n"
        stream.write("\n]")
        separator = ",\n"
    stream.write("\n}\n")

"""Small source files that the dataset tests write."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gencls_core.datasets import Dataset

Rows = list[tuple[str, str]]


def rows_of(count: int, classes: tuple[str, ...] = ("cats", "dogs"), tag: str = "text") -> Rows:
    """Give `count` different texts for each class, classes alternating."""
    return [(f"{tag} {number} about {name}", name) for number in range(count) for name in classes]


def write_csv(path: Path, rows: Iterable[Iterable[object]], header: str = "text,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Iterable[tuple[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_per_class(folder: Path, train: Rows, test: Rows, classes: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)

    def dump(name: str, value: object) -> None:
        (folder / name).write_text(json.dumps(value, indent=0), encoding="utf-8")

    dump(
        "metadata.json",
        {"dataset": "pets", "num_classes": len(classes), "class_names": classes, "splits": {}},
    )
    for number, name in enumerate(classes):
        texts = [text for text, label in train if label == name]
        head = {"class_id": number, "class_name": name, "num_examples": len(texts)}
        dump(f"train_class_{number}.json", {**head, "texts": texts})
    labels = [classes.index(label) for _, label in test]
    texts = [text for text, _ in test]
    dump("test.json", {"num_examples": len(test), "texts": texts, "labels": labels})
    return folder


def contents(dataset: Dataset, split: Any) -> list[tuple[str, str, str | None]]:
    """Give (id, text, label) of every row of a split; empty where there is no such split."""
    if split not in dataset.splits:
        return []
    cells = dataset.read(split).to_pylist()
    return [(row["example_id"], row["text"], row["label"]) for row in cells]


def labelled_texts(dataset: Dataset, *splits: str) -> list[tuple[str, str | None]]:
    """Give the sorted (text, label) of some splits."""
    return sorted((text, label) for split in splits for _, text, label in contents(dataset, split))

"""Prepared datasets with planted problems: what decides is words, word pairs, or order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gencls_core.datasets.dataset import Dataset, SplitInfo, SplitName
from gencls_core.datasets.writing import SplitWriter
from gencls_core.storage import write_json
from gencls_core.systems import System
from gencls_core.systems.commit import score_rows

Rows = Sequence[tuple[str, str | None]]
FloatArray = npt.NDArray[np.float64]

TWO = ("Sports", "01")
FOUR = ("Sports", "Sci/Tech", "01", "a&b <x>")
TOPICS = {
    "Sports": ["match", "team", "goal", "player", "season", "coach"],
    "Sci/Tech": ["chip", "software", "network", "data", "robot", "code"],
    "01": ["market", "stock", "bank", "profit", "trade", "price"],
    "a&b <x>": ["bread", "soup", "oven", "flour", "spice", "plate"],
}
FILLERS = ["the", "a", "of", "in", "it", "that", "film", "was", "one", "here"]


def make_dataset(folder: Path, classes: tuple[str, ...] = TWO, **splits: Rows) -> Dataset:
    """Write a prepared dataset with the given (text, label) rows."""
    folder.mkdir(parents=True)
    infos: dict[str, SplitInfo] = {}
    for name, rows in splits.items():
        with SplitWriter(folder / f"{name}.parquet", classes) as writer:
            for number, (text, label) in enumerate(rows):
                writer.add(f"{name}-{number}", text, label)
        infos[name] = writer.info()
    dataset = Dataset(folder, "made", classes, infos, {"description": "test", "digest": "0"}, {})
    write_json(folder / "dataset.json", dataset.to_json())
    return Dataset.open(folder)


def topic_rows(seed: int, per_class: int, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Make texts whose words decide."""
    draw = random.Random(seed)
    return [
        (" ".join(draw.choices(TOPICS[name], k=4) + draw.choices(FILLERS, k=4)), name)
        for _ in range(per_class)
        for name in classes
    ]


def pair_rows(seed: int, count: int) -> list[tuple[str, str]]:
    """Make texts in twos, one of each class, with the same words: only word pairs decide."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        start, end = (draw.choices(FILLERS, k=draw.randint(2, 4)) for _ in range(2))
        first, second = draw.choice(FILLERS), draw.choice(FILLERS)
        for name, (one, other) in zip(TWO, (("not", "very"), ("very", "not")), strict=True):
            words = [*start, first, one, "good", second, other, "bad", *end]
            rows.append((" ".join(words), name))
    return rows


def order_rows(seed: int, count: int) -> list[tuple[str, str]]:
    """Make texts in twos, one of each class, with the same words and the same word pairs."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        filler = draw.choice(FILLERS)
        before, between, after = ([filler] * draw.randint(1, 4) for _ in range(3))
        for name, (one, other) in zip(TWO, (("first", "second"), ("second", "first")), strict=True):
            rows.append((" ".join([*before, one, *between, other, *after]), name))
    return rows


def scores_of(system: System, dataset: Dataset) -> FloatArray:
    """Give the scores of the test split, [N, C]."""
    tables = score_rows(system, dataset, "test")
    return np.stack([tables[name].column("score").to_numpy() for name in dataset.classes], axis=1)


def digest_on(system: System, dataset: Dataset, split: SplitName = "test") -> str:
    """Name the rows of a split of the dataset that the system learns from."""
    return system.digest(dataset, dataset.split(split))


def accuracy_of(system: System, dataset: Dataset, rows: Rows) -> float:
    best_N = scores_of(system, dataset).argmax(axis=1)
    right = [dataset.classes[best] == label for best, (_, label) in zip(best_N, rows, strict=True)]
    return sum(right) / len(right)
